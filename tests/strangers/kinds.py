"""The kinds of disk, each an image file made by the format's own tool or from the facts of the format."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from tests.strangers import superblocks
from tests.strangers.superblocks import Writes

MIB = 1 << 20
_FAST = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]


@dataclass(frozen=True)
class Ours:
    """What a stranger may pretend: a magazine's name, UUIDs and key file, and the image of its disk."""

    name: str
    luks_uuid: str
    filesystem_uuid: str
    key_file: Path
    image: Path


@dataclass(frozen=True)
class Stranger:
    """One disk. *says*: a word that the reason must have; *claims*: it carries the LUKS UUID of a magazine.

    *serial*, *vendor*, *product*: what the drive says of itself.
    """

    name: str
    path: Path
    says: str
    claims: bool = False
    serial: str = ""
    vendor: str = "STRANGER"
    product: str = "DISK"


def tool(*words: str | bytes | Path) -> None:
    """Run a tool that must succeed."""
    done = subprocess.run([*words], stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 0, (
        f"{words}: {done.stdout.decode(errors='replace')}{done.stderr.decode(errors='replace')}"
    )


def blank(path: Path, size: int) -> Path:
    """A new sparse file of *size* bytes."""
    with path.open("xb") as file:
        file.truncate(size)
    return path


def poke(path: Path, writes: Writes) -> None:
    """Write bytes at offsets."""
    with path.open("r+b") as file:
        for offset, data in writes.items():
            file.seek(offset)
            file.write(data)


def _luks(path: Path, *options: str | bytes, version: int = 2, uuid: str = "", key: Path | None = None) -> Path:
    key = key or path.with_suffix(".key")
    if not key.exists():
        key.write_bytes(random.Random(path.name).randbytes(64))
    blank(path, 20 * MIB)
    words = ["cryptsetup", "luksFormat", "-q", "--type", f"luks{version}", *_FAST, "--uuid", uuid or str(uuid4())]
    tool(*words, *options, "--key-file", key, path)
    return path


# Name, word of the reason, size in MiB, the maker's words (the file comes last).
_MADE = (
    ("ext2", "ext2", 4, ["mkfs.ext2", "-q"]),
    ("ext3", "ext3", 8, ["mkfs.ext3", "-q"]),
    ("ext4", "ext4", 8, ["mkfs.ext4", "-q"]),
    ("xfs", "xfs", 320, ["mkfs.xfs", "-q"]),
    ("btrfs", "btrfs", 120, ["mkfs.btrfs", "-q"]),
    ("ntfs", "ntfs", 8, ["mkntfs", "-q", "-F", "-Q"]),
    ("exfat", "exfat", 8, ["mkfs.exfat"]),
    ("fat12", "vfat", 4, ["mkfs.vfat", "-F", "12"]),
    ("fat16", "vfat", 16, ["mkfs.vfat", "-F", "16"]),
    ("fat32", "vfat", 40, ["mkfs.vfat", "-F", "32"]),
    ("udf", "udf", 8, ["mkudffs", "--media-type=hd"]),
    ("f2fs", "f2fs", 64, ["mkfs.f2fs", "-q"]),
    ("jfs", "jfs", 16, ["mkfs.jfs", "-q"]),
    ("nilfs2", "nilfs2", 136, ["mkfs.nilfs2", "-q"]),
    ("minix", "minix", 4, ["mkfs.minix"]),
    ("bfs", "bfs", 4, ["mkfs.bfs"]),
    ("reiserfs", "reiserfs", 40, ["mkfs.reiserfs", "-q", "-f", "-f"]),
    ("swap", "swap", 4, ["mkswap"]),
)

# Name, word of the reason, superblock. All on 64 MiB: libblkid looks for ZFS on nothing smaller.
_KNOWN: tuple[tuple[str, str, Callable[[int], Writes]], ...] = (
    ("lvm", "LVM", superblocks.lvm),
    ("md-0.90", "RAID", superblocks.md_old),
    ("md-1.0", "RAID", lambda size: superblocks.md(size, 0)),
    ("md-1.1", "RAID", lambda size: superblocks.md(size, 1)),
    ("md-1.2", "RAID", lambda size: superblocks.md(size, 2)),
    ("imsm", "RAID", superblocks.imsm),
    ("zfs", "ZFS", superblocks.zfs),
    ("bcache", "bcache", superblocks.bcache),
    ("drbd", "DRBD", superblocks.drbd),
    ("vmfs", "VMFS", superblocks.vmfs),
    ("bitlocker", "BitLocker", superblocks.bitlocker),
    ("hfsplus", "hfsplus", superblocks.hfsplus),
    ("apfs", "apfs", superblocks.apfs),
    ("refs", "ReFS", superblocks.refs),
    ("bluestore", "ceph", superblocks.bluestore),
    ("vdo", "vdo", superblocks.vdo),
    ("integrity", "DM_integrity", superblocks.integrity),
)


def _file_systems(folder: Path) -> Iterator[Stranger]:
    for name, says, size, words in _MADE:
        path = blank(folder / name, size * MIB)
        tool(*words, path)
        yield Stranger(name, path, says)
    content = folder / "content"
    content.mkdir()
    (content / "file").write_text("hello\n")
    for name, says, words in (
        ("iso9660", "iso9660", ["genisoimage", "-quiet", "-o", folder / "iso9660", content]),
        ("squashfs", "squashfs", ["mksquashfs", content, folder / "squashfs", "-quiet", "-no-progress"]),
        ("erofs", "erofs", ["mkfs.erofs", folder / "erofs", content]),
        ("cramfs", "cramfs", ["mkfs.cramfs", content, folder / "cramfs"]),
    ):
        tool(*words)
        with (folder / name).open("r+b") as file:
            file.truncate(4 * MIB)
        yield Stranger(name, folder / name, says)
    two = [blank(folder / f"btrfs-{number}", 120 * MIB) for number in (1, 2)]
    tool("mkfs.btrfs", "-q", "-d", "single", *two)
    yield Stranger("btrfs-first-of-two", two[0], "btrfs")
    # The second alone: a kernel that knew the first would take them for one file system.
    yield Stranger("btrfs-second-of-two", two[1], "btrfs")


def _members(folder: Path) -> Iterator[Stranger]:
    for name, says, writes in _KNOWN:
        path = blank(folder / name, 64 * MIB)
        poke(path, writes(64 * MIB))
        yield Stranger(name, path, says)
    path = blank(folder / "hibernated", 4 * MIB)
    tool("mkswap", path)
    poke(path, superblocks.suspended(4 * MIB))
    yield Stranger("hibernated", path, "sleeping machine")
    path = blank(folder / "ambivalent", 8 * MIB)
    tool("mkfs.ext4", "-q", path)
    poke(path, superblocks.two_signatures(8 * MIB))
    yield Stranger("ambivalent", path, "not a magazine")


def _containers(folder: Path, ours: Ours) -> Iterator[Stranger]:
    unknown = "unknown LUKS"
    yield Stranger("luks1", _luks(folder / "luks1", version=1), unknown)
    yield Stranger("luks2", _luks(folder / "luks2"), unknown)
    yield Stranger("our-label", _luks(folder / "our-label", "--label", ours.name), unknown)
    # Even with our own key: what is not enrolled is not opened.
    yield Stranger("our-key", _luks(folder / "our-key", "--label", ours.name, key=ours.key_file), unknown)
    yield Stranger("other-key", _luks(folder / "other-key", uuid=ours.luks_uuid), "copy of magazine", claims=True)
    same = _luks(folder / "same-key", uuid=ours.luks_uuid, key=ours.key_file)
    yield Stranger("same-key", same, "copy of magazine", claims=True)
    old = _luks(folder / "our-uuid-luks1", version=1, uuid=ours.luks_uuid)
    yield Stranger("our-uuid-luks1", old, "copy of magazine", claims=True)
    tool("cp", "--sparse=always", ours.image, folder / "copy")
    yield Stranger("copy", folder / "copy", "copy of magazine", claims=True)
    path = blank(folder / "our-filesystem-uuid", 8 * MIB)
    tool("mkfs.ext4", "-q", "-U", ours.filesystem_uuid, path)
    yield Stranger("our-filesystem-uuid", path, "carries its UUID")
    path = blank(folder / "bare-with-luks-uuid", 8 * MIB)
    tool("mkfs.ext4", "-q", "-U", ours.luks_uuid, path)
    yield Stranger("bare-with-luks-uuid", path, "carries its UUID")
    # The second header is whole: cryptsetup would repair the first one, and that is a write.
    path = _luks(folder / "first-header-lost")
    poke(path, {0: bytes(16384)})
    yield Stranger("first-header-lost", path, unknown)
    path = _luks(folder / "header-scratched")
    poke(path, {4096: random.Random(1).randbytes(4096), 20480: random.Random(2).randbytes(4096)})
    yield Stranger("header-scratched", path, unknown)
    path = _luks(folder / "header-cut-off")
    with path.open("r+b") as file:
        file.truncate(64 * 1024)
    yield Stranger("header-cut-off", path, unknown)
    path = _luks(folder / "luks1-without-magic", version=1)
    poke(path, {0: b"KLUS"})
    yield Stranger("luks1-without-magic", path, "nothing that can be told")
    path = blank(folder / "header-elsewhere", 8 * MIB)
    poke(path, {0: random.Random(3).randbytes(8 * MIB)})
    yield Stranger("header-elsewhere", path, "nothing that can be told")
    yield Stranger("zeros", blank(folder / "zeros", 8 * MIB), "blank")


def _partitioned(folder: Path, ours: Ours) -> Iterator[Stranger]:
    def table(name: str, kind: str, inside: Path | None, script: str = ",,L\n") -> Path:
        path = blank(folder / name, 24 * MIB)
        done = subprocess.run(["sfdisk", "-q", path], input=f"label: {kind}\n{script}".encode(), capture_output=True)
        assert done.returncode == 0, done.stderr
        if inside is not None:
            poke(path, {MIB: inside.read_bytes()})
        return path

    yield Stranger("partitions-mbr", table("partitions-mbr", "dos", folder / "ext4"), "partitions")
    yield Stranger("partitions-gpt", table("partitions-gpt", "gpt", folder / "fat16"), "partitions")
    inside = folder / "our-filesystem-uuid"
    yield Stranger("our-uuid-in-partition", table("our-uuid-in-partition", "gpt", inside), "partitions")
    yield Stranger("luks-in-partition", table("luks-in-partition", "gpt", folder / "luks2"), "partitions")
    # systemd looks for partitions of this type to swap on, on the disk that it was started from.
    swap = table("swap-partition", "gpt", folder / "swap", ",,0657FD6D-A4AB-43C4-84E5-0933C84B4F4F\n")
    yield Stranger("swap-partition", swap, "partitions")
    raid = table("raid-partition", "dos", folder / "swap", ",,fd\n")
    yield Stranger("raid-partition", raid, "partitions")
    # Root and /home by their types, as the discoverable partitions specification has them.
    found = ",8M,4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n,,933AC7E1-2EB4-4F13-B844-0E14E2AEF915\n"
    yield Stranger("whole-system", table("whole-system", "gpt", folder / "ext4", found), "partitions")
    yield Stranger("empty-gpt", table("empty-gpt", "gpt", None, ""), "partitions")


# What a file system may be called; the longest that ext4 (16 bytes) and swap space (16) hold.
_LABELS = (
    b"  blanks  here  ",
    b"../../../../etc/",
    b"/dev/sda\n/dev/sd",
    b"\x1b[2J\x07\x08\x7f\r\t",
    b"\xff\xfe\x80\xc3\x28 bad",
    b"$(reboot);`id`|&",
    b"%s%n%d%i%k%%$env",
    b'"}],"state":"m"\\',
    b"'; rm -rf / #'\"x",
    b"\xe2\x80\xae\xe2\x80\x8b\xc2\x85name",
)
# What a drive may be called; a serial number has at most 36 bytes, a vendor 8, a product 16.
_SERIALS = (
    ("  two  words  ", "BL ANK", " A  B "),
    ("../../../../../../etc/passwd", "../..", "/../../dev/sda"),
    ("one\ntwo\nMAGAZINE=m1\nSTATE=x", "A\nB", "X\nE:DM_NAME=m"),
    ("\x1b[31mred\x07\x1b]0;t\x07", "\x1b[2J", "\x01\x02\x03\x7f"),
    ("x" * 35 + "é", "ÄÖÜÄ", "x" * 15 + "é"),
    ("$(touch /tmp/pwned);`id`|&", "`id`", "$(reboot);&|"),
    ("%s%n%d%k%%$env{PATH}%E{x}", "%n%s", "%c{1}$result"),
    ('"}],"state":"mounted"\\', '"\\', "{'\"}],[\\"),
    ("9" * 36, "8" * 8, "7" * 16),
    ("‮\u200b\x85\u2028name", "\u2028", "‮evil"),
)


def _odd_names(folder: Path) -> Iterator[Stranger]:
    for number, label in enumerate(_LABELS):
        path = blank(folder / f"label-{number}", 4 * MIB)
        tool("mkfs.ext4", "-q", "-O", "^metadata_csum", path)
        poke(path, {1024 + 120: label[:16].ljust(16, b"\0")})  # s_volume_name
        serial, vendor, product = _SERIALS[number]
        yield Stranger(f"label-{number}", path, "ext4", serial=serial, vendor=vendor, product=product)
    for number, label in ((100, b"\x1b[31m" + b"L" * 40), (101, b"../" * 15 + b"x")):
        yield Stranger(f"label-{number}", _luks(folder / f"label-{number}", "--label", label[:47]), "unknown LUKS")
    path = blank(folder / "label-102", 120 * MIB)
    tool("mkfs.btrfs", "-q", "-L", b"%s\xff\xfe\x1b" + b"long " * 49, path)
    yield Stranger("label-102", path, "btrfs")


def strangers(folder: Path, ours: Ours) -> tuple[Stranger, ...]:
    """All kinds, made as files in *folder*; those that pretend to be *ours* do so. The same names every time."""
    UUID(ours.luks_uuid), UUID(ours.filesystem_uuid)
    found: list[Stranger] = []
    for made in (
        _file_systems(folder),
        _members(folder),
        _containers(folder, ours),
        _partitioned(folder, ours),
        _odd_names(folder),
    ):
        found.extend(made)
    return tuple(found)
