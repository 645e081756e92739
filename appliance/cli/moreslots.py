"""`magbay prepare --passphrase --recovery`: other ways to open a magazine, right when it is made."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from appliance.cli.keyslots import typed_secret
from appliance.cli.output import Output
from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.keys import rotation, slots
from appliance.keys.secret import Secret
from appliance.keys.slots import Disk


@dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    passphrase: Secret | None
    recovery: bool

    def steps(self) -> tuple[str, ...]:
        """In words, for the plan."""
        names = [
            name for name, wanted in (("a passphrase", self.passphrase), ("a recovery key", self.recovery)) if wanted
        ]
        return (f"add {' and '.join(names)}",) if names else ()


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--passphrase", action="store_true", help="a passphrase opens it, too; asked for before the rest"
    )
    parser.add_argument("--passphrase-from", metavar="FILE", help="the same, the first line of FILE (- is stdin)")
    parser.add_argument(
        "--recovery", action="store_true", help="a recovery key opens it, too; made here and shown once"
    )


def ask(args: argparse.Namespace, name: str) -> Wanted:
    """Ask for the passphrase before the disk is written for hours. Raises `MagbayError` for one that is not fit."""
    passphrase = None
    if not args.dry_run and (args.passphrase or args.passphrase_from):
        passphrase = typed_secret(args.passphrase_from, f"New passphrase for magazine {name}", twice=True)
        slots.check_passphrase(passphrase)
    return Wanted(passphrase, args.recovery)


def add(wanted: Wanted, disk: Disk, name: str, config: Config, out: Output) -> str:
    """Add what is wanted; gives the recovery key that was made, or "". Raises `MagbayError`."""
    made = ""
    try:
        if wanted.passphrase:
            out.line("adding the passphrase")
            slots.add_passphrase(disk, rotation.load(config.key_file), wanted.passphrase)
        if wanted.recovery:
            out.line("adding a recovery key")
            made = slots.add_recovery(disk, rotation.load(config.key_file))[1].reveal().decode()
    except MagbayError as error:
        error.hint = f"{error.hint} Magazine {name} is ready; 'magbay key add {name}' adds more keys.".strip()
        raise
    if made:
        out.line(f"\n    {made}\n\nWrite it down now: it is kept nowhere and not shown again. It is a passphrase,")
        out.line(f"dashes included. 'magbay key test {name}' checks what you wrote.")
    return made
