"""Files under names of their own until they are whole, of restores and new volumes, and file systems to be flushed.

Each unfinished file is locked (flock) while it is written. The kernel frees the lock when that process dies, also for
other machines on a network file system, so such a name without a lock is left of a process that was killed, or whose
machine lost power: nobody will finish it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import stat
from collections.abc import Sequence

from appliance.host import files
from appliance.storage.pathset import PathSet

_PREFIX = b".magbay-unfinished-"
_NAME = re.compile(re.escape(_PREFIX) + rb"[0-9]+-[0-9]+")
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_MOST_KEPT = (
    100_000  # directories (with those above them) that are remembered; one that is forgotten is looked at once more
)
_numbers = itertools.count(1)


def create(directory: int) -> tuple[int, bytes]:
    """A new file in *directory*, locked, open for writing, for its owner only, and its name. Raises `OSError`."""
    while True:
        name = b"%s%d-%d" % (_PREFIX, os.getpid(), next(_numbers))
        with contextlib.suppress(FileExistsError):  # of another machine, or of a process that was killed
            descriptor = os.open(name, _CREATE, 0o600, dir_fd=directory)
            if _claimed(descriptor):
                return descriptor, name
            os.close(descriptor)


def _claimed(descriptor: int) -> bool:
    """Lock a new file; False when another process took it for a dead one before it was locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True  # there nobody can lock it, so nobody takes it away
        raise
    return os.fstat(descriptor).st_nlink > 0


def remove_dead(directory: int) -> int:
    """Take away the unfinished files of dead processes in *directory* (an open one); gives how many there were.

    What cannot be looked at, or removed, stays.
    """
    count = 0
    with contextlib.suppress(OSError):
        listed = os.open(b".", _LIST, dir_fd=directory)
        try:
            with os.scandir(listed) as entries:
                names = [os.fsencode(entry.name) for entry in entries if entry.name.startswith(os.fsdecode(_PREFIX))]
        finally:
            os.close(listed)
        for name in names:
            if _NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    count += _remove(directory, name)
    return count


def _remove(directory: int, name: bytes) -> bool:
    # A file has the rights of its owner to be from shortly before it gets its name.
    try:
        descriptor = os.open(name, os.O_RDWR | _OPEN, dir_fd=directory)
    except PermissionError:
        descriptor = os.open(name, os.O_RDONLY | _OPEN, dir_fd=directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found, named = os.fstat(descriptor), os.stat(name, dir_fd=directory, follow_symlinks=False)
        # One that has other names is something that somebody wants to keep.
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or not os.path.samestat(found, named):
            return False
        os.unlink(name, dir_fd=directory)
        return True
    finally:
        os.close(descriptor)


class Places:
    """The directories that a restore came to, and the file systems that they are on. Threads may share it."""

    def __init__(self) -> None:
        self._seen = PathSet()
        self._made = PathSet()  # of these
        self._flushed: dict[int, int] = {}  # device number -> open directory
        self._hidden: set[int] = set()  # of file systems on which no directory could be opened

    def made(self, parts: Sequence[bytes]) -> None:
        """This restore made the directory: nothing of an older one can be in it."""
        self._remember(parts)
        self._made.add(parts)

    def was_made(self, parts: Sequence[bytes]) -> bool:
        """Whether this restore made the directory; False when that is forgotten."""
        return parts in self._made

    def came_to(self, parts: Sequence[bytes], directory: int) -> None:
        """The directory *parts*, open as *directory*, will be written in. What dead restores left in it goes."""
        if parts in self._seen:
            return
        self._remember(parts)
        remove_dead(directory)
        self.note(directory)

    def note(self, directory: int) -> None:
        """Something is changed on the file system of *directory*. Raises `OSError`."""
        device = os.fstat(directory).st_dev
        if device in self._flushed:
            return
        try:
            mine = os.open(b".", _LIST, dir_fd=directory)
        except PermissionError:
            self._hidden.add(device)
            return
        if self._flushed.setdefault(device, mine) != mine:
            os.close(mine)

    def _remember(self, parts: Sequence[bytes]) -> None:
        if self._seen.components >= _MOST_KEPT:
            self._seen.clear()
            self._made.clear()
        self._seen.add(parts)

    def flush(self) -> None:
        """Return when all that was written there is on the disk. Raises `OSError`, also for what failed before."""
        for descriptor in list(self._flushed.values()):
            files.sync_file_system(descriptor)
        if self._hidden - self._flushed.keys():
            os.sync()

    def close(self) -> None:
        """Close the descriptors."""
        while self._flushed:
            os.close(self._flushed.popitem()[1])
