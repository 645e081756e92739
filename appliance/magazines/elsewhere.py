"""Magazines that others mount: a file system known by its UUID, wherever autofs, fstab or a desktop has put it."""

from __future__ import annotations

import os
from pathlib import Path

_BY_UUID = Path("/dev/disk/by-uuid")
_TABLE = Path("/proc/self/mountinfo")
# What a file system has that was only just made.
_NOT_A_VOLUME = frozenset({"lost+found"})


def device_link(uuid: str) -> Path:
    """The link that udev makes for the file system *uuid* (small letters) while it is plugged in and unlocked."""
    # FAT and NTFS have theirs in capitals.
    return next((path for text in (uuid, uuid.upper()) if (path := _BY_UUID / text).exists()), _BY_UUID / uuid)


def directory_of(uuid: str, usual: Path) -> Path | None:
    """Where the file system *uuid* is mounted now: *usual* if something is there, else where the mount table says.

    Looking at *usual* has autofs mount it. A directory that is empty and no mount point is one on which nothing is
    mounted; writing there would fill the system disk.
    """
    if _is_something(usual):
        return usual
    from appliance.host.real.mounts import parse  # it imports asyncio, for which no Changer Command should wait

    link = device_link(uuid)
    try:
        number, device = link.stat().st_rdev, str(link.resolve())
        table = parse(_TABLE.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return None
    numbers = f"{os.major(number)}:{os.minor(number)}"
    for mount in table:
        # By number, because a device has many names; by name, because btrfs has numbers of its own.
        if mount.number == numbers or os.path.realpath(mount.source) == device:
            return Path(mount.path)
    return None


def _is_something(directory: Path) -> bool:
    try:
        with os.scandir(directory) as entries:
            if any(entry.name not in _NOT_A_VOLUME for entry in entries):
                return True
        return directory.is_mount()
    except OSError:
        return False
