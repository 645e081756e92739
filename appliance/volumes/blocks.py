"""Block and record headers. Source: volume format, sections 2, 3 and 16. All numbers are big-endian.

Format BB02 is written and read; BB03, which Bacula writes from version 15 on, is read only: its header is 8 bytes
longer, its checksum is XXH3-64, and what is behind the header may be enciphered.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

BLOCK_HEADER = struct.Struct(">III4sII")  # checksum, length, number, id, session id, session time
RECORD_HEADER = struct.Struct(">iiI")  # FileIndex, stream, bytes to the end of the record
MAGIC = b"BB02"
MAGIC3 = b"BB03"
MAGIC_OFFSET = 12
DEFAULT_BLOCK = 64512  # every reader takes blocks up to this size silently
MAX_BLOCK = 20_000_000
MAX_RECORD = 20_000_000
MIN_BLOCK = BLOCK_HEADER.size + RECORD_HEADER.size
_CHECKSUM3 = struct.Struct(">Q")  # of BB03, behind what the headers have in common
_LENGTHS = {MAGIC: BLOCK_HEADER.size, MAGIC3: BLOCK_HEADER.size + _CHECKSUM3.size}


class Option(IntFlag):
    """What stands in a BB03 header where BB02 has its checksum."""

    CHECKSUM = 1
    VOLUME_ENCIPHERED = 2
    BLOCK_ENCIPHERED = 4


class SessionIds(NamedTuple):
    """(VolSessionId, VolSessionTime): the identity of a job's run. Never used twice over all volumes of a catalog."""

    session_id: int
    session_time: int

    def __str__(self) -> str:
        return f"{self.session_id}/{self.session_time}"


@dataclass(frozen=True)
class BlockHeader:
    """A header of either format. *size* in bytes: the records begin behind it. *length*: of the whole block."""

    magic: bytes
    first: int  # checksum (BB02) or options (BB03)
    length: int
    number: int
    ids: SessionIds
    size: int

    @classmethod
    def parse(cls, head: memoryview) -> BlockHeader | None:
        """From the first 24 bytes of a block; None for another format."""
        first, length, number, magic, session_id, session_time = BLOCK_HEADER.unpack_from(head)
        size = _LENGTHS.get(magic)
        return None if size is None else cls(magic, first, length, number, SessionIds(session_id, session_time), size)

    @property
    def possible(self) -> bool:
        """Whether a block can be as long as this one claims."""
        return self.size + RECORD_HEADER.size <= self.length <= MAX_BLOCK

    @property
    def options(self) -> Option:
        """Options of BB03; none for BB02."""
        return Option(self.first & 7) if self.magic == MAGIC3 else Option(0)


def checksum(block: memoryview) -> int:
    """CRC-32 of a whole BB02 block (*block* as long as its header says), its own field left out."""
    return zlib.crc32(block[4:])
