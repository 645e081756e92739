"""`magbay key list|add|remove|test|header-backup|header-restore`: the key slots of one magazine that is here."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.agents.control import ask
from appliance.cli.output import Output
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError, UsageError
from appliance.keys import headers, keyfile, recovery, rotation, slots
from appliance.keys.rotation import Keys
from appliance.keys.secret import Secret
from appliance.keys.slots import Disk
from appliance.magazines import headerless, keyring

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs about key slots to the noun `key`."""
    listing = verbs.add_parser("list", help="the key slots of a magazine and what opens them")
    add = verbs.add_parser("add", help="add another way to open a magazine, beside the key file")
    remove = verbs.add_parser("remove", help="wipe a key slot")
    test = verbs.add_parser("test", help="whether a passphrase or recovery key opens a magazine")
    save = verbs.add_parser("header-backup", help="save the LUKS header of a magazine anew")
    for parser in (listing, add, remove, test, save):
        parser.add_argument("magazine", metavar="MAGAZINE")
    ways = add.add_mutually_exclusive_group(required=True)
    ways.add_argument("--passphrase", action="store_true", help="a passphrase, asked for twice")
    ways.add_argument("--recovery", action="store_true", help="a recovery key, made here and shown once")
    ways.add_argument("--tpm2", action="store_true", help="the TPM of this machine (systemd-cryptenroll)")
    ways.add_argument("--fido2", action="store_true", help="the FIDO2 token that is plugged in (systemd-cryptenroll)")
    ways.add_argument("--tang", metavar="URL", help="a Tang server (clevis)")
    ways.add_argument(
        "--own-key", action="store_true", help="the key file of this appliance, on a disk that another key opens so far"
    )
    add.add_argument("--key-file", metavar="FILE", type=Path, help="with --own-key: that key, if it is no passphrase")
    add.add_argument("--thumbprint", metavar="THP", default="", help="of the Tang server's key; else clevis asks")
    for parser in (add, test):
        parser.add_argument("--from", dest="source", metavar="FILE", help="read the passphrase from FILE (- is stdin)")
    remove.add_argument("slot", metavar="SLOT", type=int)
    restore = verbs.add_parser(
        "header-restore",
        help="write the saved LUKS header back to a disk that has lost it",
        description="Writes the saved LUKS header back to a disk that has lost it. The disk must have the serial "
        "number and the size of the magazine; a disk with an intact LUKS header or anything else on it is refused.",
    )
    restore.add_argument("device", metavar="DEVICE", type=Path)
    restore.add_argument("--magazine", metavar="NAME", default="", help="when the serial number does not tell")
    restore.add_argument("--force", action="store_true", help="also over a LUKS header with the magazine's own UUID")
    restore.add_argument("--yes", action="store_true", help="do not ask")
    for parser, run in (
        (listing, run_list),
        (add, run_add),
        (remove, run_remove),
        (test, run_test),
        (save, run_save),
        (restore, run_restore),
    ):
        parser.set_defaults(run=run)


def run_list(args: argparse.Namespace, out: Output) -> ExitStatus:
    """One line a slot."""
    disk, keys = _disk_and_keys(load(args.config), args.magazine)
    found = slots.listing(disk, keys)
    out.document(
        {
            "magazine": args.magazine,
            "slots": [{"slot": s.number, "kind": kind, "kdf": s.kdf, "preferred": s.preferred} for s, kind in found],
        }
    )
    for slot, kind in found:
        out.line(f"{slot.number:>2}  {kind:<28} {slot.kdf:<9} {'tried first' if slot.preferred else ''}".rstrip())
    return ExitStatus.DONE


def run_add(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Add a slot in the way that was asked for."""
    _check_options(args)
    disk, keys = _disk_and_keys(load(args.config), args.magazine)
    before = {slot.number for slot, _ in slots.listing(disk, keys)}
    made = ""
    if args.passphrase:
        slots.add_passphrase(
            disk, keys, typed_secret(args.source, f"New passphrase for magazine {args.magazine}", twice=True)
        )
    elif args.recovery:
        made = slots.add_recovery(disk, keys)[1].reveal().decode()
    elif args.own_key:
        slots.add_own_key(disk, keys, _permit(args))
        with contextlib.suppress(MagbayError):
            ask("Rescan")  # it could not be unlocked before
    elif args.tpm2:
        slots.add_device(disk, keys, slots.TPM2)
    elif args.fido2:
        slots.add_device(disk, keys, slots.FIDO2)
    else:
        slots.add_tang(disk, keys, args.tang, args.thumbprint)
    added = [(slot.number, kind) for slot, kind in slots.listing(disk, keys) if slot.number not in before]
    document = {"magazine": args.magazine, "added": [{"slot": number, "kind": kind} for number, kind in added]}
    out.document(document | ({"recovery_key": made} if made else {}))
    for number, kind in added:
        out.line(f"Magazine {args.magazine} opens with key slot {number}, too: {kind}.")
    if made:
        out.line(f"\n    {made}\n\nWrite it down now: it is kept nowhere and not shown again. It is a passphrase,")
        out.line(f"dashes included. 'magbay key test {args.magazine}' checks what you wrote.")
    return ExitStatus.DONE


def _check_options(args: argparse.Namespace) -> None:
    """Refuse what would be ignored."""
    if args.key_file and not args.own_key:
        raise UsageError("--key-file goes with --own-key", hint="The others are permitted by the appliance's key file.")
    if args.source and not (args.passphrase or (args.own_key and not args.key_file)):
        raise UsageError("--from goes with --passphrase, or with --own-key where a passphrase opens the disk")
    if args.thumbprint and not args.tang:
        raise UsageError("--thumbprint goes with --tang")


def _permit(args: argparse.Namespace) -> Secret:
    """What opens the disk so far."""
    if args.key_file is None:
        return typed_secret(args.source, f"Passphrase of magazine {args.magazine}", twice=False)
    data: bytes = args.key_file.read_bytes()
    if len(data) > keyfile.KEY_BYTES:
        raise MagbayError(
            f"{args.key_file} has more than {keyfile.KEY_BYTES} bytes: nothing was changed",
            hint=f"'cryptsetup luksAddKey --key-file {args.key_file} DISK KEYFILE' adds the appliance's key file.",
        )
    return Secret(data)


def run_remove(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Wipe one slot."""
    disk, keys = _disk_and_keys(load(args.config), args.magazine)
    kind = slots.remove(disk, keys, args.slot)
    out.document({"magazine": args.magazine, "removed": args.slot, "kind": kind})
    out.line(f"Key slot {args.slot} of magazine {args.magazine} is wiped: {kind}.")
    return ExitStatus.DONE


def run_test(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Try a passphrase or recovery key; nothing is opened."""
    disk = _disk(load(args.config), args.magazine)
    typed = typed_secret(args.source, f"Passphrase or recovery key of magazine {args.magazine}", twice=False)
    number = slots.opened_by(disk, typed)
    if number is None:
        raise MagbayError(f"this opens no key slot of magazine {args.magazine}", hint="'magbay key list' shows them.")
    out.document({"magazine": args.magazine, "slot": number})
    out.line(f"This opens key slot {number} of magazine {args.magazine}.")
    return ExitStatus.DONE


def run_save(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Save the header anew."""
    disk = _disk(load(args.config), args.magazine)
    with headers.changing(disk.state_dir, disk.luks_uuid):
        path = headers.backup(disk.node, disk.luks_uuid, disk.state_dir)
    out.document({"magazine": args.magazine, "header_backup": str(path)})
    out.line(f"The LUKS header of magazine {args.magazine} is saved in {path}.")
    return ExitStatus.DONE


def run_restore(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Check the disk, ask, write the header back, try the key on it."""
    from appliance.host.real.devices import UdevDevices
    from appliance.host.real.mounts import KernelMounts

    config = load(args.config)
    devices = UdevDevices()
    disk = headerless.identify(config, devices, KernelMounts(), args.device, args.magazine, args.force)
    name, device = disk.enrolment.name, disk.device
    out.line(f"{device.node} (serial {device.serial or 'unknown'}) gets the saved LUKS header of magazine {name}.")
    if not args.yes:
        if not sys.stdin.isatty():
            raise UsageError(f"the header of {device.node} would be written and nobody can be asked", hint="Add --yes.")
        if input("Type the name of the magazine to go on: ").strip() != name:
            raise MagbayError("nothing was done", hint="The name of the magazine was not typed.")
    opens = headerless.restore(config, disk, rotation.load(config.key_file))
    out.document({"magazine": name, "device": device.node, "opens_with": opens.value})
    out.line(
        f"The LUKS header of magazine {name} is back; it opens. Replug the disk, or 'magbay eject {name}' and pull."
    )
    return ExitStatus.DONE


def _disk(config: Config, name: str) -> Disk:
    from appliance.host.real.devices import UdevDevices
    from appliance.host.real.mounts import KernelMounts

    container = keyring.here(config, UdevDevices(), KernelMounts(), name)
    return Disk(container.node, container.enrolment.luks_uuid, config.state_dir)


def _disk_and_keys(config: Config, name: str) -> tuple[Disk, Keys]:
    return _disk(config, name), rotation.load(config.key_file)


def typed_secret(source: str | None, prompt: str, *, twice: bool) -> Secret:
    """A passphrase from the terminal, or the first line of the file *source*."""
    if source == "-" or (source is None and not sys.stdin.isatty()):
        line = sys.stdin.readline()
    elif source is not None:
        with Path(source).open(encoding="utf-8") as file:
            line = file.readline()
    else:
        line = getpass.getpass(f"{prompt}: ")
        if twice and getpass.getpass("Once more: ") != line:
            raise MagbayError("the two are not the same: nothing was changed", hint="Try again.")
    return Secret(recovery.normal(line.removesuffix("\n")).encode())
