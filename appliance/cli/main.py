"""The command line: global options, the nouns, and the one place where an error becomes words and an exit status."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance import __version__
from appliance.cli.output import Output
from appliance.config.loader import DEFAULT_PATH
from appliance.errors import ExitStatus, MagbayError

# One module per noun (or small family); each has `register(subparsers)`.
NOUNS = ("config", "volume")


class _Parser(argparse.ArgumentParser):
    """argparse with abbreviations off, so that a later option never changes what an old script means."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)  # type: ignore[arg-type]


def build_parser() -> argparse.ArgumentParser:
    """The parser of every noun and verb."""
    parser = _Parser(prog="magbay", description="Removable-media backup appliance.")
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help=f"default {DEFAULT_PATH}")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else there")
    parser.add_argument("--progress", choices=("auto", "none", "json"), default="auto", help="progress on stderr")
    parser.add_argument("--version", action="version", version=f"magbay {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for noun in NOUNS:
        importlib.import_module(f"appliance.cli.{noun}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    args = build_parser().parse_args(argv)
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


def _report(error: MagbayError, as_json: bool) -> int:
    out = Output(json=as_json)
    out.document({"error": error.message, "hint": error.hint, "status": int(error.status)})
    out.warn(f"magbay: {error.message}")
    if error.hint:
        out.warn(f"        {error.hint}")
    return int(error.status)
