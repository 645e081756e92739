"""The attributes record: what a saved thing is. Source: volume format, sections 6 and 9.2."""

from __future__ import annotations

import stat as modes
from enum import IntEnum
from typing import NamedTuple

from appliance.volumes.errors import VolumeError
from appliance.volumes.stat64 import EncodedStat

LONGEST_NAME = 65536
"""Bytes of a name; sixteen times what the kernel takes at once, as trees can be deeper than that."""
_LONGEST_NUMBER = 10


class FileType(IntEnum):
    """FT codes found on volumes."""

    HARD_LINK = 1
    EMPTY = 2
    REGULAR = 3
    SYMLINK = 4
    DIRECTORY = 5
    SPECIAL = 6
    RAW = 16
    FIFO = 17
    REPARSE = 21
    PLUGIN = 22
    DELETED = 23
    RESTORE_FIRST = 25
    JUNCTION = 26
    PLUGIN_CONFIG = 27
    PLUGIN_CONFIG_FILLED = 28
    PLUGIN_OBJECT = 29
    SECURITY_OBJECT = 30


_KINDS: dict[int, str] = {
    FileType.HARD_LINK: "hardlink",
    FileType.EMPTY: "file",
    FileType.REGULAR: "file",
    FileType.SYMLINK: "symlink",
    FileType.DIRECTORY: "directory",
    FileType.RAW: "block-device",
    FileType.FIFO: "fifo",
    FileType.REPARSE: "reparse-point",
    FileType.JUNCTION: "junction",
    FileType.DELETED: "deleted",
}
_TYPE_BITS = 0o170000  # of a mode; numbers from a volume may be any, so stat.S_IFMT() would raise
_SPECIAL_KINDS = {modes.S_IFIFO: "fifo", modes.S_IFCHR: "character-device", modes.S_IFBLK: "block-device"}


class Attributes(NamedTuple):
    """One parsed record. *name* and *link* are bytes as stored; directories end in a slash."""

    file_index: int
    ftype: int
    name: bytes
    stat: EncodedStat
    link: bytes = b""
    extended: bytes = b""
    delta_seq: int = 0

    @property
    def kind(self) -> str:
        """A word: file, directory, symlink, hardlink, fifo, character-device, block-device, deleted, plugin, other …"""
        if self.ftype == FileType.SPECIAL:
            return _SPECIAL_KINDS.get(self.stat.mode & _TYPE_BITS, "other")
        known = _KINDS.get(self.ftype)
        return known or ("plugin" if self.ftype in {22, 25, 27, 28, 29, 30} else "other")


def pack_attributes(file_index: int, ftype: int, name: bytes, stat: EncodedStat, link: bytes = b"") -> bytes:
    """The data of a UNIX_ATTRIBUTES record. *name* of a directory ends in a slash. `VolumeError` on a NUL inside."""
    return join_attributes(file_index, ftype, name, stat.pack(), link)


def join_attributes(file_index: int, ftype: int, name: bytes, numbers: bytes, link: bytes = b"") -> bytes:
    """As `pack_attributes`, with the *numbers* packed already."""
    if b"\0" in name or b"\0" in link or not name:
        raise VolumeError(f"{name!r} cannot be the name of a saved file")
    return b"%d %d %b\x00%b\x00%b\x00\x000\x00" % (file_index, ftype, name, numbers, link)


def _decimal(text: bytes, what: str) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > _LONGEST_NUMBER:
        raise VolumeError(f"an attributes record has {text[:40]!r} as its {what}")
    return int(text)


def parse_attributes(data: bytes) -> Attributes:
    """From the data of a record of stream 1, 5 or 37; a short tail is accepted. Raises `VolumeError`."""
    fields = data.split(b"\0", 5)
    head = fields[0].split(b" ", 2)
    if len(head) < 3 or len(fields) < 2 or not head[2]:
        raise VolumeError("an attributes record has no name or no numbers")
    tail = [*fields[2:], b"", b"", b""]
    delta = tail[2] if tail[2].isdigit() and len(tail[2]) <= _LONGEST_NUMBER else b"0"
    return Attributes(
        file_index=_decimal(head[0], "FileIndex"),
        ftype=_decimal(head[1], "type") & 0xFFFF,
        name=head[2],
        stat=EncodedStat.parse(fields[1]),
        link=tail[0],
        extended=tail[1],
        delta_seq=int(delta),
    )


def parse_restore_object(data: bytes) -> Attributes:
    """A RESTORE_OBJECT record (stream 28) seen as a saved thing: object name and full length. Raises `VolumeError`."""
    head, _, rest = data.partition(b"\0")
    fields = head.split(b" ", 6)
    name, found, _ = rest.partition(b"\0")
    if len(fields) < 7 or not found or not name:
        raise VolumeError("a restore object record has no name or too few numbers")
    numbers = [_decimal(field, "number") for field in fields[:6]]
    return Attributes(numbers[0], numbers[1] & 0xFFFF, name, EncodedStat(size=numbers[4]), extended=fields[6])
