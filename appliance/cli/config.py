"""`magbay config check|show|example|import-vchanger|schema`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.changer.report import Slot
from appliance.changer.service import Changer
from appliance.changer.slotmap import SLOT_MAP
from appliance.cli.output import Output
from appliance.config import document, vchanger
from appliance.config.loader import load
from appliance.errors import ExitStatus

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `config`."""
    noun = subparsers.add_parser("config", help="configuration: check, show, example, import-vchanger, schema")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    check = verbs.add_parser("check", help="read a configuration strictly and say whether it is good")
    check.add_argument("file", nargs="?", type=Path, help="default: the one of --config")
    check.set_defaults(run=run_check)
    verbs.add_parser("show", help="the values in force, defaults included").set_defaults(run=run_show)
    verbs.add_parser("example", help="a commented example of every key").set_defaults(run=run_example)
    imported = verbs.add_parser("import-vchanger", help="a configuration of vchanger 1.0 or 0.8 as one of ours")
    imported.add_argument("file", type=Path, help="the configuration of vchanger")
    imported.add_argument("--apply", action="store_true", help="also give the volumes that are here their slots")
    imported.set_defaults(run=run_import)
    verbs.add_parser("schema", help="JSON Schema of the configuration").set_defaults(run=run_schema)


def run_check(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Read the file; `ConfigError` says what is wrong."""
    path = args.file or args.config
    config = load(path)
    out.document({"file": str(path), "valid": True})
    out.line(f"{path}: good ({len(config.magazines)} directory magazines, {len(config.pools)} pools)")
    return ExitStatus.DONE


def run_show(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print every value in force."""
    values = document.plain(load(args.config))
    out.document(values)
    out.line(json.dumps(values, indent=2))
    return ExitStatus.DONE


def run_example(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print the example file."""
    out.document({"example": document.example()})
    out.line(document.example().rstrip())
    return ExitStatus.DONE


def run_schema(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print the JSON Schema."""
    out.document(document.json_schema())
    out.line(json.dumps(document.json_schema(), indent=2))
    return ExitStatus.DONE


def run_import(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print the file as YAML; with --apply write the slot map, which the new file and the old one share."""
    old = vchanger.read(args.file)
    text = old.yaml()
    slots: tuple[Slot, ...] = ()
    warnings: tuple[str, ...] = ()
    if args.apply:
        slots, report = Changer.open(args.file).look()
        warnings = report.warnings()
    out.document(
        {
            "yaml": text,
            "slot_map": str(old.work_dir / SLOT_MAP) if args.apply else None,
            "slots": [{"slot": slot.slot, "volume": slot.volume, "magazine": slot.magazine} for slot in slots],
        }
    )
    out.line(text.rstrip())
    if args.apply:
        out.warn(f"magbay: {len(slots)} volumes have slots in {old.work_dir / SLOT_MAP}")
    for warning in warnings:
        out.warn(f"magbay: {warning}")
    return ExitStatus.WARNINGS if warnings else ExitStatus.DONE
