"""Rotation of the key: a new key file, and every container re-keyed as it comes by.

At no moment, a power cut at any step included, is there a container without a slot that one of the two kept keys opens:
the new key is in place before the first container gets it, a container's old slot goes after its new one was seen to
open, and the old key goes after the last container has the new one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from appliance.errors import MagbayError
from appliance.host.files import sync_directory
from appliance.keys import headers, keyfile, luks, records
from appliance.keys.keyfile import Form
from appliance.keys.secret import Secret


class Opens(Enum):
    """Which key opens a container."""

    NEW = "new"  # the current key file, and no slot is left for the previous one
    BOTH = "both"  # re-keying was interrupted between its two steps
    OLD = "old"
    NONE = "none"


@dataclass(frozen=True)
class Keys:
    """The key, and the previous one while a rotation is unfinished."""

    key: Secret
    previous: Secret | None

    @property
    def rotating(self) -> bool:
        """Whether a rotation is unfinished."""
        return self.previous is not None


def load(path: Path) -> Keys:
    """The keys that are kept as *path* and beside it. Raises `MagbayError`."""
    key = keyfile.read(path)
    older = keyfile.previous(path)
    previous = keyfile.read(older) if keyfile.form(older) is not None else None
    # Equal when a rotation was cut before the new key took its place: it has not begun then.
    return Keys(key, None if previous == key else previous)


def begin(path: Path) -> Keys:
    """Make a new key as *path* in the form the old one has; the old one becomes the previous one.

    A rotation that was cut while it began is begun again. Raises `MagbayError` when one is unfinished.
    """
    kept = settle(path)
    if load(path).rotating:
        raise MagbayError(
            "the last rotation is unfinished: some magazines may still need the previous key",
            hint="'magbay key check' says which; plug them in, then 'magbay key rotate --finish'.",
        )
    current = path if kept is Form.PLAIN else keyfile.sealed(path)
    older = keyfile.previous(path) if kept is Form.PLAIN else keyfile.sealed(keyfile.previous(path))
    with contextlib.suppress(FileExistsError):
        os.link(current, older)
    sync_directory(path.parent)
    # From here on the old key has two names; the new one takes one of them in a single step.
    keyfile.store(path, keyfile.generate(), kept)
    return load(path)


def settle(path: Path) -> Form:
    """The form of the key; where sealing was cut between its two steps, the plain form goes. Raises `MagbayError`."""
    key = keyfile.read(path)
    if path.exists() and keyfile.sealed(path).exists():
        if keyfile.unseal(keyfile.sealed(path)) != key:
            raise MagbayError(
                f"{path} and {keyfile.sealed(path)} hold different keys",
                hint="'magbay key show' tells their fingerprints: move the one away that opens no magazine.",
            )
        keyfile.erase(path)
    kept = keyfile.form(path)
    assert kept is not None
    return kept


def finish(path: Path) -> None:
    """Erase the previous key. The caller has made sure that nothing needs it any more."""
    keyfile.drop(keyfile.previous(path))


def which(node: str | Path, keys: Keys) -> Opens:
    """Which of *keys* opens the disk *node*. Raises `MagbayError`."""
    cheap = luks.header(node).cheap_slots()
    new = luks.opens(node, keys.key, cheap) is not None
    old = keys.previous is not None and luks.opens(node, keys.previous, cheap) is not None
    if new:
        return Opens.BOTH if old else Opens.NEW
    return Opens.OLD if old else Opens.NONE


def rekey(node: str | Path, luks_uuid: str, keys: Keys, state_dir: Path, say: Callable[[str], None]) -> Opens:
    """Give the disk *node* the new key instead of the previous one, from wherever an earlier try was cut; gives what
    opens it afterwards. The header backup and the record are made anew. Raises `MagbayError`, `OSError`.
    """
    headers.check_uuid(node, luks_uuid)
    with headers.changing(state_dir, luks_uuid):
        cheap = luks.header(node).cheap_slots()
        new = luks.opens(node, keys.key, cheap)
        if keys.previous is not None:
            old = luks.opens(node, keys.previous, cheap)
            if new is None and old is not None:
                added = luks.add(node, keys.previous, keys.key, luks.Cost.LEAST)
                new = luks.opens(node, keys.key, [added])
                say(f"{node}: slot {new} opens with the new key")
            while new is not None and old is not None:
                luks.remove(node, keys.key, old)
                say(f"{node}: slot {old} of the previous key is wiped")
                old = luks.opens(node, keys.previous, luks.header(node).cheap_slots())
        if new is None:
            return Opens.NONE
        settle_disk(node, luks_uuid, keys.key, new, state_dir)
    return Opens.NEW


def settle_disk(node: str | Path, luks_uuid: str, key: Secret, number: int, state_dir: Path) -> None:
    """What follows each change of the slots of *node*: slot *number* of the key file is tried first, the header backup
    is current, and the record says what is in the slots."""
    found = luks.header(node)
    slot = found.slot(number)
    if found.version == 2 and slot is not None and not slot.preferred:
        luks.prefer(node, number)
    if not headers.current(node, luks_uuid, state_dir):
        headers.backup(node, luks_uuid, state_dir)
    records.write(state_dir, luks_uuid, records.of(luks.header(node), key.fingerprint(), number))
