"""`magbay key create|show|seal|unseal|check|rotate|rekey`; the other verbs are in `keyslots` and `keysheet`."""

from __future__ import annotations

import argparse
import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.agents.control import ask
from appliance.cli import keysheet, keyslots
from appliance.cli.output import Output
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import AwayError, ExitStatus, MagbayError, UsageError
from appliance.keys import keyfile, rotation
from appliance.keys.keyfile import Form
from appliance.magazines import keyring, rekeying
from appliance.magazines.attached import enrolments
from appliance.magazines.keyring import Backup, Container, Finding

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_SEALERS = ("auto", "host", "tpm2", "host+tpm2")


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `key`."""
    noun = subparsers.add_parser("key", help="the key file, its rotation, key slots of magazines, the recovery sheet")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    create = verbs.add_parser("create", help="make the key file (the first 'magbay prepare' does it, too)")
    create.add_argument("--sealed", action="store_true", help="sealed for this machine, see 'magbay key seal'")
    create.set_defaults(run=run_create)
    verbs.add_parser("show", help="form, fingerprint and age of the key; never the key").set_defaults(run=run_show)
    seal = verbs.add_parser(
        "seal",
        help="keep the key encrypted by a secret of this machine or its TPM (systemd-creds)",
        description="Keeps the key encrypted by a secret of this machine or its TPM, as an encrypted credential of "
        "systemd. The file is of no use on another machine: print the recovery sheet with the key before.",
    )
    for parser in (create, seal):
        parser.add_argument("--with", dest="sealer", choices=_SEALERS, help="what to seal with (default: auto)")
    seal.set_defaults(run=run_seal)
    verbs.add_parser("unseal", help="keep the key as a plain file again").set_defaults(run=run_unseal)
    verbs.add_parser("check", help="which key opens which magazine, and what is to do").set_defaults(run=run_check)
    rotate = verbs.add_parser(
        "rotate",
        help="make a new key; every magazine gets it as it comes by",
        description="Makes a new key file and gives it to the magazines that are here; the others get it when they are "
        "plugged in. The previous key is kept until --finish.",
    )
    how = rotate.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="no new key: re-key the magazines that are here")
    how.add_argument("--finish", action="store_true", help="erase the previous key, when no magazine needs it any more")
    rotate.set_defaults(run=run_rotate)
    rekey = verbs.add_parser("rekey", help="re-key one container (what magbay-rekey@.service does)")
    rekey.add_argument("luks_uuid", metavar="LUKS_UUID")
    rekey.set_defaults(run=run_rekey)
    keyslots.register(verbs)
    keysheet.register(verbs)


def all_containers(config: Config) -> tuple[Container, ...]:
    """The containers of all enrolled magazines on this machine."""
    from appliance.host.real.devices import UdevDevices
    from appliance.host.real.mounts import KernelMounts

    return keyring.containers(config, UdevDevices(), KernelMounts())


def run_create(args: argparse.Namespace, out: Output) -> ExitStatus:
    """The first key."""
    if args.sealer and not args.sealed:
        raise UsageError("--with goes with --sealed")
    config = load(args.config)
    path = config.key_file
    kept = keyfile.form(path)
    if kept is not None:
        raise MagbayError(f"there is a key already ({kept.value}): {path}", hint="'magbay key rotate' replaces it.")
    if enrolments(config):
        raise MagbayError(
            f"there is no key file {path}, but there are magazines: a new key would not open them",
            hint="Put the key back ('magbay key restore').",
        )
    keyfile.ensure(path)
    if args.sealed:
        _change_form(path, Form.SEALED, args.sealer or "auto")
    _tell(config, out)
    out.line("Keep a copy of it in a safe place: 'magbay key sheet --with-key' prints it.")
    return ExitStatus.DONE


def run_show(args: argparse.Namespace, out: Output) -> ExitStatus:
    """What can be said of the key."""
    _tell(load(args.config), out)
    return ExitStatus.DONE


def run_seal(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Plain to sealed."""
    config = load(args.config)
    _change_form(config.key_file, Form.SEALED, args.sealer or "auto")
    _tell(config, out)
    return ExitStatus.DONE


def run_unseal(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Sealed to plain."""
    config = load(args.config)
    _change_form(config.key_file, Form.PLAIN)
    _tell(config, out)
    return ExitStatus.DONE


def run_check(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Try the keys on what is here, and say what is to do."""
    config = load(args.config)
    keys = rotation.load(config.key_file)
    findings = keyring.examine(config, all_containers(config), keys)
    needed = [finding.container.enrolment.name for finding in findings if not finding.settled(keys)]
    documents = [finding.document(keys) for finding in findings]
    out.document({**_facts(config), "magazines": documents, "previous_key_needed_by": needed if keys.rotating else []})
    for finding, facts in zip(findings, documents, strict=True):
        where = facts["node"] or "away"
        out.line(f"{facts['magazine']:<20} {where:<12} {_words(finding):<34} header backup {facts['header_backup']}")
        if finding.trouble:
            out.warn(f"magbay: magazine {facts['magazine']}: {finding.trouble}")
    if keys.rotating:
        out.line(rekeying.advice(tuple(needed)))
    return ExitStatus.WARNINGS if any(map(_worth_a_warning, findings)) else ExitStatus.DONE


def run_rotate(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Begin, go on with, or finish a rotation."""
    config = load(args.config)
    if args.resume or args.finish:
        keys = rotation.load(config.key_file)
        if not keys.rotating:
            raise MagbayError("no rotation is unfinished", hint="'magbay key rotate' begins one.")
    else:
        keys = rotation.begin(config.key_file)
        out.line(f"New key {keys.key.fingerprint()} in {config.key_file}. Print a new recovery sheet.")
        rekeying.note(config, keys)
    troubles = keyring.rekey_all(config, all_containers(config), keys, out.line)
    rekeying.note(config, keys)
    for trouble in troubles:
        out.warn(f"magbay: {trouble.message}")
    # A disk that was just being unlocked may have been tried with the previous key only.
    with contextlib.suppress(MagbayError):
        ask("Rescan")
    findings = keyring.examine(config, all_containers(config), keys)
    needed = [finding.container.enrolment.name for finding in findings if not finding.settled(keys)]
    finished = args.finish and not needed
    if args.finish and needed:
        raise MagbayError(
            f"the previous key is still needed by {', '.join(needed)}",
            hint="Plug these in, one after the other; one that is lost for good: 'magbay magazine forget'.",
        )
    if finished:
        rotation.finish(config.key_file)
        rekeying.note(config, rotation.load(config.key_file))
    out.document({**_facts(config), "previous_key_needed_by": needed, "finished": finished})
    out.line("The previous key is erased." if finished else rekeying.advice(tuple(needed)))
    return ExitStatus.WARNINGS if troubles else ExitStatus.DONE


def run_rekey(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Re-key one container that was just opened."""
    config = load(args.config)
    keys = rotation.load(config.key_file)
    for container in all_containers(config):
        if container.enrolment.luks_uuid == args.luks_uuid.lower() and container.node:
            keyring.rekey(config, container, keys, out.line)
            rekeying.note(config, keys)
            out.document({"magazine": container.enrolment.name, "key": keys.key.fingerprint()})
            out.line(f"Magazine {container.enrolment.name} opens with the key {keys.key.fingerprint()}.")
            return ExitStatus.DONE
    raise AwayError(f"no magazine with the LUKS UUID {args.luks_uuid} is here", hint="It is re-keyed when it comes.")


def _change_form(path: Path, wanted: Form, sealer: str = "auto") -> None:
    """Keep the key, and the previous one, in the form *wanted*. A cut in the middle leaves both forms of one key."""
    for kept in (path, keyfile.previous(path)):
        if kept == path or keyfile.form(kept) is not None:
            key = keyfile.read(kept)
            keyfile.store(kept, key, wanted, sealer)
            other = keyfile.sealed(kept) if wanted is Form.PLAIN else kept
            if other.exists():
                keyfile.erase(other)


def _facts(config: Config) -> dict[str, Any]:
    path = config.key_file
    keys = rotation.load(path)
    kept = keyfile.form(path)
    file = path if kept is Form.PLAIN else keyfile.sealed(path)
    made = datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "key_file": str(file),
        "form": kept.value if kept else None,
        "fingerprint": keys.key.fingerprint(),
        "bytes": len(keys.key),
        "made": made,
        "rotating": keys.rotating,
        "previous_fingerprint": keys.previous.fingerprint() if keys.previous else None,
    }


def _tell(config: Config, out: Output) -> None:
    facts = _facts(config)
    out.document(facts)
    for name, value in facts.items():
        if value is not None:
            out.line(f"{name.replace('_', ' '):<20} {value}")


def _words(finding: Finding) -> str:
    """What opens it, for people."""
    if finding.opens is None:
        return "not known which key opens it"
    words = {"new": "opens with the key", "both": "opens with both keys", "old": "opens with the PREVIOUS key"}
    told = words.get(finding.opens.value, "NOT opened by the key")
    return told if finding.container.node or finding.record is None else f"{told} ({finding.record.seen[:10]})"


def _worth_a_warning(finding: Finding) -> bool:
    closed = finding.opens is rotation.Opens.NONE or bool(finding.trouble)
    return closed or finding.backup in (Backup.STALE, Backup.MISSING)
