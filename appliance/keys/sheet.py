"""The recovery sheet as text: all that is needed to open the magazines without magbay, on any Linux machine."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.keys import printable
from appliance.keys.secret import Secret

_WIDTH = 92  # characters; fits A4 in the type of the PDF


@dataclass(frozen=True)
class Entry:
    """One magazine on the sheet. *slots*: number to kind, empty when not known; *size* in bytes."""

    name: str
    serial: str
    model: str
    size: int
    luks_uuid: str
    filesystem_uuid: str
    slots: Mapping[int, str]
    seen: str


@dataclass(frozen=True)
class Sheet:
    """What the sheet says. *key* is on it only when it was asked for."""

    host: str
    made: str  # ISO 8601, UTC
    key_file: Path
    fingerprint: str
    previous: str  # fingerprint of the previous key while a rotation is unfinished
    entries: tuple[Entry, ...]
    key: Secret | None = None


def introduction(sheet: Sheet) -> list[str]:
    """Head of the sheet."""
    rows = [
        "RECOVERY SHEET OF THE BACKUP MAGAZINES",
        "",
        *_wrapped(f"Appliance {sheet.host}, printed {sheet.made}. Print it anew after magazines or keys have changed."),
        *(
            ["THIS SHEET HOLDS THE KEY: who has it and a disk can read the backups. Keep it in a safe."]
            if sheet.key
            else []
        ),
        "",
        f"Key file     {sheet.key_file} (random bytes; keep a copy elsewhere)",
        f"Fingerprint  {sheet.fingerprint}   = the first 16 digits that 'sha256sum' prints for the key file",
    ]
    if sheet.previous:
        rows.append(f"Previous key {sheet.previous}   = still opens the magazines that a rotation has not reached yet")
    return rows


def instructions(sheet: Sheet) -> list[str]:
    """The stock commands. Everything in capitals is to be replaced."""
    rows = [
        "TO READ A MAGAZINE ON ANY LINUX MACHINE, as root, with the packages cryptsetup and bacula-sd",
        "",
        "1. Find the disk by its LUKS UUID:     lsblk -o NAME,SERIAL,UUID",
        "2. Open it, with one of:",
        "   the key file:                       cryptsetup open --key-file KEYFILE /dev/DISK magazine",
        "   a passphrase or recovery key:       cryptsetup open /dev/DISK magazine",
        "   TPM2 or FIDO2 (systemd):            systemd-cryptsetup attach magazine /dev/DISK -",
        "                                         tpm2-device=auto  (or fido2-device=auto)",
        "   Tang (clevis):                      clevis luks unlock -d /dev/DISK -n magazine",
        "3. Mount it:                           mount -o ro /dev/mapper/magazine /mnt",
        "4. Each file without an extension is a volume. List and restore:",
        "                                       bls -V VOLUME /mnt",
        "                                       bextract -V VOLUME /mnt /DIRECTORY",
        "5. Afterwards:                         umount /mnt; cryptsetup close magazine",
        "",
        "If the disk is said to have no LUKS header, restore its backup LUKS_UUID.img, from the folder",
        "'headers' of the appliance's state directory or from your copy of it:",
        "      cryptsetup luksHeaderRestore --header-backup-file FILE /dev/DISK",
    ]
    if sheet.key is not None:
        rows += [
            "",
            "THE KEY FILE FROM THIS SHEET. Scan the QR codes, in order, one a line, into a file 'codes':",
            "      cut -d ' ' -f 4 codes | tr -d '\\n' | base64 -d > KEYFILE",
            "or type the numbered lines into a file 'lines' (the last group of each is its check):",
            "      awk '{ $1 = \"\"; $NF = \"\"; print }' lines | tr -d ' \\n' | base32 -d > KEYFILE",
            "      sha256sum KEYFILE        (must begin with the fingerprint above)",
            "'magbay key restore FILE' takes both and names each line that is mistyped.",
        ]
    return rows


def magazine(entry: Entry) -> list[str]:
    """The rows of one magazine."""
    slots = ", ".join(f"{number} {what}" for number, what in sorted(entry.slots.items()))
    known = f"{slots} (seen {entry.seen})" if slots else "not seen since this was recorded; 0 is the key file's"
    size = f", {entry.size / 1e9:.1f} GB" if entry.size else ""
    return [
        f"MAGAZINE {entry.name}",
        f"  disk              serial {entry.serial or 'unknown'}, {entry.model or 'unknown model'}{size}",
        f"  LUKS UUID         {entry.luks_uuid}",
        f"  file system UUID  {entry.filesystem_uuid}",
        *_wrapped(f"  key slots         {known}", indent=20),
    ]


def text(sheet: Sheet) -> str:
    """The whole sheet as plain text."""
    rows = [*introduction(sheet), ""]
    for entry in sheet.entries:
        rows += [*magazine(entry), ""]
    rows += ["No magazine is enrolled yet.", ""] if not sheet.entries else []
    rows += instructions(sheet)
    if sheet.key is not None:
        rows += ["", "THE KEY", "", *printable.lines(sheet.key)]
    return "\n".join(rows) + "\n"


def _wrapped(row: str, indent: int = 0) -> list[str]:
    return textwrap.wrap(row, _WIDTH, subsequent_indent=" " * indent, drop_whitespace=True, replace_whitespace=False)
