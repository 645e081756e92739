"""The key slots of a LUKS container, through cryptsetup(8). Works the same whether the container is open or not.

Keys reach cryptsetup through pipes. Nothing here decides which disk may be changed: that is the caller's.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from appliance.errors import MagbayError
from appliance.host.commands import attempt, run
from appliance.keys.secret import Secret

_WRONG_KEY = 2  # exit status of cryptsetup(8): no key slot opens with this key
_LUKS2_SLOTS, _LUKS1_SLOTS = 32, 8


class Cost(Enum):
    """How much work a guess at the key is made: the key derivation of a slot."""

    # A random key of 4096 bytes needs no slow derivation; it would cost seconds and a gigabyte at every plug.
    LEAST = "least"
    # What people can type needs all that LUKS2 gives: argon2id, memory and time by cryptsetup's own measure.
    STRONG = "strong"


_PBKDF = {
    Cost.LEAST: ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"),
    Cost.STRONG: ("--pbkdf", "argon2id"),
}


@dataclass(frozen=True)
class Slot:
    """One key slot in use."""

    number: int
    kdf: str  # pbkdf2, argon2i, argon2id
    token: str = ""  # type of the LUKS2 token that has it, such as systemd-tpm2
    preferred: bool = False  # tried before the others


@dataclass(frozen=True)
class Header:
    """What a LUKS header says of itself."""

    version: int
    slots: tuple[Slot, ...]
    material: str  # changes with every change of a slot, and is the same in a header backup
    tokens: tuple[tuple[int, tuple[int, ...]], ...] = ()  # number of each token and the slots it has

    def slot(self, number: int) -> Slot | None:
        """The slot *number*, None when it is free."""
        return next((slot for slot in self.slots if slot.number == number), None)

    def free_slot(self) -> int:
        """The lowest free slot. Raises `MagbayError` when all are in use."""
        used = {slot.number for slot in self.slots}
        for number in range(_LUKS2_SLOTS if self.version == 2 else _LUKS1_SLOTS):
            if number not in used:
                return number
        raise MagbayError("all key slots of the disk are in use", hint="'magbay key remove' frees one.")

    def cheap_slots(self) -> tuple[int, ...]:
        """The slots that a key file can be in: trying it on the others costs seconds and memory for nothing."""
        return tuple(slot.number for slot in self.slots if slot.kdf == "pbkdf2" and not slot.token)


def header(node: str | Path) -> Header:
    """Read the header of the disk (or header backup) *node*. Raises `MagbayError`."""
    what = f"reading the key slots of {node}"
    status, text, _ = attempt(["cryptsetup", "luksDump", "--dump-json-metadata", str(node)], what)
    if status != 0:  # LUKS1 has no metadata
        text = run(["cryptsetup", "luksDump", str(node)], what)
        if not re.search(r"^Version:\s+1$", text, re.MULTILINE):
            raise MagbayError(f"{what}: they cannot be listed", hint="Is cryptsetup older than 2.4?")
        used = re.findall(r"^Key Slot (\d): ENABLED", text, re.MULTILINE)
        return Header(1, tuple(Slot(int(number), "pbkdf2") for number in used), text.partition("\n")[2])
    dumped = json.loads(text)
    tokens = {int(number): token for number, token in dumped["tokens"].items()}
    owner = {slot: token["type"] for token in tokens.values() for slot in token["keyslots"]}
    slots = tuple(
        Slot(int(number), slot["kdf"]["type"], owner.get(number, ""), slot.get("priority") == 2)
        for number, slot in sorted(dumped["keyslots"].items(), key=lambda item: int(item[0]))
    )
    held = tuple((number, tuple(map(int, token["keyslots"]))) for number, token in sorted(tokens.items()))
    return Header(2, slots, json.dumps([dumped["keyslots"], dumped["tokens"]], sort_keys=True), held)


def opens(node: str | Path, key: Secret, slots: Iterable[int]) -> int | None:
    """The first of *slots* that *key* opens, None when none does. Nothing is opened. Raises `MagbayError`."""
    for number in slots:
        with _passed(key) as (path, descriptor):
            words = [
                "cryptsetup",
                "open",
                "--test-passphrase",
                "--disable-external-tokens",  # a TPM that opens the slot says nothing of this key
                "--key-slot",
                str(number),
                "--key-file",
                path,
                str(node),
            ]
            what = f"trying a key on {node}"
            status, _, complaint = attempt(words, what, descriptors=[descriptor])
        if status == 0:
            return number
        if status != _WRONG_KEY:
            raise MagbayError(f"{what}: cryptsetup: {_last(complaint, status)}")
    return None


def add(node: str | Path, key: Secret, new: Secret, cost: Cost) -> int:
    """Put *new* into a free slot, which *key* permits; gives its number. LUKS writes the header so that a power cut
    leaves the old or the new one. Raises `MagbayError`."""
    number = header(node).free_slot()
    with _passed(key) as (path, descriptor), _passed(new) as (new_path, new_descriptor):
        words = ["cryptsetup", "luksAddKey", "--batch-mode", *_PBKDF[cost], "--key-slot", str(number)]
        run(
            [*words, "--key-file", path, str(node), new_path],
            f"adding a key to {node}",
            descriptors=[descriptor, new_descriptor],
        )
    return number


def prefer(node: str | Path, number: int) -> None:
    """Have slot *number* tried first, so that a key file never waits for slots of passphrases. LUKS2 only."""
    run(["cryptsetup", "config", "--priority", "prefer", "--key-slot", str(number), str(node)], f"marking {node}")


def remove(node: str | Path, key: Secret, number: int) -> None:
    """Wipe slot *number*, which *key*, of another slot, permits; and a token that has no other slot."""
    lonely = [token for token, slots in header(node).tokens if slots == (number,)]
    with _passed(key) as (path, descriptor):
        words = ["cryptsetup", "luksKillSlot", "--batch-mode", "--key-file", path, str(node), str(number)]
        run(words, f"wiping key slot {number} of {node}", descriptors=[descriptor])
    for token in lonely:
        run(["cryptsetup", "token", "remove", "--token-id", str(token), str(node)], f"removing a token of {node}")


def mark(node: str | Path, token_type: str, number: int) -> None:
    """Add a LUKS2 token without secrets that says by its *token_type* what slot *number* is for."""
    text = json.dumps({"type": token_type, "keyslots": [str(number)]})
    words = ["cryptsetup", "token", "import", "--json-file", "-", str(node)]
    status, _, complaint = attempt(words, f"marking {node}", text=text)
    if status != 0:
        raise MagbayError(f"marking key slot {number} of {node}: cryptsetup: {_last(complaint, status)}")


@contextlib.contextmanager
def _passed(key: Secret) -> Iterator[tuple[str, int]]:
    """A path under which a tool finds *key*, and the descriptor that it has to inherit for that."""
    with key.descriptor() as descriptor:
        yield f"/dev/fd/{descriptor}", descriptor


def _last(complaint: str, status: int) -> str:
    return (complaint.strip() or f"exit status {status}").splitlines()[-1]
