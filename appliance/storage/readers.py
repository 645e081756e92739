"""Readers and the one who writes a volume anew keep each other out.

Open-file-description locks (fcntl(2)) on the volume's first byte: readers share it, who cuts the volume off has it
alone meanwhile. Appending needs none: a reader looks only at what was there before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from appliance.errors import MagbayError

_FIRST_BYTE = (os.SEEK_SET, 0, 1, 0)  # whence, start, length, and no process, as open-file-description locks have it


def _lock(descriptor: int, kind: int) -> bool | None:
    """Set the lock F_RDLCK, F_WRLCK or F_UNLCK without waiting; False when others are in the way, None when the file
    system has no such locks."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, *_FIRST_BYTE))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


class WrittenAnewError(MagbayError):
    """The volume is being written anew just now, since what it held is not needed any more."""


@contextlib.contextmanager
def reading(paths: Iterable[Path]) -> Iterator[None]:
    """Nobody writes these volumes anew meanwhile. One that cannot be opened is left to whoever reads it.

    Raises `WrittenAnewError`.
    """
    with contextlib.ExitStack() as stack:
        for path in dict.fromkeys(paths):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                continue
            stack.callback(os.close, descriptor)
            if _lock(descriptor, fcntl.F_RDLCK) is False:
                hint = "Try again: what it held is not needed any more, and the catalog will say so."
                raise WrittenAnewError(f"volume {path.name} is being written anew", hint=hint)
        yield


def keep_out(descriptor: int) -> bool:
    """Keep readers out of the volume, which is open for writing; False when somebody reads it, or may."""
    return _lock(descriptor, fcntl.F_WRLCK) is True


def let_in(descriptor: int) -> None:
    """Readers may come again."""
    _lock(descriptor, fcntl.F_UNLCK)
