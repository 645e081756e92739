"""The bytes of files on their way from records to the target."""

from __future__ import annotations

import os
from collections.abc import Iterable

from appliance.storage.opened import OpenFile
from appliance.storage.outcome import Summary
from appliance.storage.targets import LimitError, Target
from appliance.volumes.backupread import BackupStream
from appliance.volumes.compression import Chunk, decode
from appliance.volumes.errors import VolumeError
from appliance.volumes.streams import TYPE_MASK, WINDOWS_DATA


class Writer:
    """Writes what comes of each file, and has it digested. *limit*: most bytes in all, as *summary* counts them."""

    def __init__(self, target: Target, summary: Summary, limit: int | None) -> None:
        self._target = target
        self._summary = summary
        self._limit = limit

    def check_limit(self, one: OpenFile, length: int) -> None:
        """Raises `LimitError` when *length* more bytes are too many."""
        if self._limit is not None and self._summary.bytes + length > self._limit:
            hint = "Raise --limit if you trust the volumes; what was restored before is kept."
            raise LimitError(f"{one.path} goes over the limit of {self._limit} bytes", hint=hint)

    def record(self, one: OpenFile, stream: int, data: memoryview) -> None:
        """A data record of a file that is written as it comes. Raises `OSError`, `VolumeError`, `LimitError`."""
        chunk = decode(stream, data)
        if one.digest is None:
            raise VolumeError(f"it is a {one.entry.attributes.kind} but has data")
        one.digest.update(chunk.data)
        if stream & TYPE_MASK in WINDOWS_DATA:  # which have the file's bytes among other things
            one.windows = one.windows or BackupStream()
            self._write(one, one.windows.feed(chunk.data))
        else:
            self._write(one, [chunk])

    def held(self, one: OpenFile, data: bytearray) -> None:
        """The first bytes of a file that is written after all. Raises `OSError`, `LimitError`."""
        assert one.digest is not None
        one.digest.update(memoryview(data))
        self._write(one, [Chunk(None, memoryview(data))])

    def _write(self, one: OpenFile, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            data = chunk.data
            if chunk.offset is not None:
                one.position, one.has_holes = chunk.offset, True
            self.check_limit(one, len(data))
            descriptor = self.file(one)
            while data:
                written = os.pwrite(descriptor, data, one.position)
                one.position += written
                data = data[written:]
            self._summary.bytes += len(chunk.data)
            one.length = max(one.length, one.position)

    def file(self, one: OpenFile) -> int:
        """The open file, made when it is not there yet: what is in its place stays when nothing can be read."""
        if one.fd is None:
            one.fd, one.unfinished = self._target.create_file(one.parts)
        return one.fd
