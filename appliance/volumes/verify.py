"""Comparing the data of a file with its digest record, which comes behind the data. Source: volume format, section 8.

Which algorithm a session uses shows with its first digest, so the first file with data is hashed with all of them.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from appliance.volumes import digests
from appliance.volumes.attributes import FileType
from appliance.volumes.blocks import SessionIds
from appliance.volumes.compression import decode
from appliance.volumes.errors import UnsupportedError, VolumeError
from appliance.volumes.events import Data, Digest, Event, FileEnd, FileStart, FileState, SessionEnd

_PIECE = 1 << 20  # bytes given to the thread at once; smaller files do without it
_MOST_PIECES = 40  # who hashes may be that far behind
_MOST_HELD = 32  # that are being filled, each for a file; the others are free or will be
_STRANDS = 2


class Pieces:
    """Memory for what is hashed by threads, used again and again. Threads may share it."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._made = self._held = 0

    def take(self) -> memoryview | None:
        """One of `_PIECE` bytes, as soon as one is free; None when too many are being filled."""
        with self._lock:
            if self._held >= _MOST_HELD:
                return None
            self._held += 1
            if self._free.empty() and self._made < _MOST_PIECES:
                self._made += 1
                return memoryview(bytearray(_PIECE))
        return self._free.get()  # one that is hashed now

    def filled(self) -> None:
        """One that was taken will be given back by who hashes it."""
        with self._lock:
            self._held -= 1

    def give(self, piece: memoryview) -> None:
        """Nobody looks at it any more."""
        self._free.put(piece)


class FileDigest:
    """Hashes the plain bytes of one file in the order in which they were sent (holes left out).

    What follows the first MiB is hashed by *worker*, a pool of one thread, while other things are done. `drop` it.
    """

    def __init__(self, algorithms: frozenset[str], worker: ThreadPoolExecutor, pieces: Pieces) -> None:
        self._hashes = {name: digests.new(name) for name in algorithms}
        self._worker = worker
        self._pieces = pieces
        self._piece: memoryview | None = None  # being filled
        self._fill = 0
        self._last: Future[None] | None = None  # what the thread does last for this file
        self.bytes = 0

    def update(self, data: memoryview) -> None:
        """Add the bytes of a data record."""
        self.bytes += len(data)
        if not self._hashes:
            return
        if self.bytes <= _PIECE:
            self._hash(data)
            return
        at = 0
        while at < len(data):
            if self._piece is None:
                self._piece = self._pieces.take()
            if self._piece is None:
                self._wait()
                self._hash(data[at:])
                return
            count = min(len(data) - at, _PIECE - self._fill)
            self._piece[self._fill : self._fill + count] = data[at : at + count]
            self._fill += count
            at += count
            if self._fill == _PIECE:
                self._hand_over()

    def _hand_over(self) -> None:
        piece, fill = self._piece, self._fill
        if piece is not None:
            self._piece, self._fill = None, 0
            self._pieces.filled()
            self._last = self._worker.submit(self._hash_piece, piece, fill)

    def _hash_piece(self, piece: memoryview, fill: int) -> None:
        try:
            self._hash(piece[:fill])
        finally:
            self._pieces.give(piece)

    def _hash(self, data: memoryview) -> None:
        for one in self._hashes.values():
            one.update(data)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def matches(self, algorithm: str, value: bytes) -> bool | None:
        """Whether the digest is the one recorded; None when this algorithm was not computed. Behind the last bytes."""
        self._hand_over()
        self._wait()
        return self._is(algorithm, value)

    def judged(self, algorithm: str, value: bytes) -> Future[bool | None]:
        """What `matches` gives, when it is known."""
        self._hand_over()
        if self._last is not None:
            return self._worker.submit(self._is, algorithm, value)
        known: Future[bool | None] = Future()
        known.set_result(self._is(algorithm, value))
        return known

    def _is(self, algorithm: str, value: bytes) -> bool | None:
        found = self._hashes.get(algorithm)
        return None if found is None else found.digest() == value

    def drop(self) -> None:
        """No more bytes come; what was not handed over goes."""
        piece, self._piece = self._piece, None
        if piece is not None:
            self._pieces.filled()
            self._pieces.give(piece)


class DigestPlan:
    """Knows which algorithms the files of each session need. *known*: what the caller knows, for all sessions."""

    def __init__(self, known: str | None = None, pieces: Pieces | None = None) -> None:
        self._pieces = pieces or Pieces()
        self._all = digests.computable()
        self._known = frozenset({known}) if known in self._all else None
        self._learned: dict[SessionIds, frozenset[str]] = {}
        # One file after the other in turn: where one is still hashed, the next one need not wait.
        self._workers = [ThreadPoolExecutor(1, f"digest-{number}") for number in range(_STRANDS)]
        self._turn = 0

    def start(self, ids: SessionIds) -> FileDigest:
        """The digest for the next file of session *ids*."""
        self._turn = (self._turn + 1) % _STRANDS
        algorithms = self._learned.get(ids, self._known if self._known is not None else self._all)
        return FileDigest(algorithms, self._workers[self._turn], self._pieces)

    def close(self) -> None:
        """End the threads, when they have given back what they were lent."""
        for worker in self._workers:
            worker.shutdown()

    def learn(self, digest: Digest) -> None:
        """A digest record was seen."""
        ids = digest.entry.ids
        if digest.algorithm in self._all and digest.algorithm not in self._learned.get(ids, ()):
            self._learned[ids] = self._learned.get(ids, frozenset()) | {digest.algorithm}

    def matches(self, digest: Digest, data: bytes | bytearray) -> bool | None:
        """As of a `FileDigest` that has seen *data*, of a file whose data are all at hand."""
        if digest.algorithm not in self._all:
            return None
        found = digests.new(digest.algorithm)
        found.update(data)
        return found.digest() == digest.value

    def learn_none(self, end: FileEnd) -> None:
        """A file with data ended without a digest: its session has none, as long as none shows up."""
        if end.state is FileState.WHOLE:
            self._learned.setdefault(end.entry.ids, frozenset())

    def forget(self, ids: SessionIds) -> None:
        """The session is over."""
        self._learned.pop(ids, None)


@dataclass
class ContentCheck:
    """Decodes and hashes everything that passes by and keeps nothing. *mismatches*: what is wrong with which file."""

    files: int = 0
    bytes: int = 0
    verified: int = 0  # files whose digest matched
    unverified: int = 0  # files with a digest of a kind that is not computed here, or data of a kind that is not read
    mismatches: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # files with data of a kind that is not read, and why
    _plan: DigestPlan = field(default_factory=DigestPlan)
    _open: dict[SessionIds, FileDigest | None] = field(default_factory=dict)

    def close(self) -> None:
        """No more events."""
        self._plan.close()

    def take(self, event: Event) -> None:
        """Look at one event."""
        if isinstance(event, Data):
            self._data(event)
        elif isinstance(event, FileStart):
            self.files += 1
            self._open[event.entry.ids] = self._plan.start(event.entry.ids)
        elif isinstance(event, Digest):
            self._judge(event)
        elif isinstance(event, FileEnd):
            digest = self._open.pop(event.entry.ids, None)
            if digest is not None:
                digest.drop()
                if digest.bytes:
                    self._plan.learn_none(event)
        elif isinstance(event, SessionEnd):
            self._plan.forget(event.ids)

    def _data(self, event: Data) -> None:
        digest = self._open.get(event.entry.ids)
        if digest is None:
            return
        try:
            plain = decode(event.stream, event.data).data
        except UnsupportedError as error:
            self._open[event.entry.ids] = None
            self.unverified += 1
            self.unreadable.append(f"{event.entry.path}: {error.message}")
        except VolumeError as error:
            self._open[event.entry.ids] = None
            self.mismatches.append(f"{event.entry.path}: {error.message}")
        else:
            self.bytes += len(plain)
            digest.update(plain)

    def _judge(self, event: Digest) -> None:
        self._plan.learn(event)
        digest = self._open.get(event.entry.ids)
        # A hard link repeats the digest of data that stand elsewhere.
        if digest is None or event.entry.attributes.ftype == FileType.HARD_LINK:
            return
        self._open[event.entry.ids] = None
        matches = digest.matches(event.algorithm, event.value)
        digest.drop()
        if matches:
            self.verified += 1
        elif matches is None:
            self.unverified += 1
        else:
            self.mismatches.append(f"{event.entry.path}: its content does not match its {event.algorithm} digest")
