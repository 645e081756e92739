"""The key file that opens the LUKS containers: 4096 bytes of the kernel's random generator, for root only.

The bytes never enter this process again after they were made: cryptsetup reads the file itself.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from appliance.errors import MagbayError
from appliance.host.files import sync_directory

KEY_BYTES = 4096


def ensure(path: Path) -> bool:
    """Make the key file *path* unless it exists; whether it was made. Raises `MagbayError` for an unusable one."""
    if path.exists():
        check(path)
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        os.write(fd, os.urandom(KEY_BYTES))
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(path.parent)
    return True


def check(path: Path) -> None:
    """Refuse a key file that is empty, short, or readable for others. Raises `MagbayError`."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size < 32:
        raise MagbayError(
            f"key file {path} is damaged: {facts.st_size} bytes",
            hint="Restore it from its copy; do not make a new one.",
        )
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise MagbayError(f"key file {path} can be read by others than its owner", hint=f"chmod 0400 {path}")
