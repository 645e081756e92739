"""The media reconciler: looks at everything afresh, decides the state of each disk, and asks for one step each.

Nothing here acts on an event. `Media.reconcile` may be called at any time and any number of times; what it has to
remember of a plugged disk is its stay (`appliance.magazines.stays`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path

from appliance.config.schema import Config, Enrolment
from appliance.errors import AwayError, ConfigError, MagbayError, NotFoundError
from appliance.host.api import BlockDevice, Host, Mount, UnitState, Wake
from appliance.host.names import check_unit, eject_unit, lists_unit, mount_unit, unlock_unit
from appliance.magazines.attached import enrolments, read_enrolments
from appliance.magazines.disks import Disk, leftovers, survey
from appliance.magazines.enrolment import keep_named
from appliance.magazines.holders import Holder, lock_holders, parse, sentence, with_jobs
from appliance.magazines.reports import DiskReport, report_away, report_of
from appliance.magazines.states import Facts, State, Step, Verdict, next_step, observe, unlock_may_pass
from appliance.magazines.stays import Retry, Stay, Stays, stays_folder

_UNITS = ("magbay-unlock@*", "magbay-check@*", "magbay-eject@*", "magbay-lists@*")
# Markers of the magazines that autofs is to mount for reading only because of their health, below run_dir.
READ_ONLY = "read-only"
# Containers that are opened at the same time: with two dozen the first would be open when the last is, and on a slow
# machine later than their units may take. One that takes long gives its place away.
_AT_ONCE = 4
_PLACE = 10.0  # seconds
_STUCK_AFTER = 15.0  # seconds that a unit may claim to have opened a container that is not there
_ABSENT = UnitState()
# States from which more follows soon, without an event that one could count on.
_MOVING = (State.LOCKED, State.UNLOCKING, State.CHECKING, State.UNLOCKED, State.EJECTING)

Units = Mapping[str, UnitState]


class Media:
    """Reconciles disks. Raises nothing for trouble with a disk: that is a state of the disk."""

    def __init__(self, config: Config, host: Host, wake: Wake, at_once: int = _AT_ONCE) -> None:
        """*at_once*: how many containers are opened at the same time."""
        self.config, self._host, self._wake, self._at_once = config, host, wake, at_once
        self._stays = Stays(stays_folder(config.run_dir))
        self.damaged: tuple[ConfigError, ...] = ()  # what the last reconcile could not read of the enrolments
        self._opening = 0  # containers that are being opened

    async def reconcile(self) -> tuple[DiskReport, ...]:
        """Look, decide, ask for one step for each disk; gives what to publish.

        Raises `MagbayError` when the service manager does not answer.
        """
        # The units first: what they have done by then is seen in the devices and mounts that are looked at after it.
        units = await self._host.units.states(_UNITS)
        ours, self.damaged = read_enrolments(self.config)
        keep_named(self.config, ours)
        devices, mounts = self._host.devices.enumerate(), self._host.mounts.table()
        disks = survey(devices, mounts, ours, self.config.mount_dir)
        here = {disk.enrolment.luks_uuid for disk in disks if disk.enrolment}
        away = [enrolment for enrolment in ours if enrolment.luks_uuid not in here]
        self._stays.forget_others(here)
        now = self._host.clock.now()
        self._opening = sum(
            units.get(unlock_unit(luks), _ABSENT).active == "activating" and 0 <= now - stay.unlocking < _PLACE
            for luks, stay in self._stays.items()
        )
        # Asked for all at once: each step waits for the service manager and for polkit.
        return tuple(
            await asyncio.gather(
                *(self._disk(disk, units) for disk in disks),
                *(self._absent(enrolment, devices, mounts, units) for enrolment in away),
            )
        )

    def eject(self, name: str, *, wanted: bool = True) -> None:
        """Note that magazine *name* is to be ejected, or (*wanted* False) used again. Raises `NotFoundError` or
        `AwayError`."""
        enrolment = next((item for item in enrolments(self.config) if item.name == name), None)
        if enrolment is None:
            raise NotFoundError(f"no enrolled magazine is called {name}", hint="'magbay magazine list' shows them.")
        if self._stays.get(enrolment.luks_uuid) is None:
            raise AwayError(f"magazine {name} is not here")
        self._stays.keep(enrolment.luks_uuid, eject=wanted)
        self._wake()

    def retry(self) -> None:
        """Forget failures, so that the next reconcile tries again."""
        self._stays.retry()
        self._wake()

    async def _disk(self, disk: Disk, units: Units) -> DiskReport:
        enrolment = disk.enrolment
        if enrolment is None or (disk.refusal and not self._ejected(enrolment, disk)):
            facts = Facts(enrolment is not None, refusal=disk.refusal, foreign=disk.foreign)
            return report_of(disk, observe(facts))
        luks = enrolment.luks_uuid
        stay = self._stays.of(luks, disk.device.sequence)
        options, _, checked = self._host.answers.text(f"{luks}.check").strip().partition("\n")
        read_only = _read_only(disk, options, checked, self.config.run_dir / READ_ONLY)
        facts = self._facts(disk, stay, units, read_only, checked=bool(options))
        verdict = observe(facts)
        step = next_step(verdict.state, facts)
        reader = lists_unit(enrolment.name)
        if verdict.state is State.EJECTING and units.get(reader, _ABSENT).active in ("active", "activating"):
            with contextlib.suppress(MagbayError):  # its lists can wait, a person does not
                await self._host.units.stop_unit(reader)
        if verdict.state is State.UNLOCKING and self._stuck(stay, facts.unit):
            step = Step.LOCK
        try:
            await self._take(step, enrolment, stay, facts)
        except MagbayError as error:
            trouble = Verdict(State.FAILED, error.message, error.hint or "Is polkit running?")
            return report_of(disk, trouble, busy=True)
        holders = self._holders(disk) if verdict.state is State.EJECTING else ()
        if holders:
            verdict = Verdict(State.EJECTING, sentence(holders), "It goes on by itself.")
        moving = verdict.state in _MOVING or step is Step.REARM
        known = checked if facts.checked else ""
        return report_of(
            disk, verdict, read_only=bool(read_only), checked=known, holders=holders, busy=moving or step is Step.MOUNT
        )

    def _ejected(self, enrolment: Enrolment, disk: Disk) -> bool:
        """Whether this very disk was ejected: then a copy that is plugged beside it changes nothing."""
        stay = self._stays.get(enrolment.luks_uuid)
        return stay is not None and stay.sequence == disk.device.sequence and stay.eject

    def _facts(self, disk: Disk, stay: Stay, units: Units, read_only: str, *, checked: bool) -> Facts:
        assert disk.enrolment is not None
        luks, now = disk.enrolment.luks_uuid, self._host.clock.now()
        unit, check = units.get(unlock_unit(luks), _ABSENT), units.get(check_unit(luks), _ABSENT)
        eject = units.get(eject_unit(luks), _ABSENT)
        was_mounted = (stay.was_mounted or disk.mount is not None) and disk.inner is not None
        with contextlib.suppress(OSError):
            self._stays.keep(luks, was_mounted=was_mounted)
        if disk.mount is not None:
            stay.mount_error = ""
            stay.mounts.reset()
        _note(stay.unlocks, unit, now)
        _note(stay.checks, check, now)
        if checked:
            stay.checks.reset()
        _note(stay.ejects, eject, now)
        return Facts(
            enrolled=True,
            unit=unit.active,
            unit_result=unit.result,
            unit_status=unit.status,
            attempted=stay.attempted,
            unlock_due=unlock_may_pass(unit.result, unit.status) and stay.unlocks.due(now),
            inner=disk.inner is not None,
            inner_matches=disk.inner_matches,
            checked=checked,
            check=check.active,
            check_result=check.result,
            check_due=stay.checks.due(now),
            mounted=disk.mount is not None,
            was_mounted=was_mounted,
            mount_error=stay.mount_error if stay.mounts.often else "",
            mount_due=stay.mounts.due(now) and stay.mounting is None,
            read_only=read_only,
            eject=stay.eject,
            eject_unit=eject.active,
            eject_due=stay.ejects.due(now),
        )

    def _stuck(self, stay: Stay, active: str) -> bool:
        """A unit that stays active without its mapping (somebody closed it by hand) is stopped, then started anew."""
        now = self._host.clock.now()
        if active != "active":
            stay.stuck_since = 0.0
        elif not stay.stuck_since:
            stay.stuck_since = now
        elif now - stay.stuck_since > _STUCK_AFTER:
            stay.stuck_since, stay.attempted = 0.0, False
            return True
        return False

    async def _take(self, step: Step, enrolment: Enrolment, stay: Stay, facts: Facts) -> None:
        units, luks = self._host.units, enrolment.luks_uuid
        if step is Step.UNLOCK:
            if self._opening >= self._at_once:
                return  # its turn comes with a later look, which the end of another one's brings
            self._opening += 1
            stay.attempted, stay.unlocking = True, self._host.clock.now()
            stay.unlocks.begun()
            await units.start_unit(unlock_unit(luks))
        elif step is Step.CHECK:
            stay.checks.begun()
            await units.start_unit(check_unit(luks))
        elif step is Step.MOUNT:
            stay.mounting = asyncio.create_task(self._mount(stay, enrolment))
        elif step is Step.EJECT:
            stay.ejects.begun()
            await units.start_unit(eject_unit(luks))
        elif step is Step.REARM:
            await units.stop_unit(eject_unit(luks))
        elif step is Step.LOCK:
            await units.stop_unit(unlock_unit(luks))

    async def _mount(self, stay: Stay, enrolment: Enrolment) -> None:
        try:
            await self._host.mounts.trigger(self.config.mount_dir / enrolment.filesystem_uuid)
            stay.mount_error = ""
            stay.mounts.reset()
        except OSError as trouble:
            # At first udev may still be making the link to the opened container, which autofs mounts.
            stay.mount_error = trouble.strerror or str(trouble)
            stay.mounts.failed(self._host.clock.now())
        stay.mounting = None
        self._wake()

    def _holders(self, disk: Disk) -> tuple[Holder, ...]:
        assert disk.enrolment is not None
        found = parse(self._host.answers.text(f"{disk.enrolment.luks_uuid}.holders"))
        if not found and disk.mount is not None:
            found = lock_holders(disk.mount)
        return with_jobs(found, self.config.run_dir)

    async def _absent(
        self, enrolment: Enrolment, devices: tuple[BlockDevice, ...], mounts: tuple[Mount, ...], units: Units
    ) -> DiskReport:
        """Clear away what a pulled disk left behind; systemd has begun to by itself (BindsTo of the unlock unit)."""
        luks, mount_dir = enrolment.luks_uuid, self.config.mount_dir
        mapping, mounted = leftovers(devices, mounts, enrolment, mount_dir)
        unlock, eject = units.get(unlock_unit(luks), _ABSENT), units.get(eject_unit(luks), _ABSENT)
        with contextlib.suppress(MagbayError):
            if mounted and unlock.active != "deactivating":  # else that unit is just unmounting it
                await self._host.units.stop_unit(mount_unit(mount_dir / enrolment.filesystem_uuid))
            if (mapping or mounted) and unlock.active in ("active", "activating"):
                await self._host.units.stop_unit(unlock_unit(luks))
            elif eject.active == "active":
                await self._host.units.stop_unit(eject_unit(luks))
            elif mapping and unlock.active != "deactivating" and eject.active in ("inactive", "failed"):
                await self._host.units.start_unit(eject_unit(luks))
        return report_away(enrolment, leftovers=mapping or mounted)


def _note(retry: Retry, unit: UnitState, now: float) -> None:
    """A failure of *unit* counts once for each time it was begun."""
    if unit.active == "active":
        retry.reset()
    elif unit.active == "failed" and retry.open:
        retry.failed(now)


def _read_only(disk: Disk, options: str, checked: str, failing: Path) -> str:
    """Why nothing may be written on the disk; empty when it may. *failing*: the folder with a marker for each that is
    mounted so because of its health."""
    if disk.device.read_only:
        return "the disk is write-protected"
    if options and options.split(",")[0] != "rw":
        return checked
    if (
        disk.mount is not None
        and disk.mount.read_only
        and disk.enrolment is not None
        and not (failing / disk.enrolment.filesystem_uuid).exists()
    ):
        return "the kernel takes no more data for it, as after an error; eject and replug it, then it is checked"
    return ""
