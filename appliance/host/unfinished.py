"""Files under names of their own until they are whole: those that are replaced, of restores, and new volumes.

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
from collections.abc import Callable

_PREFIX = b".magbay-unfinished-"
_NAME = re.compile(re.escape(_PREFIX) + rb"[0-9]+-[0-9]+")
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
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


def make(action: Callable[[bytes], None]) -> bytes:
    """Make something that is no regular file, and cannot be locked: *action* is given the name. Raises as it does."""
    while True:
        name = b"%s%d-%d" % (_PREFIX, os.getpid(), next(_numbers))
        with contextlib.suppress(FileExistsError):
            action(name)
            return name


def reopen(directory: int, name: bytes, before: os.stat_result) -> int:
    """The file *name* of `create`, which was closed (and so not locked any more), locked and open again.

    Raises `OSError`, also when it is not the file any more that was *before*.
    """
    descriptor = os.open(name, os.O_RDWR | _OPEN, dir_fd=directory)
    try:
        if not os.path.samestat(os.fstat(descriptor), before) or not _claimed(descriptor):
            raise OSError(errno.EBUSY, "somebody else took it before it was whole")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


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
