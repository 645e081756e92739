"""What the token does: makes credentials, signs with them, and gives each a secret for every salt (hmac-secret).

It keeps nothing but its seed: a credential's key and secrets follow from seed and credential id, as in small real
tokens. Section numbers are those of CTAP 2.0.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from authenticator import cbor
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256, Hash

_AAGUID = bytes.fromhex("6d61676261792074657374207468696e")
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
_ES256, _ECDH = -7, -25  # COSE algorithms
_UP, _UV, _AT, _ED = 0x01, 0x04, 0x40, 0x80  # flags of authenticator data: present, verified, credential, extensions
_PROTOCOL = 1  # of the PIN (5.5)
_RETRIES = 8


class Status(IntEnum):
    """Answers (6.3)."""

    OK = 0x00
    INVALID_COMMAND = 0x01
    INVALID_CBOR = 0x12
    MISSING_PARAMETER = 0x14
    UNSUPPORTED_ALGORITHM = 0x26
    UNSUPPORTED_OPTION = 0x2B
    KEEPALIVE_CANCEL = 0x2D
    NO_CREDENTIALS = 0x2E
    PIN_INVALID = 0x31
    PIN_BLOCKED = 0x32
    PIN_AUTH_INVALID = 0x33
    PIN_NOT_SET = 0x35
    PIN_REQUIRED = 0x36


class Refused(Exception):
    """The command ends with *status*."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class Authenticator:
    """One token, with 32 bytes of *seed* and a *pin* ("": none). *touch* returns when somebody has touched it, and is
    told what for; it may raise `Refused`."""

    def __init__(self, seed: bytes, pin: str, touch: Callable[[str], None]) -> None:
        self._seed, self._pin, self._touch = seed, pin, touch
        self._retries = _RETRIES
        self._agreement = ec.generate_private_key(ec.SECP256R1())
        self._pin_token = os.urandom(32)
        self._commands: dict[int, Callable[[dict[Any, Any]], Any]] = {
            0x01: self._make,
            0x02: self._assert,
            0x04: self._info,
            0x06: self._client_pin,
        }

    def command(self, data: bytes) -> bytes:
        """The answer to one command: a status and CBOR (6.1, 6.2)."""
        try:
            if not data or data[0] not in self._commands:
                raise Refused(Status.INVALID_COMMAND)
            answer = self._commands[data[0]](cbor.loads(data[1:]) if len(data) > 1 else {})
        except Refused as refused:
            return bytes([refused.status])
        except KeyError:
            return bytes([Status.MISSING_PARAMETER])
        except (ValueError, TypeError, AttributeError):
            return bytes([Status.INVALID_CBOR])
        return bytes([Status.OK]) + (cbor.dumps(answer) if answer else b"")

    # Commands (5.1 to 5.5) ---------------------------------------------------------------------------------------

    def _info(self, _asked: dict[Any, Any]) -> dict[int, Any]:
        options = {"plat": False, "rk": False, "clientPin": bool(self._pin), "up": True}
        return {1: ["FIDO_2_0"], 2: ["hmac-secret"], 3: _AAGUID, 4: options, 5: 1200, 6: [_PROTOCOL]}

    def _make(self, asked: dict[Any, Any]) -> dict[int, Any]:
        client, party = asked[1], asked[2]["id"]
        if not any(kind["alg"] == _ES256 and kind["type"] == "public-key" for kind in asked[4]):
            raise Refused(Status.UNSUPPORTED_ALGORITHM)
        options = asked.get(7, {})
        if options.get("rk") or options.get("uv"):
            raise Refused(Status.UNSUPPORTED_OPTION)
        flags = _AT | _UP | self._verified(client, asked.get(8), asked.get(9), needed=bool(self._pin))
        self._touch(f"make a credential for {party}")
        number = self._new_id(party)
        public = self._key(number).public_key().public_numbers()
        credential = _AAGUID + len(number).to_bytes(2, "big") + number + cbor.dumps(_cose(public, _ES256))
        extensions = b""
        if asked.get(6, {}).get("hmac-secret") is True:
            flags, extensions = flags | _ED, cbor.dumps({"hmac-secret": True})
        facts = _sha256(party.encode()) + bytes([flags]) + bytes(4) + credential + extensions
        return {1: "packed", 2: facts, 3: {"alg": _ES256, "sig": self._sign(number, facts + client)}}

    def _assert(self, asked: dict[Any, Any]) -> dict[int, Any]:
        party, client = asked[1], asked[2]
        ours = [entry["id"] for entry in asked.get(3, []) if self._is_ours(entry["id"], party)]
        present = asked.get(5, {}).get("up", True)
        flags = self._verified(client, asked.get(6), asked.get(7), needed=False)
        if present:
            self._touch(f"open with the credential of {party}" if ours else "nothing it knows")
            flags |= _UP
        if not ours:
            raise Refused(Status.NO_CREDENTIALS)
        number, extensions = ours[0], b""
        if "hmac-secret" in (wanted := asked.get(4, {})):
            if not present:  # nothing secret without a touch
                raise Refused(Status.UNSUPPORTED_OPTION)
            flags, extensions = flags | _ED, self._hmac_secret(number, wanted["hmac-secret"], bool(flags & _UV))
        facts = _sha256(party.encode()) + bytes([flags]) + bytes(4) + extensions
        return {1: {"id": number, "type": "public-key"}, 2: facts, 3: self._sign(number, facts + client)}

    def _client_pin(self, asked: dict[Any, Any]) -> dict[int, Any]:
        if asked[1] != _PROTOCOL:
            raise Refused(Status.PIN_AUTH_INVALID)
        if asked[2] == 1:
            return {3: self._retries}
        if asked[2] == 2:
            return {1: _cose(self._agreement.public_key().public_numbers(), _ECDH)}
        if asked[2] != 5:
            raise Refused(Status.INVALID_COMMAND)  # it gets its PIN when it is started
        if not self._pin:
            raise Refused(Status.PIN_NOT_SET)
        if self._retries == 0:
            raise Refused(Status.PIN_BLOCKED)
        self._retries -= 1
        shared = self._shared(asked[3])
        if not hmac.compare_digest(_cbc(shared).decryptor().update(asked[6]), _sha256(self._pin.encode())[:16]):
            self._agreement = ec.generate_private_key(ec.SECP256R1())
            raise Refused(Status.PIN_INVALID if self._retries else Status.PIN_BLOCKED)
        self._retries = _RETRIES
        return {2: _cbc(shared).encryptor().update(self._pin_token)}

    # PIN and secrets (5.5.3, 9.1) --------------------------------------------------------------------------------

    def _verified(self, client: bytes, proof: bytes | None, protocol: int | None, *, needed: bool) -> int:
        """The flag for a PIN that was given."""
        if proof is None:
            if needed:
                raise Refused(Status.PIN_REQUIRED)
            return 0
        if not self._pin:
            raise Refused(Status.PIN_NOT_SET)
        if protocol != _PROTOCOL or not hmac.compare_digest(_hmac(self._pin_token, client)[:16], proof):
            raise Refused(Status.PIN_AUTH_INVALID)
        return _UV

    def _hmac_secret(self, number: bytes, asked: dict[Any, Any], verified: bool) -> bytes:
        shared = self._shared(asked[1])
        if not hmac.compare_digest(_hmac(shared, asked[2])[:16], asked[3]):
            raise Refused(Status.PIN_AUTH_INVALID)
        salts = _cbc(shared).decryptor().update(asked[2])
        if len(salts) not in (32, 64):
            raise ValueError("a salt has 32 bytes")
        # One with a PIN and one without, as CTAP 2.1 wants and tokens of today do.
        secret = _hmac(self._seed, b"secret, verified " + number if verified else b"secret " + number)
        outputs = b"".join(_hmac(secret, salts[at : at + 32]) for at in range(0, len(salts), 32))
        return cbor.dumps({"hmac-secret": _cbc(shared).encryptor().update(outputs)})

    def _shared(self, cose: dict[Any, Any]) -> bytes:
        x, y = (int.from_bytes(cose[name], "big") for name in (-2, -3))
        theirs = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        return _sha256(self._agreement.exchange(ec.ECDH(), theirs))

    # Credentials -------------------------------------------------------------------------------------------------

    def _new_id(self, party: str) -> bytes:
        random = os.urandom(32)
        return random + self._mark(random, party)

    def _is_ours(self, number: bytes, party: str) -> bool:
        return len(number) == 64 and hmac.compare_digest(number[32:], self._mark(number[:32], party))

    def _mark(self, random: bytes, party: str) -> bytes:
        return _hmac(self._seed, b"credential " + random + party.encode())

    def _key(self, number: bytes) -> ec.EllipticCurvePrivateKey:
        scalar = int.from_bytes(_hmac(self._seed, b"key " + number), "big") % (_ORDER - 1) + 1
        return ec.derive_private_key(scalar, ec.SECP256R1())

    def _sign(self, number: bytes, data: bytes) -> bytes:
        return self._key(number).sign(data, ec.ECDSA(SHA256()))


def _cose(public: ec.EllipticCurvePublicNumbers, algorithm: int) -> dict[int, Any]:
    return {1: 2, 3: algorithm, -1: 1, -2: public.x.to_bytes(32, "big"), -3: public.y.to_bytes(32, "big")}


def _sha256(data: bytes) -> bytes:
    digest = Hash(SHA256())
    digest.update(data)
    return digest.finalize()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _cbc(key: bytes) -> Cipher[modes.CBC]:
    return Cipher(algorithms.AES(key), modes.CBC(bytes(16)))
