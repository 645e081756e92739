"""Numbers of the attributes record: positional base 64, most significant digit first, sign in front.

Source: volume format, section 6.3. This is not RFC 4648: 0 is `A`, 64 is `BA`, -1 is `-B`.
"""

from __future__ import annotations

import binascii
import os
import struct
from functools import lru_cache
from typing import NamedTuple

from appliance.volumes.errors import VolumeError

_DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_VALUE = {digit: value for value, digit in enumerate(_DIGITS)}
_FIRST_FIELDS = 13  # older clients end after ctime
_LONGEST = 12  # sign and the eleven digits of a 64-bit number
# Sixteen numbers at once, each filled up with leading zeros (`A`) to sixteen digits: twelve bytes by RFC 4648.
_FILLED, _FULL = 16, 16
_SIXTEEN = struct.Struct(">" + "4xQ" * _FULL)
_SHORT = 10  # digits that are surely no more than 64 bits


# Two digits at once: number of twelve bits to its digits, and what the most significant two are without leading zero.
_PAIRS = [bytes((high, low)) for high in _DIGITS for low in _DIGITS]
_HEADS = [pair.removeprefix(b"A") for pair in _PAIRS]


def encode_number(value: int) -> bytes:
    """*value* as base-64 digits, for example 4096 as b"BAA"."""
    if value < 0:
        return b"-" + encode_number(-value)
    digits = b""
    while value > 4095:
        digits = _PAIRS[value & 4095] + digits
        value >>= 12
    return _HEADS[value] + digits


# What is the same in many files: device, mode and so on, but also small numbers of blocks.
_often = lru_cache(maxsize=8192)(encode_number)


@lru_cache(maxsize=8192)  # most numbers of a tree are the same again and again; `_LONGEST` bounds the entries
def decode_number(text: bytes) -> int:
    """The reverse of `encode_number`. Raises `VolumeError` for anything but a 64-bit number."""
    digits = text[1:] if text[:1] == b"-" else text
    value = 0
    if not digits or len(digits) >= _LONGEST:
        raise _no_number(text)
    try:
        for digit in digits:
            value = value << 6 | _VALUE[digit]
    except KeyError:
        raise _no_number(text) from None
    if value >= 1 << 64:
        raise _no_number(text)
    return -value if digits is not text else value


def _no_number(text: bytes) -> VolumeError:
    return VolumeError(f"{text[:40]!r} is not a number of an attributes record")


class EncodedStat(NamedTuple):
    """stat(2) of a saved thing as it stands on the volume: sizes in bytes, times in whole seconds since 1970.

    *link_fi*: FileIndex that holds the data of a hard link, else 0. *data_stream*: stream that its data have or would
    have. Times may be negative.
    """

    dev: int = 0
    ino: int = 0
    mode: int = 0
    nlink: int = 0
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    size: int = 0
    blksize: int = 0
    blocks: int = 0
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    link_fi: int = 0
    flags: int = 0
    data_stream: int = 0

    @classmethod
    def of(cls, stat: os.stat_result, *, link_fi: int = 0, data_stream: int = 2) -> EncodedStat:
        """From a stat result of the system."""
        seconds = (when // 1_000_000_000 for when in (stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns))
        atime, mtime, ctime = seconds
        return cls(
            stat.st_dev, stat.st_ino, stat.st_mode, stat.st_nlink, stat.st_uid, stat.st_gid, stat.st_rdev, stat.st_size,
            stat.st_blksize, stat.st_blocks, atime, mtime, ctime, link_fi, 0, data_stream,
        )  # fmt: skip

    def pack(self) -> bytes:
        """The sixteen numbers separated by blanks (also the text of the catalog's LStat)."""
        return b" ".join(map(encode_number, self))

    @classmethod
    def parse(cls, text: bytes) -> EncodedStat:
        """From 13 to 17 numbers; what is behind the sixteenth is ignored. Raises `VolumeError`."""
        fields = text.split(b" ", 17)[:_FULL]
        if len(fields) == _FULL and all(fields) and len(max(fields, key=len)) <= _SHORT:
            try:
                filled = binascii.a2b_base64(b"".join([field.rjust(_FILLED, b"A") for field in fields]))
            except binascii.Error:
                filled = b""
            if len(filled) == _SIXTEEN.size:  # what is no digit would be left out
                return cls._make(_SIXTEEN.unpack(filled))
        if len(fields) < _FIRST_FIELDS:
            raise VolumeError(f"an attributes record has {len(fields)} numbers instead of 13 or more")
        return cls(*map(decode_number, fields))


def _number(value: int) -> bytes:
    """As `encode_number`: neighbours in a tree share the digits in front."""
    return _often(value >> 12) + _PAIRS[value & 4095] if value > 4095 else _often(value)


def pack_stat(stat: os.stat_result, *, link_fi: int = 0, data_stream: int = 2) -> bytes:
    """What `EncodedStat.of(…).pack()` gives, for the many files of a backup."""
    # By number the times are whole seconds, rounded down.
    mode, ino, dev, nlink, uid, gid, size, atime, mtime, ctime = stat[:10]
    return b"%b %b %b %b %b %b %b %b %b %b %b %b %b %b A %b" % (
        _often(dev), _number(ino), _often(mode), _often(nlink), _often(uid), _often(gid), _often(stat.st_rdev),
        _number(size), _often(stat.st_blksize), _often(stat.st_blocks),
        _number(atime), _number(mtime), _number(ctime),  # type: ignore[arg-type]
        _often(link_fi), _often(data_stream),
    )  # fmt: skip
