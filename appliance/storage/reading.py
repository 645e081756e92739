"""Reading the data of files: large buffers, read ahead and digested by threads while the caller writes them.

A buffer is read once and never copied here: the digest and the writer look at the same bytes. Small files are
digested by the caller, since handing them to another thread would cost more than the work.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

from appliance.storage.pieces import CHUNK, OFFSET, SPARSE_CHUNK, Place
from appliance.volumes.digests import Hash

_CHUNKS = 16
BUFFER = _CHUNKS * CHUNK
_AHEAD = 2  # buffers that are being read while the caller has one
HELD = _AHEAD + 3
"""Pieces of a file that may still be digested while the next one is read."""


class Reader:
    """Gives the data of one file after the other in pieces of at most `BUFFER` bytes. Close it at the end."""

    def __init__(self) -> None:
        self._buffers = [memoryview(bytearray(BUFFER)) for _ in range(HELD)]
        self._busy: list[Future[None] | None] = [None] * HELD
        self._turn = 0
        # One thread each, so that the pieces of a file stay in order.
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._digests = ThreadPoolExecutor(1, thread_name_prefix="digest")

    def close(self) -> None:
        """End the threads."""
        self._reads.shutdown()
        self._digests.shutdown()

    def whole(self, descriptor: int, size: int) -> memoryview:
        """The first *size* bytes of a file, at most `BUFFER`; fewer when it ends before. Valid until the next file.

        Raises `OSError`.
        """
        self._settle(0)
        piece = self._buffers[0][:size]
        got = os.preadv(descriptor, (piece,), 0)
        if got < size:
            got += _fill(descriptor, piece[got:], got)
            piece = piece[:got]
        return piece

    def plain(
        self, descriptor: int, size: int, digest: Hash | None, place: Place | None = None
    ) -> Iterator[memoryview]:
        """The first *size* bytes of the file; fewer when it ends before. A piece is valid until the next one is taken.

        *place*: where each piece is to be, instead of memory of this reader. When the iterator is exhausted *digest*
        has seen all of them. Raises `OSError`.
        """
        try:
            yield from (
                self._large(descriptor, size, digest)
                if place is None
                else self._placed(descriptor, size, digest, place)
            )
        finally:
            self._settle_all()

    def _large(self, descriptor: int, size: int, digest: Hash | None) -> Iterator[memoryview]:
        ahead: deque[tuple[int, int, int, Future[int]]] = deque()  # buffer, offset, bytes
        asked = 0
        try:
            while True:
                while asked < size and len(ahead) < _AHEAD:
                    turn, wanted = self._next_turn(), min(BUFFER, size - asked)
                    read = self._reads.submit(_fill, descriptor, self._buffers[turn][:wanted], asked)
                    ahead.append((turn, asked, wanted, read))
                    asked += wanted
                if not ahead:
                    return
                turn, at, wanted, read = ahead.popleft()
                got = read.result()
                piece = self._buffers[turn][:got]
                self._digest(digest, turn, [piece])
                yield piece
                if got < wanted:
                    _at_its_end(descriptor, at + got)
                    return
        finally:
            # The caller closes the file next.
            wait([read for *_, read in ahead])

    def _placed(self, descriptor: int, size: int, digest: Hash | None, place: Place) -> Iterator[memoryview]:
        """Read to where the output has it, which goes on while the next piece is read."""
        at = 0
        while at < size:
            turn, view = self._next_turn(), place()[: size - at]
            got = _fill(descriptor, view, at)
            piece = view[:got]
            self._digest(digest, turn, [piece])
            yield piece
            at += got
            if got < len(view):
                _at_its_end(descriptor, at)
                return

    def sparse(self, descriptor: int, size: int, digest: Hash | None) -> Iterator[memoryview]:
        """Pieces of at most `CHUNK` bytes: the file's data, each behind its u64 offset.

        Holes are left out, but not the file's last bytes. *digest* sees the data without offsets. Raises `OSError`.
        """
        try:
            for start, end in stretches(descriptor, size):
                done = start
                while done < end:
                    pieces = self._offset_pieces(descriptor, done, end)
                    if not pieces:
                        return
                    done += sum(len(piece) - OFFSET for piece in pieces)
                    self._digest(digest, self._turn, [piece[OFFSET:] for piece in pieces])
                    yield from pieces
        finally:
            self._settle_all()

    def _offset_pieces(self, descriptor: int, start: int, end: int) -> list[memoryview]:
        """The next bufferful between two addresses of the file; empty when the file ends before *start*."""
        buffer = self._buffers[self._next_turn()]
        pieces = []
        for at in range(0, BUFFER, CHUNK):
            wanted = min(SPARSE_CHUNK, end - start)
            struct.pack_into(">Q", buffer, at, start)
            got = _fill(descriptor, buffer[at + OFFSET : at + OFFSET + wanted], start)
            if got:
                pieces.append(buffer[at : at + OFFSET + got])
            start += got
            if got < wanted or start >= end:
                break
        return pieces

    def _next_turn(self) -> int:
        """The buffer to use next; nobody needs what is in it any more."""
        self._turn = (self._turn + 1) % HELD
        self._settle(self._turn)
        return self._turn

    def _digest(self, digest: Hash | None, turn: int, views: list[memoryview]) -> None:
        if digest and views:
            self._busy[turn] = self._digests.submit(_update, digest, views)

    def _settle(self, turn: int) -> None:
        future = self._busy[turn]
        if future:
            future.result()
            self._busy[turn] = None

    def _settle_all(self) -> None:
        for turn in range(HELD):
            self._settle(turn)


def _update(digest: Hash, views: list[memoryview]) -> None:
    for view in views:
        digest.update(view)


def _fill(descriptor: int, view: memoryview, offset: int) -> int:
    """Read into *view* until it is full or the file ends; gives the bytes read.

    Raises `OSError` only where nothing could be read: what comes before a bad place of the disk is not lost.
    """
    done = 0
    while done < len(view):
        try:
            got = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError:
            if not done:
                raise
            break
        if got == 0:
            break
        done += got
    return done


def _at_its_end(descriptor: int, offset: int) -> None:
    """Raises `OSError` when it was not the end of the file that ended reading before *offset*."""
    os.pread(descriptor, 1, offset)


def stretches(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch of data below *size*; the last byte always belongs to one. Raises `OSError`."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # else nothing but a hole up to the end
                raise
            start = size
        start = min(start, size)
        if start >= size:
            yield size - 1, size
            return
        at = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        yield start, at
