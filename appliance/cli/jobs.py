"""`magbay jobs` and `magbay job show`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from appliance.cli.output import Output, human_bytes, one_line
from appliance.config.loader import load
from appliance.errors import ExitStatus, NotFoundError
from appliance.spelling import near
from appliance.storage.catalog import Catalog
from appliance.storage.model import Job

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands `jobs` and `job show`."""
    jobs = subparsers.add_parser("jobs", help="history of jobs")
    jobs.add_argument("--name", help="only jobs of this name")
    jobs.set_defaults(run=run_jobs)
    verbs = subparsers.add_parser("job", help="one job").add_subparsers(metavar="VERB", required=True)
    show = verbs.add_parser("show", help="what a job did, and its log")
    show.add_argument("id", type=int, metavar="ID")
    show.set_defaults(run=run_show)


def run_jobs(args: argparse.Namespace, out: Output) -> ExitStatus:
    """List the jobs, newest first. Raises `NotFoundError` for a name that no job had and none is configured with."""
    config = load(args.config)
    with Catalog.of(config) as catalog:
        catalog.recover()
        jobs = catalog.jobs(name=args.name)
        if args.name is not None and not jobs:
            if args.name not in config.jobs:
                names = {*config.jobs, *(job.name for job in catalog.jobs())}
                hint = near(args.name, names, "'magbay jobs' without --name lists all.")
                raise NotFoundError(f"there is no job called {args.name}", hint=hint)
            out.line(f"job {args.name} has not run yet")
    out.document({"jobs": [_document(job) for job in jobs]})
    for job in jobs:
        waiting = f"  waiting for {job.waiting}" if job.waiting else ""
        out.line(
            f"{job.job_id:6} {_time(job.started)} {one_line(job.name):20} {job.level.word:12} {job.status.word:10} "
            f"{job.files:9} files {human_bytes(job.bytes):>10}{waiting}"
        )
    return ExitStatus.DONE


def run_show(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Tell of one job."""
    with Catalog.of(load(args.config)) as catalog:
        catalog.recover()
        job = catalog.job(args.id)
        volumes = [catalog.media(media_id=s.media_id)[0].name for s in catalog.stretches(args.id)]
        lines = catalog.log_lines(args.id)
    volumes = list(dict.fromkeys(volumes))
    log = [{"time": when, "kind": kind, "text": text} for when, kind, text in lines]
    out.document(_document(job) | {"volumes": volumes, "log": log})
    out.line(f"job {job.job_id} {one_line(job.name)} ({job.level.word}): {job.status.word}")
    told = ", ".join(volumes) or "none"
    out.line(f"  {_time(job.started)} to {_time(job.finished)}, pool {one_line(job.pool)}, volumes: {told}")
    out.line(f"  {job.files} files, {human_bytes(job.bytes)}, {job.warnings} warnings, {job.errors} errors")
    for moment, kind, text in lines:
        out.line(f"  {_time(moment)} {kind:7} {one_line(text)}")
    return ExitStatus.DONE


def _document(job: Job) -> dict[str, object]:
    return {
        "job_id": job.job_id,
        "name": job.name,
        "level": job.level.word,
        "status": job.status.word,
        "pool": job.pool,
        "base": job.base,
        "session_id": job.session_id,
        "session_time": job.session_time,
        "started": job.started,
        "finished": job.finished,
        "files": job.files,
        "bytes": job.bytes,
        "warnings": job.warnings,
        "errors": job.errors,
        "waiting": job.waiting,
        "client": job.client,
        "type": job.type,
    }


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
