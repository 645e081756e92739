"""`magbay eject NAME`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from appliance.agents.control import ask, of_magazine, wait_for
from appliance.cli.output import Output
from appliance.config.loader import load
from appliance.errors import ExitStatus

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `eject`."""
    parser = subparsers.add_parser("eject", help="unmount and lock a magazine, and say when its disk may be pulled")
    parser.add_argument("name", metavar="NAME", help="name of the magazine")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="longest wait (default 300)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Ask the media agent, then wait until the disk may be pulled."""
    config = load(args.config)
    of_magazine(config, args.name)
    ask("Eject", "s", args.name)

    def told(disk: dict[str, Any]) -> None:
        if disk["state"] == "ejecting" and disk["reason"]:
            out.warn(f"magazine {args.name}: {disk['reason']}")

    disk = wait_for(config, args.name, ("safe to remove",), args.timeout, told)
    out.document({"magazine": args.name, "state": disk["state"], "disk": disk["node"], "serial": disk["serial"]})
    out.line(f"Magazine {args.name} is safe to remove ({disk['node']}, serial {disk['serial'] or 'unknown'}).")
    return ExitStatus.DONE
