"""What the digest of a file whose holes are left out can be: it is over what was saved, and that depends on who saved.

Source: volume format, 7.2 and 8. magbay leaves out the holes that the file system tells; Bacula and Bareos read pieces
of one size and leave out those of zeros, Bacula never the last one of a file.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator

from appliance.storage.pieces import OFFSET
from appliance.storage.reading import BUFFER, stretches

# Pieces of Bacula and Bareos up to 22, and of Bareos from 23 on, without the offset in front.
_PIECES = (65_536 - OFFSET, 262_144 - OFFSET)


def candidates(descriptor: int, size: int, algorithm: str) -> Iterator[bytes]:
    """Digests of the first *size* bytes of an open file, likely ones first; it is read for each kind of writer.

    Raises `OSError`.
    """
    yield from _with_holes(descriptor, size, algorithm)
    for piece in _PIECES:
        yield from _without_zeros(descriptor, size, algorithm, piece)


def _with_holes(descriptor: int, size: int, algorithm: str) -> list[bytes]:
    """As magbay saves it.

    The last byte is saved even where it is in a hole, and then a restore gives the file a last block of zeros: both
    are tried.
    """
    border = (size - 1) // os.fstat(descriptor).st_blksize * os.fstat(descriptor).st_blksize
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for start, end in stretches(descriptor, size):
        for at in range(start, min(end, border), BUFFER):
            digest.update(os.pread(descriptor, min(BUFFER, min(end, border) - at), at))
        if end > border:
            rest = os.pread(descriptor, end - max(start, border), max(start, border))
            found = [digest.copy(), digest]
            found[0].update(b"\0")
            found[1].update(rest)
            return [one.digest() for one in (found if not any(rest) else found[1:])]
    return [digest.digest()]


def _without_zeros(descriptor: int, size: int, algorithm: str, piece: int) -> list[bytes]:
    """As Bacula saves it in pieces of *piece* bytes, and as Bareos does where the last one holds only zeros."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    done = 0
    for start, end in stretches(descriptor, size):
        for at in range(max(done, start // piece * piece), end, piece):
            data = os.pread(descriptor, min(piece, size - at), at)
            if not data:
                raise OSError(errno.EIO, "it became shorter while it was read")
            done = at + piece
            if data.strip(b"\0"):
                digest.update(data)
            elif done >= size:
                last = digest.copy()
                last.update(data)
                return [last.digest(), digest.digest()]
    return [digest.digest()]
