"""The media reconciler: looks at everything afresh, decides the state of each disk, and asks for one step each.

Nothing here acts on an event. `Media.reconcile` may be called at any time and any number of times; what it has to
remember of a plugged disk (that unlocking was tried, that an eject was asked for) is bound to the disk's plug
sequence number, so a replugged disk starts clean and a restarted agent forgets no eject.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config.schema import Config, Enrolment
from appliance.errors import AwayError, ConfigError, MagbayError, NotFoundError
from appliance.host.api import Host, UnitState, Wake
from appliance.host.files import write_atomic
from appliance.host.names import mount_unit, unlock_unit
from appliance.magazines.attached import enrolments, read_enrolments
from appliance.magazines.disks import Disk, leftovers, survey
from appliance.magazines.health import Health
from appliance.magazines.holders import holders
from appliance.magazines.states import Facts, State, Step, Verdict, next_step, observe

_MOUNT_TRIES = 5
_MOUNT_PAUSE = 0.5  # seconds; udev may still be making the by-uuid link when the container is open
_STUCK_AFTER = 15.0  # seconds that a unit may claim to have opened a container that is not there


@dataclass
class _Memory:
    """What must be remembered of one plugged disk."""

    sequence: int
    attempted: bool = False
    was_mounted: bool = False
    mount_error: str = ""
    eject: bool = False
    stuck_since: float = 0.0
    mounting: asyncio.Task[None] | None = None


@dataclass(frozen=True)
class DiskReport:
    """What is published of one disk or of one absent magazine."""

    node: str
    serial: str
    model: str
    size: int
    state: State
    reason: str
    hint: str
    magazine: str
    luks_uuid: str
    filesystem_uuid: str
    read_only: bool
    sequence: int = 0  # plug number of the disk
    health: Health | None = None
    busy: bool = field(default=False, compare=False)  # more is to come soon: look again in a second

    def document(self) -> dict[str, object]:
        """For JSON."""
        names = ("node", "serial", "model", "size", "reason", "hint", "magazine", "luks_uuid", "filesystem_uuid")
        health = self.health.document() if self.health else None
        facts = {"state": self.state.value, "read_only": self.read_only, "health": health}
        return facts | {name: getattr(self, name) for name in names}


class Media:
    """Reconciles disks. Raises nothing for trouble with a disk: that is a state of the disk."""

    def __init__(self, config: Config, host: Host, wake: Wake) -> None:
        self._config, self._host, self._wake = config, host, wake
        self._memory: dict[str, _Memory] = {}
        self.damaged: tuple[ConfigError, ...] = ()  # what the last reconcile could not read of the enrolments
        self._markers = config.run_dir / "ejected"
        self._markers.mkdir(parents=True, exist_ok=True)

    async def reconcile(self) -> tuple[DiskReport, ...]:
        """Look, decide, ask for one step for each disk; gives what to publish."""
        ours, self.damaged = read_enrolments(self._config)
        devices, mounts = self._host.devices.enumerate(), self._host.mounts.table()
        disks = survey(devices, mounts, ours, self._config.mount_dir)
        reports = [await self._disk(disk) for disk in disks]
        here = {disk.enrolment.luks_uuid for disk in disks if disk.enrolment}
        for enrolment in ours:
            if enrolment.luks_uuid not in here:
                mapping, mounted = leftovers(devices, mounts, enrolment, self._config.mount_dir)
                reports.append(await self._absent(enrolment, mapping, mounted))
        for gone in set(self._memory) - here:
            self._forget(gone)
        return tuple(reports)

    def eject(self, name: str) -> None:
        """Note that magazine *name* is to be ejected. Raises `NotFoundError` or `AwayError`."""
        enrolment = next((item for item in enrolments(self._config) if item.name == name), None)
        if enrolment is None:
            raise NotFoundError(f"no enrolled magazine is called {name}", hint="'magbay magazine list' shows them.")
        memory = self._memory.get(enrolment.luks_uuid)
        if memory is None:
            raise AwayError(f"magazine {name} is not here: nothing to eject")
        memory.eject = True
        write_atomic(self._markers / enrolment.luks_uuid, str(memory.sequence).encode(), durable=False)
        self._wake()

    def retry(self) -> None:
        """Forget failures, so that the next reconcile tries again."""
        for memory in self._memory.values():
            memory.attempted, memory.mount_error = False, ""
        self._wake()

    async def _disk(self, disk: Disk) -> DiskReport:
        enrolment = disk.enrolment
        if enrolment is None or (disk.refusal and not self._ejected(enrolment, disk)):
            facts = Facts(enrolment is not None, refusal=disk.refusal, foreign=disk.foreign)
            return self._report(disk, observe(facts))
        memory = self._remember(enrolment.luks_uuid, disk.device.sequence)
        unit = unlock_unit(enrolment.luks_uuid)
        try:
            unit_state = await self._host.units.state(unit)
            facts = self._facts(disk, memory, unit_state)
            verdict = observe(facts)
            step = next_step(verdict.state, facts)
            if verdict.state is State.UNLOCKING and self._stuck(memory, unit_state):
                step = Step.LOCK
            await self._take(step, enrolment, memory, unit, unit_state)
        except MagbayError as error:
            return self._report(
                disk, Verdict(State.FAILED, error.message, error.hint or "Is polkit running?"), busy=True
            )
        if verdict.state is State.EJECTING and facts.mounted:
            verdict = Verdict(State.EJECTING, holders(disk.mount, self._config.mount_dir / enrolment.filesystem_uuid))
        moving = verdict.state in (State.LOCKED, State.UNLOCKING, State.UNLOCKED, State.EJECTING)
        return self._report(disk, verdict, busy=moving)

    def _ejected(self, enrolment: Enrolment, disk: Disk) -> bool:
        """Whether this very disk was ejected: then a copy that is plugged beside it changes nothing."""
        memory = self._memory.get(enrolment.luks_uuid)
        return memory is not None and memory.sequence == disk.device.sequence and memory.eject

    def _facts(self, disk: Disk, memory: _Memory, unit: UnitState) -> Facts:
        memory.was_mounted = (memory.was_mounted or disk.mount is not None) and disk.inner is not None
        return Facts(
            enrolled=True,
            unit=unit.active,
            unit_result=unit.result,
            unit_status=unit.status,
            attempted=memory.attempted,
            inner=disk.inner is not None,
            inner_matches=disk.inner_matches,
            mounted=disk.mount is not None,
            was_mounted=memory.was_mounted,
            mount_error=memory.mount_error,
            eject=memory.eject,
        )

    def _stuck(self, memory: _Memory, unit: UnitState) -> bool:
        """A unit that stays active without its mapping (somebody closed it by hand) is stopped, then started anew."""
        now = self._host.clock.now()
        if unit.active != "active":
            memory.stuck_since = 0.0
        elif not memory.stuck_since:
            memory.stuck_since = now
        elif now - memory.stuck_since > _STUCK_AFTER:
            memory.stuck_since, memory.attempted = 0.0, False
            return True
        return False

    async def _take(self, step: Step, enrolment: Enrolment, memory: _Memory, unit: str, state: UnitState) -> None:
        units, path = self._host.units, self._config.mount_dir / enrolment.filesystem_uuid
        if step is Step.UNLOCK:
            if state.active == "failed":
                await units.reset_failed(unit)
            memory.attempted = True
            await units.start_unit(unit)
        elif step is Step.MOUNT and memory.mounting is None:
            memory.mounting = asyncio.create_task(self._mount(memory, path))
        elif step is Step.UNMOUNT:
            await units.stop_unit(mount_unit(path))
        elif step is Step.LOCK:
            await units.stop_unit(unit)

    async def _mount(self, memory: _Memory, path: Path) -> None:
        error = ""
        for _ in range(_MOUNT_TRIES):
            try:
                await self._host.mounts.trigger(path)
                error = ""
                break
            except OSError as trouble:
                error = trouble.strerror or str(trouble)
                await asyncio.sleep(_MOUNT_PAUSE)
        memory.mount_error, memory.mounting = error, None
        self._wake()

    async def _absent(self, enrolment: Enrolment, mapping: bool, mounted: bool) -> DiskReport:
        """Clear away what a pulled disk left behind; systemd has begun to by itself (BindsTo of the unlock unit)."""
        unit = unlock_unit(enrolment.luks_uuid)
        with contextlib.suppress(MagbayError):
            if mounted:
                await self._host.units.stop_unit(mount_unit(self._config.mount_dir / enrolment.filesystem_uuid))
            if mapping or mounted:
                await self._host.units.stop_unit(unit)
        reason = "pulled; what it left behind is being cleared away" if mapping or mounted else ""
        return DiskReport(
            node="",
            serial=enrolment.serial,
            model=enrolment.model,
            size=enrolment.size,
            state=State.GONE,
            reason=reason,
            hint="",
            magazine=enrolment.name,
            luks_uuid=enrolment.luks_uuid,
            filesystem_uuid=enrolment.filesystem_uuid,
            read_only=False,
            busy=mapping or mounted,
        )

    def _remember(self, luks_uuid: str, sequence: int) -> _Memory:
        memory = self._memory.get(luks_uuid)
        if memory is None or memory.sequence != sequence:
            self._forget(luks_uuid)
            marker = self._markers / luks_uuid
            ejected = marker.exists() and marker.read_text(encoding="ascii").strip() == str(sequence)
            memory = self._memory[luks_uuid] = _Memory(sequence, eject=ejected)
        return memory

    def _forget(self, luks_uuid: str) -> None:
        memory = self._memory.pop(luks_uuid, None)
        if memory is not None and memory.mounting is not None:
            memory.mounting.cancel()

    def _report(self, disk: Disk, verdict: Verdict, *, busy: bool = False) -> DiskReport:
        device, enrolment = disk.device, disk.enrolment
        return DiskReport(
            node=device.node,
            serial=device.serial,
            model=device.model,
            size=device.size,
            state=verdict.state,
            reason=verdict.reason,
            hint=verdict.hint,
            magazine=enrolment.name if enrolment else "",
            luks_uuid=device.fs_uuid if device.fs_type == "crypto_LUKS" else "",
            filesystem_uuid=enrolment.filesystem_uuid if enrolment and not disk.refusal else "",
            read_only=device.read_only or bool(disk.mount and disk.mount.read_only),
            sequence=device.sequence,
            busy=busy,
        )
