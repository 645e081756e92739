"""`magbay verify`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from appliance.cli.output import Output, human_bytes
from appliance.cli.running import log_to, stoppable
from appliance.config.loader import load
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
    parser.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Compare and tell what is wrong."""
    request = verify.VerifyRequest(args.job, args.magazine)
    with stoppable() as asked, out.progress("verify") as display:

        def started(total: int) -> None:
            display.total = total

        result = verify.run(
            load(args.config),
            request,
            log=log_to(out, args.config),
            progress=display.advance,
            started=started,
            cancelled=asked.is_set,
        )
    out.document(result.document())
    for line in (*result.warnings, *result.errors):
        out.warn(f"magbay: {line}")
    if result.error_count > len(result.errors):
        out.warn(f"magbay: … and {result.error_count - len(result.errors)} more")
    if result.error_count:
        out.warn("        Save the files named again; 'magbay restore --file' gets the others.")
    out.line(
        f"{len(result.jobs)} jobs, {result.files} files, {human_bytes(result.bytes)} compared, "
        f"{result.error_count} errors"
    )
    return result.exit_status
