"""From the data of a record to bytes of the file and their place. Source: volume format, section 7."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from appliance.volumes import fastlz, lzo, optional
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
_MAX_WINDOW = 32 << 20
_ZLIB = frozenset({Stream.GZIP_DATA, Stream.SPARSE_GZIP_DATA, Stream.WIN32_GZIP_DATA})
_FRAMED = frozenset({Stream.COMPRESSED_DATA, Stream.SPARSE_COMPRESSED_DATA, Stream.WIN32_COMPRESSED_DATA})
_PLAIN = frozenset({Stream.FILE_DATA, Stream.SPARSE_DATA, Stream.WIN32_DATA})
_MAX_OFFSET = (1 << 63) - 1


@dataclass(frozen=True)
class Chunk:
    """Bytes of a file. *offset* None: they follow the bytes before."""

    offset: int | None
    data: memoryview


def decode(stream: int, data: memoryview) -> Chunk:
    """The bytes of the file in a data record; of Windows' data the form that `backupread` takes apart.

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
        return Chunk(offset, memoryview(_inflate(data)))
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
    expand = _ALGORITHMS.get(magic)
    if expand is None:
        raise VolumeError(f"a compressed record has the unknown mark {magic!r}")
    return memoryview(expand(body))


def _lzo(data: memoryview) -> bytes:
    return lzo.expand(data, _MAX_PLAIN)


def _lzfast(data: memoryview) -> bytes:
    return fastlz.frames(data, fastlz.expand, _MAX_PLAIN)


def _lz4(data: memoryview) -> bytes:
    library = optional.need("lz4.block")

    def expand(body: memoryview, size: int) -> bytes:
        try:
            return bytes(library.decompress(body, uncompressed_size=size))
        except (library.LZ4BlockError, ValueError) as error:
            raise VolumeError(f"LZ4 data are damaged ({error})") from None

    return fastlz.frames(data, expand, _MAX_PLAIN)


def _zstandard(data: memoryview) -> bytes:
    library = optional.need("zstandard")
    try:
        size = library.frame_content_size(data)
        if not 0 <= size <= _MAX_PLAIN:
            raise VolumeError("Zstandard data without their plain length, or that expand beyond all measure")
        with library.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(data) as reader:
            plain = bytes(reader.read(size + 1))
    except library.ZstdError as error:
        raise VolumeError(f"Zstandard data cannot be expanded ({error})") from None
    if len(plain) != size:
        raise VolumeError("Zstandard data are cut, or expand to more than they say")
    return plain


def _inflate(data: memoryview) -> bytes:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, _MAX_PLAIN)
    except zlib.error as error:
        raise VolumeError(f"compressed data cannot be expanded ({error})") from None
    if not inflater.eof or inflater.unused_data:
        raise VolumeError("compressed data are cut, too long, or expand beyond all measure")
    return plain


_ALGORITHMS: dict[bytes, Callable[[memoryview], bytes]] = {
    b"GZIP": _inflate,
    b"LZOX": _lzo,
    b"LZOY": _zstandard,
    b"FZFZ": _lzfast,
    b"FZ4L": _lz4,
    b"FZ4H": _lz4,
}
