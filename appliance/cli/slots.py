"""`magbay slots`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from appliance.changer.report import Slot
from appliance.changer.service import Changer
from appliance.cli.output import Output
from appliance.errors import ExitStatus

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `slots`."""
    parser = subparsers.add_parser("slots", help="the slot map: which volume is under which slot number")
    parser.add_argument("--all", action="store_true", help="also slots whose volume is away")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print the slots; status 3 when something about them needs attention."""
    slots, report = Changer.open(args.config).look()
    shown = [slot for slot in slots if args.all or slot.attached]
    out.document([_document(slot, args.all) for slot in shown])
    for row in _table(shown):
        out.line(row)
    if not shown:
        out.line("No volume is in a bay." if slots else "No volume has a slot yet.")
    for warning in report.warnings():
        out.warn(f"magbay: {warning}")
    return ExitStatus.WARNINGS if report.warnings() else ExitStatus.DONE


def _document(slot: Slot, all_slots: bool) -> dict[str, Any]:
    row = {"slot": slot.slot, "volume": slot.volume, "magazine": slot.magazine, "drive": slot.drive}
    return row | ({"attached": slot.attached} if all_slots else {})


def _table(slots: list[Slot]) -> list[str]:
    if not slots:
        return []
    rows = [("SLOT", "VOLUME", "MAGAZINE", "WHERE", "DRIVE")]
    for slot in slots:
        drive = "" if slot.drive is None else str(slot.drive)
        rows.append((str(slot.slot), slot.volume, slot.magazine, slot.presence.value, drive))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
