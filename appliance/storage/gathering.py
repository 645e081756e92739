"""A backup whose files another process reads (`gatherer.py`): here they come to the session and the catalog."""

from __future__ import annotations

import os
import pickle

from appliance.errors import MagbayError
from appliance.host.workers import Worker
from appliance.storage import READER
from appliance.storage.digests import digest_text
from appliance.storage.direct import Direct
from appliance.storage.handing import ADVANCE, ALGORITHMS, DATA, HEAD, RECORD, ROW, SMALL, Message, Task
from appliance.volumes.digests import new as new_hash


class Intake:
    """A `Tally` that grows with what the other process tells."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self.deleted = 0
        self.ended = False
        """Whether all was told."""
        self._parts = bytearray()

    def take(self, segment: memoryview, output: Direct) -> None:
        """Pass on the messages of one segment. Raises what the output raises."""
        output.check()
        at, end = 0, len(segment)
        while at < end:
            size, what = HEAD.unpack_from(segment, at)
            if what == Message.SMALL:
                self._small(segment, at, size, output)
            else:
                self._other(segment[at : at + size], what, output)
            at += size

    def _small(self, segment: memoryview, at: int, size: int, output: Direct) -> None:
        _, _, kind, code, digested, index, name_at, name, numbers, data_at, data = SMALL.unpack_from(segment, at)
        begin, end = at + SMALL.size, at + size
        digest = b""
        if code:
            seen = new_hash(ALGORITHMS[code])
            digest_at = end - seen.digest_size
            if digested:
                digest = bytes(segment[digest_at:end])
            else:
                seen.update(segment[begin + data_at : begin + data_at + data])
                segment[digest_at:end] = digest = seen.digest()
        name_at += begin
        name_end = name_at + name
        output.records(index, segment[begin:end], 1 + bool(data) + bool(code))
        lstat = str(segment[name_end + 1 : name_end + 1 + numbers], "ascii")
        output.add(index, kind, bytes(segment[name_at:name_end]), lstat, digest_text(digest))
        self.files = index

    def _other(self, message: memoryview, what: int, output: Direct) -> None:
        if what == Message.RECORD:
            output.check()
            _, _, index, stream = RECORD.unpack_from(message)
            data = message[RECORD.size :]
            if self._parts:
                data = memoryview(bytes(self._parts + data))
                self._parts.clear()
            output.record(index, stream, data)
            self.files = index
        elif what == Message.DATA:
            _, _, index = DATA.unpack_from(message)
            self.bytes += len(message) - DATA.size
            output.data(index, message[DATA.size :])
        elif what == Message.ROW:
            _, _, kind, numbers, index, name = ROW.unpack_from(message)
            text = bytes(message[ROW.size :])
            digest = text[name + numbers :].decode("ascii")
            output.row(index, kind, text[:name], text[name : name + numbers], digest)
        elif what == Message.ADVANCE:
            (count,) = ADVANCE.unpack_from(message)[2:]
            self.bytes += count
            output.advance(count)
        elif what == Message.END:
            self.ended = True
        else:
            self._words(message[HEAD.size :], what, output)

    def _words(self, data: memoryview, what: int, output: Direct) -> None:
        if what == Message.MORE:
            self._parts += data
            return
        text = os.fsdecode(bytes(data))
        if what == Message.INFO:
            output.info(text)
        elif what == Message.WARNING:
            output.warning(text)
        else:
            raise MagbayError(text)


class Gathering(Intake):
    """The other process and what comes from it. Close it."""

    def __init__(self, task: Task) -> None:
        """Start reading. Raises `OSError` when there can be no second process."""
        super().__init__()
        self._worker = Worker.of(READER)
        try:
            self._worker.give(pickle.dumps(task))
        except MagbayError:
            self._worker.close()
            raise

    def close(self) -> None:
        """End the other process."""
        self._worker.close()

    def into(self, output: Direct) -> None:
        """Pass on everything. Raises what the output raises, and `MagbayError` when the other process fails."""
        for segment in self._worker.segments(output.check):
            self.take(segment, output)
        if not self.ended:
            raise MagbayError("the process that reads the files ended without a word", hint="Try it again.")
