"""`magbay verify`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from appliance.cli import placing
from appliance.cli.output import Output, human_bytes, one_line
from appliance.cli.running import heard_or_not, run_reading, warn_of
from appliance.cli.times import AT_HELP, moment
from appliance.config.kinds import seconds_of, size_of
from appliance.errors import ExitStatus, UsageError
from appliance.storage import live, scrub, verify
from appliance.volumes.bb03 import VolumeKeys

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `verify`."""
    parser = subparsers.add_parser(
        "verify",
        help="read everything back and compare with the catalog",
        description="Without options every good job on the magazines that are here is read. --magazine reads every "
        "block of one magazine; interrupted, it goes on another day where it stopped.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--job", type=int, metavar="ID", help="only this job")
    what.add_argument("--magazine", metavar="NAME", help="all volumes of this magazine")
    what.add_argument("--latest", metavar="NAME", help="with --disk: the newest finished job of this name")
    parser.add_argument(
        "--disk",
        action="store_true",
        help="compare the files as they are now with the catalog instead (of --job, --latest, or the newest job): "
        "what is changed, new or missing",
    )
    parser.add_argument("--at", type=moment, metavar="TIME", help=f"with --disk: {AT_HELP}")
    parser.add_argument("--file", action="append", default=[], metavar="GLOB", help="with --disk: only what matches")
    parser.add_argument("--quick", action="store_true", help="with --disk: do not read the files")
    parser.add_argument("--restart", action="store_true", help="with --magazine: from the beginning")
    parser.add_argument("--rate", type=_rate, metavar="SIZE", help="with --magazine: bytes a second at most, e.g. 50MB")
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=0,
        metavar="TIME",
        help="with --magazine: how long to wait for it when it is away or is pulled: 30m, 2h … (default: not at all)",
    )
    placing.add_keys(parser)
    parser.set_defaults(run=run_verify)


def _rate(text: str) -> int:
    found = size_of(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 50MB")
    return found


def _seconds(text: str) -> int:
    try:
        return seconds_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 30m or 2h") from None


def run_verify(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Compare and tell what is wrong."""
    if args.disk:
        return _disk(args, out)
    if args.latest or args.file or args.quick or args.at is not None:
        raise UsageError("--latest, --at, --file and --quick go with --disk", hint="Add --disk, or leave them out.")
    if args.magazine is not None:
        return _magazine(args, out)
    if args.restart or args.rate or args.wait:
        raise UsageError("--restart, --rate and --wait go with --magazine", hint="Name a magazine, or leave them out.")
    request = verify.VerifyRequest(args.job, tuple(args.volume_key))
    result = run_reading(verify.run, "verify", args.config, request, out)
    with heard_or_not():
        out.document(result.document())
        _troubles(out, result.warnings, result.errors, result.error_count)
        _cancelled(out, told=result.cancelled)
        out.line(
            f"{len(result.jobs)} jobs, {result.files} files, {human_bytes(result.bytes)} compared, "
            f"{result.error_count} errors"
        )
    return result.exit_status


def _disk(args: argparse.Namespace, out: Output) -> ExitStatus:
    if args.magazine or args.restart or args.rate or args.wait or args.volume_key:
        raise UsageError("--disk reads no volumes", hint="Leave out the options for magazines and volumes.")
    request = live.LiveRequest(args.job, args.latest, args.at, tuple(args.file), not args.quick)
    result = run_reading(live.run, "verify", args.config, request, out)
    with heard_or_not():
        out.document(result.document())
        warn_of(out, result.warnings)
        for path, what in result.changed:
            out.line(f"changed  {one_line(path)}  ({what})")
        for kind, paths in (("new", result.new), ("missing", result.missing)):
            for path in paths:
                out.line(f"{kind:<8} {one_line(path)}")
        _cancelled(out, told=result.cancelled)
        counts = ", ".join(f"{count} {kind}" for kind, count in result.counts.items())
        out.line(f"job {result.job_id}: {result.files} files, {human_bytes(result.bytes)} compared: {counts}")
    return result.exit_status


def _magazine(args: argparse.Namespace, out: Output) -> ExitStatus:
    keys = VolumeKeys(args.volume_key)
    request = scrub.ScrubRequest(args.magazine, args.restart, args.rate, args.wait, keys)
    result = run_reading(scrub.run, f"verify {args.magazine}", args.config, request, out)
    one = result.round
    with heard_or_not():
        out.document(result.document())
        _troubles(out, one.warnings, one.errors, one.error_count)
        for name, found in one.damaged.items():
            jobs = ", ".join(f"job {job} ({len(names)} files)" for job, names in found.files.items() if job != "0")
            out.warn(
                f"magbay: volume {name} is damaged and takes no more jobs" + (f"; touched: {jobs}" if jobs else "")
            )
        told = f"{len(one.jobs)} jobs, {one.files} files, {human_bytes(one.read)} read, {one.error_count} errors"
        place = f"{human_bytes(one.address)} of volume {one.volume}" if one.volume else "the next volume"
        more = f" so far; interrupted, goes on at {place}" if result.interrupted else ""
        out.line(f"magazine {args.magazine}: {told}{more}")
    return result.exit_status


def _cancelled(out: Output, *, told: bool) -> None:
    if told:
        out.warn("magbay: the verification was cancelled: not all was compared")


def _troubles(out: Output, warnings: list[str], errors: list[str], count: int) -> None:
    warn_of(out, warnings, errors)
    if count > len(errors):
        out.warn(f"magbay: … and {count - len(errors)} more")
    if count:
        out.warn("        Save the files named again; 'magbay restore --file' gets the others.")
