"""`magbay slots`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
    parser.add_argument(
        "--paths", action="store_true", help="which file each volume is, for tools that know no changer (bls, bextract)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print the slots; status 3 when something about them needs attention."""
    slots, report = Changer.open(args.config).look()
    shown = [slot for slot in slots if args.all or slot.attached]
    out.document([_document(slot, args) for slot in shown])
    for row in _paths(shown) if args.paths else _table(shown):
        out.line(row)
    if not shown:
        out.line("No volume is in a bay." if slots else "No volume has a slot yet.")
    for warning in report.warnings():
        out.warn(f"magbay: {warning}")
    return ExitStatus.WARNINGS if report.warnings() else ExitStatus.DONE


def _document(slot: Slot, args: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {"slot": slot.slot, "volume": slot.volume, "magazine": slot.magazine, "drive": slot.drive}
    if args.all:
        row["attached"] = slot.attached
    if args.paths:
        row["path"] = slot.path or None
    return row


def _table(slots: list[Slot]) -> list[str]:
    if not slots:
        return []
    rows = [("SLOT", "VOLUME", "MAGAZINE", "WHERE", "DRIVE")]
    for slot in slots:
        drive = "" if slot.drive is None else str(slot.drive)
        where = slot.presence.value if slot.writable or not slot.attached else f"{slot.presence.value}, read-only"
        rows.append((str(slot.slot), slot.volume, slot.magazine, where, drive))
    return _columns(rows)


def _paths(slots: list[Slot]) -> list[str]:
    rows = [(slot.volume, slot.path or f"(magazine {slot.magazine}: {slot.presence.value})") for slot in slots]
    return _columns([("VOLUME", "PATH"), *rows]) if rows else []


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
