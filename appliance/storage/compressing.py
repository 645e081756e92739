"""Compressing data records on several processors, in order. Source: volume format, section 7."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from appliance.storage.pieces import OFFSET

_MOST_WORKERS = 4
Compress = Callable[[bytes], bytes]
# Pieces of 64 KiB that wait for their turn: enough to keep the workers busy, small enough to hold.
_WAITING = 4 * _MOST_WORKERS


@dataclass(frozen=True, slots=True)
class Packed:
    """A record's data; *plain*: bytes of the file in it, *end*: where they end when the record has an offset."""

    data: bytes | memoryview
    plain: int
    end: int | None


class Compressor:
    """Compresses pieces, each by itself. Close it at the end."""

    def __init__(self) -> None:
        self._workers = ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_WORKERS), thread_name_prefix="compress")

    def close(self) -> None:
        """End the threads."""
        self._workers.shutdown()

    def pack(self, pieces: Iterator[memoryview], compress: Compress, *, sparse: bool) -> Iterator[Packed]:
        """The pieces compressed; of a sparse file the offset in front stays as it is. Raises what reading raises,
        behind what was read before."""
        waiting: deque[Future[Packed]] = deque()
        trouble: OSError | None = None
        try:
            for piece in pieces:
                # A piece is valid until the next one is taken: the worker needs its own copy.
                waiting.append(self._workers.submit(pack, bytes(piece), compress, sparse=sparse))
                if len(waiting) >= _WAITING:
                    yield waiting.popleft().result()
        except OSError as error:
            trouble = error
        while waiting:
            yield waiting.popleft().result()
        if trouble is not None:
            raise trouble


def pack(piece: bytes, compress: Compress, *, sparse: bool) -> Packed:
    """One piece compressed."""
    begin = OFFSET if sparse else 0
    plain = len(piece) - begin
    end = int.from_bytes(piece[:begin], "big") + plain if sparse else None
    return Packed(piece[:begin] + compress(piece[begin:]), plain, end)


def unpacked(pieces: Iterator[memoryview], *, sparse: bool) -> Iterator[Packed]:
    """The pieces as they are, in the same form."""
    begin = OFFSET if sparse else 0
    for piece in pieces:
        plain = len(piece) - begin
        yield Packed(piece, plain, int.from_bytes(piece[:begin], "big") + plain if sparse else None)
