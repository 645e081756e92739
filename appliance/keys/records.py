"""What was in the key slots of each container when it was last here: `state_dir/headers/LUKS_UUID.json`.

For the recovery sheet and for `magbay key check`, which speak of disks that are away, too. It holds no secret: the
fingerprint of a random key tells nothing of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.host.files import write_atomic
from appliance.keys.headers import directory
from appliance.keys.luks import Header, Slot

# Types of LUKS2 tokens to what people call them: those of systemd-cryptenroll(1) and clevis(1).
_KINDS = {
    "systemd-recovery": "recovery key",
    "systemd-tpm2": "TPM2",
    "systemd-fido2": "FIDO2",
    "systemd-pkcs11": "PKCS#11",
    "clevis": "Tang or another pin of clevis",
}


@dataclass(frozen=True)
class Record:
    """Key slots of one container. *slots*: number of the slot to its kind."""

    key: str  # fingerprint of the key file that opens it
    seen: str  # ISO 8601, UTC
    slots: dict[int, str]


def kind(slot: Slot, of_key_file: int | None) -> str:
    """What opens *slot*, in words; *of_key_file* is the slot that the key file opens."""
    if slot.number == of_key_file:
        return "key file"
    if slot.token:
        return _KINDS.get(slot.token, slot.token)
    return "passphrase" if slot.kdf.startswith("argon2") else "another key or passphrase"


def of(found: Header, fingerprint: str, of_key_file: int) -> Record:
    """The record of a container as it is now."""
    slots = {slot.number: kind(slot, of_key_file) for slot in found.slots}
    return Record(fingerprint, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), slots)


def write(state_dir: Path, luks_uuid: str, record: Record) -> None:
    """Keep *record*, durably. Raises `MagbayError`, `OSError`."""
    data = json.dumps(asdict(record), indent=1).encode()
    write_atomic(directory(state_dir) / f"{luks_uuid}.json", data, mode=0o600)


def read(state_dir: Path, luks_uuid: str) -> Record | None:
    """The record of *luks_uuid*; None when there is none that can be read. Raises `PermissionError`."""
    try:
        found = json.loads((state_dir / "headers" / f"{luks_uuid}.json").read_bytes())
        slots = {int(number): str(what) for number, what in found["slots"].items()}
        return Record(str(found["key"]), str(found["seen"]), slots)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # it is written anew when the disk comes by
