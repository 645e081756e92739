"""A file volume open for appending: whole blocks at its end, synced while the job runs.

A writer holds an exclusive flock on the volume's file; the kernel frees it when the process dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from appliance.errors import MagbayError
from appliance.host import files, unfinished
from appliance.storage import readers

# After so many bytes the kernel is asked to begin writing them out; so often it is asked whether that went well, so
# that a pulled disk shows within seconds and little is left to wait for at the end.
WRITEOUT_BYTES = 16 << 20
SYNC_SECONDS = 2.0
# How often it is asked whether the magazine was pulled: whoever knows that knows it before the next flush fails.
LOOK_SECONDS = 0.5

_LOST = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO, errno.EROFS, errno.ESTALE, errno.ESHUTDOWN, errno.EBADFD})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


# What to do about an error of which the kernel has told more than it tells a process.
DISK_TELLS = "'journalctl -k' has what the kernel says of the disk."


class MagazineLostError(MagbayError):
    """The disk of *magazine* went away, or does not take data any more, while it was being written."""

    def __init__(self, message: str, magazine: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.magazine = magazine


class VolumeFullError(MagbayError):
    """A block does not fit: the volume ends before it. *magazine_full*: nor does it fit elsewhere on *magazine*."""

    def __init__(self, message: str, magazine: str, *, magazine_full: bool) -> None:
        super().__init__(message, hint="Plug in another magazine, or make room on this one.")
        self.magazine = magazine
        self.magazine_full = magazine_full


class VolumeBusyError(MagbayError):
    """Another process is writing to the volume."""


class FileVolume:
    """Appends blocks to the volume *name* of *magazine*. *end* is the address (bytes) of the next block."""

    def __init__(self, descriptor: int, path: Path, magazine: str, end: int) -> None:
        self.path = path
        self.name = path.name
        self.magazine = magazine
        self.end = end
        self._fd = descriptor
        self._written_out = end
        self._due = threading.Event()
        self._stopping = False
        self._trouble: OSError | None = None
        self._syncer: threading.Thread | None = None
        self.pulled: Callable[[], bool] = lambda: False  # whether somebody knows that the magazine was pulled

    @classmethod
    def create(cls, path: Path, magazine: str, label: bytes) -> FileVolume:
        """Make a new volume: label block written and synced, only then named, the name synced in the directory.

        So no file is ever called like a volume and has no label. What was left of one whose making was cut off is
        taken away. Raises `FileExistsError`, `VolumeFullError`, `MagazineLostError`; then no file is left.
        """
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            unfinished.remove_dead(directory)
            descriptor, name = unfinished.create(directory)
        finally:
            os.close(directory)
        place = path.with_name(os.fsdecode(name))
        volume = cls(descriptor, path, magazine, 0)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(descriptor, files.mode_in(path.parent))
            files.adopt(descriptor, path.parent)
            volume.append(memoryview(label))
            volume.sync()
            files.rename_new(place, path)
            place = path
            files.sync_directory(path.parent)
        except BaseException as error:
            volume.close()
            with contextlib.suppress(OSError):
                place.unlink()
            if isinstance(error, OSError) and not isinstance(error, FileExistsError):
                raise volume.declared(error) from None
            raise
        return volume

    @classmethod
    def open(cls, path: Path, magazine: str) -> FileVolume:
        """Open and lock an existing volume; *end* is the length of its file. Raises `VolumeBusyError`, `OSError`."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a pipe would be read for ever
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise VolumeBusyError(f"volume {path.name} of magazine {magazine} is in use by another job") from None
        return cls(descriptor, path, magazine, os.fstat(descriptor).st_size)

    def append(self, block: memoryview) -> int:
        """Write one block at the end; gives its address.

        Raises `VolumeFullError` when it does not fit (the file is cut back to the block border), `MagazineLostError`.
        """
        if self._trouble:
            raise self.declared(self._trouble)
        address = self.end
        done = 0
        try:
            while done < len(block):
                done += os.pwrite(self._fd, block[done:] if done else block, address + done)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, address)
            raise self.declared(error) from None
        self.end += done
        if self.end - self._written_out >= WRITEOUT_BYTES:
            self._written_out = self.end
            self._due.set()
        return address

    def start_syncing(self) -> None:
        """Let a thread of its own send the data to the disk, so that writing does not stall."""
        self._stopping = False
        self._due.clear()
        self._syncer = threading.Thread(target=self._keep_synced, name=f"sync {self.name}", daemon=True)
        self._syncer.start()

    def _keep_synced(self) -> None:
        asked = synced = self.end
        last = time.monotonic()
        try:
            looked = last
            while not self._stopping:
                due = self._due.wait(LOOK_SECONDS)
                self._due.clear()
                if self.pulled():
                    raise OSError(errno.ENODEV, "it was pulled")
                if not due and time.monotonic() - looked < SYNC_SECONDS:
                    continue
                end, looked = self.end, time.monotonic()
                if end > asked:
                    # Linux begins to write dirty pages of the range and does not wait (mm/fadvise.c).
                    os.posix_fadvise(self._fd, asked, end - asked, os.POSIX_FADV_DONTNEED)
                    asked = end
                if end > synced and time.monotonic() - last >= SYNC_SECONDS and not self._stopping:
                    os.fdatasync(self._fd)
                    synced, last = end, time.monotonic()
        except OSError as error:
            self._trouble = error

    def sync(self) -> None:
        """Return when everything appended is on the disk. Raises `MagazineLostError` or another `MagbayError`."""
        self._stop()
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._trouble = self._trouble or error
        if self._trouble:
            raise self.declared(self._trouble)

    def cut(self, end: int) -> None:
        """Cut the volume back to the address *end*. Raises `MagbayError`."""
        try:
            os.ftruncate(self._fd, end)
            os.fdatasync(self._fd)
        except OSError as error:
            raise self.declared(error) from None
        self.end = end

    def keep_readers_out(self) -> bool:
        """Nobody reads the volume until `let_readers_in`; False when somebody does now."""
        return readers.keep_out(self._fd)

    def let_readers_in(self) -> None:
        """What is on the volume now may be read."""
        readers.let_in(self._fd)

    def _stop(self) -> None:
        self._stopping = True
        self._due.set()
        if self._syncer:
            self._syncer.join()
            self._syncer = None

    def close(self) -> None:
        """Free the lock; nothing more is synced."""
        self._stop()
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def declared(self, error: OSError) -> MagbayError:
        """The declared error for what the system said about this volume."""
        where = f"volume {self.name} on magazine {self.magazine}"
        if error.errno == errno.EIO and not self.pulled():
            # A disk that was pulled and one that fails look alike here, and nobody has said that it was pulled.
            return MagazineLostError(
                f"magazine {self.magazine} was lost, or its disk fails, while volume {self.name} was being written: "
                f"{error.strerror}",
                self.magazine,
                hint="If its disk was pulled, plug it in again and run the job again. Else it may be failing: "
                f"{DISK_TELLS} What was saved before is still readable.",
            )
        if error.errno == errno.EROFS:
            return MagazineLostError(
                f"magazine {self.magazine} became read-only while volume {self.name} was being written",
                self.magazine,
                hint=f"Its file system met an error. {DISK_TELLS} If the disk is sound, pull it and plug it in again, "
                "so that it is checked, and run the job again. What was saved before is still readable.",
            )
        if error.errno in _LOST:
            return MagazineLostError(
                f"magazine {self.magazine} was lost while volume {self.name} was being written: {error.strerror}",
                self.magazine,
                hint="Plug the disk in again and run the job again; what was saved before is still readable.",
            )
        if error.errno in _NO_ROOM:
            return VolumeFullError(
                f"magazine {self.magazine} is full (volume {self.name})", self.magazine, magazine_full=True
            )
        if error.errno == errno.EFBIG:
            return VolumeFullError(
                f"{where} cannot grow any more: {error.strerror}", self.magazine, magazine_full=False
            )
        return MagbayError(f"{where}: {error.strerror}", hint="Look at the disk and at the rights on its files.")
