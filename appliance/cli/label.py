"""`magbay label`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from appliance.cli.output import Output
from appliance.cli.running import refresh_changer
from appliance.config.loader import load
from appliance.errors import ExitStatus, UsageError
from appliance.storage import labelling

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `label`."""
    parser = subparsers.add_parser("label", help="create volumes")
    parser.add_argument("--magazine", metavar="NAME", help="default: the first one that can be written")
    parser.add_argument("--pool", default="Default", help="pool of the volumes (default: Default)")
    parser.add_argument("--count", type=_count, default=1, metavar="N", help="number of volumes (default: 1)")
    parser.set_defaults(run=run_label)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 9999:
        raise argparse.ArgumentTypeError("must be between 1 and 9999")
    return int(text)


def run_label(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Create the volumes and name them."""
    if not args.pool:
        raise UsageError("the pool has no name", hint="Leave --pool out for the pool Default.")
    made = labelling.create(load(args.config), magazine=args.magazine, pool=args.pool, count=args.count)
    refresh_changer(args.config, out)
    volumes = [{"volume": m.name, "magazine": m.magazine, "pool": m.pool, "bytes": m.bytes} for m in made]
    out.document({"volumes": volumes})
    for media in made:
        out.line(f"volume {media.name} created on magazine {media.magazine}")
    return ExitStatus.DONE
