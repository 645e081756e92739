"""`magbay key sheet|restore`: the keys on paper, and back."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.cli.output import Output
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError, UsageError
from appliance.host.files import write_atomic
from appliance.keys import keyfile, printable, records, rotation, sheet
from appliance.keys.keyfile import Form
from appliance.keys.secret import Secret
from appliance.keys.sheet import Entry, Sheet
from appliance.magazines.attached import enrolments

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs about paper to the noun `key`."""
    paper = verbs.add_parser(
        "sheet",
        help="print what is needed to open the magazines without magbay",
        description="Prints what is needed to open the magazines without magbay: disks, key slots, stock commands; "
        "with --with-key the key itself, as lines to type and QR codes.",
    )
    paper.add_argument("--pdf", metavar="FILE", type=Path, help="write a PDF (needs reportlab)")
    paper.add_argument("--text", metavar="FILE", type=Path, help="write plain text; without --pdf it goes to stdout")
    paper.add_argument("--with-key", action="store_true", help="print the key, too; asks first")
    paper.add_argument("--yes", action="store_true", help="do not ask")
    paper.set_defaults(run=run_sheet)
    restore = verbs.add_parser(
        "restore",
        help="make the key file from its copy or from a recovery sheet",
        description="Makes the key file from typed lines or scanned QR codes of a recovery sheet, or from a copy of "
        "the file itself. A key that is there is never replaced.",
    )
    restore.add_argument("source", metavar="FILE", help="- is stdin")
    restore.add_argument("--fingerprint", default="", help="refuse a key with another one")
    restore.add_argument("--previous", action="store_true", help="it is the previous key of an unfinished rotation")
    restore.set_defaults(run=run_restore)


def run_sheet(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Collect, ask when the key is to be on it, write."""
    config = load(args.config)
    keys = rotation.load(config.key_file)
    if args.with_key and not args.yes:
        _confirm()
    what = collect(config, keys, with_key=args.with_key)
    written = []
    if args.pdf:
        from appliance.keys.sheet_pdf import pdf

        write_atomic(args.pdf, pdf(what), mode=0o600, adopted=False)
        written.append(str(args.pdf))
    if args.text:
        write_atomic(args.text, sheet.text(what).encode(), mode=0o600, adopted=False)
        written.append(str(args.text))
    text = "" if written else sheet.text(what)
    out.document({"fingerprint": what.fingerprint, "files": written} | ({"sheet": text} if text else {}))
    if text:
        out.line(text.rstrip("\n"))
    for file in written:
        out.line(f"The recovery sheet is in {file}. Print it{', then erase the file' if args.with_key else ''}.")
    return ExitStatus.DONE


def collect(config: Config, keys: rotation.Keys, *, with_key: bool) -> Sheet:
    """All that the sheet says."""
    entries = []
    for item in enrolments(config):
        record = records.read(config.state_dir, item.luks_uuid)
        slots, seen = (record.slots, record.seen) if record else ({}, "")
        uuids = (item.luks_uuid, item.filesystem_uuid)
        entries.append(Entry(item.name, item.serial, item.model, item.size, *uuids, slots, seen))
    return Sheet(
        host=os.uname().nodename,
        made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        key_file=config.key_file,
        fingerprint=keys.key.fingerprint(),
        previous=keys.previous.fingerprint() if keys.previous else "",
        entries=tuple(entries),
        key=keys.key if with_key else None,
    )


def run_restore(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Read the key from FILE and put it in its place."""
    config = load(args.config)
    data = sys.stdin.buffer.read() if args.source == "-" else Path(args.source).read_bytes()
    key = _key_of(data, args.fingerprint)
    path = keyfile.previous(config.key_file) if args.previous else config.key_file
    if keyfile.form(path) is not None:
        same = keyfile.read(path) == key
        raise MagbayError(
            f"there is a key already: {path}" + (", and it is this one" if same else ", and it is another one"),
            hint="Nothing is to do." if same else "Move it away first, if it is the wrong one.",
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    keyfile.store(path, key, Form.PLAIN)
    out.document({"key_file": str(path), "fingerprint": key.fingerprint()})
    out.line(f"The key {key.fingerprint()} is in {path}. 'magbay key check' tries it on the magazines.")
    return ExitStatus.DONE


def _key_of(data: bytes, fingerprint: str) -> Secret:
    """The key in *data*: the bytes themselves, or text of a sheet."""
    key = Secret(data)
    if len(data) == keyfile.KEY_BYTES and not data.isascii():
        if fingerprint and key.fingerprint() != fingerprint.replace(" ", "").lower():
            raise MagbayError(f"the key has the fingerprint {key.fingerprint()}", hint="It is another key.")
        return key
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise MagbayError(
            f"this is no key: {len(data)} bytes, neither {keyfile.KEY_BYTES} nor text",
            hint="Give the lines or QR codes of a recovery sheet, or a copy of the key file.",
        ) from None
    return printable.parse(text, fingerprint)


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise UsageError("the key itself would be printed and nobody can be asked", hint="Add --yes.")
    sys.stderr.write("Who has this sheet and a disk can read the backups. Type yes to print the key: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != "yes":
        raise MagbayError("nothing was printed", hint="Leave --with-key out for a sheet without the key.")
