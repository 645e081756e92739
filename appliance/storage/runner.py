"""A configured job as a whole: one run at a time, commands before and after, further attempts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.config.jobs import JobConfig
from appliance.config.schedules import HookFailure
from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError
from appliance.host import commands, files
from appliance.storage import backup
from appliance.storage.backup import Advance, BackupRequest, JobResult
from appliance.storage.catalog import Catalog
from appliance.storage.joblog import LogCallback
from appliance.storage.model import JobStatus, Level

_WARNING = "4"


@dataclass(frozen=True)
class Callbacks:
    """As `backup.run` has them."""

    log: LogCallback
    progress: Advance = lambda count: None
    cancelled: Callable[[], bool] = lambda: False
    status: Callable[[str], None] = lambda text: None
    pause: Callable[[float], None] = time.sleep


class JobRunningError(MagbayError):
    """Another process runs the job."""


class NotStartedError(MagbayError):
    """A command before the job keeps it from starting."""


def run(config: Config, request: BackupRequest, told: Callbacks) -> JobResult:
    """Run the job of the configuration that *request* names, or just the request.

    Raises `JobRunningError`, `MagbayError` when a command before it fails, and what `backup.run` raises.
    """
    if request.job is None:
        return _backup(config, request, told)
    with alone(config.state_dir, request.name):
        return _attempts(config, request, request.job, told)


def run_in_turn(config: Config, request: BackupRequest, told: Callbacks) -> JobResult | None:
    """As `run`, after the run of the job that is under way, if one is. None when there is nothing left to do: that one
    saved as much and went well, or ours was cancelled while it waited.

    Two levels may be due at once, and after a night without power all are: none gets lost, whichever comes first.
    """
    job, asked, waited = request.job, time.time(), False
    if job is None:
        return run(config, request, told)
    while not told.cancelled():
        try:
            with alone(config.state_dir, request.name):
                if waited and _saved_since(config, request, asked):
                    told.log(f"job {request.name} has run meanwhile at a level that saves as much: nothing to do", {})
                    return None
                return _attempts(config, request, job, told)
        except JobRunningError:
            if not waited:
                text = f"job {request.name} is running at another level: waiting for its end"
                told.log(text, {})
                told.status(text)
            waited = True
            told.pause(1.0)
    return None


def _saved_since(config: Config, request: BackupRequest, moment: float) -> bool:
    """Whether a run that saves as much as *request* has ended well since *moment* (Unix seconds)."""
    levels = list(Level)[: list(Level).index(request.level) + 1]
    with Catalog.of(config) as catalog:
        found = catalog.jobs(name=request.name)
    return any(job.status.good and job.level in levels and job.finished >= int(moment) for job in found)


def _attempts(config: Config, request: BackupRequest, job: JobConfig, told: Callbacks) -> JobResult:
    attempt = 1
    while True:
        result: JobResult | NotStartedError
        try:
            result = _once(config, request, job, told)
            failed, fields = result.status is JobStatus.FAILED, {"JOB": str(result.job_id)}
            if result.lost:  # its disk may fail in the same place again
                request = replace(request, avoid=request.avoid | {result.lost})
        except NotStartedError as error:
            result, failed, fields = error, True, {}
        if failed and attempt <= job.retries and not told.cancelled():
            attempt += 1
            text = f"job {request.name} failed: attempt {attempt} of {job.retries + 1} in {job.retry_pause} s"
            told.log(text, fields)
            told.status(text)
            if _pass(job.retry_pause, told):
                continue
        if isinstance(result, NotStartedError):
            raise result
        return result


def _pass(seconds: int, told: Callbacks) -> bool:
    """Let time pass; False when the job is cancelled meanwhile."""
    for _ in range(seconds):
        if told.cancelled():
            return False
        told.pause(1.0)
    return not told.cancelled()


def _once(config: Config, request: BackupRequest, job: JobConfig, told: Callbacks) -> JobResult:
    facts = {"MAGBAY_JOB": request.name, "MAGBAY_LEVEL": request.level.word, "MAGBAY_POOL": request.pool}
    warnings = []
    for number, command in enumerate(job.hooks.before, 1):
        trouble = _command(f"command {number} before the job", command, job, facts, told, told.cancelled)
        if told.cancelled():
            _after(job, facts | {"MAGBAY_STATUS": JobStatus.CANCELLED.word}, told)
            raise NotStartedError(f"job {request.name} was cancelled before it began", hint="Nothing was saved.")
        if trouble and job.hooks.failure is HookFailure.FAIL:
            _after(job, facts | {"MAGBAY_STATUS": "failed"}, told)
            hint = "The job was not started: look at the command (hooks.before), or set hooks.failure to warn."
            raise NotStartedError(f"job {request.name}: {trouble}", hint=hint)
        warnings += [trouble] if trouble else []
    result = _backup(config, request, told)
    warnings += _after(job, facts | _facts(result), told)
    return _with_warnings(result, warnings, job) if warnings else result


def _after(job: JobConfig, facts: dict[str, str], told: Callbacks) -> list[str]:
    commands_after = enumerate(job.hooks.after, 1)
    found = [
        _command(f"command {number} after the job", command, job, facts, told) for number, command in commands_after
    ]
    return [trouble for trouble in found if trouble]


def _facts(result: JobResult) -> dict[str, str]:
    return {
        "MAGBAY_JOB_ID": str(result.job_id),
        "MAGBAY_LEVEL": result.level.word,
        "MAGBAY_STATUS": result.status.word,
        "MAGBAY_FILES": str(result.files),
        "MAGBAY_BYTES": str(result.bytes),
        "MAGBAY_VOLUMES": " ".join(result.volumes),
    }


def _command(
    what: str,
    command: str,
    job: JobConfig,
    facts: dict[str, str],
    told: Callbacks,
    cancelled: Callable[[], bool] = lambda: False,
) -> str:
    """Run one command, until it ends or *cancelled*; gives what went wrong, in words, or nothing.

    *what* names it: its text may hold what is not for the journal, which more people read than the configuration.
    """
    told.log(f"running {what}", {})
    status, output = commands.shell(command, facts, timeout=job.hooks.timeout, cancelled=cancelled)
    for line in output.splitlines()[-20:]:
        told.log(f"  {line}", {})
    if status == 0:
        return ""
    late = "was ended, since the job is cancelled" if cancelled() else f"did not end within {job.hooks.timeout} s"
    reason = late if status is None else f"ended with status {status}"
    trouble = f"{what} {reason}"
    told.log(trouble, {"PRIORITY": _WARNING})
    return trouble


def _with_warnings(result: JobResult, warnings: list[str], job: JobConfig) -> JobResult:
    """What was saved stays saved; the exit status tells of the commands."""
    failed = job.hooks.failure is HookFailure.FAIL and bool(warnings)
    exit_status = result.exit_status
    if exit_status in (ExitStatus.DONE, ExitStatus.WARNINGS):
        exit_status = ExitStatus.FAILED if failed else ExitStatus.WARNINGS
    return replace(result, exit_status=exit_status, warnings=(*result.warnings, *warnings))


def _backup(config: Config, request: BackupRequest, told: Callbacks) -> JobResult:
    return backup.run(
        config,
        request,
        log=told.log,
        progress=told.progress,
        cancelled=told.cancelled,
        status=told.status,
        pause=told.pause,
    )


def lock_of(state_dir: Path, name: str) -> Path:
    """The file that is locked while the job *name* runs, waits for its next attempt, or runs its commands."""
    return state_dir / "running" / f"job-{name}"


@contextlib.contextmanager
def alone(state_dir: Path, name: str) -> Iterator[None]:
    """Hold the job; the file says whose process does. Raises `JobRunningError`, `OSError`."""
    path = lock_of(state_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = f"Wait for it, or end it with 'magbay cancel {name}'."
            raise JobRunningError(f"job {name} is running already", hint=hint) from None
        files.adopt(descriptor, state_dir)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
