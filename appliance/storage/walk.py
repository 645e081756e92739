"""Walking the tree to be saved: a directory after its contents, the top last, as Bacula does.

Directories are walked through descriptors, so a name that is exchanged for a symbolic link while walking leads
nowhere, and depth is bounded by the number of open files only, not by the length of a path. Memory does not
grow with the number of entries.
"""

from __future__ import annotations

import errno
import os
import resource
import stat as modes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from appliance.errors import NotFoundError
from appliance.storage.limits import Limits

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Two descriptors for each level of depth.
_WANTED_DESCRIPTORS = 65536
# The name is not there any more, or is another thing now.
GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

Trouble = Callable[[bytes, OSError], None]
"""Told of what cannot be read."""


NOT_LOOKED_AT = os.stat_result((modes.S_IFREG, *[0] * 9))
"""In the place of the status of a regular file, of which its directory tells the type and nobody needs more yet."""


class Found(NamedTuple):
    """One thing to be saved. *path* is absolute; *name* is opened relative to the directory *parent* (-1: cwd).

    *stat* may be `NOT_LOOKED_AT` where the walker was asked for that.
    """

    path: bytes
    name: bytes
    parent: int
    stat: os.stat_result
    descriptor: int = -1  # of a directory that was walked


def tops(paths: Sequence[Path], *, one_file_system: bool = True, all_there: bool = True) -> list[bytes]:
    """The paths as absolute names, without those that walking another one finds anyway.

    Raises `NotFoundError` for the first one that does not exist; with *all_there* False only when none exists.
    """
    found: dict[bytes, os.stat_result | None] = {}
    missing: list[tuple[bytes, OSError]] = []
    for name in map(_absolute, paths):
        try:
            found[name] = os.lstat(name)
        except OSError as error:
            found[name] = None
            missing.append((name, error))
    if missing and (all_there or len(missing) == len(found)):
        name, trouble = missing[0]
        raise NotFoundError(
            f"{os.fsdecode(name)} cannot be saved: {trouble.strerror}", hint="Look at the spelling of the path."
        )
    devices = {name: status.st_dev if one_file_system and status else None for name, status in found.items()}
    return [name for name in found if not any(_walked(name, other, devices[other]) for other in found)]


def _absolute(path: Path) -> bytes:
    """The name of *path* from the root, as the system resolves `..`; a symbolic link as its last part stays one."""
    if ".." not in path.parts:
        return os.fsencode(path.absolute())
    if path.name == "..":
        return os.fsencode(os.path.realpath(path))
    return os.fsencode(Path(os.path.realpath(path.parent), path.name))


def _walked(name: bytes, other: bytes, device: int | None) -> bool:
    """Whether walking *other* comes to *name*: not through a symbolic link, nor off *device* (None: any will do)."""
    prefix = other.rstrip(b"/") + b"/"
    if name == other or not name.startswith(prefix):
        return False
    at = len(other.rstrip(b"/"))
    try:
        while at >= 0:
            status = os.lstat(name[:at] or b"/")
            if not modes.S_ISDIR(status.st_mode) or device not in (None, status.st_dev):
                return False
            at = name.find(b"/", at + 1)
        return device in (None, os.lstat(name).st_dev)
    except FileNotFoundError:
        return True  # walking comes to where it would be, or the other one is missing as well
    except OSError:
        return False


def allow_depth() -> None:
    """Raise this process's limit of open files as far as it may, for deep trees."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _WANTED_DESCRIPTORS)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass
class _Level:
    entries: Iterator[os.DirEntry[str]]
    found: Found
    prefix: bytes
    only: frozenset[str] | None = None  # of a directory that is marked: the names that are saved nevertheless
    saved: bool = False  # whether it is wanted, by itself or for something in it


class Walker:
    """Walks one top path on its file system. *trouble* is told of what cannot be read, *notice* of what is left out.

    *look*: False when the caller looks at regular files itself (`NOT_LOOKED_AT`), unless the limits need to know more.
    """

    def __init__(self, limits: Limits, trouble: Trouble, notice: Callable[[str], None], *, look: bool = True) -> None:
        self._limits = limits
        self._look_at_all = look or limits.by_status
        self._trouble = trouble
        self._notice = notice
        self._levels: list[_Level] = []

    def walk(self, top: bytes) -> Iterator[Found]:
        """Everything below *top*, itself last. A found directory's descriptor is valid until the next step."""
        try:
            status = os.lstat(top)
        except OSError as error:
            self._trouble(top, error)
            return
        found = Found(top, top, -1, status)
        if not modes.S_ISDIR(status.st_mode):
            if modes.S_ISLNK(status.st_mode):
                self._notice(f"{os.fsdecode(top)} is a symbolic link: it is saved, not what it points to")
            if modes.S_ISSOCK(status.st_mode):
                self._trouble(top, OSError(0, "it is a socket"))
                return
            yield found
            return
        if self._is_ours(status):
            self._trouble(top, OSError(0, "it belongs to magbay"))
            return
        try:
            bare = self._enter(found, wanted=True)
            if bare:
                yield bare
            yield from self._contents(status.st_dev)
        finally:
            while self._levels:
                self._leave()

    def _contents(self, device: int) -> Iterator[Found]:
        while self._levels:
            level = self._levels[-1]
            entry = self._next(level)
            if entry is None:
                if level.saved:
                    yield level.found
                self._leave()
                continue
            found = self._look(level, entry)
            if found is None:
                continue
            if modes.S_ISDIR(found.stat.st_mode):
                found = self._descend(found, device)
            if found is not None:
                level.saved = True
                yield found

    def _descend(self, found: Found, device: int) -> Found | None:
        """Enter the directory; gives it back when only it is saved, without its contents."""
        wanted = self._limits.includes(found.path, directory=True)
        if not self._limits.may_enter(found.stat, device):
            self._notice(f"{os.fsdecode(found.path)} is another file system: its contents are not saved")
            return found if wanted else None
        return self._enter(found, wanted=wanted)

    def _next(self, level: _Level) -> os.DirEntry[str] | None:
        try:
            return next(level.entries, None)
        except OSError as error:
            self._trouble(level.found.path, error)
            return None

    def _look(self, level: _Level, entry: os.DirEntry[str]) -> Found | None:
        """The entry, when it is to be saved or, of a directory, looked into."""
        name = os.fsencode(entry.name)
        path = level.prefix + name
        limits = self._limits
        if limits.exclude and limits.excludes(path, directory=entry.is_dir(follow_symlinks=False)):
            return None
        if level.only is not None and entry.name not in level.only:
            return None
        try:
            if self._look_at_all or not entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
            else:
                status = NOT_LOOKED_AT
        except OSError as error:
            self._trouble(path, error)
            return None
        if not modes.S_ISDIR(status.st_mode) and limits.leaves_out(path, status):
            return None
        return Found(path, name, level.found.descriptor, status)

    def _enter(self, found: Found, *, wanted: bool) -> Found | None:
        """Open a directory and put it on the stack; gives it back when it can only be saved without its contents."""
        if self._is_ours(found.stat):
            self._notice(f"{os.fsdecode(found.path)} belongs to magbay and is left out")
            return None
        try:
            descriptor = _open_directory(found)
        except OSError as error:
            self._trouble(found.path, error)
            return found if wanted and error.errno not in GONE else None
        try:
            status = os.fstat(descriptor)
            entries = os.scandir(descriptor)
            marks = self._limits.marks_in(descriptor)
        except OSError as error:
            os.close(descriptor)
            self._trouble(found.path, error)
            return found if wanted else None
        if marks is not None:
            self._notice(
                f"{os.fsdecode(found.path)} is marked by {', '.join(sorted(marks))}: its contents are left out"
            )
        prefix = found.path if found.path.endswith(b"/") else found.path + b"/"
        entered = Found(found.path, found.name, found.parent, status, descriptor)
        self._levels.append(_Level(entries, entered, prefix, marks, wanted))
        return None

    def _is_ours(self, status: os.stat_result) -> bool:
        return (status.st_dev, status.st_ino) in self._limits.directories

    def _leave(self) -> None:
        level = self._levels.pop()
        if self._levels and level.saved:
            self._levels[-1].saved = True
        level.entries.close()  # type: ignore[attr-defined]
        os.close(level.found.descriptor)


def _open_directory(found: Found) -> int:
    """The directory opened, without touching its access time where that is permitted. Raises `OSError`."""
    parent = found.parent if found.parent >= 0 else None
    try:
        return os.open(found.name, _OPEN_DIRECTORY | os.O_NOATIME, dir_fd=parent)
    except PermissionError:
        return os.open(found.name, _OPEN_DIRECTORY, dir_fd=parent)


def total_bytes(names: Sequence[bytes], limits: Limits, stop: Callable[[], bool]) -> int | None:
    """Bytes of the regular files below *names*, for a progress display; None when *stop* says so."""
    total = 0
    walker = Walker(limits, lambda _path, _error: None, lambda _text: None)
    for name in names:
        for found in walker.walk(name):
            if stop():
                return None
            if modes.S_ISREG(found.stat.st_mode):
                size, taken = found.stat.st_size, found.stat.st_blocks * 512
                # Holes are not read. A file system that compresses takes less, too, but seldom so much less.
                total += taken if taken < size // 4 else size
    return total
