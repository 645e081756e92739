"""`magbay restore`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.cli import placing
from appliance.cli.output import Output, human_bytes, one_line
from appliance.cli.running import heard_or_not, run_reading, warn_of
from appliance.cli.times import AT_HELP, moment
from appliance.config.loader import load
from appliance.errors import ExitStatus, UsageError
from appliance.storage import bootstrap, preview, restore
from appliance.storage.saved_files import text

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from appliance.storage.model import SavedFile

_DESCRIPTION = (
    "Restore a job: the newest finished one, unless --job or --latest names another. Of an incremental or "
    "differential job the jobs that it builds on are read too; what was deleted in between stays away."
)
_NOWHERE = Path("/")  # of a restore that is only looked at


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `restore`."""
    parser = subparsers.add_parser("restore", help="restore files", description=_DESCRIPTION)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--job", type=int, metavar="ID", help="this job")
    which.add_argument("--latest", metavar="NAME", help="the newest finished job of this name")
    which.add_argument(
        "--bootstrap", type=Path, metavar="FILE", help="what this bootstrap file selects; needs no catalog"
    )
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
    placing.add_keys(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="only tell what would be restored and which magazines that needs"
    )
    parser.add_argument("--list", action="store_true", help="as --dry-run, with the name of each file")
    parser.set_defaults(run=run_restore)


def run_restore(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Restore and tell how it went."""
    look = args.dry_run or args.list
    if args.to is None and not look:
        raise UsageError(
            "it is not said where to restore to",
            hint="Give --to DIR, or '--to /' to overwrite the files in their original places.",
        )
    if args.at is not None and (args.job is not None or args.bootstrap is not None):
        raise UsageError("--job or --bootstrap names the job already", hint="Leave out --at, or take --latest NAME.")
    to, globs, keys = args.to or _NOWHERE, tuple(args.file), tuple(args.volume_key)
    renaming = placing.renaming_of(args)
    if args.bootstrap is not None:
        by_file = bootstrap.BootstrapRequest(to, args.bootstrap, globs, args.replace, renaming, keys)
        if look:
            return _look_at_bootstrap(args, by_file, out)
        result = run_reading(bootstrap.run, "restore", args.config, by_file, out)
    else:
        request = restore.RestoreRequest(to, args.job, args.latest, globs, args.at, args.replace, renaming, keys)
        if look:
            return _look(args, request, out)
        result = run_reading(restore.run, "restore", args.config, request, out)
    with heard_or_not():
        _tell(result, out)
    return result.exit_status


def _tell(result: restore.RestoreResult, out: Output) -> None:
    out.document(result.document())
    warn_of(out, result.warnings, result.errors)
    if result.exit_status is ExitStatus.FAILED and not result.cancelled:
        out.warn("        What is not named above is restored; 'magbay jobs' lists other jobs to take the rest from.")
    told = f"{result.files} files, {human_bytes(result.bytes)} restored to {result.to}"
    left = f", {result.skipped} that were there left as they are" if result.skipped else ""
    out.line(f"job {result.job_id} {result.word}: {told}{left}")


def _look(args: argparse.Namespace, request: restore.RestoreRequest, out: Output) -> ExitStatus:
    names: list[str] = []

    def seen(saved: SavedFile) -> None:
        if args.list:
            out.line(one_line(text(saved.path)))
            if out.json:
                names.append(text(saved.path))

    found = preview.of_job(load(args.config), request, seen)
    return _show(found, names if args.list else None, out)


def _look_at_bootstrap(args: argparse.Namespace, request: bootstrap.BootstrapRequest, out: Output) -> ExitStatus:
    if args.list:
        hint = "'magbay volume list VOLUME… --bsr FILE' lists its files, --dry-run the volumes."
        raise UsageError("a bootstrap file has no names of files", hint=hint)
    return _show(preview.of_bootstrap(load(args.config), request), None, out)


def _show(found: preview.Preview, names: list[str] | None, out: Output) -> ExitStatus:
    document = {
        "dry_run": True,
        "status": "gone" if found.gone else "away" if found.away else "here",
        "jobs": list(found.jobs),
        "files": found.files,
        "bytes": found.bytes,
        "magazines": found.magazines(),
    }
    out.document(document if names is None else {**document, "paths": names})
    for one in found.volumes:
        size = f", {human_bytes(one.bytes)} to read" if one.bytes else ""
        out.line(f"volume {one.volume} on magazine {one.magazine or '(unknown)'}{size}: {_presence(one)}")
    if found.files is not None:
        jobs = ", ".join(map(str, found.jobs))
        out.line(f"would restore {found.files} files, {human_bytes(found.bytes or 0)}, of job {jobs}")
    if found.away:
        out.warn(f"magbay: to plug in: {', '.join(found.away)}")
    if found.gone:
        out.warn(f"magbay: what is on volumes that are gone cannot be restored: {', '.join(found.gone)}")
        out.warn("        'magbay volume scan --all' finds one that lies on another magazine.")
        return ExitStatus.FAILED
    if found.away:
        return ExitStatus.AWAY
    return ExitStatus.DONE


def _presence(one: preview.Needed) -> str:
    if one.gone:
        return "its file is gone"
    return "here" if one.here else "not here"
