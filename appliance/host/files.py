"""Durable files: the one place that says how a small file is replaced so that power loss leaves the old or the new one.

Order: write a temporary file beside the target, fsync it, rename it over the target, fsync the directory. Temporary
files of processes that were killed are taken away by the next process that writes in the directory (`unfinished.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from appliance.host import unfinished

_looked_at: set[tuple[int, int]] = set()  # directories (device, inode) in which dead processes' files were looked for
_MOST_LOOKED_AT = 1000
_LOOK = 0.1  # seconds between two looks at a lock that another holds


def names_in(folder: Path) -> frozenset[str]:
    """Names of what is in *folder*; none when it is not there. Raises `OSError`."""
    try:
        return frozenset(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return frozenset()


def write_atomic(path: Path, data: bytes, *, mode: int = 0o640, durable: bool = True, adopted: bool = True) -> None:
    """Replace *path* by *data* (bytes), see `replacing`. Raises `OSError`."""
    with replacing(path, mode=mode, durable=durable, adopted=adopted) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o640, durable: bool = True, adopted: bool = True) -> Iterator[BinaryIO]:
    """A file to be written; it stands in the place of *path* once the block has ended, and is gone if that raised.

    *durable* False leaves out the fsyncs, for files in /run; *adopted* False keeps a file of root from the owner of its
    directory. Raises `OSError`.
    """
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        error.filename = str(path)  # what a person has asked for
        raise
    try:
        _take_dead_away(folder)
        with _unfinished(folder, path) as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            if adopted:
                adopt(file.fileno(), path.parent)
            if durable:
                os.fsync(file.fileno())
    finally:
        os.close(folder)
    if durable:
        sync_directory(path.parent)


@contextlib.contextmanager
def _unfinished(folder: int, path: Path) -> Iterator[BinaryIO]:
    """A new file in *folder* that is renamed to *path* at the end of the block, or removed when that raises."""
    try:
        fd, name = unfinished.create(folder)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            # While it is locked: without its lock it would be one of a dead process.
            os.rename(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise


def _take_dead_away(folder: int) -> None:
    """At this process' first file in the directory: what processes left there that were killed while they wrote."""
    status = os.fstat(folder)
    place = (status.st_dev, status.st_ino)
    if place not in _looked_at:
        if len(_looked_at) >= _MOST_LOOKED_AT:
            _looked_at.clear()
        _looked_at.add(place)
        unfinished.remove_dead(folder)


def adopt(file: int | Path, directory: Path) -> None:
    """Give *file* the owner of *directory* when root made it, so that the agents and jobs can go on with it."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.chown(file, owner.st_uid, owner.st_gid)


def mode_in(directory: Path) -> int:
    """The mode of a new file for the owner and group of *directory*: whom it lets write in it may write to the file."""
    return 0o640 | (directory.stat().st_mode & 0o020)


def link_atomic(path: Path, target: Path) -> None:
    """Make *path* a symbolic link to *target* in one step, replacing an older link. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    temporary.replace(path)


def sync_directory(path: Path) -> None:
    """Make renames and new names in *path* durable. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(descriptor: int) -> None:
    """Make everything on the file system that *descriptor* is on durable (syncfs(2), which Python does not have).

    Raises `OSError`, also when something that was written since *descriptor* was opened did not reach the disk.
    """
    if _libc().syncfs(descriptor):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


_AT_FDCWD, _NO_REPLACE = -100, 1  # fcntl.h, linux/fs.h
_NO_SUCH_RENAME = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


def forget_cached(descriptor: int) -> None:
    """Have what is read from the file next come from the disk, not from memory.

    After a flush that failed the kernel takes for written what the disk does not have (fsync(2)), and gives it to
    whoever reads. Raises `OSError` when something is in memory only and cannot be written.
    """
    try:
        os.fdatasync(descriptor)  # what was not written yet stays in memory
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):  # a file system that nobody can write on has no such call
            raise
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def rename_new(old: Path, new: Path) -> None:
    """Rename *old* to *new*, which must not be there (renameat2(2), which Python does not have).

    Where the file system cannot promise that, *new* is looked for first. Raises `FileExistsError`, `OSError`.
    """
    if not _libc().renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _NO_REPLACE):
        return
    code = ctypes.get_errno()
    if code not in _NO_SUCH_RENAME:
        raise OSError(code, os.strerror(code), str(new))
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
    old.rename(new)


def write_all(descriptor: int, data: bytes) -> None:
    """Write *data* where the descriptor stands, all of it: write(2) may take a part only. Raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def make_directory(path: Path, *, mode: int = 0o777) -> None:
    """Make *path*, and what is missing above it, so that it is there after a power cut. Raises `OSError`."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for folder in missing:
        sync_directory(folder.parent)


@contextlib.contextmanager
def locked(path: Path, seconds: float | None = None) -> Iterator[None]:
    """Hold an exclusive lock on *path* (created when missing). The kernel frees it when the process dies.

    Raises `TimeoutError` when another holds it for *seconds* more (None: waits as long as it takes), `OSError`.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        _take(fd, seconds)
        yield
    finally:
        os.close(fd)


def _take(fd: int, seconds: float | None) -> None:
    if seconds is None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError("somebody else holds the lock") from None
            time.sleep(min(_LOOK, seconds))
