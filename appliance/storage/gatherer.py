"""The process that walks and reads what is saved, while another writes the volume (`gathering.py`)."""

from __future__ import annotations

import os
import pickle
import time

from appliance.errors import MagbayError
from appliance.host.workers import SEGMENT, SEGMENTS, Ring
from appliance.storage.handing import ADVANCE, ALGORITHMS, DATA, HEAD, RECORD, ROW, SMALL, Message, Task
from appliance.storage.here import Here
from appliance.storage.pieces import CHUNK
from appliance.storage.walk import allow_depth
from appliance.volumes.attributes import join_attributes
from appliance.volumes.blocks import RECORD_HEADER
from appliance.volumes.digests import new as new_hash
from appliance.volumes.streams import DIGEST_STREAMS, Stream

_MOST = SEGMENT // 4  # bytes of one message; larger ones go in parts
_HEAD = RECORD_HEADER.size
_SECONDS = 0.25  # what was read longer ago than this is handed over, however little it is
_DIGEST = {name: new_hash(name).digest_size for name in DIGEST_STREAMS}
# From so many waiting segments on the other process has more to do than this one, which then digests small files.
_BEHIND = SEGMENTS // 2


class RingOutput:
    """An `Output` (see there) into the ring."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._segment = ring.segment
        self._used = 0
        self._handed = time.monotonic()
        self._count = 0
        self._digests_here = False

    def record(self, index: int, stream: int, data: bytes | memoryview) -> None:
        done = 0
        while len(data) - done > _MOST:
            at = self._room(HEAD.size + _MOST)
            HEAD.pack_into(self._segment, at, HEAD.size + _MOST, Message.MORE)
            self._segment[at + HEAD.size : self._used] = data[done : done + _MOST]
            done += _MOST
        at = self._room(RECORD.size + len(data) - done)
        RECORD.pack_into(self._segment, at, self._used - at, Message.RECORD, index, stream)
        self._segment[at + RECORD.size : self._used] = data[done:] if done else data

    def place(self) -> memoryview:
        # Whole records only, so that all are alike wherever a segment ends.
        room = self._free // CHUNK * CHUNK
        if room < SEGMENT // 2:
            self.hand_over()
            room = self._free // CHUNK * CHUNK
        begin = self._used + DATA.size
        return self._segment[begin : begin + room]

    def data(self, index: int, data: bytes | memoryview) -> None:
        data = memoryview(data)
        if data.obj is self._segment.obj:
            self._data(index, len(data))  # as `place` said
            self.check()
            return
        while data:
            self.check()
            size = min(self._free // CHUNK * CHUNK or CHUNK, len(data))
            at = self._data(index, size)
            self._segment[at : self._used] = data[:size]
            data = data[size:]

    def _data(self, index: int, size: int) -> int:
        """A message for *size* bytes of plain data; gives where they are to be."""
        at = self._room(DATA.size + size)
        DATA.pack_into(self._segment, at, self._used - at, Message.DATA, index)
        return at + DATA.size

    @property
    def _free(self) -> int:
        """Bytes of plain data for which there is room."""
        return max(0, SEGMENT - ADVANCE.size - DATA.size - self._used)

    def row(self, index: int, kind: int, name: bytes, numbers: bytes, digest: str) -> None:
        data = b"%b%b%b" % (name, numbers, digest.encode("ascii"))
        at = self._room(ROW.size + len(data))
        ROW.pack_into(self._segment, at, self._used - at, Message.ROW, kind, len(numbers), index, len(name))
        self._segment[at + ROW.size : self._used] = data

    def small(
        self, index: int, kind: int, name: bytes, numbers: bytes, data: memoryview, algorithm: str | None
    ) -> None:
        attributes = join_attributes(index, kind, name, numbers)
        size, head = len(data), _HEAD
        data_at = head + len(attributes) + (head if size else 0)
        end = data_at + size + (head + _DIGEST[algorithm] if algorithm else 0)
        at = self._room(SMALL.size + end)
        segment, begin = self._segment, at + SMALL.size
        RECORD_HEADER.pack_into(segment, begin, index, Stream.UNIX_ATTRIBUTES, len(attributes))
        segment[begin + head : begin + head + len(attributes)] = attributes
        if size:
            RECORD_HEADER.pack_into(segment, begin + data_at - head, index, Stream.FILE_DATA, size)
            segment[begin + data_at : begin + data_at + size] = data
        if algorithm:
            length = _DIGEST[algorithm]
            RECORD_HEADER.pack_into(segment, begin + end - length - head, index, DIGEST_STREAMS[algorithm], length)
            if self._digests_here:
                seen = new_hash(algorithm)
                seen.update(data)
                segment[begin + end - length : begin + end] = seen.digest()
        self._count += size
        SMALL.pack_into(
            segment, at, self._used - at, Message.SMALL, kind, ALGORITHMS.index(algorithm or ""), self._digests_here,
            index, head + attributes.index(b" ") + 3, len(name), len(numbers), data_at, size,
        )  # fmt: skip

    def advance(self, count: int) -> None:
        self._count += count

    def info(self, text: str) -> None:
        self.message(Message.INFO, os.fsencode(text))

    def warning(self, text: str) -> None:
        self.message(Message.WARNING, os.fsencode(text))

    def message(self, kind: Message, data: bytes = b"") -> None:
        """One without a form of its own."""
        at = self._room(HEAD.size + len(data))
        HEAD.pack_into(self._segment, at, self._used - at, kind)
        self._segment[at + HEAD.size : self._used] = data

    def check(self) -> None:
        """The other process is who is asked; here it is only told what there is."""
        if self._used and time.monotonic() - self._handed > _SECONDS:
            self.hand_over()

    def hand_over(self) -> None:
        """Give away what there is."""
        if self._count:
            at = self._used  # room for it is always left
            self._used += ADVANCE.size
            ADVANCE.pack_into(self._segment, at, ADVANCE.size, Message.ADVANCE, self._count)
            self._count = 0
        self._ring.hand_over(self._used)
        self._segment = self._ring.segment
        self._used = 0
        self._handed = time.monotonic()
        self._digests_here = self._ring.waiting >= _BEHIND

    def _room(self, size: int) -> int:
        """Where *size* bytes are to be put."""
        if self._used + size > SEGMENT - ADVANCE.size:
            self.hand_over()
        at = self._used
        self._used = at + size
        return at


def main(words: list[str]) -> None:
    """Do the task and end."""
    ring = Ring(words)
    task: Task = pickle.loads(ring.task)  # noqa: S301 - from the process that started this one
    output = RingOutput(ring)
    allow_depth()
    here = Here(task)
    try:
        here.into(output)
        output.message(Message.END)
    except (MagbayError, OSError) as error:
        output.message(Message.FAILED, os.fsencode(str(error)))
    finally:
        here.close()
    output.hand_over()
