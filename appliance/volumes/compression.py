"""From the data of a record to bytes of the file and their place. Source: volume format, section 7."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from appliance.volumes.errors import UnsupportedError, VolumeError
from appliance.volumes.streams import (
    ENCRYPTED_DATA,
    FLAG_DEDUP_REFERENCES,
    FLAG_DELTA,
    FLAG_OFFSETS,
    SPARSE,
    TYPE_MASK,
    Stream,
    stream_name,
)

_OFFSET = struct.Struct(">Q")
_HEADER = struct.Struct(">4sIHH")  # algorithm, compressed bytes, level, version
_VERSION = 1
_MAX_PLAIN = 32 << 20  # bytes from one record; clients send chunks of at most a few MiB
_ALGORITHMS = {b"LZOX": "LZO", b"LZOY": "ZSTD", b"FZFZ": "LZFAST", b"FZ4L": "LZ4", b"FZ4H": "LZ4HC"}
_ZLIB = frozenset({Stream.GZIP_DATA, Stream.SPARSE_GZIP_DATA})
_FRAMED = frozenset({Stream.COMPRESSED_DATA, Stream.SPARSE_COMPRESSED_DATA})
_PLAIN = frozenset({Stream.FILE_DATA, Stream.SPARSE_DATA})
_MAX_OFFSET = (1 << 63) - 1


@dataclass(frozen=True)
class Chunk:
    """Bytes of a file. *offset* None: they follow the bytes before."""

    offset: int | None
    data: memoryview


def decode(stream: int, data: memoryview) -> Chunk:
    """The bytes of the file in a data record.

    `UnsupportedError` names an algorithm or encryption that is not read; `VolumeError` says what is wrong.
    """
    kind = stream & TYPE_MASK
    if kind in ENCRYPTED_DATA:
        raise UnsupportedError("the data are encrypted by the client", hint="Restore with the client's key.")
    if stream & (FLAG_DELTA | FLAG_DEDUP_REFERENCES):
        raise UnsupportedError("the data are differences or deduplication references, which this version does not read")
    offset = None
    if kind in SPARSE or stream & FLAG_OFFSETS:
        if len(data) < _OFFSET.size:
            raise VolumeError("a data record is too short for its file offset")
        (offset,) = _OFFSET.unpack_from(data)
        if offset > _MAX_OFFSET - _MAX_PLAIN:
            raise VolumeError(f"a data record claims the file offset {offset}")
        data = data[_OFFSET.size :]
    if kind in _PLAIN:
        return Chunk(offset, data)
    if kind in _ZLIB:
        return Chunk(offset, _inflate(data))
    if kind in _FRAMED:
        return Chunk(offset, _framed(data))
    raise UnsupportedError(f"the data are {stream_name(stream)}, which this version does not read")


def _framed(data: memoryview) -> memoryview:
    if len(data) < _HEADER.size:
        raise VolumeError("a compressed record is too short for its header")
    magic, size, _, version = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if version != _VERSION or size != len(body):
        raise VolumeError(f"a compressed record has a wrong header (version {version}, {size} of {len(body)} bytes)")
    if magic == b"GZIP":
        return _inflate(body)
    if magic in _ALGORITHMS:
        raise UnsupportedError(f"the data are compressed with {_ALGORITHMS[magic]}, which this version does not read")
    raise VolumeError(f"a compressed record has the unknown mark {magic!r}")


def _inflate(data: memoryview) -> memoryview:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, _MAX_PLAIN)
    except zlib.error as error:
        raise VolumeError(f"compressed data cannot be expanded ({error})") from None
    if not inflater.eof or inflater.unused_data:
        raise VolumeError("compressed data are cut, too long, or expand beyond all measure")
    return memoryview(plain)
