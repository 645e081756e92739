"""`magbay rotation`."""

from __future__ import annotations

import argparse
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from appliance.cli.output import Output
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ExitStatus
from appliance.magazines.attached import enrolments
from appliance.magazines.rotation import SetPlan, Standing, plan, read_history, zone

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `rotation`."""
    parser = subparsers.add_parser("rotation", help="which magazine is where, and which one is due when")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print the plan. Exit status 3 when a set is overdue."""
    config = load(args.config)
    sets = plans(config)
    out.document({"sets": [item.document() for item in sets]})
    if not sets:
        out.line("There is no rotation plan. 'rotation' in the configuration makes one ('magbay config example').")
    for item in sets:
        show(item, config, out)
    return ExitStatus.WARNINGS if any(item.standing is Standing.OVERDUE for item in sets) else ExitStatus.DONE


def plans(config: Config) -> tuple[SetPlan, ...]:
    """The plan as it is now."""
    return plan(config.rotation, enrolments(config), read_history(config.state_dir), time.time())


def show(item: SetPlan, config: Config, out: Output) -> None:
    """One set and its magazines, for a person."""
    sentence = item.sentence()
    out.line(f"{sentence[0].upper()}{sentence[1:]}")
    for member in item.members:
        since = ""
        if member.since is not None:
            since = f"since {datetime.fromtimestamp(member.since, zone(config.rotation)):%a %Y-%m-%d %H:%M}"
        out.line(f"  {member.name:<20} {member.place.value:<13} {since:<26} {'next' if member.next else ''}".rstrip())


def section(config: Config) -> list[dict[str, Any]]:
    """The plan as plain data, for `magbay status`."""
    return [item.document() for item in plans(config)]
