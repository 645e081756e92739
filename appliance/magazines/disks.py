"""Which disk is which magazine: from an enumeration, the mount table and the enrolments to facts about each disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.config.schema import Enrolment
from appliance.host.api import BlockDevice, Mount
from appliance.magazines.contents import LUKS, describe

# Kernel devices that are no disks a person can plug.
_NOT_DISKS = ("loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd")
MAPPING_PREFIX = "magbay-"


@dataclass(frozen=True)
class Disk:
    """One pluggable disk (or partition with a LUKS container), and what is known of it."""

    device: BlockDevice
    enrolment: Enrolment | None = None
    inner: BlockDevice | None = None
    mount: Mount | None = None
    refusal: str = ""
    foreign: str = ""

    @property
    def inner_matches(self) -> bool:
        """Whether the opened container holds the file system that was enrolled."""
        return bool(self.inner and self.enrolment and self.inner.fs_uuid == self.enrolment.filesystem_uuid)


def is_disk(device: BlockDevice) -> bool:
    """Whether *device* is something a person can plug: a whole disk, or a partition that holds LUKS."""
    if device.name.startswith(_NOT_DISKS):
        return False
    return device.kind == "disk" or device.fs_type == LUKS


def survey(
    devices: Iterable[BlockDevice], mounts: Iterable[Mount], enrolments: Iterable[Enrolment], mount_dir: Path
) -> tuple[Disk, ...]:
    """All disks of *devices*, matched to *enrolments*, in the order of their nodes."""
    everything = tuple(devices)
    table = tuple(mounts)
    ours = {enrolment.luks_uuid: enrolment for enrolment in enrolments}
    containers: dict[str, list[BlockDevice]] = {}
    for device in everything:
        if is_disk(device) and device.fs_type == LUKS and device.fs_uuid in ours:
            containers.setdefault(device.fs_uuid, []).append(device)
    found = []
    for device in sorted(filter(is_disk, everything), key=lambda d: (len(d.name), d.name)):
        enrolment = ours.get(device.fs_uuid) if device.fs_type == LUKS else None
        if enrolment is None:
            reason = _foreign_reason(device, everything, table, ours.values())
            found.append(Disk(device, foreign=reason))
            continue
        inner = _inner(device, enrolment, everything)
        refusal = _refusal(device, inner, containers[device.fs_uuid], everything, enrolment)
        mount = None if refusal else _mount(inner, table, mount_dir / enrolment.filesystem_uuid)
        found.append(Disk(device, enrolment, None if refusal else inner, mount, refusal))
    return tuple(found)


def stands_on(mount: Mount, device: BlockDevice) -> bool:
    """Whether *mount* is of *device*. By number, or by name: btrfs mounts have device numbers of their own."""
    names = {device.node, f"/dev/mapper/{device.mapping}"}
    return mount.number == device.number or mount.source in names


def leftovers(
    devices: Iterable[BlockDevice], mounts: Iterable[Mount], enrolment: Enrolment, mount_dir: Path
) -> tuple[bool, bool]:
    """Whether a mapping and a mount of *enrolment* exist though its disk may be gone."""
    mapping = any(device.mapping == MAPPING_PREFIX + enrolment.luks_uuid for device in devices)
    path = str(mount_dir / enrolment.filesystem_uuid)
    return mapping, any(mount.path == path and mount.fs_type != "autofs" for mount in mounts)


def _inner(device: BlockDevice, enrolment: Enrolment, everything: tuple[BlockDevice, ...]) -> BlockDevice | None:
    for other in everything:
        if other.mapping == MAPPING_PREFIX + enrolment.luks_uuid and device.name in other.below and other.fs_type:
            return other
    return None


def _refusal(
    device: BlockDevice,
    inner: BlockDevice | None,
    copies: list[BlockDevice],
    everything: tuple[BlockDevice, ...],
    enrolment: Enrolment,
) -> str:
    """Two disks with one UUID: the one that is open already stays in use, all others are refused."""
    if len(copies) == 1 or inner is not None:
        return ""
    others = ", ".join(sorted(copy.node for copy in copies if copy.name != device.name))
    return f"carries the same LUKS UUID as {others}: one is a copy of magazine {enrolment.name}"


def _mount(inner: BlockDevice | None, table: tuple[Mount, ...], path: Path) -> Mount | None:
    if inner is None:
        return None
    for mount in table:
        if mount.path == str(path) and mount.fs_type != "autofs" and stands_on(mount, inner):
            return mount
    return None


def _foreign_reason(
    device: BlockDevice, everything: tuple[BlockDevice, ...], table: tuple[Mount, ...], ours: Iterable[Enrolment]
) -> str:
    for mount in table:
        if mount.path == "/" and any(
            stands_on(mount, other) and device.name in (other.name, other.parent) for other in everything
        ):
            return "the system's own disk"
    for enrolment in ours:
        if device.fs_uuid and device.fs_uuid in (enrolment.luks_uuid, enrolment.filesystem_uuid):
            return f"not the LUKS container of magazine {enrolment.name}, though it carries its UUID"
    return describe(device)
