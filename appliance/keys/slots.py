"""Managing the key slots of one magazine's container: passphrase, recovery key, TPM2, FIDO2, Tang beside the key file.

Every change ends with a current header backup and record (`rotation.settle_disk`).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import MagbayError, NotFoundError
from appliance.host.commands import interact
from appliance.host.files import write_all
from appliance.keys import headers, keyfile, luks, recovery, rotation
from appliance.keys.luks import Cost
from appliance.keys.records import kind
from appliance.keys.rotation import Keys
from appliance.keys.secret import Secret

LEAST_PASSPHRASE = 12  # characters
_MOST_PASSPHRASE = 512  # characters that cryptsetup reads at its prompt (cryptsetup --help)


@dataclass(frozen=True)
class Disk:
    """One container: where it is, what it is, and where its backup and record are kept."""

    node: str
    luks_uuid: str
    state_dir: Path


def listing(disk: Disk, keys: Keys) -> tuple[tuple[luks.Slot, str], ...]:
    """The slots in use, and what opens each. Raises `MagbayError`."""
    found = luks.header(disk.node)
    cheap = found.cheap_slots()
    number = luks.opens(disk.node, keys.key, cheap)
    older = None if keys.previous is None else luks.opens(disk.node, keys.previous, cheap)
    return tuple((slot, "previous key file" if slot.number == older else kind(slot, number)) for slot in found.slots)


def check_passphrase(passphrase: Secret) -> None:
    """Raises `MagbayError` for a *passphrase* that is too short or cannot be typed."""
    try:
        text = passphrase.reveal().decode()
    except UnicodeDecodeError:
        raise MagbayError("the passphrase is not valid UTF-8: nothing was changed") from None
    if not LEAST_PASSPHRASE <= len(text) <= _MOST_PASSPHRASE or not text.isprintable():
        raise MagbayError(
            f"a passphrase has {LEAST_PASSPHRASE} to {_MOST_PASSPHRASE} printable characters: nothing was changed",
            hint="Several words in a row are easy to remember and hard to guess.",
        )


def add_passphrase(disk: Disk, keys: Keys, passphrase: Secret) -> int:
    """Add *passphrase*; gives its slot. Raises `MagbayError`, also for one that `check_passphrase` refuses."""
    check_passphrase(passphrase)
    with _changing(disk, keys) as key:
        return _add(disk, key, passphrase)


def add_recovery(disk: Disk, keys: Keys) -> tuple[int, Secret]:
    """Make a recovery key and add it; gives its slot and the key, which is kept nowhere. Raises `MagbayError`."""
    made = recovery.generate()
    with _changing(disk, keys) as key:
        number = _add(disk, key, made)
        if luks.header(disk.node).version == 2:
            luks.mark(disk.node, recovery.TOKEN, number)
    return number, made


def add_own_key(disk: Disk, keys: Keys, permit: Secret) -> int:
    """Add the key file of the appliance to a disk that only *permit*, another key or passphrase, opens; gives its slot.

    Raises `MagbayError`, also when the key file opens it already or *permit* does not.
    """
    headers.check_uuid(disk.node, disk.luks_uuid)
    with headers.changing(disk.state_dir, disk.luks_uuid):
        found = luks.header(disk.node)
        if luks.opens(disk.node, keys.key, found.cheap_slots()) is not None:
            raise MagbayError(f"the key file opens {disk.node} already: nothing was changed")
        if luks.opens(disk.node, permit, (slot.number for slot in found.slots)) is None:
            raise MagbayError(
                f"what was given opens no key slot of {disk.node}: nothing was changed",
                hint="The key file that opens it is named with --key-file FILE, a passphrase is asked for.",
            )
        number = _add(disk, permit, keys.key, Cost.LEAST)
        rotation.settle_disk(disk.node, disk.luks_uuid, keys.key, number, disk.state_dir)
    return number


def opened_by(disk: Disk, typed: Secret) -> int | None:
    """The slot that a passphrase or recovery key opens, None when none does. Raises `MagbayError`."""
    return luks.opens(disk.node, typed, (slot.number for slot in luks.header(disk.node).slots))


@dataclass(frozen=True)
class Device:
    """What systemd-cryptenroll can give a slot to: in words, by which options, and what it needs."""

    words: str
    options: tuple[str, ...]
    needs: str


# What the TPM2 binds a slot to: the state of Secure Boot. systemd 257 takes it by itself, 258 and later nothing.
TPM2 = Device(
    "the TPM2",
    ("--tpm2-device=auto", "--tpm2-pcrs=7"),
    "It needs a TPM2 that works and the library libtss2-esys.",
)
FIDO2 = Device(
    "a FIDO2 token",
    ("--fido2-device=auto",),
    "It needs one token with the hmac-secret extension, and the library libfido2.",
)


def cryptenroll(node: str, key_path: str, *device: str) -> list[str]:
    """The command line that adds a slot for a *device* such as `--tpm2-device=auto`; *key_path* permits it."""
    return ["systemd-cryptenroll", f"--unlock-key-file={key_path}", *device, node]


def clevis(node: str, key_path: str, url: str, thumbprint: str) -> list[str]:
    """The command line that adds a slot which opens while the Tang server *url* answers. Without *thumbprint* of the
    server's key clevis asks whether to trust the one it gets."""
    server = {"url": url} | ({"thp": thumbprint} if thumbprint else {})
    return ["clevis", "luks", "bind", "-d", node, "-k", key_path, "tang", json.dumps(server)]


def add_device(disk: Disk, keys: Keys, device: Device) -> None:
    """Add a slot that opens with *device*, which may ask for a touch or a PIN. Raises `MagbayError`."""
    _wants_luks2(disk, device.words)
    with _changing(disk, keys) as key, key.descriptor() as descriptor:
        words = cryptenroll(disk.node, f"/dev/fd/{descriptor}", *device.options)
        interact(words, f"adding {device.words} to {disk.node}", descriptors=[descriptor], hint=device.needs)


def add_tang(disk: Disk, keys: Keys, url: str, thumbprint: str) -> None:
    """Add a slot that opens while the Tang server *url* answers. Raises `MagbayError`."""
    _wants_luks2(disk, "a Tang server")
    # clevis takes nothing but a regular file: one in memory, for root only, gone afterwards.
    with _changing(disk, keys) as key, tempfile.TemporaryDirectory(dir=_memory(), prefix="magbay-") as folder:
        path = Path(folder) / "key"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            write_all(fd, key.reveal())
        finally:
            os.close(fd)
        try:
            interact(
                clevis(disk.node, str(path), url, thumbprint),
                f"adding the Tang server {url} to {disk.node}",
                hint="It needs the package clevis-luks, and the server must answer.",
            )
        finally:
            keyfile.erase(path)


def _wants_luks2(disk: Disk, what: str) -> None:
    """Raises `MagbayError` for a container whose header has no place for tokens."""
    if luks.header(disk.node).version != 2:
        raise MagbayError(
            f"{disk.node} has a LUKS1 header, which has no place for {what}: nothing was changed",
            hint="A passphrase or a recovery key works there; 'cryptsetup convert --type luks2' makes a LUKS2 header.",
        )


def remove(disk: Disk, keys: Keys, number: int) -> str:
    """Wipe slot *number*; gives what it was for. The slots of the key files stay: rotation wipes those.

    Raises `NotFoundError` when the slot is free, `MagbayError`.
    """
    held = {slot.number: what for slot, what in listing(disk, keys)}
    if number not in held:
        raise NotFoundError(f"key slot {number} of {disk.node} is not in use", hint="'magbay key list' shows them.")
    if "key file" in held[number]:
        raise MagbayError(
            f"key slot {number} of {disk.node} is the {held[number]}'s: it is not removed",
            hint="Without it the magazine would not open by itself; 'magbay key rotate' replaces keys.",
        )
    with _changing(disk, keys) as key:
        luks.remove(disk.node, key, number)
    return held[number]


def _add(disk: Disk, key: Secret, new: Secret, cost: Cost = Cost.STRONG) -> int:
    number = luks.add(disk.node, key, new, cost)
    if luks.opens(disk.node, new, [number]) is None:
        luks.remove(disk.node, key, number)
        raise MagbayError(f"{disk.node}: the new key does not open its slot: it was removed again", hint="Try again.")
    return number


@contextlib.contextmanager
def _changing(disk: Disk, keys: Keys) -> Iterator[Secret]:
    """The right to change the slots of *disk*, and the key that permits it; settles the disk afterwards, also when the
    change failed halfway."""
    headers.check_uuid(disk.node, disk.luks_uuid)
    with headers.changing(disk.state_dir, disk.luks_uuid):
        cheap = luks.header(disk.node).cheap_slots()
        for key in (keys.key, keys.previous):
            number = None if key is None else luks.opens(disk.node, key, cheap)
            if key is not None and number is not None:
                break
        else:
            raise MagbayError(
                f"the key file does not open {disk.node}: nothing was changed",
                hint="'magbay key check' says which key opens which magazine.",
            )
        try:
            yield key
        finally:
            rotation.settle_disk(disk.node, disk.luks_uuid, key, number, disk.state_dir)


def _memory() -> str | None:
    """A directory in memory; None (the usual place) where there is none."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a private directory is made below it
