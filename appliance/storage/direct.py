"""What is saved goes to the session and the catalog as it comes, in one process."""

from __future__ import annotations

from collections.abc import Callable

from appliance.storage.digests import digest_text
from appliance.storage.joblog import JobLog
from appliance.storage.output import Cancelled
from appliance.storage.pieces import cut
from appliance.storage.saved_files import FileWriter
from appliance.volumes.attributes import join_attributes
from appliance.volumes.digests import new as new_hash
from appliance.volumes.streams import DIGEST_STREAMS, Stream
from appliance.volumes.writer import SessionWriter


class Direct:
    """An `Output` in this process. *advance* is told of every piece of file data (bytes)."""

    place = None

    def __init__(
        self,
        writer: SessionWriter,
        rows: FileWriter,
        log: JobLog,
        advance: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self.record = writer.write_record
        self.records = writer.write_records
        self.advance = advance
        self.info = log.info
        self.warning = log.warning
        self.add = rows.add
        self._cancelled = cancelled

    def data(self, index: int, data: bytes | memoryview) -> None:
        """Record by record."""
        for piece in cut(memoryview(data)):
            self.check()
            self.record(index, Stream.FILE_DATA, piece)
            self.advance(len(piece))

    def row(self, index: int, kind: int, name: bytes, numbers: bytes, digest: str) -> None:
        """To the catalog."""
        self.add(index, kind, name, numbers.decode("ascii"), digest)

    def small(
        self, index: int, kind: int, name: bytes, numbers: bytes, data: memoryview, algorithm: str | None
    ) -> None:
        """Record by record."""
        self.record(index, Stream.UNIX_ATTRIBUTES, join_attributes(index, kind, name, numbers))
        if data:
            self.record(index, Stream.FILE_DATA, data)
        digest = b""
        if algorithm:
            seen = new_hash(algorithm)
            seen.update(data)
            digest = seen.digest()
            self.record(index, DIGEST_STREAMS[algorithm], digest)
        self.row(index, kind, name, numbers, digest_text(digest))
        self.advance(len(data))

    def check(self) -> None:
        """Ask."""
        if self._cancelled():
            raise Cancelled
