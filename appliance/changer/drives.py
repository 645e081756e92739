"""Virtual drives: symbolic links `DRIVE_DIR/N` (N from 0), or `DRIVE_DIR/N/driveN`, to the file of the loaded volume.

The link itself is the only record of what is loaded. The second form is that of vchanger 0.8; a drive may have either,
and a load makes the one that the daemon names. This module is on the path of every Changer Command, so it imports
nothing that is slow to import.
"""

# pathlib is among what is slow to import.
# ruff: noqa: PTH106, PTH108, PTH112, PTH114, PTH115, PTH208
from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection

from appliance.errors import MagbayError

DRIVES = "drives"
_NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EINVAL})  # EINVAL: there is something, but no link


def drive_path(run_dir: str, drive: int) -> str:
    """What a storage daemon names as Archive Device of *drive*, where the configuration does not say otherwise."""
    return place(f"{run_dir}/{DRIVES}", drive)


def place(drive_dir: str, drive: int, *, folder: bool = False) -> str:
    """The link of *drive*; with *folder* in the form of vchanger 0.8."""
    return f"{drive_dir}/{drive}/drive{drive}" if folder else f"{drive_dir}/{drive}"


def target(drive_dir: str, drive: int) -> str:
    """The path that *drive* points at, empty when nothing is loaded. Raises `OSError`."""
    return _find(drive_dir, drive)[1]


def point(drive_dir: str, drive: int, path: str, *, folder: bool = False) -> None:
    """Make *drive* point at the file *path* in one step, with *folder* in the form of vchanger 0.8.

    Raises `MagbayError` when data lies where the link belongs: a daemon that opened the path of an empty drive
    has made a file there, and that may be the only copy of a backup.
    """
    from pathlib import Path

    from appliance.host.files import link_atomic

    where = place(drive_dir, drive, folder=folder)
    make_directory(drive_dir)
    if folder:
        outer = place(drive_dir, drive)
        if os.path.islink(outer):
            os.unlink(outer)
        make_directory(outer)
    elif os.path.isdir(where) and not os.path.islink(where):
        # The other form, of a daemon that was configured otherwise.
        clear(drive_dir, drive)
        with contextlib.suppress(OSError):
            os.rmdir(where)
    try:
        there = os.lstat(where)
    except FileNotFoundError:
        there = None
    if there is not None and not stat.S_ISLNK(there.st_mode) and (there.st_size or not stat.S_ISREG(there.st_mode)):
        raise MagbayError(
            f"{where} is not a link: something wrote there while nothing was loaded in drive {drive}",
            hint="Move it to a magazine if it is a volume, else remove it.",
        )
    link_atomic(Path(where), Path(path))


def clear(drive_dir: str, drive: int) -> bool:
    """Empty *drive*; whether something was loaded. What is no link is left alone. Raises `OSError`."""
    link, path = _find(drive_dir, drive)
    if not path:
        return False
    os.unlink(link)
    return True


def sweep(drive_dir: str, count: int, keep: Collection[str]) -> tuple[int, ...]:
    """Empty every drive that points at none of the paths *keep*, and every one from *count* on.

    Also removes what a caller that was killed while switching a link has left. Call it under the changer's lock.
    Gives the drives that were emptied. Raises `OSError`.
    """
    try:
        names = os.listdir(drive_dir)
    except FileNotFoundError:
        return ()
    emptied = []
    for name in names:
        if _is_left_over(name) and os.path.islink(f"{drive_dir}/{name}"):
            os.unlink(f"{drive_dir}/{name}")
        elif name.isascii() and name.isdigit() and len(name) < 10:
            drive = int(name)
            if (drive >= count or target(drive_dir, drive) not in keep) and clear(drive_dir, drive):
                emptied.append(drive)
    return tuple(sorted(emptied))


def _find(drive_dir: str, drive: int) -> tuple[str, str]:
    """The link of *drive* in whichever form it has, and what it points at; empty texts when there is none."""
    for folder in (False, True):
        link = place(drive_dir, drive, folder=folder)
        try:
            return link, os.readlink(link)
        except OSError as error:
            if error.errno not in _NOTHING_THERE:
                raise
    return "", ""


def _is_left_over(name: str) -> bool:
    """Whether `link_atomic` makes links of this name: a dot, the drive, a dot, a process."""
    parts = name.split(".")
    return len(parts) == 3 and parts[0] == "" and all(part.isascii() and part.isdigit() for part in parts[1:])


def make_directory(path: str) -> None:
    """Make the directory *path* with owner, group and mode of the one it is in, which says who may run the changer."""
    from pathlib import Path

    from appliance.host.files import adopt

    directory = Path(path)
    if directory.is_dir():
        return
    directory.mkdir()
    above = directory.parent.stat()
    os.chown(directory, -1, above.st_gid)
    try:
        directory.chmod(stat.S_IMODE(above.st_mode))
    except PermissionError:
        # A service with RestrictSUIDSGID may not name the bit that hands down the group.
        directory.chmod(stat.S_IMODE(above.st_mode) & 0o777)
    adopt(directory, directory.parent)
