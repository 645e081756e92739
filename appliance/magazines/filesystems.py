"""File systems of magazines: made for few, large files that are written from front to back."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from appliance.errors import MagbayError
from appliance.host.commands import run


class Filesystem(Enum):
    """File systems a magazine can have."""

    EXT4 = "ext4"
    XFS = "xfs"
    BTRFS = "btrfs"


_MIB = 1024 * 1024
# A LUKS2 header takes 16 MiB; below this the makers of file systems refuse, or no room for volumes is left.
LEAST_BYTES = {Filesystem.EXT4: 64 * _MIB, Filesystem.XFS: 320 * _MIB, Filesystem.BTRFS: 128 * _MIB}
_PACKAGES = {Filesystem.EXT4: "e2fsprogs", Filesystem.XFS: "xfsprogs", Filesystem.BTRFS: "btrfs-progs"}
_LABEL_BYTES = {Filesystem.EXT4: 16, Filesystem.XFS: 12, Filesystem.BTRFS: 255}
_SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"
# ext4 keeps 256 bytes for each file that there might be. So many are enough for the slots of any changer.
_FILES = 65536
_LEAST_RATIO, _MOST_RATIO = 16384, 64 * _MIB  # bytes for each file; the most that mke2fs takes


def check(filesystem: Filesystem) -> None:
    """Refuse before a disk is wiped for hours what would fail behind that. Raises `MagbayError`."""
    if shutil.which(f"mkfs.{filesystem.value}", path=_SEARCH) is None:
        raise MagbayError(
            f"mkfs.{filesystem.value} is not installed: nothing was done",
            hint=f"Install the package {_PACKAGES[filesystem]}, or choose another --filesystem.",
        )


def make(filesystem: Filesystem, node: Path, size: int, *, uuid: str, name: str, keep: Iterable[int] = ()) -> None:
    """Make *filesystem* on *node* (about *size* bytes). Its label is *name*, cut where that is too long.

    Raises `MagbayError`.
    """
    label = name[: _LABEL_BYTES[filesystem]]
    run([*_command(filesystem, size, uuid, label), str(node)], "making the file system", timeout=3600, descriptors=keep)


def _command(filesystem: Filesystem, size: int, uuid: str, label: str) -> list[str]:
    if filesystem is Filesystem.XFS:
        return ["mkfs.xfs", "-q", "-f", "-K", "-L", label, "-m", f"uuid={uuid}"]
    if filesystem is Filesystem.BTRFS:
        return ["mkfs.btrfs", "-q", "-f", "-K", "-L", label, "-U", uuid]
    ratio = min(max(size // _FILES, _LEAST_RATIO), _MOST_RATIO)
    # Nothing is reserved for root; tables are written now, so that the kernel does not do it in the first hours of
    # use, when the disk may be pulled; an error makes it read-only.
    extended = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    space = ["-m", "0", "-i", str(ratio), "-E", extended, "-e", "remount-ro"]
    return ["mkfs.ext4", "-q", "-F", *space, "-L", label, "-U", uuid]
