"""Expanding LZO1X blocks. Source: the published description of the stream (Linux, Documentation/staging/lzo.rst).

A block is a row of instructions: copy bytes that follow in the input, or bytes put out a given distance before. How the
lowest instructions are read depends on how many bytes the one before copied from the input.
"""

from __future__ import annotations

from appliance.volumes.errors import VolumeError
from appliance.volumes.fastlz import repeat

_AFTER_RUN = 4  # the state behind a run of four or more literals
_DAMAGED = "LZO data are damaged"


def expand(data: memoryview, limit: int) -> bytes:
    """The plain bytes of one block. `VolumeError` when it is damaged or gives more than *limit* bytes."""
    try:
        return bytes(_expand(bytes(data), limit))
    except IndexError:
        raise VolumeError(f"{_DAMAGED}: they end too soon") from None


def _long(data: bytes, at: int, base: int) -> tuple[int, int]:
    """(length, next address) where the length goes on in further bytes: zeros count 255 each, then the rest."""
    start = at
    while data[at] == 0:
        at += 1
    return base + 255 * (at - start) + data[at], at + 1


def _match(data: bytes, at: int, code: int, state: int) -> tuple[int, int, int, int]:
    """(distance, length, literals behind it, next address) of the match instruction *code*; distance 0: the end."""
    if code >= 64:
        return (code >> 2 & 7) + (data[at] << 3) + 1, (code >> 5) + 1, code & 3, at + 1
    if code >= 16:
        mask = 31 if code >= 32 else 7
        length = code & mask
        if not length:
            length, at = _long(data, at, mask)
        low, high = data[at], data[at + 1]
        distance = low >> 2 | high << 6
        if code >= 32:
            return distance + 1, length + 2, low & 3, at + 2
        distance |= (code & 8) << 11
        return distance and distance + 0x4000, length + 2, low & 3, at + 2
    distance = (code >> 2) + (data[at] << 2) + 1
    if state == _AFTER_RUN:
        return distance + 0x800, 3, code & 3, at + 1
    return distance, 2, code & 3, at + 1


def _expand(data: bytes, limit: int) -> bytearray:
    out = bytearray()
    at = state = 0
    if data[0] > 17:
        run = data[0] - 17
        out += data[1 : 1 + run]
        at, state = 1 + run, min(run, _AFTER_RUN)
    size = len(data)
    while True:
        code = data[at]
        at += 1
        if code < 16 and state == 0:
            if not code:
                code, at = _long(data, at, 15)
            literals, state = code + 3, _AFTER_RUN
        else:
            distance, length, literals, at = _match(data, at, code, state)
            if not distance:
                break
            if len(out) + length > limit:
                raise VolumeError("LZO data expand beyond all measure")
            repeat(out, distance, length)
            state = literals
        if literals:
            out += data[at : at + literals]
            at += literals
            if at > size or len(out) > limit:
                raise VolumeError(f"{_DAMAGED}: a run of bytes is longer than the block")
    if at != size:
        raise VolumeError(f"{_DAMAGED}: {size - at} bytes stand behind their end")
    return out
