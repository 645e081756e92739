"""The form in which Windows clients send files: a row of parts, of which one is the file's content.

Source: WIN32_STREAM_ID in Microsoft's documentation of BackupRead(); integers are little-endian. Each part has a
header: u32 kind, u32 attributes, u64 bytes that follow, u32 length of a name, the name (UTF-16). Parts are cut anywhere
at the borders of records.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

from appliance.volumes.compression import Chunk
from appliance.volumes.errors import VolumeError

_HEADER = struct.Struct("<IIQI")
_OFFSET = struct.Struct("<Q")
_LONGEST_NAME = 65536
_MAX_OFFSET = 1 << 62


class Part(IntEnum):
    """Kinds of parts."""

    DATA = 1
    EXTENDED_ATTRIBUTES = 2
    SECURITY = 3
    ALTERNATE_DATA = 4
    LINK = 5
    PROPERTY = 6
    OBJECT_ID = 7
    REPARSE = 8
    SPARSE_BLOCK = 9  # bytes of the content behind their u64 place in it
    TRANSACTION = 10


# What another system has no place for and nobody misses there.
_NOT_MISSED = {Part.SECURITY, Part.LINK, Part.PROPERTY, Part.OBJECT_ID, Part.TRANSACTION}


class BackupStream:
    """Takes one file's parts apart. *left_out*: kinds of parts that hold something and are not its content."""

    def __init__(self) -> None:
        self.left_out: set[Part] = set()
        self._head = bytearray()  # of the next part, as far as it is here
        self._left = 0  # bytes of the present part that are still to come
        self._kind = Part.PROPERTY

    @property
    def is_whole(self) -> bool:
        """Whether no part is cut."""
        return not self._left and not self._head

    def feed(self, data: memoryview) -> Iterator[Chunk]:
        """The content in the next bytes. `VolumeError` when they cannot be what they should be."""
        while data:
            if not self._left:
                used = self._take_head(data)
                data = data[used:]
                if len(self._head) == self._wanted():
                    yield from self._begin()
                continue
            piece, data = data[: self._left], data[self._left :]
            self._left -= len(piece)
            if self._kind in (Part.DATA, Part.SPARSE_BLOCK):
                yield Chunk(None, piece)

    def _take_head(self, data: memoryview) -> int:
        """Add bytes to the header; gives how many."""
        used = 0
        # Its length shows in its first bytes.
        while used < len(data) and len(self._head) < self._wanted():
            piece = data[used : used + self._wanted() - len(self._head)]
            self._head += piece
            used += len(piece)
        return used

    def _wanted(self) -> int:
        """Bytes of the header, as far as is known."""
        if len(self._head) < _HEADER.size:
            return _HEADER.size
        name: int
        kind, _, _, name = _HEADER.unpack_from(self._head)
        if name > _LONGEST_NAME:
            raise VolumeError(f"a part of Windows' data has a name of {name} bytes")
        return _HEADER.size + name + (_OFFSET.size if kind == Part.SPARSE_BLOCK else 0)

    def _begin(self) -> Iterator[Chunk]:
        number, _, size, _ = _HEADER.unpack_from(self._head)
        self._kind = _kind(number)
        self._left = size
        if self._kind is Part.SPARSE_BLOCK:
            (offset,) = _OFFSET.unpack(self._head[-_OFFSET.size :])
            if size < _OFFSET.size or offset > _MAX_OFFSET:
                raise VolumeError("a part of Windows' data has an impossible place in its file")
            self._left -= _OFFSET.size
            yield Chunk(offset, memoryview(b""))
        elif self._kind is not Part.DATA and self._kind not in _NOT_MISSED:
            self.left_out.add(self._kind)
        self._head.clear()


def _kind(number: int) -> Part:
    try:
        return Part(number)
    except ValueError:
        raise VolumeError(f"a part of Windows' kind {number} is not known") from None
