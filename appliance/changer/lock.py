"""The changer's lock: one process at a time changes slot map and drives. The kernel frees it with its holder."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from appliance.changer.view import LOCK
from appliance.host.files import adopt, locked


@contextlib.contextmanager
def lock(run_dir: Path, name: str = LOCK, seconds: float | None = None) -> Iterator[None]:
    """Hold the lock of the changer whose directory is *run_dir* (created when missing). Raises `OSError`.

    *name*: another lock beside it, for the same users. *seconds*: after which `TimeoutError` is raised (None: never).
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / name
    if not path.exists():
        # Whoever may write in run_dir may run the changer, whatever the umask of the first who does.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, stat.S_IMODE(run_dir.stat().st_mode) & 0o666)
            adopt(fd, run_dir)
        finally:
            os.close(fd)
    with locked(path, seconds):
        yield
