"""`magbay schedule` and `magbay cancel`."""

from __future__ import annotations

import argparse
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli.output import Output
from appliance.config.accepted import in_force
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError
from appliance.host import commands
from appliance.storage import cancelling, timers
from appliance.storage.catalog import Catalog
from appliance.storage.model import Job

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands `schedule` and `cancel`."""
    schedule = subparsers.add_parser("schedule", help="which jobs run when, and what comes next")
    schedule.add_argument(
        "--write", type=Path, metavar="DIR", help="write systemd's units for the jobs to DIR, as the generator does"
    )
    schedule.set_defaults(run=run_schedule)
    cancel = subparsers.add_parser("cancel", help="ask a running job to end, and wait until it has")
    cancel.add_argument("job", metavar="JOB", help="id or name of the job")
    cancel.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait (default: 60)")
    cancel.set_defaults(run=run_cancel)


def run_cancel(args: argparse.Namespace, out: Output) -> ExitStatus:
    """End a job."""
    names = cancelling.cancel(load(args.config), args.job, seconds=args.timeout)
    out.document({"cancelled": names})
    for name in names:
        out.line(f"job {name} has ended")
    return ExitStatus.DONE


def run_schedule(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show or write the schedule."""
    if args.write:
        found = in_force(args.config)
        if found.trouble:
            out.warn(f"magbay: {found.words}")
        config = found.config
        try:
            timers.write(config, args.config.absolute(), args.write)
        except OSError as error:
            raise MagbayError(f"{error.filename}: {error.strerror}", hint="Give a directory to write to.") from None
        out.document({"written": sorted(timers.units(config, args.config))})
        return ExitStatus.DONE
    config = load(args.config)
    entries = sorted(collect(config), key=lambda entry: (entry["next"] is None, entry["next"] or 0, entry["job"]))
    out.document({"schedule": entries})
    for entry in entries:
        when = _time(entry["next"]) if entry["at"] else "when it comes"
        what = entry["at"] or "magazine " + " or ".join(entry["attached"])
        out.line(f"{when:19}  {entry['job']:<20} {entry['level']:<12} {what:<24} last {_time(entry['last'])}")
        if entry["trouble"]:
            out.warn(f"magbay: job {entry['job']}: {entry['trouble']}")
    if not entries:
        out.line("no job has a schedule: keys schedule and run_on_attach of jobs")
    return ExitStatus.WARNINGS if any(entry["trouble"] for entry in entries) else ExitStatus.DONE


def collect(config: Config) -> list[dict[str, Any]]:
    """Every time at which a job runs as plain data; times in Unix seconds, None for not known."""
    last = _last_jobs(config)
    found = []
    for name, job in config.jobs.items():
        for level, times in timers.events(job).items():
            for at in times:
                following, trouble = next_elapse(at)
                found.append(_entry(name, level.value, at, (), following, trouble, last))
        if job.run_on_attach:
            found.append(_entry(name, job.level.value, "", job.run_on_attach, None, "", last))
    return found


def _entry(
    name: str, level: str, at: str, attached: tuple[str, ...], following: int | None, trouble: str, last: dict[str, Job]
) -> dict[str, Any]:
    return {
        "job": name,
        "level": level,
        "at": at,
        "attached": list(attached),
        "next": following,
        "last": last[name].started if name in last else None,
        "trouble": trouble,
    }


def _last_jobs(config: Config) -> dict[str, Job]:
    if not Catalog.exists(config):
        return {}
    with Catalog.of(config) as catalog:
        return {job.name: job for job in reversed(catalog.jobs())}


def next_elapse(at: str) -> tuple[int | None, str]:
    """When a calendar event comes next (Unix seconds) and what is wrong with it; nothing where systemd is not there."""
    try:
        status, output, complaint = commands.attempt(["systemd-analyze", "calendar", at], f"the time {at}")
    except MagbayError:
        return None, ""
    if status != 0:
        return None, complaint.strip().splitlines()[0] if complaint.strip() else f"{at} is no time for systemd"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(": ") for line in output.splitlines())}
    text = facts.get("(in UTC)") or facts.get("Next elapse", "")
    words = text.split()
    if len(words) != 4:
        return None, f"{at} is never reached"
    # In UTC when the local zone is another one, else the only line; its zone is the last word.
    when = datetime.strptime(" ".join(words[1:3]), "%Y-%m-%d %H:%M:%S")
    if words[3] == "UTC":
        return int((when - datetime(1970, 1, 1)).total_seconds()), ""
    return int(time.mktime(when.timetuple())), ""


def _time(seconds: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
