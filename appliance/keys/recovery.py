"""Recovery keys: 256 random bits that a person can write down, type and check.

The form is that of systemd-cryptenroll(1) `--recovery-key`: eight groups of eight letters of the modhex alphabet, which
are in the same place on all Latin keyboards, with dashes between; the dashes are part of the passphrase.
"""

from __future__ import annotations

import secrets

from appliance.errors import MagbayError
from appliance.keys.secret import Secret

_MODHEX = "cbdefghijklnrtuv"
_BYTES, _GROUP = 32, 8
# Type of the LUKS2 token that marks the key slot, as systemd-cryptenroll(1) has it.
TOKEN = "systemd-recovery"  # noqa: S105 - a name, no secret


def generate() -> Secret:
    """A new recovery key."""
    letters = "".join(_MODHEX[byte >> 4] + _MODHEX[byte & 15] for byte in secrets.token_bytes(_BYTES))
    return Secret(_grouped(letters).encode("ascii"))


def normal(typed: str) -> str:
    """*typed* as the key slot has it: small letters, dashes in their places, however it was written.

    A text that is no recovery key (a passphrase) is given back as it is. Raises `MagbayError`, naming the group, for
    one that nearly is one.
    """
    letters = "".join(typed.split()).replace("-", "").lower()
    strange = [letter for letter in letters if letter not in _MODHEX]
    if len(letters) == 2 * _BYTES and not strange:
        return _grouped(letters)
    groups = typed.strip().lower().split("-")
    if len(groups) == _BYTES * 2 // _GROUP and typed.strip().count("-") == len(groups) - 1:
        for index, group in enumerate(groups, 1):
            if len(group) != _GROUP or any(letter not in _MODHEX for letter in group):
                raise MagbayError(
                    f"group {index} of the recovery key is mistyped",
                    hint=f"Each group has {_GROUP} of the letters {_MODHEX}.",
                )
    return typed


def _grouped(letters: str) -> str:
    return "-".join(letters[at : at + _GROUP] for at in range(0, len(letters), _GROUP))
