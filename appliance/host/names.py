"""Names of systemd units, by the rules of systemd-escape(1)."""

from __future__ import annotations

from pathlib import Path

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")


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


def mount_unit(path: Path) -> str:
    """The mount unit of *path* (absolute)."""
    return escape(str(path).strip("/")) + ".mount"
