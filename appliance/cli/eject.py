"""`magbay eject NAME`."""

from __future__ import annotations

import argparse
import os
import signal
from typing import TYPE_CHECKING, Any

from appliance.agents.control import ask, of_magazine, wait_for
from appliance.cli.output import Output
from appliance.config.place import DEFAULT_PATH
from appliance.errors import ExitStatus, MagbayError, PermissionDeniedError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from appliance.config.schema import Config


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `eject`."""
    parser = subparsers.add_parser("eject", help="unmount and lock a magazine, and say when its disk may be pulled")
    parser.add_argument("name", metavar="NAME", help="name of the magazine")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="longest wait (default 300)")
    parser.add_argument("--cancel-jobs", action="store_true", help="end magbay's jobs that use it instead of waiting")
    parser.add_argument("--undo", action="store_true", help="call an eject off, or use the disk again without a replug")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Ask the media agent, then wait until the disk may be pulled."""
    config = _asked("UndoEject" if args.undo else "Eject", args)
    if args.undo:
        return _undone(config, args, out)

    from appliance.magazines import unlisted

    cancelled: set[int] = set()

    def told(disk: dict[str, Any]) -> None:
        if disk["state"] == "ejecting" and disk["reason"]:
            out.warn(f"magazine {args.name}: {disk['reason']}")
        if args.cancel_jobs:
            cancel_jobs(disk["holders"], cancelled, out)

    disk = wait_for(config, args.name, ("safe to remove",), args.timeout, told)
    out.document({"magazine": args.name, "state": disk["state"], "disk": disk["node"], "serial": disk["serial"]})
    if unlisted.marked(config, disk["filesystem_uuid"]):
        out.warn(f"magbay: {args.name}: the checksums on it are older than the volumes; they are made when it is back")
    out.line(f"Magazine {args.name} is safe to remove ({disk['node']}, serial {disk['serial'] or 'unknown'}).")
    return ExitStatus.DONE


def _asked(member: str, args: argparse.Namespace) -> Config:
    """Ask the agent for *member*; gives the configuration. Raises `MagbayError`.

    With the system's configuration the agent is asked first: it is at work while the configuration is read here, which
    takes as long. With another one the magazine must be known there, too: the agent is the system's in any case.
    """
    early = args.config == DEFAULT_PATH
    refused: MagbayError | None = None
    if early:
        try:
            ask(member, "s", args.name)
        except MagbayError as error:
            refused = error

    from appliance.config.loader import load

    config = load(args.config)
    if refused or not early:
        of_magazine(config, args.name)  # knows better than the agent why not
    if refused:
        raise refused
    if not early:
        ask(member, "s", args.name)
    return config


def _undone(config: Config, args: argparse.Namespace, out: Output) -> ExitStatus:
    disk = wait_for(config, args.name, ("mounted", "idle"), args.timeout, lambda disk: None)
    out.document({"magazine": args.name, "state": disk["state"], "disk": disk["node"], "serial": disk["serial"]})
    out.line(f"Magazine {args.name} is in use again ({disk['node']}, serial {disk['serial'] or 'unknown'}).")
    return ExitStatus.DONE


def cancel_jobs(holders: list[dict[str, Any]], cancelled: set[int], out: Output) -> None:
    """Ask the jobs among *holders* to end, each once: they end as cancelled, at a block's end.

    *holders* as the media agent publishes them; *cancelled* has the processes that were asked. Raises
    `PermissionDeniedError`.
    """
    for holder in holders:
        if holder["job"] and holder["pid"] not in cancelled:
            cancelled.add(holder["pid"])
            try:
                os.kill(holder["pid"], signal.SIGTERM)
                out.warn(f"job {holder['job']} ({holder['job_name']}) is cancelled")
            except ProcessLookupError:
                pass  # it ended by itself
            except PermissionError:
                raise PermissionDeniedError(
                    f"job {holder['job']} ({holder['job_name']}) is somebody else's", hint="Cancel it as root."
                ) from None
