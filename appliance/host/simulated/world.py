"""The simulated disks and what the kernel, udev, systemd and autofs make of them.

Faithful in what the agents depend on: an event is only a hint and may be dropped or doubled; unlocking takes a
while and may fail with cryptsetup's exit statuses; a pulled disk leaves its mapping and mount behind until the
unlock unit (bound to the device) has cleared them away; autofs mounts nothing that was not checked; a mount that is
in use cannot be undone, and the eject unit tries until it can.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.host.api import BlockDevice, Mount, UnitState, Wake
from appliance.host.names import check_unit, eject_unit, mount_unit, unlock_unit

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
    dirty: bool = False  # it was pulled while it was mounted
    damage: str = ""  # what a check finds and cannot repair
    mount_failures: int = 0  # so many tries to mount it will fail
    powered_down: int = 0  # how often


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
    checked: dict[str, str] = field(default_factory=dict)  # LUKS UUID to what the check found, while it may be mounted
    sectors: dict[str, int] = field(default_factory=dict)  # file-system UUID to how many were written
    unlisted: set[str] = field(default_factory=set)  # LUKS UUIDs whose eject has found no checksums of some volumes
    harm: list[str] = field(default_factory=list)  # what must never happen
    drop_events: bool = False
    _sequence: int = 0
    _wakes: list[Wake] = field(default_factory=list)
    _gone: list[Wake] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.units = SimulatedUnits(self)
        self.mount_dir.mkdir(parents=True, exist_ok=True)

    def start(self, wake: Wake, gone: Wake | None = None) -> None:
        """Call *wake* at changes (as devices and as mounts), *gone* when a disk is pulled."""
        self._wakes.append(wake)
        if gone:
            self._gone.append(gone)

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
                disk.dirty = disk.dirty or disk.filesystem_uuid in self.mounted
                self.units.device_gone(disk)
        self.hint()
        if not self.drop_events:
            for gone in self._gone:
                gone()

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
            read_only = self.checked.get(luks_uuid, "rw").startswith("ro")
            path = str(self.mount_dir / uuid)
            found.append(Mount(path, f"/dev/mapper/magbay-{luks_uuid}", number, "ext4", read_only))
        return tuple(found)

    def written(self, mount: Mount) -> int:
        """Sectors that somebody has written."""
        return self.sectors.get(mount.path.rpartition("/")[2], 0)

    def text(self, name: str) -> str:
        """What root's units left: what a check found, who holds a magazine that is to be ejected."""
        luks_uuid, _, what = name.rpartition(".")
        if what == "check":
            return self.checked.get(luks_uuid, "")
        if what == "lists":
            return "older\n" if luks_uuid in self.unlisted else ""
        bay = self.mappings.get(luks_uuid)
        held = bay is not None and bay.disk.filesystem_uuid in self.held
        return f"4711\tsomebody\tless\t{self.mount_dir / bay.disk.filesystem_uuid}/file\n" if bay and held else ""

    async def trigger(self, path: Path) -> None:
        """autofs: mount what the map knows and what is open."""
        uuid = path.name
        for luks_uuid, bay in self.mappings.items():
            if bay.disk.filesystem_uuid == uuid and self.enrolled(uuid) and luks_uuid in self.checked:
                if bay.disk.mount_failures:
                    bay.disk.mount_failures -= 1
                    break
                if uuid not in self.mounted:
                    if bay.disk.dirty:
                        self.harm.append(f"{bay.disk.serial} was mounted unchecked")
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
    """systemd, as far as our units and mount units go. A queued job runs when `run_jobs` is called, or at once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._states: dict[str, UnitState] = {}
        self._jobs: list[tuple[str, str]] = []
        self._ejecting: set[str] = set()  # eject units that wait for somebody to let go
        self.started: list[str] = []  # hooks and the like
        self.at_once = True
        self._wake: Wake = lambda: None

    async def start(self, wake: Wake) -> None:
        """Call *wake* when a job ends."""
        self._wake = wake

    @property
    def busy(self) -> bool:
        """Whether a job is queued."""
        return bool(self._jobs)

    async def states(self, patterns: Sequence[str]) -> dict[str, UnitState]:
        """States of the units that match. The eject script tries again twice a second: now is as good as then."""
        for unit in sorted(self._ejecting):
            self._eject(unit)
        return {
            unit: state
            for unit, state in self._states.items()
            if any(fnmatch.fnmatchcase(unit, pattern) for pattern in patterns)
        }

    async def start_unit(self, unit: str) -> None:
        """Queue a start."""
        if self._states.get(unit, UnitState()).active != "active":
            self._states[unit] = UnitState("activating")
            self._queue("start", unit)

    async def stop_unit(self, unit: str) -> None:
        """Queue a stop."""
        if unit in self._states:
            self._states[unit] = UnitState("deactivating")
        self._queue("stop", unit)

    def _queue(self, verb: str, unit: str) -> None:
        self._jobs = [job for job in self._jobs if job[1] != unit]  # a newer job replaces an older one
        self._jobs.append((verb, unit))
        if self.at_once:
            self.run_jobs()

    def run_jobs(self, most: int | None = None) -> None:
        """Run everything queued, or the first *most*."""
        jobs, self._jobs = self._jobs[:most], self._jobs[len(self._jobs[:most]) :]
        for verb, unit in jobs:
            if verb == "stop":
                self._stop(unit)
            elif unit.startswith("magbay-unlock@"):
                self._open(unit)
            elif unit.startswith("magbay-check@"):
                self._check(unit)
            elif unit.startswith("magbay-eject@"):
                self._eject(unit)
            else:
                self.started.append(unit)
                self._states.pop(unit, None)
            self._wake()

    def device_gone(self, disk: SimulatedDisk) -> None:
        """BindsTo: the unit of a container goes with its device, unless a copy still provides it."""
        unit = unlock_unit(disk.luks_uuid)
        copies = any(bay.disk.luks_uuid == disk.luks_uuid for bay in self._world.bays.values())
        if disk.luks_uuid and not copies and unit in self._states:
            self._states[unit] = UnitState("deactivating")
            self._queue("stop", unit)

    def _bays(self, unit: str, name: Callable[[str], str]) -> list[_Bay]:
        return [b for b in self._world.bays.values() if b.disk.luks_uuid and name(b.disk.luks_uuid) == unit]

    def _open(self, unit: str) -> None:
        world = self._world
        for bay in self._bays(unit, unlock_unit):
            bay.disk.writes += 1
            if not bay.disk.key_fits:
                self._states[unit] = UnitState("failed", "exit-code", WRONG_KEY)
                return
            if world.mappings.get(bay.disk.luks_uuid) not in (None, bay):
                world.close(bay.disk.luks_uuid)  # what a pulled disk left behind
            world.mappings[bay.disk.luks_uuid] = bay
            self._states[unit] = UnitState("active")
            world.hint()
            return
        self._states[unit] = UnitState("failed", "dependency", 0)

    def _check(self, unit: str) -> None:
        world = self._world
        for luks_uuid, bay in world.mappings.items():
            if check_unit(luks_uuid) == unit:
                if bay.disk.filesystem_uuid in world.mounted:
                    world.harm.append(f"{bay.disk.serial} was checked while it was mounted")
                disk = bay.disk
                found = f"ro\n{disk.damage}" if disk.damage else "rw\nclean"
                if disk.dirty and not disk.damage:
                    found = "rw\nits journal was recovered"
                disk.dirty = False
                world.checked[luks_uuid] = found
                self._states.pop(unit, None)
                return
        self._states[unit] = UnitState("failed", "dependency", 0)

    def _eject(self, unit: str) -> None:
        world = self._world
        self._ejecting.discard(unit)
        for luks_uuid, bay in list(world.mappings.items()):
            if eject_unit(luks_uuid) == unit:
                del_checked = world.checked.pop(luks_uuid, "")
                if bay.disk.filesystem_uuid in world.mounted and not world.unmount(bay.disk.filesystem_uuid):
                    world.checked[luks_uuid] = del_checked
                    self._ejecting.add(unit)
                    return
                world.mappings.pop(luks_uuid)
        for bay in self._bays(unit, eject_unit):
            bay.disk.powered_down += 1
        self._states[unit] = UnitState("active")
        world.hint()
        self._wake()

    def _stop(self, unit: str) -> None:
        world = self._world
        self._ejecting.discard(unit)
        for uuid in list(world.mounted):
            if mount_unit(world.mount_dir / uuid) == unit:
                world.unmount(uuid)
                return
        for luks_uuid in list(world.mappings):
            if unlock_unit(luks_uuid) == unit:
                world.close(luks_uuid)
        check = unit.replace("magbay-unlock@", "magbay-check@")  # stopped with it: BindsTo
        if check.startswith("magbay-check@"):
            self._states.pop(check, None)
            world.checked = {luks: found for luks, found in world.checked.items() if check_unit(luks) != check}
        if self._states.get(unit, UnitState()).active != "failed":
            self._states.pop(unit, None)
