"""A second process of this program, which hands what it makes to the first in shared memory.

The memory is a ring of segments. The worker fills one after the other and tells the length of each through a pipe;
each that was taken is given back by a byte through another. Who finds the other end of a pipe closed is alone.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.errors import MagbayError

Process = subprocess.Popen[bytes]
SEGMENT = 1 << 20
"""Bytes that are handed over at once, at most."""
SEGMENTS = 16
_FULL = struct.Struct("=I")
_LOOK_MILLISECONDS = 200
_KILLED_SECONDS = 5.0
_PLACE = str(Path(__file__).parents[2])
# The first process ends its worker; signals from a terminal or a service manager are for the first alone.
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
# Without site, whose time a worker does not need: the paths are those of the first process.
_BEGIN = "import sys; sys.path[:] = sys.argv[1].split('\\n'); from {0} import main; main(sys.argv[2:])"

_ahead: dict[str, Worker] = {}


def worthwhile() -> bool:
    """Whether a second process could run beside this one."""
    return bool(sys.executable) and len(os.sched_getaffinity(0)) > 1


def start_ahead(module: str) -> None:
    """Start a worker that `Worker.of` will be asked for, where that is worthwhile: both begin at the same time."""
    if worthwhile():
        with contextlib.suppress(OSError):  # told when it is really needed
            _ahead[module] = Worker(module)


def start(module: str, words: list[str], descriptors: tuple[int, ...]) -> Process:
    """A process that runs `main(words)` of *module* and has these *descriptors*. Raises `OSError`."""
    begin = _BEGIN.format(module)
    argv = [sys.executable, "-I", "-S", "-c", begin, "\n".join([_PLACE, *sys.path]), *words]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=descriptors, cwd="/"
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end(process: Process) -> None:
    """Return when *process*, which has nothing more to do, has ended; one that does not is killed."""
    try:
        process.wait(_KILLED_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def dismiss(module: str) -> None:
    """End one that was started ahead and has nothing to do."""
    if worker := _ahead.pop(module, None):
        worker.close()


def shared(size: int) -> tuple[int, memoryview]:
    """Memory of *size* bytes to be shared: a descriptor for other processes, to be closed, and what it holds. Raises
    `OSError`."""
    descriptor = os.memfd_create("magbay", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        return descriptor, memoryview(mmap.mmap(descriptor, size))
    except BaseException:
        os.close(descriptor)
        raise


class Worker:
    """The first process's side: starts `main` of *module*, which does what it is given by `give`. Close it."""

    @classmethod
    def of(cls, module: str) -> Worker:
        """One that was started ahead, or a new one. Raises `OSError`."""
        return _ahead.pop(module, None) or cls(module)

    def __init__(self, module: str) -> None:
        """Raises `OSError`."""
        memory, self._memory = shared(SEGMENT * SEGMENTS)
        pipes: list[int] = []
        try:
            for _ in range(2):
                pipes += os.pipe()
            self._full, full, free, self._free = pipes
            words = [str(word) for word in (memory, full, free)]
            self._process = start(module, words, (memory, full, free))
        except BaseException:
            for descriptor in pipes:
                os.close(descriptor)
            raise
        finally:
            os.close(memory)
        os.close(full)
        os.close(free)

    def give(self, task: bytes) -> None:
        """What it is to do. Raises `MagbayError` when that is more than the shared memory holds."""
        if len(task) > len(self._memory):
            raise MagbayError(f"the rules of what is saved are too long by {len(task) - len(self._memory)} bytes")
        self._memory[: len(task)] = task
        with contextlib.suppress(BrokenPipeError):  # told by `segments`
            os.write(self._free, _FULL.pack(len(task)))

    def segments(self, check: Callable[[], None]) -> Iterator[memoryview]:
        """What the worker hands over, segment by segment, each valid until the next one is taken; *check* is called
        while there is nothing. Ends when the worker does. Raises `MagbayError` when it ends badly."""
        waiter = select.poll()
        waiter.register(self._full, select.POLLIN)
        number = 0
        while True:
            while not waiter.poll(_LOOK_MILLISECONDS):
                check()
            told = os.read(self._full, _FULL.size)
            if not told:
                break
            begin = number * SEGMENT
            yield self._memory[begin : begin + _FULL.unpack(told)[0]]
            with contextlib.suppress(BrokenPipeError):  # it has ended well, or the next look tells
                os.write(self._free, b"\0")
            number = (number + 1) % SEGMENTS
        status = self._process.wait()
        if status:
            why = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise MagbayError(f"the process that reads the files ended in the middle: {why}", hint="Try it again.")

    def close(self) -> None:
        """End the worker."""
        os.close(self._full)
        os.close(self._free)
        self._process.kill()  # it has nothing that could be lost
        # One that waits for a disk that does not answer goes when the disk does.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILLED_SECONDS)


class Ring:
    """The worker's side. *words*: those that its `main` was given."""

    def __init__(self, words: list[str]) -> None:
        """Waits for the task. Raises `SystemExit` alone, as all that is here."""
        memory, self._full, self._free = map(int, words)
        self._memory = memoryview(mmap.mmap(memory, SEGMENT * SEGMENTS))
        told = os.read(self._free, _FULL.size)
        if not told:
            raise SystemExit(1)
        self.task = bytes(self._memory[: _FULL.unpack(told)[0]])
        self._number = 0
        self._sent = 0
        os.close(memory)
        os.set_blocking(self._free, False)
        self._waiter = select.poll()
        self._waiter.register(self._free, select.POLLIN)
        self.segment = self._memory[:SEGMENT]
        """To be filled."""

    @property
    def waiting(self) -> int:
        """Segments that were handed over and not yet given back, as of the last `hand_over`."""
        return self._sent

    def hand_over(self, used: int) -> None:
        """Give away the first *used* bytes of the segment; another one is there next."""
        try:
            os.write(self._full, _FULL.pack(used))
            self._sent += 1
            self._number = (self._number + 1) % SEGMENTS
            self._take_back()
            while self._sent >= SEGMENTS:
                self._waiter.poll()
                self._take_back()
        except BrokenPipeError:
            raise SystemExit(1) from None
        begin = self._number * SEGMENT
        self.segment = self._memory[begin : begin + SEGMENT]

    def _take_back(self) -> None:
        try:
            back = os.read(self._free, SEGMENTS)
        except BlockingIOError:
            return
        if not back:
            raise SystemExit(1)
        self._sent -= len(back)
