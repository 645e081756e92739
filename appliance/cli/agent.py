"""`magbay agent media|changer`: the processes of the agents' units."""

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


def run_media(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Serve as media agent until SIGTERM."""
    from appliance.agents import media

    media.run(load(args.config))
    return ExitStatus.DONE


def run_changer(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Serve as changer agent until SIGTERM."""
    from appliance.agents import changer

    changer.run(args.config)
    return ExitStatus.DONE
