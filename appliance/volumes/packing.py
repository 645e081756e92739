"""Compressing the data of records, the other way round than `compression`. Source: volume format, section 7.3.

Each record is compressed by itself. zlib has streams of its own; the others stand in the streams of compressed data,
behind a header that names them.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from appliance.volumes import optional
from appliance.volumes.errors import UnsupportedError
from appliance.volumes.fastlz import SHORT_CHUNK, pack_frame
from appliance.volumes.streams import Stream

_HEADER = struct.Struct(">4sIHH")  # algorithm, compressed bytes, level, version
_VERSION = 1
_LZO_MEMORY = 16384 * 8  # LZO1X_1_MEM_COMPRESS of lzo1x.h, on 64 bits
_LZO_VERSION = 0x2080
_LZO_HINT = "Install the package liblzo2-2, or choose gzip1 or lz4."


@dataclass(frozen=True)
class Packing:
    """One way of compressing. *compress* makes a record's data (behind the offset, if any) from plain bytes.

    *stream* and *sparse_stream*: of data without and with offsets.
    """

    compress: Callable[[bytes], bytes]
    stream: Stream
    sparse_stream: Stream


def gzip(level: int) -> Packing:
    """zlib at *level* 1 to 9: every reader knows it."""
    return Packing(partial(zlib.compress, level=level), Stream.GZIP_DATA, Stream.SPARSE_GZIP_DATA)


def lzo() -> Packing:
    """LZO1X-1: Bacula and Bareos read it. `UnsupportedError` without its library."""
    _lzo_library()
    return Packing(_lzo, Stream.COMPRESSED_DATA, Stream.SPARSE_COMPRESSED_DATA)


def lz4() -> Packing:
    """LZ4: Bareos reads it, Bacula does not. `UnsupportedError` without its library."""
    library = optional.need("lz4.block", "compressing")
    return _framed(b"FZ4L", lambda data: library.compress(data, store_size=False))


def lz4hc() -> Packing:
    """LZ4 that takes its time (level 9, as Bareos): read like `lz4`."""
    library = optional.need("lz4.block", "compressing")
    return _framed(b"FZ4H", lambda data: library.compress(data, mode="high_compression", store_size=False))


def lzfast() -> Packing:
    """FastLZ of level 1: Bareos reads it, Bacula does not. `UnsupportedError` without its library."""
    library = optional.need("fastlz", "compressing")
    # The library puts the plain length (u32) in front.
    return _framed(b"FZFZ", lambda data: library.compress(data, 1)[4:])


def _framed(magic: bytes, pack: Callable[[bytes], bytes]) -> Packing:
    """In Bareos' frames."""

    def compress(data: bytes) -> bytes:
        # What is stored as it is need not be compressed first.
        return _headed(magic, 1, pack_frame(data, pack(data) if len(data) > SHORT_CHUNK else data))

    return Packing(compress, Stream.COMPRESSED_DATA, Stream.SPARSE_COMPRESSED_DATA)


def _headed(magic: bytes, level: int, body: bytes) -> bytes:
    return _HEADER.pack(magic, len(body), level, _VERSION) + body


@lru_cache(maxsize=1)
def _lzo_library() -> ctypes.CDLL:
    name = ctypes.util.find_library("lzo2")
    if name is None:
        raise UnsupportedError("compressing with LZO needs the library liblzo2, which is not there", hint=_LZO_HINT)
    library = ctypes.CDLL(name)
    if library.__lzo_init_v2(_LZO_VERSION, *[-1] * 9):
        raise UnsupportedError("the library liblzo2 does not work here", hint=_LZO_HINT)
    return library


class _Work(threading.local):
    """Memory that each thread needs for LZO."""

    def __init__(self) -> None:
        self.memory = ctypes.create_string_buffer(_LZO_MEMORY)


_WORK = _Work()


def _lzo(data: bytes) -> bytes:
    out = ctypes.create_string_buffer(len(data) + len(data) // 16 + 67)  # the most it can be, by the library's LZO.FAQ
    size = ctypes.c_size_t(len(out))
    # The call gives the other threads their turn.
    failed = _lzo_library().lzo1x_1_compress(data, ctypes.c_size_t(len(data)), out, ctypes.byref(size), _WORK.memory)
    if failed:
        raise UnsupportedError(f"the library liblzo2 fails ({failed})", hint=_LZO_HINT)
    return _headed(b"LZOX", 0, out.raw[: size.value])
