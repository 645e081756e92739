"""One preparation at a time on one disk and under one name; the kernel ends these locks with their process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.magazines import preparations

_LOCK_SECONDS = 10.0  # udev holds a shared lock while it looks at a disk


@contextlib.contextmanager
def only_one(config: Config, name: str) -> Iterator[None]:
    """Two runs at once on two disks are welcome, but not with one *name*. Raises `MagbayError`."""
    path = preparations.folder(config) / f"{name}.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise MagbayError(
            f"another disk is being prepared as magazine {name} right now", hint="Choose another name."
        ) from None
    finally:
        os.close(fd)


@contextlib.contextmanager
def whole_disk(node: Path) -> Iterator[int]:
    """Lock the disk: udev and every second run of ours keep off. Raises `MagbayError` when somebody else has it."""
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK:
                    raise
                if time.monotonic() > end:
                    raise MagbayError(
                        f"{node} is being prepared or formatted by another process",
                        hint="Wait until that has ended; 'lslocks' shows which it is.",
                    ) from None
            time.sleep(0.1)
        yield fd
    finally:
        os.close(fd)
