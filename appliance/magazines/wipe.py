"""Overwriting a disk before its first use, at the disk's own speed, so that it can be interrupted and gone on with.

The random data is an AES-256 counter-mode stream under a key that nobody keeps: the processor makes it many times
faster than a disk takes it, while the kernel's random generator is slower than a disk. Several threads fill and write,
so that the disk never waits for the next piece; written is around the page cache (O_DIRECT), so that progress and
errors are the disk's own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from appliance.errors import AwayError, ExitStatus, MagbayError
from appliance.host.commands import run

CHUNK = 2 * 1024 * 1024  # bytes a write
_THREADS = 3  # one fills while others write; more only wait for each other (the cipher keeps the interpreter's lock)
_IN_FLIGHT = 4  # pieces that are filled or written at a time; few, so that they stay in the processor's cache
_FLUSH_SECONDS = 2.0  # between two flushes: an interruption costs so much and little more
_FLUSH_BYTES = 256 * 1024 * 1024  # the same through the page cache, which takes much before it writes
_SAMPLE = 4096  # bytes whose digest is remembered
_SAMPLES = 64  # about so many of them on a disk
_LEAST_SPACING = 16 * CHUNK
# A LUKS header and its key slots are below this; more than that is left as the overwriting has left it.
_HEADER_BYTES = 32 * 1024 * 1024
_PIECE = 4096  # bytes: the unit in which a bad place is searched
_MOST_BAD = 8  # bad places that are named; a failing disk may take half a minute for each
_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM, errno.ESHUTDOWN})


class Wipe(Enum):
    """How thoroughly: random hides how much of the disk is used; discard is quick on flash; none trusts the disk."""

    RANDOM = "random"
    DISCARD = "discard"
    NONE = "none"


class WipeStopped(MagbayError):
    """Somebody asked to stop."""

    status = ExitStatus.INTERRUPTED


class DiskGoneError(AwayError):
    """The disk was pulled while it was written."""


class BadDiskError(MagbayError):
    """The disk does not take what is written to it."""


@dataclass(frozen=True)
class Wiped:
    """How much of a disk is durably overwritten: *done* bytes from its beginning, in whole chunks or all.

    *samples*: position (bytes) to SHA-256 (hex) of the 4096 bytes that were written there, to tell that it is still so.
    """

    done: int = 0
    samples: Mapping[int, str] = field(default_factory=dict)

    def holds(self, node: Path, *, header: bool = False) -> bool:
        """Whether *node* still has what was written there; with *header* a LUKS header may have been begun since.

        False, too, when there is nothing to tell by. Raises `OSError` when it cannot be read.
        """
        least = _HEADER_BYTES if header else 0
        wanted = {position: digest for position, digest in self.samples.items() if position >= least}
        with node.open("rb", buffering=0) as disk:
            os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for position, digest in wanted.items():
                if hashlib.sha256(os.pread(disk.fileno(), _SAMPLE, position)).hexdigest() != digest:
                    return False
        return bool(wanted)


def discard(node: Path) -> None:
    """Let the disk drop all blocks. Raises `MagbayError` when it cannot."""
    hint = "Not every disk or dock can do this: use --wipe random or --wipe none."
    run(["blkdiscard", "--force", str(node)], f"discarding {node}", hint=hint)


def overwrite(
    node: Path,
    size: int,
    begun: Wiped,
    *,
    record: Callable[[Wiped], None],
    advance: Callable[[int], None],
    stop: Callable[[], bool],
) -> Wiped:
    """Overwrite *node* (*size* bytes) with random data behind what is *begun*.

    *record* is told every few seconds what is durable by now, *advance* the bytes of each write; *stop* is asked before
    each. Raises `WipeStopped`, `DiskGoneError`, `BadDiskError`; what was recorded last holds then.
    """
    writer = _Writer(node, size, begun, record, stop)
    try:
        for written in writer.write():
            advance(written)
    except OSError as error:
        raise _declared(error, node, size, writer) from None
    return writer.durable


class _Stream:
    """A key stream that can be begun at any position that is a multiple of 16 bytes."""

    def __init__(self) -> None:
        self._key, self._nonce, self._zeros = os.urandom(32), os.urandom(8), bytes(CHUNK)

    def fill(self, buffer: memoryview, position: int, length: int) -> None:
        """Put the *length* bytes at *position* into *buffer*, which is 16 bytes longer at least."""
        counter = self._nonce + (position // 16).to_bytes(8, "big")
        encryptor = Cipher(algorithms.AES(self._key), modes.CTR(counter)).encryptor()
        encryptor.update_into(memoryview(self._zeros)[:length], buffer)


class _Writer:
    """Fills and writes chunk after chunk; `durable` is what is on the disk for certain."""

    def __init__(
        self, node: Path, size: int, begun: Wiped, record: Callable[[Wiped], None], stop: Callable[[], bool]
    ) -> None:
        self._node, self._size, self._record, self._stop = node, size, record, stop
        self.durable = begun
        self.position = begun.done  # of the write that was taken up last, for diagnosis
        self._samples = dict(begun.samples)
        self._spacing = max(_LEAST_SPACING, size // _SAMPLES // CHUNK * CHUNK)
        self._stream = _Stream()
        # Mapped memory begins at a page, as direct writes need it.
        self._buffers = deque(memoryview(mmap.mmap(-1, CHUNK + mmap.PAGESIZE)) for _ in range(_IN_FLIGHT))

    def write(self) -> Iterator[int]:
        """Do it; gives the bytes of each write when it is done."""
        with contextlib.ExitStack() as stack:
            fd, self._direct = _open(self._node)
            stack.callback(os.close, fd)
            self._plain = fd
            if self._direct and self._size % _PIECE:
                # The end of an odd file cannot be written directly.
                self._plain = os.open(self._node, os.O_WRONLY | os.O_CLOEXEC)
                stack.callback(os.close, self._plain)
            pool = stack.enter_context(ThreadPoolExecutor(_THREADS, thread_name_prefix="wipe"))
            yield from self._all(fd, pool)

    def _all(self, fd: int, pool: ThreadPoolExecutor) -> Iterator[int]:
        flying: deque[tuple[int, memoryview, Future[str]]] = deque()
        next_at = done = self.durable.done
        flushed, flushed_at = time.monotonic(), done
        try:
            while done < self._size:
                stopping = self._stop()
                while self._buffers and next_at < self._size and not stopping:
                    buffer = self._buffers.popleft()
                    flying.append((next_at, buffer, pool.submit(self._one, fd, buffer, next_at)))
                    next_at += CHUNK
                if not flying:
                    break
                self.position, buffer, future = flying.popleft()
                self._keep(self.position, future.result())
                self._buffers.append(buffer)
                before, done = done, min(self.position + CHUNK, self._size)
                yield done - before
                late = time.monotonic() - flushed >= _FLUSH_SECONDS
                if late or (not self._direct and done - flushed_at >= _FLUSH_BYTES):
                    self._flush(fd, done)
                    flushed, flushed_at = time.monotonic(), done
        finally:
            for _position, _buffer, future in flying:
                future.cancel()
        if done > self.durable.done:
            self._flush(fd, done)
        if done < self._size:
            raise WipeStopped(
                f"overwriting {self._node} was stopped after {done} of {self._size} bytes",
                hint="The same command goes on from there; --restart-wipe begins anew.",
            )

    def _one(self, fd: int, buffer: memoryview, position: int) -> str:
        """Fill *buffer* and write it at *position*; gives the digest of its first bytes."""
        length = min(CHUNK, self._size - position)
        self._stream.fill(buffer, position, length)
        _write(self._plain if length % _PIECE else fd, buffer[:length], position)
        return hashlib.sha256(buffer[: min(_SAMPLE, length)]).hexdigest()

    def _keep(self, position: int, digest: str) -> None:
        """Remember a sample here and there, and the newest in any case."""
        last = max(self._samples, default=0)
        if last % self._spacing:
            del self._samples[last]
        self._samples[position] = digest

    def _flush(self, fd: int, done: int) -> None:
        os.fdatasync(fd)
        if self._plain != fd:
            os.fdatasync(self._plain)
        if not self._direct:
            os.posix_fadvise(fd, 0, done, os.POSIX_FADV_DONTNEED)
        self.durable = Wiped(done, dict(self._samples))
        self._record(self.durable)

    def bad_places(self) -> list[int]:
        """Positions (bytes) in the chunk of the failed write that the disk does not take; the first few."""
        bad = []
        piece = memoryview(mmap.mmap(-1, 2 * _PIECE))
        fd, _direct = _open(self._node)
        try:
            for position in range(self.position, min(self.position + CHUNK, self._size), _PIECE):
                length = min(_PIECE, self._size - position)
                self._stream.fill(piece, position, length)
                try:
                    _write(fd, piece[:length], position)
                    os.fdatasync(fd)
                except OSError:
                    bad.append(position)
                    if len(bad) == _MOST_BAD:
                        break
        finally:
            os.close(fd)
        return bad


def _open(node: Path) -> tuple[int, bool]:
    """A descriptor for writing, and whether it goes around the page cache. Exclusive: nobody mounts it meanwhile."""
    exclusive = os.O_EXCL if stat.S_ISBLK(node.stat().st_mode) else 0
    try:
        return os.open(node, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC | exclusive), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(node, os.O_WRONLY | os.O_CLOEXEC | exclusive), False


def _write(fd: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(fd, data, position)
        data, position = data[count:], position + count


def _declared(error: OSError, node: Path, size: int, writer: _Writer) -> MagbayError:
    """What a failed write means: the disk is gone, or it is bad, and where."""
    reached = f"{writer.durable.done} of {size} bytes are overwritten"
    if error.errno in _GONE or _pulled(node):
        return DiskGoneError(
            f"{node} was pulled: {reached}",
            hint="Plug it in and run prepare again (it may be called otherwise then): it goes on from there.",
        )
    if error.errno == errno.EBUSY:
        return MagbayError(f"{node} is in use by something else", hint="'lsblk' and 'fuser -v' tell by what.")
    try:
        bad = writer.bad_places()
    except OSError:
        bad = []
    if not bad:
        where = f"near byte {writer.position}"
    else:
        more = " and perhaps more" if len(bad) == _MOST_BAD else ""
        where = "at sector " + ", ".join(str(position // 512) for position in bad) + f" (of 512 bytes){more}"
    return BadDiskError(
        f"{node} cannot be written {where}: {error.strerror}; it is no disk for backups",
        hint="Try another cable or bay; if that does not help, take another disk.",
    )


def _pulled(node: Path) -> bool:
    """Whether the disk has gone. The kernel takes a moment to say so after the first failed write."""
    try:
        if not stat.S_ISBLK(node.stat().st_mode):
            return False
    except OSError:
        return True
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            if os.lseek(fd, 0, os.SEEK_END) == 0:
                return True
        finally:
            os.close(fd)
        time.sleep(0.1)
    return False
