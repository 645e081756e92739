"""Stream numbers of records, their flag bits, names and digests. Source: volume format, section 5."""

from __future__ import annotations

from enum import IntEnum

TYPE_MASK = 0x7FF  # the lower bits are the type, the upper ones flags
FLAG_BITS = 1 << 29
FLAG_PLUGIN_ITEM = 1 << 28
FLAG_DELTA = 1 << 27
FLAG_OFFSETS = 1 << 26  # data preceded by a u64 file offset
FLAG_PORTABLE = 1 << 25
FLAG_DEDUP_REFERENCES = 1 << 24


class Stream(IntEnum):
    """Types of records with a positive FileIndex."""

    UNIX_ATTRIBUTES = 1
    FILE_DATA = 2
    MD5_DIGEST = 3
    GZIP_DATA = 4
    UNIX_ATTRIBUTES_EX = 5
    SPARSE_DATA = 6
    SPARSE_GZIP_DATA = 7
    PROGRAM_NAMES = 8
    PROGRAM_DATA = 9
    SHA1_DIGEST = 10
    WIN32_DATA = 11
    WIN32_GZIP_DATA = 12
    MACOS_FORK_DATA = 13
    HFSPLUS_ATTRIBUTES = 14
    UNIX_ACCESS_ACL = 15
    UNIX_DEFAULT_ACL = 16
    SHA256_DIGEST = 17
    SHA512_DIGEST = 18
    SIGNED_DIGEST = 19
    ENCRYPTED_FILE_DATA = 20
    ENCRYPTED_WIN32_DATA = 21
    ENCRYPTED_SESSION_DATA = 22
    ENCRYPTED_FILE_GZIP_DATA = 23
    ENCRYPTED_WIN32_GZIP_DATA = 24
    ENCRYPTED_MACOS_FORK_DATA = 25
    PLUGIN_NAME = 26
    PLUGIN_DATA = 27
    RESTORE_OBJECT = 28
    COMPRESSED_DATA = 29
    SPARSE_COMPRESSED_DATA = 30
    WIN32_COMPRESSED_DATA = 31
    ENCRYPTED_FILE_COMPRESSED_DATA = 32
    ENCRYPTED_WIN32_COMPRESSED_DATA = 33
    PLUGIN_OBJECT = 34
    PLUGIN_META_BLOB = 35
    PLUGIN_META_CATALOG = 36
    UNIX_ATTRIBUTE_UPDATE = 37
    FILEEVENT = 38
    XXHASH64_DIGEST = 39
    XXH3_DIGEST = 40  # 8 bytes: XXH3_64 by Bacula; 16 bytes: XXH128 by Bareos
    XXH3_128_DIGEST = 41
    ADATA_BLOCK_HEADER = 200
    ADATA_RECORD_HEADER = 201
    NDMP_SEPARATOR = 999
    LINUX_DEFAULT_ACL = 1007
    LINUX_ACCESS_ACL = 1008
    LINUX_XATTR = 1998


# Signature as in configurations -> stream. `hashlib.new(name)` knows each of these names.
DIGEST_STREAMS = {
    "MD5": Stream.MD5_DIGEST,
    "SHA1": Stream.SHA1_DIGEST,
    "SHA256": Stream.SHA256_DIGEST,
    "SHA512": Stream.SHA512_DIGEST,
}
_DIGEST_NAMES = {int(stream): name for name, stream in DIGEST_STREAMS.items()} | {39: "XXHASH64", 41: "XXH3_128"}

ATTRIBUTES = frozenset({Stream.UNIX_ATTRIBUTES, Stream.UNIX_ATTRIBUTES_EX, Stream.UNIX_ATTRIBUTE_UPDATE})
PLAIN_DATA = frozenset({Stream.FILE_DATA, Stream.SPARSE_DATA, Stream.WIN32_DATA})
ENCRYPTED_DATA = frozenset({20, 21, 23, 24, 25, 32, 33})
DATA = PLAIN_DATA | ENCRYPTED_DATA | {4, 7, 12, 29, 30, 31}
WINDOWS_DATA = frozenset({Stream.WIN32_DATA, Stream.WIN32_GZIP_DATA, Stream.WIN32_COMPRESSED_DATA})
SPARSE = frozenset({Stream.SPARSE_DATA, Stream.SPARSE_GZIP_DATA, Stream.SPARSE_COMPRESSED_DATA})
ACL = frozenset({15, 16, *range(1000, 1023)})
XATTR = frozenset(range(1987, 2000))
# Records that belong to a file whose attributes must have come before.
OF_FILES = DATA | ACL | XATTR | {3, 10, 13, 14, 17, 18, 19, 22, 39, 40, 41}


def digest_name(stream: int, length: int) -> str | None:
    """The algorithm of a digest record of *length* bytes on *stream*, or None for other streams."""
    kind = stream & TYPE_MASK
    if kind == Stream.XXH3_DIGEST:
        return "XXH3_64" if length == 8 else "XXH128"
    return _DIGEST_NAMES.get(kind)


def is_encrypted(stream: int) -> bool:
    """Whether the client encrypted the data of this stream."""
    return stream & TYPE_MASK in ENCRYPTED_DATA


def stream_name(stream: int) -> str:
    """A name for people, "stream N" for unknown numbers."""
    try:
        return Stream(stream & TYPE_MASK).name
    except ValueError:
        return f"stream {stream & TYPE_MASK}"
