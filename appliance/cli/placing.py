"""Where restored files go: options that `restore` and `volume extract` share."""

from __future__ import annotations

import argparse
from pathlib import Path

from appliance.errors import UsageError
from appliance.storage.outcome import Replace
from appliance.storage.renaming import Renaming, expressions

_POLICIES = "always, if-newer, if-older, never"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --replace and the options for other names."""
    parser.add_argument(
        "--replace",
        type=_policy,
        default=Replace.ALWAYS,
        metavar="WHEN",
        help=f"whether a file that is there is replaced: {_POLICIES} (that the saved one is); default: always",
    )
    parser.add_argument(
        "--strip", type=_count, default=0, metavar="N", help="leave out the first N components of the names"
    )
    parser.add_argument("--strip-prefix", default="", metavar="PATH", help="leave out this beginning of the names")
    parser.add_argument("--add-prefix", default="", metavar="PATH", help="put this in front of the names")
    parser.add_argument(
        "--regex-where",
        default="",
        metavar="EXPR",
        help="change names by '!regular expression!instead!', as in Bacula; several with commas between",
    )


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Add --volume-key."""
    parser.add_argument(
        "--volume-key",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="key file of an enciphered volume of Bacula 15, or a directory of them named as the volumes",
    )


def _policy(text: str) -> Replace:
    try:
        return Replace.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {_POLICIES}") from None


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of components")
    return int(text)


def renaming_of(args: argparse.Namespace) -> Renaming:
    """The options for other names as one value. Raises `UsageError`."""
    for text in (args.strip_prefix, args.add_prefix, args.regex_where):
        if "\0" in text:
            raise UsageError("a name cannot hold a zero byte")
    return Renaming(args.strip, args.strip_prefix, args.add_prefix, expressions(args.regex_where))
