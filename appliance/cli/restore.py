"""`magbay restore`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.cli import placing
from appliance.cli.output import Output, human_bytes
from appliance.cli.running import heard_or_not, run_reading, warn_of
from appliance.cli.times import AT_HELP, moment
from appliance.errors import ExitStatus, UsageError
from appliance.storage import restore

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = (
    "Restore a job: the newest finished one, unless --job or --latest names another. Of an incremental or "
    "differential job the jobs that it builds on are read too; what was deleted in between stays away."
)


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `restore`."""
    parser = subparsers.add_parser("restore", help="restore files", description=_DESCRIPTION)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--job", type=int, metavar="ID", help="this job")
    which.add_argument("--latest", metavar="NAME", help="the newest finished job of this name")
    parser.add_argument("--at", type=moment, metavar="TIME", help=AT_HELP)
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="GLOB",
        help="only what matches, and what lies below it: with a slash the whole path is compared, without one a name",
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="target directory; / restores to the original places")
    placing.add_options(parser)
    parser.set_defaults(run=run_restore)


def run_restore(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Restore and tell how it went."""
    if args.to is None:
        raise UsageError(
            "it is not said where to restore to",
            hint="Give --to DIR, or '--to /' to overwrite the files in their original places.",
        )
    if args.job is not None and args.at is not None:
        raise UsageError("--job names the job already", hint="Leave out --at, or take --latest NAME.")
    request = restore.RestoreRequest(
        args.to, args.job, args.latest, tuple(args.file), args.at, args.replace, placing.renaming_of(args)
    )
    result = run_reading(restore.run, "restore", args.config, request, out)
    with heard_or_not():
        _tell(result, out)
    return result.exit_status


def _tell(result: restore.RestoreResult, out: Output) -> None:
    out.document(result.document())
    warn_of(out, result.warnings, result.errors)
    if result.exit_status is ExitStatus.FAILED:
        out.warn("        What is not named above is restored; 'magbay jobs' lists other jobs to take the rest from.")
    told = f"{result.files} files, {human_bytes(result.bytes)} restored to {result.to}"
    left = f", {result.skipped} that were there left as they are" if result.skipped else ""
    out.line(f"job {result.job_id} {result.word}: {told}{left}")
