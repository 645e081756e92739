"""May a disk be made a magazine? Why not, and what would be lost.

Two kinds of reason: what stands in the way whatever is asked (in use, the system's own, too small), and what is lost
with the disk, which its owner may agree to by its exact serial number.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.config.schema import Config, Enrolment
from appliance.errors import NotFoundError
from appliance.host.api import BlockDevice, Devices, Mount, Mounts
from appliance.host.commands import attempt, run
from appliance.magazines.attached import enrolments
from appliance.magazines.disks import is_disk, stands_on
from appliance.magazines.health import UNKNOWN, Health, parse
from appliance.magazines.preparations import Preparation

_SWAPS = Path("/proc/swaps")
_SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"
_OCTAL = re.compile(r"\\([0-7]{3})")
# A disk that has one of these is what the machine runs from.
_SYSTEM = frozenset({"/", "/boot", "/boot/efi", "/efi", "/usr", "/var", "/etc"})
_RAID = re.compile(r"raid|ddf|_member$", re.IGNORECASE)


@dataclass(frozen=True)
class Surroundings:
    """A disk and everything that was seen around it at one moment."""

    device: BlockDevice
    everything: tuple[BlockDevice, ...]
    table: tuple[Mount, ...]
    swaps: tuple[str, ...]  # device nodes

    @property
    def stack(self) -> tuple[BlockDevice, ...]:
        """The disk, its partitions, and all mappings and arrays that stand on any of these."""
        names, found = {self.device.name}, [self.device]
        while True:
            more = [
                other
                for other in self.everything
                if other.name not in names and (other.parent in names or names & set(other.below))
            ]
            if not more:
                return tuple(found)
            found += more
            names |= {other.name for other in more}


def look(devices: Devices, mounts: Mounts, node: Path) -> Surroundings:
    """The disk at *node* (or a link to it) and what is around it. Raises `NotFoundError`."""
    everything = devices.enumerate()
    real = node.resolve()
    device = next((item for item in everything if Path(item.node) == real), None)
    if device is None:
        raise NotFoundError(f"{node} is no disk that udev knows", hint="'magbay status' and 'lsblk' list the disks.")
    return Surroundings(device, everything, mounts.table(), _swaps())


def hindrance(around: Surroundings, unfinished: Preparation | None, least: int) -> str:
    """Why the disk cannot be used whatever is asked, in words; empty when it can. At *least* so many bytes are needed.

    What an interrupted preparation of this very disk has left behind stands in nobody's way.
    """
    device = around.device
    if device.kind == "partition":
        return f"it is a partition of /dev/{device.parent}, and a magazine is a whole disk"
    if not is_disk(device):
        return "it is no disk that can be plugged"
    if device.read_only:
        return "it is write-protected"
    if device.size < least:
        return f"it has only {device.size} bytes, {least} are needed"
    own = unfinished.mapping if unfinished else None
    others = tuple(other for other in around.stack if own is None or other.mapping != own)
    used = in_use(others, around)
    if used:
        return used
    return "" if len(others) < len(around.stack) else claimed(device)


def in_use(stack: tuple[BlockDevice, ...], around: Surroundings) -> str:
    """What uses one of *stack*, in words; empty when nothing does."""
    return _mounted(stack, around.table) or _swapping(stack, around.swaps) or _held(stack)


def _mounted(stack: tuple[BlockDevice, ...], table: tuple[Mount, ...]) -> str:
    paths = sorted({mount.path for mount in table for other in stack if stands_on(mount, other)})
    system = next((path for path in paths if path in _SYSTEM), "")
    if system:
        return f"it is the system's own disk: {system} is on it"
    return f"it is mounted at {paths[0]}" if paths else ""


def _swapping(stack: tuple[BlockDevice, ...], swaps: tuple[str, ...]) -> str:
    for other in stack:
        if other.node in swaps or (other.mapping and f"/dev/mapper/{other.mapping}" in swaps):
            return f"it is in use as swap space ({other.node})"
    return ""


def _held(stack: tuple[BlockDevice, ...]) -> str:
    for other in stack:
        if other.below:
            what = f"/dev/mapper/{other.mapping}" if other.mapping else other.node
            return f"something stands on it that is active (LUKS, LVM or RAID): {what}"
    return ""


def claimed(device: BlockDevice) -> str:
    """That *device* is in use, in words: the kernel's own answer. Whoever mounts or stacks on it has claimed it."""
    try:
        if not stat.S_ISBLK(Path(device.node).stat().st_mode):
            return ""
        os.close(os.open(device.node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return "it is in use: the kernel does not give it away"
        return f"it cannot be opened: {error.strerror}"
    return ""


def _swaps() -> tuple[str, ...]:
    """Swap devices of now (proc_swaps(5))."""
    try:
        lines = _SWAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1:]
    except OSError:
        return ()
    paths = (_OCTAL.sub(lambda match: chr(int(match[1], 8)), line.split()[0]) for line in lines if line.split())
    return tuple(os.path.realpath(path) for path in paths)


def enrolled_as(around: Surroundings, config: Config) -> Enrolment | None:
    """The enrolment whose UUIDs the disk or one of its partitions carries."""
    uuids = {other.fs_uuid for other in around.stack if other.fs_uuid and not other.below}
    known = enrolments(config)
    return next((item for item in known if uuids & {item.luks_uuid, item.filesystem_uuid}), None)


def content(around: Surroundings, unfinished: Preparation | None) -> str:
    """What is on the disk and would be lost, in words; empty when it is blank.

    Asks the disk itself, not only udev, and only the disk after an *unfinished* preparation: udev gives up looking at a
    disk that is locked for more than three minutes and goes on telling what was on it before.
    """
    device = around.device
    parts = [other for other in around.everything if other.parent == device.name]
    told = unfinished is None
    if parts or (told and device.has_partitions):
        listed = ", ".join(f"{part.name} ({part.fs_type or 'nothing known'})" for part in parts)
        return f"it has partitions{': ' + listed if listed else ''}"
    ours = {unfinished.luks_uuid} if unfinished else set()
    found = [kind for kind, uuid in _signatures(device.node) if not (kind == "crypto_LUKS" and uuid in ours)]
    if told and device.fs_type:
        found.append(device.fs_type)
    return f"it holds {', '.join(map(_named, dict.fromkeys(found)))}" if found else ""


def _signatures(node: str) -> list[tuple[str, str]]:
    """Kind and UUID of every signature that wipefs(8) finds."""
    columns = ["--noheadings", "--parsable", "--output", "TYPE,UUID"]
    output = run(["wipefs", "--no-act", *columns, node], f"looking at {node}")
    rows = (line.split(",") for line in output.splitlines() if line and not line.startswith("#"))
    return [(row[0].strip(), row[1].strip().lower() if len(row) > 1 else "") for row in rows]


def _named(kind: str) -> str:
    """A signature's kind with the word that people use."""
    if kind == "crypto_LUKS":
        return "crypto_LUKS (a LUKS container)"
    if kind == "LVM2_member":
        return "LVM2_member (a part of an LVM volume group)"
    return f"{kind} (a part of a RAID or a pool)" if _RAID.search(kind) else kind


def health(node: str) -> Health:
    """What the disk tells of itself, asked now; unknown without smartctl or SMART. Raises `MagbayError`."""
    program = shutil.which("smartctl", path=_SEARCH)
    if program is None:
        return UNKNOWN
    words = [program, "--json=c", "--info", "--health", "--attributes", node]
    _, output, _ = attempt(words, f"asking {node} for its health", timeout=60)
    return parse(output) or UNKNOWN


def not_empty(node: Path, places: Iterable[int]) -> bool:
    """Whether something else than zeros (or ones, as flash has it) stands at one of *places* (bytes) of *node*.

    Raises `OSError`.
    """
    with node.open("rb", buffering=0) as disk:
        for place in places:
            found = set(os.pread(disk.fileno(), 4096, place))
            if found and found not in ({0}, {0xFF}):
                return True
    return False
