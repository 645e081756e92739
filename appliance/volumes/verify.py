"""Comparing the data of a file with its digest record, which comes behind the data. Source: volume format, section 8.

Which algorithm a session uses shows with its first digest, so the first file with data is hashed with all of them.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from appliance.volumes import digests
from appliance.volumes.attributes import FileType
from appliance.volumes.blocks import SessionIds
from appliance.volumes.compression import decode
from appliance.volumes.errors import UnsupportedError, VolumeError
from appliance.volumes.events import Data, Digest, Event, FileEnd, FileStart, FileState, SessionEnd

_PIECE = 1 << 20  # bytes given to the thread at once; smaller files do without it
_MAX_PENDING = 4


class FileDigest:
    """Hashes the plain bytes of one file in the order in which they were sent (holes left out).

    What follows the first MiB is hashed by *worker*, a pool of one thread, so that hashing and writing overlap.
    """

    def __init__(self, algorithms: frozenset[str], worker: ThreadPoolExecutor) -> None:
        self._hashes = {name: digests.new(name) for name in algorithms}
        self._worker = worker
        self._gathered = bytearray()
        self._pending: deque[Future[None]] = deque()
        self.bytes = 0

    def update(self, data: memoryview) -> None:
        """Add the bytes of a data record."""
        self.bytes += len(data)
        if not self._hashes:
            return
        if self.bytes <= _PIECE:
            self._hash(data)
            return
        self._gathered += data
        if len(self._gathered) >= _PIECE:
            if len(self._pending) >= _MAX_PENDING:
                self._pending.popleft().result()
            self._pending.append(self._worker.submit(self._hash, self._gathered))
            self._gathered = bytearray()

    def _hash(self, data: bytearray | memoryview) -> None:
        for one in self._hashes.values():
            one.update(data)

    def matches(self, algorithm: str, value: bytes) -> bool | None:
        """Whether the digest is the one recorded; None when this algorithm was not computed. The last call to make."""
        while self._pending:
            self._pending.popleft().result()
        if self._gathered:
            self._hash(self._gathered)
        found = self._hashes.get(algorithm)
        return None if found is None else found.digest() == value


class DigestPlan:
    """Knows which algorithms the files of each session need. *known*: what the caller knows, for all sessions."""

    def __init__(self, known: str | None = None) -> None:
        self._all = digests.computable()
        self._known = frozenset({known}) if known in self._all else None
        self._learned: dict[SessionIds, frozenset[str]] = {}
        self._worker = ThreadPoolExecutor(1, "digest")

    def start(self, ids: SessionIds) -> FileDigest:
        """The digest for the next file of session *ids*."""
        return FileDigest(self._learned.get(ids, self._known if self._known is not None else self._all), self._worker)

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown(cancel_futures=True)

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
            if digest is not None and digest.bytes:
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
        if matches:
            self.verified += 1
        elif matches is None:
            self.unverified += 1
        else:
            self.mismatches.append(f"{event.entry.path}: its content does not match its {event.algorithm} digest")
