"""Which jobs are alive: each holds a lock that the kernel frees when its process dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from appliance.host import files
from appliance.storage.database import CatalogError


class Alive:
    """The locks `state_dir/running/JOBID`, and those that this process holds. The files say whose they are."""

    def __init__(self, state_dir: Path) -> None:
        """Raises `OSError`."""
        self._directory = state_dir / "running"
        self._held: dict[int, int] = {}
        files.make_directory(self._directory)
        files.adopt(self._directory, state_dir)

    def begin(self, job_id: int) -> None:
        """The job runs in this process. Raises `CatalogError`."""
        path = self._directory / str(job_id)
        try:
            self._held[job_id] = descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            files.adopt(descriptor, self._directory)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)  # whom to ask to end
        except OSError as error:
            raise CatalogError(f"{path}: {error.strerror}", hint="Look at the file system of state_dir.") from None

    def end(self, job_id: int) -> None:
        """The job has ended, here or in a process that is gone."""
        with contextlib.suppress(OSError):
            (self._directory / str(job_id)).unlink()
        descriptor = self._held.pop(job_id, None)
        if descriptor is not None:
            os.close(descriptor)

    def is_alive(self, job_id: int) -> bool:
        """Whether a process, maybe this one, runs the job. Raises `OSError`."""
        if job_id in self._held:
            return True
        try:
            descriptor = os.open(self._directory / str(job_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def close(self) -> None:
        """Free the locks of jobs that never ended."""
        while self._held:
            os.close(self._held.popitem()[1])
