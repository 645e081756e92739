"""Expanding what clients compressed: every instruction of each algorithm, and nothing beyond its limits."""

from __future__ import annotations

import random
import struct

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from appliance.volumes import fastlz, lzo
from appliance.volumes.compression import decode
from appliance.volumes.errors import VolumeError
from appliance.volumes.streams import Stream

END = b"\x11\0\0"
LIMIT = 1 << 20


def record(magic: bytes, body: bytes) -> memoryview:
    """The data of a record of stream 29."""
    return memoryview(struct.pack(">4sIHH", magic, len(body), 1, 1) + body)


def plain(magic: bytes, body: bytes) -> bytes:
    """What the reader makes of a compressed *body*."""
    return bytes(decode(Stream.COMPRESSED_DATA, record(magic, body)).data)


def frame(body: bytes, size: int, kind: int = 0xC8) -> bytes:
    """One of Bareos' frames."""
    return b"FastLZ\0" + struct.pack("<BII", kind, len(body), size) + body


FRAMES_END = frame(b"", 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (END, b""),
        (b"\x15abcd" + END, b"abcd"),  # a first run of four
        (b"\x12a" + b"\x21\0\0" + END, b"aaaa"),  # one literal, then three bytes from distance 1
        (b"\x01abcd" + END, b"abcd"),
        (b"\x00\x01" + b"x" * 19 + END, b"x" * 19),  # a long run: 15 + 1 + 3
        (b"\x00\x00\x02" + b"y" * 275 + END, b"y" * 275),  # 15 + 255 + 2 + 3
        (b"\x15abcd" + b"\x6c\0" + END, b"abcdabcd"),  # length 4 from distance 4
        (b"\x15abcd" + b"\x6d\0z" + END, b"abcdabcdz"),  # the same with a literal behind
        (b"\x15abcd" + b"\x6d\0z" + b"\x04\0" + END, b"abcdabcdzdz"),  # two bytes behind one literal
        (b"\x15abcd" + b"\x20\x01\x00\0" + END, b"abcd" + b"d" * 34),  # a long match of distance 1: 31 + 1 + 2
        (b"\x15abcd" + b"\xe0\0" + END, b"abcd" + b"d" * 8),
    ],
)
def test_lzo_instructions(data: bytes, expected: bytes) -> None:
    assert lzo.expand(memoryview(data), LIMIT) == expected


def test_lzo_far_matches() -> None:
    noise = random.Random(3).randbytes(0x4000 + 100)
    run = b"\0" + bytes((len(noise) - 18) // 255) + bytes([(len(noise) - 18) % 255]) + noise
    # Distance 0x4000 + 5, length 2 + 3; distance 0x801, length 3 straight behind a run.
    far = bytes([0x10 | 3, 5 << 2 & 0xFF, 0])
    assert lzo.expand(memoryview(run + far + END), LIMIT) == noise + noise[95:100]
    assert lzo.expand(memoryview(run + b"\0\0" + END), LIMIT) == noise + noise[-0x801:][:3]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x11",
        b"\x11\0",
        b"\x15abc",
        b"\x15abcd",
        b"\x6c\0" + END,  # a match with nothing before it
        b"\x15abcd\x70\0" + END,  # further back than there is
        b"\0\0\0\0",
        END + b"x",
        b"\x15abcd" + b"\x20" + b"\0" * 100,
    ],
)
def test_damaged_lzo(data: bytes) -> None:
    with pytest.raises(VolumeError):
        lzo.expand(memoryview(data), LIMIT)


def test_bombs_stop_at_the_limit() -> None:
    bomb = b"\x15abcd" + b"\x20" + b"\0" * 100_000 + b"\x01\0\0"  # one match of 25 MB
    with pytest.raises(VolumeError, match="beyond"):
        lzo.expand(memoryview(bomb * 3 + END), LIMIT)
    with pytest.raises(VolumeError, match="beyond"):
        plain(b"LZOY", zstandard.ZstdCompressor(level=3).compress(bytes(40 << 20)))
    with pytest.raises(VolumeError, match="beyond"):
        plain(b"FZ4L", frame(lz4.block.compress(bytes(40 << 20), store_size=False), 40 << 20) + FRAMES_END)
    many = frame(lz4.block.compress(bytes(1 << 20), store_size=False), 1 << 20) * 100
    with pytest.raises(VolumeError, match="beyond"):
        plain(b"FZ4H", many + FRAMES_END)


def test_zstandard_that_lies_about_its_length() -> None:
    """The header says 5 bytes, the frame holds a megabyte; only so much may be put out before it is noticed."""
    whole = bytearray(zstandard.ZstdCompressor(write_content_size=True).compress(bytes(1 << 20)))
    header = zstandard.get_frame_parameters(bytes(whole))
    assert header.content_size == 1 << 20
    at = bytes(whole).index(struct.pack("<I", 1 << 20))
    whole[at : at + 4] = struct.pack("<I", 5)
    with pytest.raises(VolumeError):
        plain(b"LZOY", bytes(whole))


@given(st.binary(max_size=3000) | st.binary(max_size=20).map(lambda part: part * 150))
def test_zstandard_and_lz4(data: bytes) -> None:
    assert plain(b"LZOY", zstandard.compress(data)) == data
    packed = lz4.block.compress(data, store_size=False)
    assert plain(b"FZ4L", (frame(packed, len(data)) if data else b"") + FRAMES_END) == data
    assert plain(b"FZ4L", (frame(data, len(data), 0x18) if data else b"") + FRAMES_END) == data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        FRAMES_END[:-1],
        FRAMES_END + b"x",
        frame(b"abc", 3, 0x18),  # no end
        frame(b"abc", 4, 0x18) + FRAMES_END,
        frame(b"abc", 3, 0x58) + FRAMES_END,
        b"FastLX\0" + FRAMES_END[7:],
        frame(b"\xff\xff", 10) + FRAMES_END,
    ],
)
@pytest.mark.parametrize("magic", [b"FZ4L", b"FZFZ"])
def test_damaged_frames(magic: bytes, body: bytes) -> None:
    with pytest.raises(VolumeError):
        plain(magic, body)


def test_fastlz_instructions() -> None:
    assert fastlz.expand(memoryview(b"\x03abcd"), 4) == b"abcd"
    assert fastlz.expand(memoryview(b"\x03abcd\x20\x03"), 7) == b"abcdabc"  # length 3, distance 4
    assert fastlz.expand(memoryview(b"\x00a\xe0\x0a\x00"), 20) == b"a" * 20  # length 9 + 10, distance 1
    for data in (b"", b"\x05ab", b"\x03abcd\x20\x04", b"\x20\0", b"\x03abcd\x20", b"\x23abcd"):
        with pytest.raises(VolumeError):
            fastlz.expand(memoryview(data), 7)
