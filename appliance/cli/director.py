"""`magbay director config|sync|repair|test`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.changer.service import Changer
from appliance.cli.output import Output
from appliance.config.loader import load
from appliance.config.schema import DirectorKind
from appliance.director.check import check
from appliance.director.pieces import pieces, usual
from appliance.director.repair import repair
from appliance.director.sync import Director
from appliance.errors import ExitStatus, MagbayError

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `director`."""
    noun = subparsers.add_parser("director", help="the Bacula or Bareos Director and its catalog")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    config = verbs.add_parser("config", help="print the pieces of configuration that the other side needs")
    config.add_argument("--kind", choices=("bacula", "bareos"), help="default: director.kind, else bacula")
    config.add_argument("--address", help="where the storage daemon is reached (default: 127.0.0.1)")
    config.add_argument("--port", type=int, help="of the storage daemon (default: 9103)")
    config.add_argument("--password-file", type=Path, help="holds the storage daemon's password in quotes")
    config.add_argument("--client", help="any Client resource (default: as the packages name it)")
    config.add_argument("--messages", help="a Messages resource (default: Standard)")
    config.add_argument("--to", type=Path, metavar="DIR", help="write files into DIR instead of printing them")
    config.set_defaults(run=run_config)
    verbs.add_parser("sync", help="compare the catalog with the slots once and correct it").set_defaults(run=run_sync)
    repair_ = verbs.add_parser("repair", help="take the mark Error from volumes whose file is here and whole")
    repair_.set_defaults(run=run_repair)
    verbs.add_parser("test", help="check the whole chain").set_defaults(run=run_test)


def run_config(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print or write the pieces."""
    config = load(args.config)
    kind = DirectorKind(args.kind) if args.kind else config.director.kind
    names = ("address", "port", "password_file", "client", "messages")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    other = dataclasses.replace(usual(kind), **given)
    texts = pieces(config, args.config, other, kind)
    if args.to is not None:
        if not args.to.is_dir():
            raise MagbayError(f"{args.to} is not a directory", hint="Give the folder of the daemons' configuration.")
        for name, text in texts.items():
            (args.to / name).write_text(text, encoding="utf-8")
            out.line(str(args.to / name))
    else:
        for name, text in texts.items():
            out.line(f"# ===== {name}\n{text}")
    out.document(texts)
    return ExitStatus.DONE


def run_sync(args: argparse.Namespace, out: Output) -> ExitStatus:
    """One talk with the Director, now; status 3 when something is left that needs attention."""
    config = load(args.config)
    director = Director(config)
    slots, report = Changer.open(args.config).look()
    outcome = director.sync(slots)
    problems = [*report.warnings(), *outcome.problems]
    wanted = [item.sentence() for item in outcome.wanted]
    out.document({"sent": outcome.sent, "wanted": wanted, "problems": problems})
    for line in outcome.sent:
        out.line(line)
    if not outcome.sent:
        out.line("The catalog agrees with the slots.")
    for sentence in wanted:
        out.line(sentence[0].upper() + sentence[1:])
    for problem in problems:
        out.warn(f"magbay: {problem}")
    return ExitStatus.WARNINGS if problems else ExitStatus.DONE


def run_repair(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Bring volumes back that the Director took for broken; status 3 when some stay so."""
    done = repair(load(args.config), Changer.open(args.config).look()[0])
    out.document({"sent": done.sent, "left": done.left})
    for line in done.sent or ("No volume that is here is marked Error.",):
        out.line(line)
    for sentence in done.left:
        out.warn(f"magbay: {sentence}")
    return ExitStatus.WARNINGS if done.left else ExitStatus.DONE


def run_test(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Check every link of the chain and say what is wrong; status 1 when one is broken."""
    findings = check(load(args.config), args.config)
    out.document([{"link": f.link, "ok": f.ok, "text": f.text, "hint": f.hint} for f in findings])
    for finding in findings:
        out.line(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.link}: {finding.text}")
        if not finding.ok and finding.hint:
            out.line(f"      {finding.hint}")
    return ExitStatus.DONE if all(finding.ok for finding in findings) else ExitStatus.FAILED
