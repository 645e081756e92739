"""The command line: global options, the nouns, and the one place where an error becomes words and an exit status."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from appliance import __version__
from appliance.cli.output import Output
from appliance.config.loader import DEFAULT_PATH
from appliance.errors import ExitStatus, MagbayError

# Command to the module that has it; each module has `register(subparsers)`.
COMMANDS = {
    "status": "status",
    "prepare": "prepare",
    "magazine": "magazine",
    "eject": "eject",
    "slots": "slots",
    "label": "label",
    "backup": "backup",
    "restore": "restore",
    "jobs": "jobs",
    "job": "jobs",
    "verify": "verify",
    "volume": "volume",
    "config": "config",
    "agent": "agent",
    "director": "director",
}


class _Parser(argparse.ArgumentParser):
    """argparse with abbreviations off, so that a later option never changes what an old script means."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)  # type: ignore[arg-type]


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of every command, or of *only* one: importing all of them takes longer than most of them run."""
    parser = _Parser(prog="magbay", description="Removable-media backup appliance.")
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help=f"default {DEFAULT_PATH}")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else there")
    parser.add_argument("--progress", choices=("auto", "none", "json"), default="auto", help="progress on stderr")
    parser.add_argument("--version", action="version", version=f"magbay {__version__}")
    parser.add_argument("--simulate", action="store_true", help="run all agents on a simulated machine, without root")
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command")
    for module in [COMMANDS[only]] if only else dict.fromkeys(COMMANDS.values()):
        importlib.import_module(f"appliance.cli.{module}").register(subparsers)
    return parser


def _command_of(words: Sequence[str]) -> str | None:
    """The command among *words*, when it can be told without a parser: the first word that is no global option."""
    rest = iter(words)
    for word in rest:
        if word in ("--config", "--progress"):
            next(rest, None)
        elif not word.startswith("-"):
            return word if word in COMMANDS else None
        elif word not in ("--json",) and not word.startswith(("--config=", "--progress=")):
            return None
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser(_command_of(words))
    args = parser.parse_args(words)
    if args.simulate:
        args.run = _simulate
    elif args.command is None:
        parser.error("no command given; 'magbay --help' lists them")
    style = "json" if args.progress == "json" else "text" if args.progress == "auto" and sys.stderr.isatty() else "none"
    out = Output(json=args.json, progress_style=style)
    try:
        status: int = args.run(args, out)
    except MagbayError as error:
        return _report(error, args.json)
    except KeyboardInterrupt:
        out.warn("magbay: interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.FAILED
    except OSError as error:
        # What the rooms did not foresee (a full system disk, a lost permission) still names its file.
        return _report(MagbayError(f"{error.filename or 'magbay'}: {error.strerror or error}"), args.json)
    return int(status)


def _simulate(args: argparse.Namespace, out: Output) -> ExitStatus:
    """All agents on the simulated machine; with the default configuration in a folder that is removed afterwards."""
    from appliance.agents import simulate

    if args.config != DEFAULT_PATH:
        failures = simulate.run(args.config, out.line)
    else:
        with tempfile.TemporaryDirectory(prefix="magbay-simulated-") as folder:
            file = simulate.default_config(Path(folder))
            out.line(f"Other commands meanwhile: magbay --config {file} ...")
            failures = simulate.run(file, out.line)
    return ExitStatus.FAILED if failures else ExitStatus.DONE


def _report(error: MagbayError, as_json: bool) -> int:
    out = Output(json=as_json)
    out.document({"error": error.message, "hint": error.hint, "status": int(error.status)})
    out.warn(f"magbay: {error.message}")
    if error.hint:
        out.warn(f"        {error.hint}")
    return int(error.status)
