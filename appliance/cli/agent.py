"""`magbay agent media|changer|hook`: the processes of units."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from appliance.cli.output import Output
from appliance.config.loader import load
from appliance.errors import ExitStatus

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `agent`."""
    noun = subparsers.add_parser("agent", help="run an agent (its systemd unit does this)")
    verbs = noun.add_subparsers(metavar="AGENT", required=True)
    verbs.add_parser("media", help="recognise, unlock, mount and eject magazines").set_defaults(run=run_media)
    verbs.add_parser("changer", help="keep the slot map and the virtual drives").set_defaults(run=run_changer)
    hook = verbs.add_parser("hook", help="run the command of the configuration for an event")
    hook.add_argument("what", metavar="EVENT/MAGAZINE", help="such as safe_to_remove/m1")
    hook.set_defaults(run=run_hook)


def run_media(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Serve as media agent until SIGTERM."""
    from appliance.agents import media

    media.run(args.config)
    return ExitStatus.DONE


def run_changer(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Serve as changer agent until SIGTERM."""
    from appliance.agents import changer

    changer.run(args.config)
    return ExitStatus.DONE


def run_hook(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Become the command for an event."""
    from appliance.agents import hook

    hook.run(load(args.config), args.what)
    return ExitStatus.DONE
