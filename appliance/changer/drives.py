"""Virtual drives: symbolic links `run_dir/drives/N` (N from 0) to the file of the loaded volume.

The link itself is the only record of what is loaded. This module is on the path of every Changer Command,
so it imports nothing that is slow to import.
"""

# pathlib is among what is slow to import.
# ruff: noqa: PTH108, PTH114, PTH115, PTH208
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection

from appliance.errors import MagbayError

DRIVES = "drives"


def drive_path(run_dir: str, drive: int) -> str:
    """What a storage daemon names as Archive Device of *drive*."""
    return f"{run_dir}/{DRIVES}/{drive}"


def target(run_dir: str, drive: int) -> str:
    """The path that *drive* points at, empty when nothing is loaded. Raises `OSError`."""
    try:
        return os.readlink(drive_path(run_dir, drive))
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno == errno.EINVAL:  # there is something, but no link: see `point`
            return ""
        raise


def point(run_dir: str, drive: int, path: str) -> None:
    """Make *drive* point at the file *path* in one step.

    Raises `MagbayError` when data lies where the link belongs: a daemon that opened the path of an empty drive
    has made a file there, and that may be the only copy of a backup.
    """
    from pathlib import Path

    from appliance.host.files import link_atomic

    place = drive_path(run_dir, drive)
    _make_directory(run_dir)
    try:
        there = os.lstat(place)
    except FileNotFoundError:
        there = None
    if there is not None and not stat.S_ISLNK(there.st_mode) and (there.st_size or not stat.S_ISREG(there.st_mode)):
        raise MagbayError(
            f"{place} is not a link: something wrote there while nothing was loaded in drive {drive}",
            hint="Move it to a magazine if it is a volume, else remove it.",
        )
    link_atomic(Path(place), Path(path))


def clear(run_dir: str, drive: int) -> bool:
    """Empty *drive*; whether something was loaded. What is no link is left alone. Raises `OSError`."""
    if not target(run_dir, drive):
        return False
    os.unlink(drive_path(run_dir, drive))
    return True


def sweep(run_dir: str, count: int, keep: Collection[str]) -> tuple[int, ...]:
    """Empty every drive that points at none of the paths *keep*, and every one from *count* on.

    Also removes what a caller that was killed while switching a link has left. Call it under the changer's lock.
    Gives the drives that were emptied. Raises `OSError`.
    """
    try:
        names = os.listdir(f"{run_dir}/{DRIVES}")
    except FileNotFoundError:
        return ()
    emptied = []
    for name in names:
        path = f"{run_dir}/{DRIVES}/{name}"
        if name.startswith(".") and os.path.islink(path):
            os.unlink(path)
        elif name.isascii() and name.isdigit() and len(name) < 10:
            drive = int(name)
            if (drive >= count or target(run_dir, drive) not in keep) and clear(run_dir, drive):
                emptied.append(drive)
    return tuple(sorted(emptied))


def _make_directory(run_dir: str) -> None:
    """The directory takes owner, group and mode of run_dir, which says who may run the changer."""
    from pathlib import Path

    from appliance.host.files import adopt

    directory = Path(run_dir, DRIVES)
    if directory.is_dir():
        return
    directory.mkdir()
    directory.chmod(stat.S_IMODE(Path(run_dir).stat().st_mode))
    adopt(directory, Path(run_dir))
