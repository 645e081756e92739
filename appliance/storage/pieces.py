"""How the data of files are cut into records. Source: volume format, 7.1 and 7.2."""

from __future__ import annotations

from collections.abc import Callable, Iterator

CHUNK = 65536
OFFSET = 8
SPARSE_CHUNK = CHUNK - OFFSET
Place = Callable[[], memoryview]
"""Gives memory for data: at least `CHUNK` bytes, a multiple of that."""
_HOLE = bytes(CHUNK)


def cut(view: memoryview) -> Iterator[memoryview]:
    """*view* in pieces of at most `CHUNK` bytes."""
    for at in range(0, len(view), CHUNK):
        yield view[at : at + CHUNK]


def zeros(count: int) -> Iterator[memoryview]:
    """*count* zero bytes in pieces."""
    while count > 0:
        piece = memoryview(_HOLE)[: min(count, CHUNK)]
        count -= len(piece)
        yield piece
