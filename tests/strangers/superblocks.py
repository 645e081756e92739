"""Superblocks of what has no maker that works on plain files: the facts of each format, no more than makes it known.

Each function gives what to write: offset in bytes (negative: from the end of the disk) to bytes. libblkid is the judge
(`blkid -p` in tests/unit/test_foreign.py, udev's own in the virtual machine).
"""

from __future__ import annotations

import struct
import zlib
from uuid import UUID

Writes = dict[int, bytes]

_UUID = UUID("5f0e1d2c-3b4a-5968-7786-95a4b3c2d1e0")
_KIB = 1024
_LVM_CRC_SEED = 0xF597A6CF
_CRC64_POLYNOMIAL = 0x42F0E1EBA9EA3693  # CRC-64/WE


def _crc32_raw(data: bytes, seed: int) -> int:
    return zlib.crc32(data, seed ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def _crc64(data: bytes) -> int:
    value = (1 << 64) - 1
    for byte in data:
        value ^= byte << 56
        for _ in range(8):
            value = (value << 1 ^ _CRC64_POLYNOMIAL if value >> 63 else value << 1) & ((1 << 64) - 1)
    return value ^ ((1 << 64) - 1)


def lvm(size: int) -> Writes:
    """A physical volume: the label in sector 1, with its checksum over the rest of the sector."""
    body = struct.pack("<I8s32sQ", 32, b"LVM2 001", b"0123456789abcdefghijABCDEFGHIJkl", size).ljust(492, b"\0")
    return {512: struct.pack("<8sQI", b"LABELONE", 1, _crc32_raw(body, _LVM_CRC_SEED)) + body}


def md_old(size: int) -> Writes:
    """Linux RAID 0.90: 64 KiB before the last whole 64 KiB."""
    a, b, c, d = struct.unpack("<4I", _UUID.bytes)
    words = [0xA92B4EFC, 0, 90, 0, 0, a, 1700000000, 1, size // _KIB - 128, 2, 2, 0, 0, b, c, d]
    block = bytearray(struct.pack("<16I", *words).ljust(4096, b"\0"))
    total = sum(struct.unpack("<1024I", block))
    struct.pack_into("<I", block, 38 * 4, (total & 0xFFFFFFFF) + (total >> 32))
    return {(size & ~0xFFFF) - 0x10000: bytes(block)}


def md(size: int, minor: int) -> Writes:
    """Linux RAID 1.0 (near the end), 1.1 (at the beginning) or 1.2 (4 KiB from it)."""
    sector = {0: (size // 512 - 16) & ~7, 1: 0, 2: 8}[minor]
    block = bytearray(256 + 2 * 2)
    struct.pack_into("<IIII16s32sQiIQII", block, 0, 0xA92B4EFC, 1, 0, 0, _UUID.bytes, b"host:0", 1, 1, 0, 1024, 0, 2)
    struct.pack_into("<QQQ", block, 128, 2048, size // 512 - 2048, sector)
    struct.pack_into("<I", block, 220, 2)
    total = sum(struct.unpack("<65I", block))
    struct.pack_into("<I", block, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    return {sector * 512: bytes(block)}


def zfs(size: int) -> Writes:
    """A member of a pool: its list of names and the ring of uberblocks in each of the four labels."""

    def text(value: bytes) -> bytes:
        return struct.pack(">I", len(value)) + value.ljust(-(-len(value) // 4) * 4, b"\0")

    def pair(name: bytes, kind: int, value: bytes) -> bytes:
        body = text(name) + struct.pack(">II", kind, 1) + value
        return struct.pack(">II", len(body) + 8, len(body) + 32) + body

    names = b"\x01\x01\0\0" + struct.pack(">II", 0, 1)
    for name, number in ((b"version", 5000), (b"state", 0), (b"txg", 4), (b"pool_guid", 77), (b"guid", 78)):
        names += pair(name, 8, struct.pack(">Q", number))
    names += pair(b"name", 9, text(b"tank")) + bytes(8)
    ring = b"".join(struct.pack("<5Q", 0x00BAB10C, 5000, 4, 77, 1700000000).ljust(_KIB, b"\0") for _ in range(128))
    whole = size // (256 * _KIB) * 256 * _KIB
    starts = (0, 256 * _KIB, whole - 512 * _KIB, whole - 256 * _KIB)
    return {start + 16 * _KIB: names for start in starts} | {start + 128 * _KIB: ring for start in starts}


def bcache(size: int) -> Writes:
    """A backing device: superblock at 4 KiB."""
    magic = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
    body = struct.pack("<QQ16s16s16s32s", 8, 1, magic, _UUID.bytes, _UUID.bytes, b"cache").ljust(176, b"\0")
    body += struct.pack("<QHHHHIHH", 16, 1, 1024, 1, 0, 0, 0, 0)
    return {4096: struct.pack("<Q", _crc64(body)) + body}


def drbd(size: int) -> Writes:
    """A replicated disk with internal meta data of version 8, in its last 4 KiB."""
    body = struct.pack(">Q4QQQII", size // 512, 1, 2, 3, 4, 0x1122334455667788, 0, 0, 0x8374026B)
    return {size - 4096: body + struct.pack(">IIIIII", 8, 8, 1, 1, 4096, 0)}


def vmfs(size: int) -> Writes:
    """An extent of a VMware datastore: volume information at 1 MiB, file system at 2 MiB."""
    return {
        0x100000: (b"\x0d\xd0\x01\xc0" + struct.pack("<I", 5)).ljust(0x82, b"\0") + _UUID.bytes,
        0x200000: b"\x5e\xf1\xab\x2f" + struct.pack("<I", 5),
    }


def bitlocker(size: int) -> Writes:
    """A volume of Windows 7 or later: boot sector, and the meta data that it points at."""
    boot = bytearray(512)
    boot[0:11] = b"\xeb\x58\x90-FVE-FS-"
    struct.pack_into("<HB", boot, 11, 512, 8)
    boot[0xA0:0xB0] = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
    struct.pack_into("<3Q", boot, 0xB0, 0x10000, 0x20000, 0x30000)
    boot[510:] = b"\x55\xaa"
    meta = b"-FVE-FS-" + struct.pack("<HHHH", 64, 2, 4, 4)
    return {0: bytes(boot)} | {place: meta for place in (0x10000, 0x20000, 0x30000)}


def hfsplus(size: int) -> Writes:
    """The volume header of an Apple disk at 1 KiB."""
    header = bytearray(512)
    struct.pack_into(">2sHI4s", header, 0, b"H+", 4, 0x100, b"10.0")
    struct.pack_into(">III", header, 40, 4096, size // 4096, size // 4096 - 10)
    header[104:112] = _UUID.bytes[:8]
    return {1024: bytes(header)}


def imsm(size: int) -> Writes:
    """A member of an Intel firmware RAID: two sectors before the end."""
    return {size - 1024: b"Intel Raid ISM Cfg Sig. 1.3.00".ljust(512, b"\0")}


def apfs(size: int) -> Writes:
    """The container superblock of an Apple disk."""
    block = bytearray(4096)
    struct.pack_into("<QQQHHHH", block, 0, 0, 1, 1, 1, 0x8000, 0, 0)
    struct.pack_into("<4sIQQQQ16s", block, 32, b"NXSB", 4096, size // 4096, 0, 0, 2, _UUID.bytes)
    words = struct.unpack("<1022I", block[8:])
    first = second = 0
    for word in words:  # Fletcher's sum of 64 bits
        first = (first + word) % 0xFFFFFFFF
        second = (second + first) % 0xFFFFFFFF
    low = 0xFFFFFFFF - (first + second) % 0xFFFFFFFF
    struct.pack_into("<II", block, 0, low, 0xFFFFFFFF - (first + low) % 0xFFFFFFFF)
    return {0: bytes(block)}


def refs(size: int) -> Writes:
    """The boot sector of a Windows server's file system."""
    return {0: b"\0\0\0ReFS\0".ljust(512, b"\0")}


def bluestore(size: int) -> Writes:
    """A disk of a Ceph cluster."""
    return {0: b"bluestore block device\n" + str(_UUID).encode() + b"\n"}


def vdo(size: int) -> Writes:
    """A deduplicating volume below."""
    return {0: b"dmvdo001".ljust(4096, b"\0")}


def integrity(size: int) -> Writes:
    """A disk below dm-integrity."""
    return {0: b"integrt\0\x05".ljust(4096, b"\0")}


def suspended(size: int) -> Writes:
    """Turns swap space into the image of a sleeping machine: opening it would lose that machine's memory."""
    return {4086: b"S1SUSPEND\0"}


def two_signatures(size: int) -> Writes:
    """A swap signature beside whatever is there already: nobody can say which of the two is true."""
    return {1024: struct.pack("<III", 1, size // 4096 - 1, 0) + _UUID.bytes, 4086: b"SWAPSPACE2"}
