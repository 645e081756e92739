"""Block and record headers of format BB02. Source: volume format, sections 2 and 3. All numbers are big-endian."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

BLOCK_HEADER = struct.Struct(">III4sII")  # checksum, length, number, id, session id, session time
RECORD_HEADER = struct.Struct(">iiI")  # FileIndex, stream, bytes to the end of the record
MAGIC = b"BB02"
MAGIC_OFFSET = 12
DEFAULT_BLOCK = 64512  # every reader takes blocks up to this size silently
MAX_BLOCK = 20_000_000
MAX_RECORD = 20_000_000
MIN_BLOCK = BLOCK_HEADER.size + RECORD_HEADER.size


@dataclass(frozen=True)
class SessionIds:
    """(VolSessionId, VolSessionTime): the identity of a job's run. Never used twice over all volumes of a catalog."""

    session_id: int
    session_time: int

    def __str__(self) -> str:
        return f"{self.session_id}/{self.session_time}"


def checksum(block: memoryview) -> int:
    """CRC-32 of a whole block (*block* as long as its header says), its own field left out."""
    return zlib.crc32(block[4:])
