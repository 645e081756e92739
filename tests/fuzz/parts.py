"""A volume taken apart into blocks and records, and put together again with checksums that are right.

Nothing here uses the reader or the writer that is under test.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

import xxhash
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

HEAD = struct.Struct(">III4sII")
RECORD = struct.Struct(">iiI")
KEY = bytes(range(64))  # of the enciphered volumes that are built here


@dataclass
class Rec:
    """A record. *length* None: as long as its data are; else what its header claims."""

    index: int
    stream: int
    data: bytes
    length: int | None = None

    def pack(self) -> bytes:
        length = len(self.data) if self.length is None else self.length
        return RECORD.pack(_signed(self.index), _signed(self.stream), length & 0xFFFFFFFF) + self.data


@dataclass
class Blk:
    """A block. *options* as in a BB03 header; *tail* stands behind the last record."""

    number: int
    session: int
    time: int
    records: list[Rec] = field(default_factory=list)
    magic: bytes = b"BB02"
    options: int = 1
    tail: bytes = b""

    def pack(self) -> bytes:
        body = b"".join(record.pack() for record in self.records) + self.tail
        size = HEAD.size + (8 if self.magic == b"BB03" else 0) + len(body)
        head = (size, self.number & 0xFFFFFFFF, self.magic, self.session & 0xFFFFFFFF, self.time & 0xFFFFFFFF)
        if self.magic != b"BB03":
            block = HEAD.pack(0, *head) + body
            return zlib.crc32(block[4:]).to_bytes(4, "big") + block[4:]
        front = HEAD.pack(self.options, *head)
        checksum = xxhash.xxh3_64(front + bytes(8) + body).digest()
        if self.options & 4 and len(body) >= 16:
            tweak = struct.pack(">IIII", head[1], head[3], head[4], 0)
            body = Cipher(algorithms.AES(KEY), modes.XTS(tweak)).encryptor().update(body)
        return front + checksum + body


def _signed(number: int) -> int:
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


def take_apart(volume: bytes) -> list[Blk]:
    """The blocks of a volume as far as their lengths are true; enciphered ones as if they were not."""
    blocks: list[Blk] = []
    at = 0
    while len(volume) - at >= HEAD.size + 8:
        options, size, number, magic, session, time = HEAD.unpack_from(volume, at)
        if size < HEAD.size + 8:
            break
        block = Blk(number, session, time, magic=magic, options=options if magic == b"BB03" else 1)
        where, end = at + HEAD.size + (8 if magic == b"BB03" else 0), min(at + size, len(volume))
        while end - where >= RECORD.size:
            index, stream, length = RECORD.unpack_from(volume, where)
            data = volume[where + RECORD.size : min(end, where + RECORD.size + length)]
            block.records.append(Rec(index, stream, data, None if len(data) == length else length))
            where += RECORD.size + len(data)
        block.tail = volume[where:end]
        blocks.append(block)
        at = end
    return blocks


def put_together(blocks: list[Blk]) -> bytes:
    """The bytes of the volume."""
    return b"".join(block.pack() for block in blocks)
