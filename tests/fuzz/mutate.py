"""Changes of volumes that know their structure, so that what comes out gets deep into the reader."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace

from tests.fuzz.parts import Blk, Rec, put_together

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    31,
    32,
    127,
    128,
    255,
    256,
    1 << 15,
    1 << 16,
    1 << 24,
    20_000_000,
    1 << 31,
    1 << 32,
)
STREAMS = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    10,
    11,
    14,
    15,
    16,
    17,
    18,
    19,
    20,
    22,
    26,
    27,
    28,
    29,
    30,
    31,
    32,
    34,
    37,
    38,
    39,
    40,
    41,
)
STREAMS += (200, 999, 1007, 1008, 1998, 1999, 500)
FLAGS = (0, 0, 0, 1 << 22, 1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30)
WORDS = (
    b"\0",
    b" ",
    b"/",
    b"../",
    b"A",
    b"-",
    b"//////////",
    b"\xff",
    b"BB02",
    b"BB03",
    b"1 3 ",
    b"0\0",
    b"FastLZ\0",
    b":",
)
LARGEST = 16384  # bytes of a mutated volume


class Mutator:
    """Draws changes from *noise*. *pool*: records that may be put anywhere."""

    def __init__(self, noise: random.Random, pool: list[Rec]) -> None:
        self.noise = noise
        self.pool = pool

    def volume(self, blocks: list[Blk]) -> bytes:
        """A changed volume. Most have right checksums throughout; *blocks* stays as it is."""
        noise = self.noise
        blocks = [replace(block, records=list(block.records)) for block in blocks]
        for _ in range(noise.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            noise.choice(_BLOCK_CHANGES if noise.random() < 0.25 else _RECORD_CHANGES)(self, blocks)
            if not blocks:
                blocks.append(Blk(0, 1, 1))
        data = put_together(blocks)[:LARGEST]
        return self.bytes(data) if noise.random() < 0.15 else data

    def bytes(self, data: bytes) -> bytes:
        """A few changes of bare bytes."""
        for _ in range(self.noise.choice((1, 1, 2, 4))):
            data = self.noise.choice(_BYTE_CHANGES)(self, data)
        return data

    def number(self) -> int:
        """A number that is often near a limit."""
        noise = self.noise
        if noise.random() < 0.3:
            return noise.getrandbits(noise.choice((3, 8, 16, 32)))
        return noise.choice(NUMBERS) + noise.choice((-1, 0, 0, 1))

    def record(self, blocks: list[Blk]) -> tuple[Blk, int]:
        """A block and the number of a record in it, which there is."""
        block = self.noise.choice(blocks)
        if not block.records:
            block.records.append(self.noise.choice(self.pool))
        return block, self.noise.randrange(len(block.records))

    # Bytes

    def flip(self, data: bytes) -> bytes:
        if not data:
            return b"\0"
        at = self.noise.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self.noise.randrange(8)]) + data[at + 1 :]

    def cut(self, data: bytes) -> bytes:
        return data[: self.noise.randrange(len(data) + 1)]

    def remove(self, data: bytes) -> bytes:
        at = self.noise.randrange(len(data) + 1)
        return data[:at] + data[at + self.noise.choice((1, 2, 4, 8, 30)) :]

    def insert(self, data: bytes) -> bytes:
        at = self.noise.randrange(len(data) + 1)
        word = self.noise.choice(WORDS) * self.noise.choice((1, 1, 1, 2, 40))
        return data[:at] + word + data[at:]

    def repeat(self, data: bytes) -> bytes:
        at = self.noise.randrange(len(data) + 1)
        return data[:at] + data[at : at + self.noise.randrange(1, 40)] * self.noise.choice((2, 3, 20)) + data[at:]

    def overwrite(self, data: bytes) -> bytes:
        form = self.noise.choice((">I", "<I", ">H", ">Q", "B"))
        packed = struct.pack(form, self.number() % (1 << 8 * struct.calcsize(form)))
        at = self.noise.randrange(len(data) + 1)
        return data[:at] + packed + data[at + len(packed) :]

    # Records

    def record_bytes(self, blocks: list[Blk]) -> None:
        block, at = self.record(blocks)
        block.records[at] = replace(block.records[at], data=self.bytes(block.records[at].data))

    def record_field(self, blocks: list[Blk]) -> None:
        """One of the fields of an attributes record or another that blanks and zeros part."""
        block, at = self.record(blocks)
        mark = self.noise.choice((b"\0", b" "))
        fields = block.records[at].data.split(mark)
        where = self.noise.randrange(len(fields))
        fields[where] = self.noise.choice((b"", b"-1", b"9" * 30, b"/" * 11, self.bytes(fields[where])))
        block.records[at] = replace(block.records[at], data=mark.join(fields))

    def record_body(self, blocks: list[Blk]) -> None:
        """Compressed bytes behind a header that fits them."""
        block, at = self.record(blocks)
        record = block.records[at]
        begin = 12 if record.stream & 0x7FF == 29 else 20 if record.stream & 0x7FF == 30 else 0
        if not begin or len(record.data) < begin:
            return self.record_bytes(blocks)
        body = self.bytes(record.data[begin:])
        data = record.data[: begin - 8] + struct.pack(">I", len(body)) + record.data[begin - 4 : begin] + body
        block.records[at] = replace(record, data=data)
        return None

    def record_index(self, blocks: list[Blk]) -> None:
        block, at = self.record(blocks)
        index = self.noise.choice((block.records[at].index + self.noise.choice((-1, 1)), self.number(), -self.number()))
        block.records[at] = replace(block.records[at], index=index)

    def record_stream(self, blocks: list[Blk]) -> None:
        block, at = self.record(blocks)
        stream = self.noise.choice((*STREAMS, self.number())) | self.noise.choice(FLAGS)
        block.records[at] = replace(block.records[at], stream=self.noise.choice((stream, stream, -stream)))

    def record_length(self, blocks: list[Blk]) -> None:
        block, at = self.record(blocks)
        length = max(0, self.noise.choice((len(block.records[at].data) + self.noise.randrange(-4, 5), self.number())))
        block.records[at] = replace(block.records[at], length=length)

    def record_in(self, blocks: list[Blk]) -> None:
        block, at = self.record(blocks)
        block.records.insert(at, self.noise.choice(self.pool))

    def record_out(self, blocks: list[Blk]) -> None:
        block, at = self.record(blocks)
        del block.records[at]

    def record_twice(self, blocks: list[Blk]) -> None:
        block, at = self.record(blocks)
        block.records[at:at] = [block.records[at]] * self.noise.choice((1, 1, 2, 30))

    def record_elsewhere(self, blocks: list[Blk]) -> None:
        block, at = self.record(blocks)
        other = self.noise.choice(blocks)
        other.records.insert(
            self.noise.randrange(len(other.records) + 1), block.records.pop(at) if block.records else self.pool[0]
        )

    # Blocks

    def block_cut(self, blocks: list[Blk]) -> None:
        """Go on in a second block, in the middle of a record, as a writer does; sometimes not quite so."""
        block, at = self.record(blocks)
        record = block.records[at]
        here = self.noise.randrange(len(record.data) + 1)
        left = len(record.data) - here
        stream = -abs(record.stream) if self.noise.random() < 0.9 else record.stream
        second = replace(
            record, stream=stream, data=record.data[here:], length=left if self.noise.random() < 0.9 else left + 1
        )
        rest = replace(block, number=block.number + 1, records=[second, *block.records[at + 1 :]])
        block.records[at:] = [replace(record, data=record.data[:here], length=len(record.data))]
        where = next(number for number, one in enumerate(blocks) if one is block)
        blocks.insert(where + 1, rest)

    def block_out(self, blocks: list[Blk]) -> None:
        del blocks[self.noise.randrange(len(blocks))]

    def block_twice(self, blocks: list[Blk]) -> None:
        at = self.noise.randrange(len(blocks))
        blocks.insert(self.noise.randrange(len(blocks) + 1), replace(blocks[at], records=list(blocks[at].records)))

    def block_swap(self, blocks: list[Blk]) -> None:
        one, two = (self.noise.randrange(len(blocks)) for _ in range(2))
        blocks[one], blocks[two] = blocks[two], blocks[one]

    def block_header(self, blocks: list[Blk]) -> None:
        block = self.noise.choice(blocks)
        name = self.noise.choice(("number", "session", "time", "options"))
        setattr(block, name, self.noise.choice((self.number(), getattr(block, name) ^ 1)) & 0xFFFFFFFF)

    def block_format(self, blocks: list[Blk]) -> None:
        block = self.noise.choice(blocks)
        block.magic = self.noise.choice((b"BB02", b"BB03", b"BB01", b"XXXX"))
        block.options = self.noise.choice((1, 1, 3, 7, 0, 5))

    def block_tail(self, blocks: list[Blk]) -> None:
        self.noise.choice(blocks).tail = self.noise.randbytes(self.noise.choice((1, 11, 12, 13, 100)))


_BYTE_CHANGES: list[Callable[[Mutator, bytes], bytes]] = [
    Mutator.flip, Mutator.flip, Mutator.cut, Mutator.remove, Mutator.insert, Mutator.repeat, Mutator.overwrite,
]  # fmt: skip
_RECORD_CHANGES: list[Callable[[Mutator, list[Blk]], None]] = [
    Mutator.record_bytes, Mutator.record_bytes, Mutator.record_body, Mutator.record_field, Mutator.record_index,
    Mutator.record_stream, Mutator.record_length, Mutator.record_in, Mutator.record_out, Mutator.record_twice,
    Mutator.record_elsewhere,
]  # fmt: skip
_BLOCK_CHANGES: list[Callable[[Mutator, list[Blk]], None]] = [
    Mutator.block_cut, Mutator.block_cut, Mutator.block_out, Mutator.block_twice, Mutator.block_swap,
    Mutator.block_header, Mutator.block_format, Mutator.block_tail,
]  # fmt: skip
