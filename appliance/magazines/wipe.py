"""Overwriting a disk before its first use."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from appliance.errors import MagbayError
from appliance.host.commands import run

_CHUNK = 4 * 1024 * 1024  # bytes a write
_FLUSH = 256 * 1024 * 1024  # bytes between two flushes, so that progress and errors are of the disk, not the cache


class Wipe(Enum):
    """How thoroughly: random hides how much of the disk is used; discard is quick on flash; none trusts the disk."""

    RANDOM = "random"
    DISCARD = "discard"
    NONE = "none"


def wipe(node: Path, size: int, how: Wipe, advance: Callable[[int], None]) -> None:
    """Overwrite the *size* bytes of *node*; *advance* is told the bytes done. Raises `MagbayError`, `OSError`."""
    if how is Wipe.DISCARD:
        run(["blkdiscard", "--force", str(node)], f"discarding {node}", hint="Use --wipe random or --wipe none.")
    elif how is Wipe.RANDOM:
        _random(node, size, advance)


def _random(node: Path, size: int, advance: Callable[[int], None]) -> None:
    """An AES-256-CTR stream under a key that is thrown away: indistinguishable from random, at the disk's speed."""
    stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    zeros, noise = bytes(_CHUNK), bytearray(_CHUNK + 16)
    fd = os.open(node, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
    try:
        done = since = 0
        while done < size:
            length = min(_CHUNK, size - done)
            stream.update_into(memoryview(zeros)[:length], noise)
            written = os.write(fd, memoryview(noise)[:length])
            if written != length:
                raise MagbayError(f"{node}: the disk took only {done + written} of {size} bytes", hint="Is it failing?")
            done += written
            since += written
            advance(written)
            if since >= _FLUSH or done == size:
                os.fdatasync(fd)
                os.posix_fadvise(fd, 0, done, os.POSIX_FADV_DONTNEED)
                since = 0
    finally:
        os.close(fd)
