"""Making a magazine out of a blank disk: inspect, wipe, LUKS2, file system, owner, enrolment.

Runs as root. The whole disk is locked (flock) meanwhile, so that udev looks at it only when all is done.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import yaml

from appliance.config.schema import Config, Enrolment
from appliance.errors import MagbayError, NotFoundError, PermissionDeniedError
from appliance.host.api import BlockDevice, Devices, Mounts
from appliance.host.commands import run
from appliance.host.files import write_atomic
from appliance.keys.keyfile import ensure
from appliance.magazines.attached import enrolments
from appliance.magazines.disks import is_disk, stands_on
from appliance.magazines.wipe import Wipe, wipe

# A LUKS2 header takes 16 MiB; less than this leaves no room for volumes.
LEAST_BYTES = 64 * 1024 * 1024


class Filesystem(Enum):
    """File systems a magazine can have."""

    EXT4 = "ext4"
    XFS = "xfs"
    BTRFS = "btrfs"


# No space reserved for root and read-only on errors: a magazine holds nothing but volumes.
_MKFS = {
    Filesystem.EXT4: ["mkfs.ext4", "-q", "-F", "-m", "0", "-e", "remount-ro"],
    Filesystem.XFS: ["mkfs.xfs", "-q", "-f"],
    Filesystem.BTRFS: ["mkfs.btrfs", "-q", "-f"],
}
_UUID_OPTION = {Filesystem.EXT4: ["-U"], Filesystem.XFS: ["-m"], Filesystem.BTRFS: ["-U"]}

# A key file of 4096 random bytes needs no slow key derivation: PBKDF2 at its least (trap 8 of the design), else
# every plug would cost seconds and a gigabyte of memory.
_PBKDF = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]

_README = """This disk is the magbay magazine {name}.

It holds backup volumes in the file format of Bacula. Each file without an extension is one volume. To read them
without magbay:  bls -V VOLUME {path}  and  bextract -V VOLUME {path} DIRECTORY  (Debian package bacula-sd).
The disk is a LUKS2 container (UUID {luks}); the file system inside has the UUID {filesystem}.
"""


@dataclass(frozen=True)
class Plan:
    """What will be done to which disk."""

    device: BlockDevice
    name: str
    wipe: Wipe
    filesystem: Filesystem
    luks_uuid: str
    filesystem_uuid: str

    def steps(self, config: Config) -> tuple[str, ...]:
        """The plan in words."""
        wiping = {
            Wipe.RANDOM: f"overwrite all {self.device.size} bytes with random data",
            Wipe.DISCARD: "discard all blocks",
            Wipe.NONE: "leave old contents as they are (they stay readable below the new ones)",
        }[self.wipe]
        return (
            f"use the key file {config.key_file}, made if it does not exist",
            wiping,
            f"make a LUKS2 container {self.luks_uuid}",
            f"make the file system {self.filesystem.value} {self.filesystem_uuid} in it",
            f"give it to {config.prepare.owner}:{config.prepare.group}, write and read a test file",
            f"enrol it as magazine {self.name}",
            f"create {config.prepare.volumes} volumes",
        )


def plan(
    config: Config,
    devices: Devices,
    mounts: Mounts,
    node: Path,
    name: str,
    how: Wipe,
    filesystem: Filesystem,
    serial: str,
) -> Plan:
    """A plan for the disk at *node*, or the reason why not. *serial*: overwrite what is on the disk with this serial.

    Raises `NotFoundError`, `PermissionDeniedError` or `MagbayError` when the disk must not be used.
    """
    if os.geteuid() != 0:
        raise PermissionDeniedError("preparing a disk needs root", hint="Run it with sudo.")
    everything = devices.enumerate()
    real = node.resolve()
    device = next((item for item in everything if Path(item.node) == real), None)
    if device is None:
        raise NotFoundError(f"{node} is no disk that udev knows", hint="'magbay status' lists the disks.")
    used = {enrolment.name for enrolment in enrolments(config)} | {magazine.name for magazine in config.magazines}
    if name in used:
        raise MagbayError(f"a magazine is called {name} already", hint="Choose another name.")
    never = _never(device, everything, mounts, config)
    if never:
        raise MagbayError(f"{node} is not touched: {never}", hint="Take a blank disk.")
    content = _content(device)
    if content and (not serial or serial != device.serial):
        raise MagbayError(
            f"{node} (serial {device.serial or 'unknown'}) is not blank: {content}",
            hint="If all on it may be lost, add --overwrite-serial with exactly its serial number.",
        )
    return Plan(device, name, how, filesystem, str(uuid.uuid4()), str(uuid.uuid4()))


def _never(device: BlockDevice, everything: tuple[BlockDevice, ...], mounts: Mounts, config: Config) -> str:
    """Why *device* must not be used whatever is asked."""
    if not is_disk(device) or device.kind != "disk":
        return "not a whole disk"
    if device.read_only:
        return "it is write-protected"
    if device.size < LEAST_BYTES:
        return f"it has only {device.size} bytes, {LEAST_BYTES} are needed"
    for enrolment in enrolments(config):
        if device.fs_uuid in (enrolment.luks_uuid, enrolment.filesystem_uuid):
            return f"it is magazine {enrolment.name} ('magbay magazine forget' ends that)"
    family = {device.name} | {other.name for other in everything if other.parent == device.name}
    if any(family & set(other.below) for other in everything):
        return "something (LUKS, LVM, RAID) stands on it"
    for mount in mounts.table():
        if any(stands_on(mount, other) for other in everything if other.name in family):
            return f"it is mounted at {mount.path}"
    return ""


def _content(device: BlockDevice) -> str:
    """What stands on *device*, in words; empty when it is blank. Asks the disk itself, not only udev."""
    if device.has_partitions:
        return "it has partitions"
    if device.fs_type:
        return f"it holds {device.fs_type}"
    signatures = run(
        ["wipefs", "--no-act", "--noheadings", "--output", "TYPE", device.node], f"looking at {device.node}"
    )
    return f"it holds {', '.join(signatures.split())}" if signatures.strip() else ""


def execute(todo: Plan, config: Config, say: Callable[[str], None], advance: Callable[[int], None]) -> Enrolment:
    """Carry out *todo*; *say* is told each step, *advance* the bytes wiped. Volumes are created by the caller.

    Raises `MagbayError`: what failed and how to go on.
    """
    node = Path(todo.device.node)
    _check_owner(config)
    if ensure(config.key_file):
        say(f"made the key file {config.key_file}: keep a copy of it in a safe place, without it no disk opens")
    with _whole_disk(node):
        say(f"wiping {node} ({todo.wipe.value})")
        run(["wipefs", "--all", "--quiet", str(node)], f"removing old signatures from {node}")
        wipe(node, todo.device.size, todo.wipe, advance)
        say("making the LUKS2 container")
        _format(node, todo, config)
        mapping = f"prepare-{todo.luks_uuid}"
        with _open(node, mapping, config.key_file):
            say(f"making the file system ({todo.filesystem.value})")
            inner = f"/dev/mapper/{mapping}"
            uuid_value = f"uuid={todo.filesystem_uuid}" if todo.filesystem is Filesystem.XFS else todo.filesystem_uuid
            run([*_MKFS[todo.filesystem], *_UUID_OPTION[todo.filesystem], uuid_value, inner], "making the file system")
            say("testing it: mount, write, read, unmount")
            _furnish(inner, todo, config)
    enrolment = Enrolment(
        name=todo.name,
        filesystem_uuid=todo.filesystem_uuid,
        luks_uuid=todo.luks_uuid,
        serial=_printable(todo.device.serial),
        model=_printable(todo.device.model),
        size=todo.device.size,
        prepared=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    enrol(config, enrolment)
    run(["udevadm", "trigger", "--action=change", "--settle", str(node)], "telling udev")
    return enrolment


def _check_owner(config: Config) -> None:
    """Refuse before anything is wiped what would fail at the end."""
    try:
        pwd.getpwnam(config.prepare.owner)
        grp.getgrnam(config.prepare.group)
    except KeyError:
        raise MagbayError(
            f"there is no user {config.prepare.owner} or no group {config.prepare.group}: nothing was done",
            hint="Set prepare.owner and prepare.group in the configuration to who shall own the volumes.",
        ) from None


def _printable(text: str) -> str:
    """Serial numbers and models come from the disk and may hold anything."""
    return "".join(char if char.isprintable() else "?" for char in text)


def enrol(config: Config, enrolment: Enrolment) -> None:
    """Write the enrolment file, durably."""
    config.enrolment_dir.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in vars(enrolment).items() if value}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_atomic(config.enrolment_dir / f"{enrolment.filesystem_uuid}.yaml", text.encode(), mode=0o644)


@contextlib.contextmanager
def _whole_disk(node: Path) -> Iterator[None]:
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _format(node: Path, todo: Plan, config: Config) -> None:
    options = ["--type", "luks2", "--batch-mode", "--uuid", todo.luks_uuid, "--label", todo.name, *_PBKDF]
    run(
        ["cryptsetup", "luksFormat", *options, "--key-file", str(config.key_file), str(node)],
        f"making the LUKS container on {node}",
        hint="Run the same command again; nothing is enrolled yet.",
    )


@contextlib.contextmanager
def _open(node: Path, mapping: str, key_file: Path) -> Iterator[None]:
    run(["cryptsetup", "open", "--type", "luks", "--key-file", str(key_file), str(node), mapping], f"opening {node}")
    try:
        yield
    finally:
        run(["cryptsetup", "close", mapping], f"closing {node}")


def _furnish(inner: str, todo: Plan, config: Config) -> None:
    """Owner and mode of the top directory, the README, and a read-back of it through a fresh mount."""
    place = config.run_dir / f"prepare-{todo.luks_uuid}"
    place.mkdir(mode=0o700, parents=True)
    path = config.mount_dir / todo.filesystem_uuid
    text = _README.format(name=todo.name, path=path, luks=todo.luks_uuid, filesystem=todo.filesystem_uuid).encode()
    try:
        run(["mount", inner, str(place)], "mounting the new file system")
        try:
            (place / "README.txt").write_bytes(text)
            shutil.chown(place, config.prepare.owner, config.prepare.group)
            place.chmod(0o2770)
        finally:
            run(["umount", str(place)], "unmounting the new file system")
        run(["mount", "-o", "ro", inner, str(place)], "mounting the new file system again")
        try:
            if (place / "README.txt").read_bytes() != text:
                raise MagbayError(f"{todo.device.node} does not give back what was written", hint="The disk is bad.")
        finally:
            run(["umount", str(place)], "unmounting the new file system")
    finally:
        place.rmdir()
