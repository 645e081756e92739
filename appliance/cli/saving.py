"""What `magbay backup` does."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from appliance.cli.output import Output, Progress, human_bytes
from appliance.cli.running import heard_or_not, log_to, refresh_changer, stoppable, warn_of
from appliance.config.accepted import in_force
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ExitStatus
from appliance.host.real.services import ServiceNotify
from appliance.storage import backup, runner, walk
from appliance.storage.model import Level
from appliance.storage.waiting import Waiting

_AT_TERMINAL = 3600  # seconds


def run_backup(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Run the job and tell how it ended."""
    config = _configuration(args, out)
    level = next((level for level in Level if level.word == args.level), None)
    request = backup.request_for(config, args.what, pool=args.pool, level=level, name=args.name, accurate=args.accurate)
    request = replace(request, waiting=_waiting(args.wait, request.waiting))
    with stoppable() as asked, out.progress("backup") as display, _counting(config, request, display, asked.is_set):
        told = runner.Callbacks(log_to(out, args.config), display.advance, asked.is_set, ServiceNotify().status)
        result = (runner.run_in_turn if args.scheduled else runner.run)(config, request, told)
    if result is None:
        out.document({"job_id": None, "status": "skipped", "files": 0, "bytes": 0, "volumes": []})
        return ExitStatus.DONE
    refresh_changer(args.config, out)
    with heard_or_not():
        _tell(result, out)
    return result.exit_status


def _configuration(args: argparse.Namespace, out: Output) -> Config:
    if not args.scheduled:
        return load(args.config)
    found = in_force(args.config)
    if found.trouble:
        out.warn(f"magbay: {found.words}")
    return found.config


def _waiting(asked: int | None, configured: Waiting) -> Waiting:
    """How long to wait for magazines: as asked for, else as configured; with a person at the terminal an hour."""
    if asked is not None:
        return Waiting(asked, asked)
    if configured == Waiting() and sys.stderr.isatty():
        return Waiting(next=_AT_TERMINAL)
    return configured


def _tell(result: backup.JobResult, out: Output) -> None:
    out.document(result.document())
    warn_of(out, result.warnings, result.errors)
    if result.hint:
        out.warn(f"        {result.hint}")
    seconds = max(0, result.finished - result.started)  # the clock may have been set back meanwhile
    deleted = f" ({result.deleted} deleted)" if result.deleted else ""
    out.line(
        f"job {result.job_id} {result.status.word}: {result.files} files{deleted}, {human_bytes(result.bytes)} "
        f"in {seconds} s, volumes: {', '.join(result.volumes) or 'none'}"
    )


@contextmanager
def _counting(
    config: Config, request: backup.BackupRequest, display: Progress, stop: Callable[[], bool]
) -> Iterator[None]:
    """While somebody looks at the progress, count what there is to save, for the ETA."""
    if display.style == "none":
        yield
        return
    ended = threading.Event()

    def count() -> None:
        names = request.tops()
        display.total = walk.total_bytes(names, backup.limits(config, request), lambda: ended.is_set() or stop())

    request.tops()  # a path that does not exist is told before anything starts
    thread = threading.Thread(target=count, name="count", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
