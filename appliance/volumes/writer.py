"""Writing: the records of one session packed into blocks. Source: volume format, sections 2, 3 and 17.

A session owns one buffer of the size of a block; data are copied into it once and the sink gets a view of it.
"""

from __future__ import annotations

from typing import Protocol

from appliance.volumes.blocks import (
    BLOCK_HEADER,
    DEFAULT_BLOCK,
    MAGIC,
    MAX_BLOCK,
    MAX_RECORD,
    RECORD_HEADER,
    SessionIds,
    checksum,
)
from appliance.volumes.errors import VolumeError
from appliance.volumes.labels import LabelKind, VolumeLabel

_BEGIN = BLOCK_HEADER.size
_HEAD = RECORD_HEADER.size


class BlockSink(Protocol):
    """Where finished blocks go; it decides about the change of volumes."""

    def write_block(self, block: memoryview, first_index: int, last_index: int) -> None:
        """Write exactly one complete block, header and checksum included.

        *first_index*, *last_index*: lowest and highest positive FileIndex with any record in it (0, 0: none).
        *block* is valid during the call only.
        """


class SessionWriter:
    """Packs the records of one session. Not thread safe; one writer for each session."""

    job_bytes: int
    """Sum of the data lengths of all records but labels so far."""

    def __init__(
        self, sink: BlockSink, ids: SessionIds, *, max_block: int = DEFAULT_BLOCK, first_number: int = 1
    ) -> None:
        """*max_block* in bytes; *first_number*: of the first block (1 on a fresh volume, 0 when appending)."""
        if not _BEGIN + _HEAD < max_block <= MAX_BLOCK:
            raise VolumeError(f"a block size of {max_block} bytes is not possible", hint="Use 64512, the default.")
        self.ids = ids
        self.job_bytes = 0
        self._sink = sink
        self._size = max_block
        self._view = memoryview(bytearray(max_block))
        self._used = _BEGIN
        self._number = first_number
        self._first = self._last = 0

    @property
    def pending(self) -> int:
        """Bytes of the block not yet written, its header included; 0 when there is none."""
        return self._used if self._used > _BEGIN else 0

    def write_record(self, file_index: int, stream: int, data: bytes | bytearray | memoryview) -> None:
        """Add one record of a file (*file_index* > 0), over as many blocks as it needs. `VolumeError` if too long."""
        left = len(data)
        if file_index <= 0 or left >= MAX_RECORD:
            raise VolumeError(f"a record of {left} bytes for file {file_index} cannot be written")
        self.job_bytes += left
        begin = self._used + _HEAD
        if begin + left <= self._size:
            self._note(file_index)
            RECORD_HEADER.pack_into(self._view, self._used, file_index, stream, left)
            self._used = begin + left
            self._view[begin : self._used] = data
            return
        self._write_split(file_index, stream, data)

    def write_records(self, file_index: int, records: memoryview, count: int) -> None:
        """Add *count* whole records of a file, which stand in *records* as on a volume. As `write_record` else."""
        end = self._used + len(records)
        if end <= self._size:
            self.job_bytes += len(records) - count * _HEAD
            self._note(file_index)
            self._view[self._used : end] = records
            self._used = end
            return
        at = 0
        while at < len(records):
            index, stream, length = RECORD_HEADER.unpack_from(records, at)
            at += _HEAD + length
            self.write_record(index, stream, records[at - length : at])

    def _write_split(self, file_index: int, stream: int, data: bytes | bytearray | memoryview) -> None:
        """A record that does not fit into what is left of the block."""
        left = len(data)
        if self._size - self._used < _HEAD:
            self.flush()
        start = 0
        while True:
            self._note(file_index)
            RECORD_HEADER.pack_into(self._view, self._used, file_index, stream, left)
            begin = self._used + _HEAD
            room = self._size - begin
            if left <= room:
                self._view[begin : begin + left] = data[start:] if start else data
                self._used = begin + left
                return
            self._view[begin : self._size] = memoryview(data)[start : start + room]
            self._used = self._size
            start += room
            left -= room
            if stream > 0:
                stream = -stream
            self.flush()

    def write_label(self, kind: LabelKind, stream: int, data: bytes) -> None:
        """Add a label record, which is never split (*stream*: the JobId for session labels)."""
        need = _HEAD + len(data)
        if need > self._size - _BEGIN:
            raise VolumeError(f"a label of {len(data)} bytes does not fit into a block of {self._size} bytes")
        if need > self._size - self._used:
            self.flush()
        RECORD_HEADER.pack_into(self._view, self._used, kind, stream, len(data))
        self._view[self._used + _HEAD : self._used + need] = data
        self._used += need

    def flush(self) -> None:
        """Give the block begun, if any, to the sink. What the sink raises goes to the caller and ends the session."""
        if self._used == _BEGIN:
            return
        block = self._view[: self._used]
        _seal(block, self._number, self.ids)
        self._sink.write_block(block, self._first, self._last)
        self._number += 1
        self._used = _BEGIN
        self._first = self._last = 0

    def _note(self, file_index: int) -> None:
        if not self._first or file_index < self._first:
            self._first = file_index
        if file_index > self._last:
            self._last = file_index


def _seal(block: memoryview, number: int, ids: SessionIds) -> None:
    BLOCK_HEADER.pack_into(block, 0, 0, len(block), number & 0xFFFFFFFF, MAGIC, ids.session_id, ids.session_time)
    block[:4] = checksum(block).to_bytes(4, "big")


def label_block(label: VolumeLabel, ids: SessionIds, stream: int = 0) -> bytes:
    """The whole first block of a volume: its VOL_LABEL alone.

    *ids*: of the session that writes it. *stream*: 0 on the first volume of that session, else the number of the volume
    in it (2, 3 …).
    """
    data = label.pack()
    block = bytearray(_BEGIN) + RECORD_HEADER.pack(LabelKind.VOL_LABEL, stream, len(data)) + data
    _seal(memoryview(block), 0, ids)
    return bytes(block)
