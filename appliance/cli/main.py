"""The command line: global options, the nouns, and the one place where an error becomes words and an exit status."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from appliance import __version__
from appliance.cli.output import Output, silence
from appliance.config.place import DEFAULT_PATH
from appliance.errors import ExitStatus, MagbayError, PermissionDeniedError, UsageError

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
    "schedule": "schedule",
    "cancel": "schedule",
    "reload": "reload",
    "browse": "browse",
    "catalog": "catalog",
    "jobs": "jobs",
    "job": "jobs",
    "verify": "verify",
    "volume": "volume",
    "config": "config",
    "agent": "agent",
    "director": "director",
    "rotation": "rotation",
    "key": "key",
}


class _Parser(argparse.ArgumentParser):
    """argparse with abbreviations off, so that a later option never changes what an old script means.

    `--config` and `--json` are understood behind the command, too. Wrong words raise `UsageError`.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)  # type: ignore[arg-type]
        self.add_argument("--config", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        """Wrong words on the command line."""
        raise UsageError(message, hint=f"'{self.prog} --help' tells what it takes.")


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of every command, or of *only* one: importing all of them takes longer than most of them run."""
    parser = _Parser(prog="magbay", description="Removable-media backup appliance.", conflict_handler="resolve")
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
    _open_closed_streams()
    try:
        status = _answer(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        silence(sys.stdout)  # the reader has seen enough
    except OSError as error:
        silence(sys.stdout)
        Output().warn(f"magbay: the answer cannot be written: {error.strerror}")
    return ExitStatus.FAILED


def _answer(words: Sequence[str]) -> int:
    """Run the command; trouble becomes words and an exit status."""
    as_json = "--json" in words
    try:
        return _run(words)
    except MagbayError as error:
        return _report(error, as_json)
    except KeyboardInterrupt:
        return _report(MagbayError("interrupted"), as_json, ExitStatus.INTERRUPTED)
    except BrokenPipeError:
        raise
    except PermissionError as error:
        text = f"{error.filename or 'magbay'}: {error.strerror}"
        return _report(PermissionDeniedError(text, hint="Run it as a user who may do that."), as_json)
    except OSError as error:
        # What the rooms did not foresee (a full system disk, for example) still names its file.
        where = f"{error.filename}: " if error.filename else ""
        return _report(MagbayError(f"{where}{error.strerror or error}"), as_json)


def _run(words: Sequence[str]) -> int:
    parser = build_parser(_command_of(words))
    args = parser.parse_args(words)
    if args.simulate:
        args.run = _simulate
    elif args.command is None:
        parser.error("no command given")
    style = "json" if args.progress == "json" else "text" if args.progress == "auto" and sys.stderr.isatty() else "none"
    return int(args.run(args, Output(json=args.json, progress_style=style)))


def _open_closed_streams() -> None:
    """Open /dev/null as a standard stream that is closed: else the next file opened, a volume perhaps, becomes it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _simulate(args: argparse.Namespace, out: Output) -> ExitStatus:
    """All agents on the simulated machine; with the default configuration in a folder that is removed afterwards."""
    import tempfile

    from appliance.agents import simulate

    if args.config != DEFAULT_PATH:
        failures = simulate.run(args.config, out.line)
    else:
        with tempfile.TemporaryDirectory(prefix="magbay-simulated-") as folder:
            file = simulate.default_config(Path(folder))
            out.line(f"Other commands meanwhile: magbay --config {file} ...")
            failures = simulate.run(file, out.line)
    return ExitStatus.FAILED if failures else ExitStatus.DONE


def _report(error: MagbayError, as_json: bool, status: int | None = None) -> int:
    out = Output(json=as_json)
    status = int(error.status) if status is None else status
    out.document({"error": error.message, "hint": error.hint, "status": status})
    out.warn(f"magbay: {error.message}")
    if error.hint:
        out.warn(f"        {error.hint}")
    return status
