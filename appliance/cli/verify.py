"""`magbay verify`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from appliance.cli import placing
from appliance.cli.output import Output, human_bytes
from appliance.cli.running import heard_or_not, run_reading, warn_of
from appliance.errors import ExitStatus
from appliance.storage import verify

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `verify`."""
    parser = subparsers.add_parser(
        "verify",
        help="read everything back and compare with the catalog",
        description="Without options every good job on the magazines that are here is read.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--job", type=int, metavar="ID", help="only this job")
    what.add_argument("--magazine", metavar="NAME", help="only what lies on this magazine")
    placing.add_keys(parser)
    parser.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Compare and tell what is wrong."""
    request = verify.VerifyRequest(args.job, args.magazine, tuple(args.volume_key))
    result = run_reading(verify.run, "verify", args.config, request, out)
    with heard_or_not():
        _tell(result, out)
    return result.exit_status


def _tell(result: verify.VerifyResult, out: Output) -> None:
    out.document(result.document())
    warn_of(out, result.warnings, result.errors)
    if result.error_count > len(result.errors):
        out.warn(f"magbay: … and {result.error_count - len(result.errors)} more")
    if result.error_count:
        out.warn("        Save the files named again; 'magbay restore --file' gets the others.")
    out.line(
        f"{len(result.jobs)} jobs, {result.files} files, {human_bytes(result.bytes)} compared, "
        f"{result.error_count} errors"
    )
