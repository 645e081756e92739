"""The simulated disks and what the kernel, udev, systemd and autofs make of them.

Faithful in what the agents depend on: an event is only a hint and may be dropped or doubled; unlocking takes a
while and may fail with cryptsetup's exit statuses; a pulled disk leaves its mapping and mount behind until the
unlock unit (bound to the device) has cleared them away; a mount that is in use cannot be undone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from appliance.host.api import BlockDevice, Mount, UnitState, Wake
from appliance.host.names import mount_unit, unlock_unit

WRONG_KEY = 2  # exit status of cryptsetup(8)


@dataclass
class SimulatedDisk:
    """A disk on the shelf or in a bay. *content* is the directory that appears when it is mounted."""

    serial: str
    luks_uuid: str = ""
    filesystem_uuid: str = ""
    content: Path | None = None
    key_fits: bool = True
    fs_type: str = ""  # of a disk without LUKS
    fs_uuid: str = ""
    size: int = 1 << 30
    writes: int = 0  # how often the disk was opened for writing or unlocked


@dataclass
class _Bay:
    name: str
    sequence: int
    disk: SimulatedDisk


@dataclass
class World:
    """Devices and mounts of the simulated machine; `units` is its systemd."""

    mount_dir: Path
    enrolled: Callable[[str], bool]  # what the autofs map knows, by file-system UUID
    bays: dict[str, _Bay] = field(default_factory=dict)
    mappings: dict[str, _Bay] = field(default_factory=dict)  # by LUKS UUID
    mounted: dict[str, str] = field(default_factory=dict)  # file-system UUID to LUKS UUID
    held: set[str] = field(default_factory=set)  # file-system UUIDs with an open file
    drop_events: bool = False
    _sequence: int = 0
    _wakes: list[Wake] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.units = SimulatedUnits(self)
        self.mount_dir.mkdir(parents=True, exist_ok=True)

    def start(self, wake: Wake) -> None:
        """Call *wake* at changes (as devices and as mounts)."""
        self._wakes.append(wake)

    def hint(self) -> None:
        """Raise the events of a change, unless they get lost."""
        if not self.drop_events:
            for wake in self._wakes:
                wake()

    # What a person does -------------------------------------------------------------------------------------

    def plug(self, disk: SimulatedDisk) -> str:
        """Push *disk* into a free bay; gives its kernel name."""
        name = next(f"sd{letter}" for letter in _letters() if f"sd{letter}" not in self.bays)
        self._sequence += 1
        self.bays[name] = _Bay(name, self._sequence, disk)
        self.hint()
        return name

    def pull(self, disk: SimulatedDisk) -> None:
        """Pull *disk* out, whatever it is doing. systemd stops the bound unlock unit, which clears up."""
        for name, bay in list(self.bays.items()):
            if bay.disk is disk:
                del self.bays[name]
                self.units.device_gone(disk)
        self.hint()

    # What the kernel shows ----------------------------------------------------------------------------------

    def enumerate(self) -> tuple[BlockDevice, ...]:
        """The devices of now."""
        found = []
        for bay in self.bays.values():
            disk = bay.disk
            kind, uuid = ("crypto_LUKS", disk.luks_uuid) if disk.luks_uuid else (disk.fs_type, disk.fs_uuid)
            device = BlockDevice(
                bay.name,
                f"/dev/{bay.name}",
                "disk",
                size=disk.size,
                sequence=bay.sequence,
                fs_type=kind,
                fs_uuid=uuid,
                serial=disk.serial,
                model="Simulated disk",
            )
            found.append(device)
        for index, (luks_uuid, bay) in enumerate(sorted(self.mappings.items(), key=lambda item: item[1].sequence)):
            below = (bay.name,) if self.bays.get(bay.name) is bay else ()
            found.append(
                BlockDevice(
                    f"dm-{index}",
                    f"/dev/dm-{index}",
                    "disk",
                    number=f"254:{bay.sequence}",
                    below=below,
                    fs_type="ext4",
                    fs_uuid=bay.disk.filesystem_uuid,
                    mapping=f"magbay-{luks_uuid}",
                )
            )
        return tuple(found)

    def table(self) -> tuple[Mount, ...]:
        """The mounts of now."""
        found = []
        for uuid, luks_uuid in self.mounted.items():
            number = f"254:{self.mappings[luks_uuid].sequence}" if luks_uuid in self.mappings else "254:0"
            found.append(Mount(str(self.mount_dir / uuid), f"/dev/mapper/magbay-{luks_uuid}", number, "ext4", False))
        return tuple(found)

    async def trigger(self, path: Path) -> None:
        """autofs: mount what the map knows and what is open."""
        uuid = path.name
        for luks_uuid, bay in self.mappings.items():
            if bay.disk.filesystem_uuid == uuid and self.enrolled(uuid):
                if uuid not in self.mounted:
                    self.mounted[uuid] = luks_uuid
                    if bay.disk.content is not None:
                        (self.mount_dir / uuid).symlink_to(bay.disk.content)
                    self.hint()
                return
        raise FileNotFoundError(2, "No such file or directory", str(path))

    def expire(self) -> None:
        """autofs: unmount what nobody uses."""
        for uuid in list(self.mounted):
            self.unmount(uuid)

    def unmount(self, uuid: str, *, lazily: bool = False) -> bool:
        """Undo a mount; whether it was possible."""
        if uuid in self.held and not lazily:
            return False
        self.mounted.pop(uuid, None)
        (self.mount_dir / uuid).unlink(missing_ok=True)
        self.hint()
        return True

    def close(self, luks_uuid: str) -> None:
        """Clear away a mapping and the mount on it."""
        bay = self.mappings.pop(luks_uuid, None)
        if bay is not None:
            self.unmount(bay.disk.filesystem_uuid, lazily=True)

    def destroy(self) -> None:
        """Remove the mount directory."""
        shutil.rmtree(self.mount_dir, ignore_errors=True)


def _letters() -> list[str]:
    alphabet = "bcdefghijklmnopqrstuvwxyz"
    return [*alphabet, *(first + second for first in alphabet for second in "a" + alphabet)]


class SimulatedUnits:
    """systemd, as far as the unlock and mount units go. A queued job runs when `run_jobs` is called, or at once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._states: dict[str, UnitState] = {}
        self._jobs: list[tuple[str, str]] = []
        self.at_once = True
        self._wake: Wake = lambda: None

    async def start(self, wake: Wake) -> None:
        """Call *wake* when a job ends."""
        self._wake = wake

    async def state(self, unit: str) -> UnitState:
        """State of *unit*."""
        return self._states.get(unit, UnitState())

    async def start_unit(self, unit: str) -> None:
        """Queue a start."""
        self._states[unit] = UnitState("activating")
        self._queue("start", unit)

    async def stop_unit(self, unit: str) -> None:
        """Queue a stop."""
        if unit in self._states:
            self._states[unit] = UnitState("deactivating")
        self._queue("stop", unit)

    async def reset_failed(self, unit: str) -> None:
        """Forget a failure."""
        if self._states.get(unit, UnitState()).active == "failed":
            del self._states[unit]

    def _queue(self, verb: str, unit: str) -> None:
        self._jobs.append((verb, unit))
        if self.at_once:
            self.run_jobs()

    def run_jobs(self) -> None:
        """Run everything queued."""
        jobs, self._jobs = self._jobs, []
        for verb, unit in jobs:
            if verb == "start":
                self._open(unit)
            else:
                self._stop(unit)
            self._wake()

    def device_gone(self, disk: SimulatedDisk) -> None:
        """BindsTo: the unit of a container goes with its device, unless a copy still provides it."""
        unit = unlock_unit(disk.luks_uuid)
        copies = any(bay.disk.luks_uuid == disk.luks_uuid for bay in self._world.bays.values())
        if disk.luks_uuid and not copies and unit in self._states:
            self._states[unit] = UnitState("deactivating")
            self._queue("stop", unit)

    def _open(self, unit: str) -> None:
        world = self._world
        for bay in world.bays.values():
            if bay.disk.luks_uuid and unlock_unit(bay.disk.luks_uuid) == unit:
                bay.disk.writes += 1
                if not bay.disk.key_fits:
                    self._states[unit] = UnitState("failed", "exit-code", WRONG_KEY)
                    return
                world.mappings[bay.disk.luks_uuid] = bay
                self._states[unit] = UnitState("active")
                world.hint()
                return
        self._states[unit] = UnitState("failed", "dependency", 0)

    def _stop(self, unit: str) -> None:
        world = self._world
        for uuid in list(world.mounted):
            if mount_unit(world.mount_dir / uuid) == unit:
                world.unmount(uuid)
                return
        for luks_uuid in list(world.mappings):
            if unlock_unit(luks_uuid) == unit:
                world.close(luks_uuid)
        if self._states.get(unit, UnitState()).active != "failed":
            self._states.pop(unit, None)
