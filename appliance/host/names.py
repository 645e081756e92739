"""Names of systemd units, by the rules of systemd-escape(1)."""

from __future__ import annotations

import functools
from pathlib import Path

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")


@functools.lru_cache(maxsize=4096)
def escape(text: str) -> str:
    """*text* as part of a unit name: `/` becomes `-`, other bytes outside the plain set become `\\xNN`."""
    out = []
    for index, byte in enumerate(text.encode("utf-8", "surrogateescape")):
        char = chr(byte)
        if char == "/":
            out.append("-")
        elif char in _PLAIN and not (char == "." and index == 0):
            out.append(char)
        else:
            out.append(f"\\x{byte:02x}")
    return "".join(out)


def unlock_unit(luks_uuid: str) -> str:
    """The unit that opens the LUKS container *luks_uuid*."""
    return f"magbay-unlock@{escape(luks_uuid)}.service"


def check_unit(luks_uuid: str) -> str:
    """The unit that checks the file system in the opened container *luks_uuid*."""
    return f"magbay-check@{escape(luks_uuid)}.service"


def eject_unit(luks_uuid: str) -> str:
    """The unit that unmounts, closes, flushes and powers down the disk of the container *luks_uuid*."""
    return f"magbay-eject@{escape(luks_uuid)}.service"


def hook_unit(event: str, magazine: str) -> str:
    """The unit that runs the command of the configuration for *event* of *magazine*."""
    return f"magbay-hook@{escape(f'{event}/{magazine}')}.service"


def lists_unit(magazine: str) -> str:
    """The unit that writes the lists of volumes on *magazine* anew."""
    return f"magbay-lists@{escape(magazine)}.service"


def idle_unit(seconds: int) -> str:
    """The unit that tells autofs after how many *seconds* a magazine that nobody uses is unmounted."""
    return f"magbay-idle@{seconds}.service"


def mount_unit(path: Path) -> str:
    """The mount unit of *path* (absolute)."""
    return escape(str(path).strip("/")) + ".mount"
