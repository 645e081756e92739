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

_MOST_OPEN = 256
"""Files that are open. More are begun where many jobs ran at the same time, or ended without their sessions' end."""


class Writer:
    """Writes what comes of each file, and has it digested. *limit*: most bytes in all, as *summary* counts them."""

    def __init__(self, target: Target, summary: Summary, limit: int | None) -> None:
        self._target = target
        self._summary = summary
        self._limit = limit
        self._opened: dict[int, OpenFile] = {}  # by their identity, the one that was opened first in front

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
            if len(self._opened) >= _MOST_OPEN:
                self._set_aside(next(iter(self._opened.values())))
            if one.unfinished is None:
                one.fd, one.unfinished = self._target.create_file(one.parts)
            else:
                assert one.aside is not None
                one.fd = self._target.reopen_file(one.unfinished, one.parts, one.aside)
            self._opened[id(one)] = one
        return one.fd

    def close(self, one: OpenFile) -> None:
        """It is in its place, or nothing will become of it."""
        if one.fd is not None:
            del self._opened[id(one)]
            os.close(one.fd)
            one.fd = None

    def _set_aside(self, one: OpenFile) -> None:
        """It goes on when more of it comes."""
        assert one.fd is not None
        one.aside = os.fstat(one.fd)
        self.close(one)
