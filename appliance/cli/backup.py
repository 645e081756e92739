"""`magbay backup`: its options. What it does is in `saving.py`, which takes longer to import."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from appliance.cli.output import Output
from appliance.errors import ExitStatus
from appliance.host import workers
from appliance.storage import READER
from appliance.storage.model import DEFAULT_NAME, Level

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = (
    "Save a configured job or paths. Each path is saved on its own file system: what is mounted below it is not "
    "descended into. Symbolic links are saved as such. magbay's own directories are always left out."
)


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `backup`."""
    parser = subparsers.add_parser("backup", help="run a backup now, in this process", description=_DESCRIPTION)
    parser.add_argument("what", nargs="+", metavar="JOB | PATH", help="a job of the configuration, or paths")
    parser.add_argument("--pool", help="pool to write to (default: the job's, or Default)")
    parser.add_argument(
        "--level",
        choices=[level.word for level in Level],
        help="differential: since the last full; incremental: since the last of any level (default: the job's, full)",
    )
    parser.add_argument(
        "--accurate",
        action=argparse.BooleanOptionalAction,
        help="whether these compare with the catalog and note what was deleted, or go by mtime and ctime only "
        "(default: the job's, or yes)",
    )
    parser.add_argument("--name", help=f"name of the job (default: JOB, or '{DEFAULT_NAME}')")
    parser.add_argument(
        "--wait",
        type=_duration,
        metavar="DURATION",
        help="how long to wait for a magazine: 30m, 2h, 0 … (default: the job's; at a terminal 1h for the next one)",
    )
    parser.add_argument(
        "--scheduled",
        action="store_true",
        help="as systemd runs jobs: wait for a run of the job that is under way, skip what that made superfluous, "
        "go by the configuration that was accepted last while the file is wrong",
    )
    parser.set_defaults(run=run_backup)


def run_backup(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Run the job and tell how it ended."""
    if args.level in (None, Level.FULL.word):
        workers.start_ahead(READER)
    from appliance.cli import saving

    return saving.run_backup(args, out)


def _duration(text: str) -> int:
    from appliance.config.kinds import seconds_of

    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
