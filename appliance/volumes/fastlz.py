"""Bareos' frames (LZFAST, LZ4, LZ4HC), and expanding FastLZ blocks. Source: volume format, section 7.3."""

from __future__ import annotations

import struct
from collections.abc import Callable

from appliance.volumes.errors import VolumeError

_FRAME = struct.Struct("<7sBII")  # mark, kind and block size, bytes that follow, plain bytes
_MARK = b"FastLZ\0"
_RAW, _COMPRESSED = 0x10, 0xC0
_BLOCK_SIZE = 8  # 1024 << 8 bytes
SHORT_CHUNK = 64  # bytes that are not compressed
_LONGEST_SHORT = 7  # a match whose length does not fit into the three bits of its instruction
_SHORT = "compressed data end inside a frame"

Expander = Callable[[memoryview, int], bytes]


def frames(data: memoryview, expand: Expander, limit: int) -> bytes:
    """The plain bytes of a row of frames; *expand* gives those of one compressed body, whose length it is told.

    `VolumeError` when they are damaged or give more than *limit* bytes.
    """
    out = bytearray()
    while True:
        if len(data) < _FRAME.size:
            raise VolumeError(_SHORT)
        mark, kind, size, plain = _FRAME.unpack_from(data)
        body, data = data[_FRAME.size : _FRAME.size + size], data[_FRAME.size + size :]
        if mark != _MARK or kind & 0xF0 not in (_RAW, _COMPRESSED):
            raise VolumeError("compressed data have a wrong frame")
        if not size and not plain:
            break
        if len(body) < size:
            raise VolumeError(_SHORT)
        if len(out) + plain > limit:
            raise VolumeError("compressed data expand beyond all measure")
        piece = bytes(body) if kind & 0xF0 == _RAW else expand(body, plain)
        if len(piece) != plain:
            raise VolumeError(f"a frame of compressed data gives {len(piece)} bytes instead of {plain}")
        out += piece
    if data:
        raise VolumeError(f"{len(data)} bytes stand behind the end of compressed data")
    return bytes(out)


def pack_frame(plain: bytes, packed: bytes) -> bytes:
    """The frames for the *plain* bytes of a record (at most 256 KiB), or their *packed* form where that is shorter."""
    raw = len(plain) <= SHORT_CHUNK or len(packed) >= len(plain)
    kind, body = (_RAW, plain) if raw else (_COMPRESSED, packed)
    first = _FRAME.pack(_MARK, kind | _BLOCK_SIZE, len(body), len(plain)) if plain else b""
    return first + body + _FRAME.pack(_MARK, _COMPRESSED | _BLOCK_SIZE, 0, 0)


def expand(data: memoryview, size: int) -> bytes:
    """The *size* plain bytes of a FastLZ block of level 1. `VolumeError` when it is damaged."""
    try:
        return bytes(_expand(bytes(data), size))
    except IndexError:
        raise VolumeError("FastLZ data end too soon") from None


def _expand(data: bytes, size: int) -> bytearray:
    if data[0] >> 5:
        raise VolumeError("FastLZ data are not of level 1")
    out = bytearray()
    at, end = 0, len(data)
    while at < end:
        code = data[at] if at else data[at] & 31
        at += 1
        if code < 32:
            out += data[at : at + code + 1]
            at += code + 1
        else:
            length = code >> 5
            if length == _LONGEST_SHORT:
                length += data[at]
                at += 1
            distance = ((code & 31) << 8 | data[at]) + 1
            at += 1
            repeat(out, distance, length + 2)
        if len(out) > size:
            break
    if at > end or len(out) != size:
        raise VolumeError("FastLZ data are damaged")
    return out


def repeat(out: bytearray, distance: int, length: int) -> None:
    """Add *length* bytes that begin *distance* before the end of *out*; they may overlap themselves."""
    begin = len(out) - distance
    if begin < 0:
        raise VolumeError("compressed data are damaged: they refer to bytes before their beginning")
    out += out[begin : begin + length] if distance >= length else (out[begin:] * (length // distance + 1))[:length]
