"""Asking a running job to end."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from appliance.config.schema import Config
from appliance.errors import MagbayError, NotFoundError, PermissionDeniedError
from appliance.storage import runner
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus

_LOOK = 0.1  # seconds between two looks whether it has ended


def cancel(config: Config, what: str, *, seconds: float = 60, pause: Callable[[float], None] = time.sleep) -> list[str]:
    """Ask the job with the id or the name *what* to end, and wait until it has; gives the names of the jobs.

    Raises `NotFoundError` when none runs, `PermissionDeniedError`, `MagbayError` when it has not ended after *seconds*.
    """
    found = _running(config, what)
    if not found:
        raise NotFoundError(f"no job {what} is running", hint="'magbay jobs' shows which do.")
    for path, name in found.items():
        _ask(path, name)
    deadline = time.monotonic() + seconds
    while any(_holder(path) for path in found):
        if time.monotonic() > deadline:
            names = ", ".join(found.values())
            raise MagbayError(f"job {names} was asked to end, and has not after {seconds:.0f} s", hint="Ask again.")
        pause(_LOOK)
    return list(found.values())


def _running(config: Config, what: str) -> dict[Path, str]:
    """Locked files of running jobs to what the job is called."""
    found: dict[Path, str] = {}
    names = {what} if "/" not in what else set()
    if Catalog.exists(config):
        with Catalog.of(config) as catalog:
            catalog.recover()
            for job in catalog.jobs(status=JobStatus.RUNNING):
                if what in (str(job.job_id), job.name):
                    found[config.state_dir / "running" / str(job.job_id)] = f"{job.job_id} ({job.name})"
                    names.add(job.name)
    # A configured job also waits between its attempts and runs commands.
    whole = {runner.lock_of(config.state_dir, name): name for name in names}
    return found or {path: name for path, name in whole.items() if _holder(path)}


def _holder(path: Path) -> int:
    """The process that holds the file, 0 for none."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else -1
    finally:
        os.close(descriptor)
    return 0


def _ask(path: Path, name: str) -> None:
    process = _holder(path)
    if process <= 0:
        return
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise PermissionDeniedError(
            f"job {name} is another user's (process {process})", hint="Run as root or as that user."
        ) from None
