"""The key file on paper, and back: numbered lines of base32 with a check each, or a few QR codes.

A line is its number, up to 40 letters of base32 (RFC 4648) in groups of 8, which are 25 bytes, and 4 letters that are
the first 20 bits of the SHA-256 of "NUMBER:" and these bytes. The letters of all lines in a row, without numbers and
checks, are the base32 of the key: base32(1) reads them. A QR code is the text `MAGBAY-KEY NUMBER/COUNT FINGERPRINT
BASE64`; the last words in a row are the base64 of the key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field

from appliance.errors import MagbayError
from appliance.keys.keyfile import KEY_BYTES
from appliance.keys.secret import Secret

_LINE_BYTES, _GROUP, _CHECK = 25, 8, 4
_QR_BYTES = 690  # divisible by 3, so that no code but the last ends with padding; six codes for 4096 bytes
_QR_MAGIC = "MAGBAY-KEY"
# What is easily written for a letter of base32, which has neither 0, 1 nor 8.
_MISREAD = str.maketrans("018", "OIB")
# A number and at least two words of letters; the last word is the check.
_LINE = re.compile(r"(\d{1,3})[\s.:]+((?:[A-Za-z0-9=]+\s+)+[A-Za-z0-9]{4})")
_CODE = re.compile(rf"{_QR_MAGIC} (\d{{1,2}})/(\d{{1,2}}) ([0-9a-f]{{16}}) ([A-Za-z0-9+/=]+)")


def lines(key: Secret) -> list[str]:
    """*key* as lines to print and to type."""
    data = key.reveal()
    pieces = [data[at : at + _LINE_BYTES] for at in range(0, len(data), _LINE_BYTES)]
    return [_line(number, piece) for number, piece in enumerate(pieces, 1)]


def codes(key: Secret) -> list[str]:
    """*key* as the texts of QR codes."""
    data, fingerprint = key.reveal(), key.fingerprint()
    pieces = [data[at : at + _QR_BYTES] for at in range(0, len(data), _QR_BYTES)]
    return [
        f"{_QR_MAGIC} {number}/{len(pieces)} {fingerprint} {base64.b64encode(piece).decode()}"
        for number, piece in enumerate(pieces, 1)
    ]


@dataclass
class _Typed:
    """What was read so far: pieces by number, and what is wrong with others."""

    what: str
    pieces: dict[int, bytes] = field(default_factory=dict)
    wrong: dict[int, str] = field(default_factory=dict)
    count: int = 0  # of QR codes; 0 when lines were typed
    fingerprint: str = ""


def parse(text: str, fingerprint: str = "") -> Secret:
    """The key that is written in *text*: lines or QR texts in any order, other text between them left aside.

    *fingerprint*, when given, must be the key's. Raises `MagbayError` that names each line that is wrong or missing.
    """
    by_hand, by_camera = _Typed("line"), _Typed("QR code")
    for row in map(str.strip, text.splitlines()):
        if code := _CODE.fullmatch(row):
            _read_code(by_camera, code)
        elif line := _LINE.fullmatch(row):
            _read_line(by_hand, line)
    found = [one for one in (by_hand, by_camera) if one.pieces or one.wrong]
    if len(found) != 1:
        words = "both lines and QR codes of a key are written there" if found else "no key is written there"
        raise MagbayError(words, hint="Give the numbered lines of the recovery sheet, or the texts of its QR codes.")
    typed = found[0]
    last = typed.count or max((*typed.pieces, *typed.wrong))
    problems = dict.fromkeys(set(range(1, last + 1)) - set(typed.pieces), "is missing") | typed.wrong
    if problems:
        told = "; ".join(f"{typed.what} {number} {problem}" for number, problem in sorted(problems.items()))
        raise MagbayError(f"the key is not complete: {told}", hint="Correct that and try again.")
    key = Secret(b"".join(typed.pieces[number] for number in range(1, last + 1)))
    _verify(key, [wanted for wanted in (typed.fingerprint, fingerprint.replace(" ", "").lower()) if wanted])
    return key


def _verify(key: Secret, fingerprints: list[str]) -> None:
    for wanted in fingerprints:
        if wanted != key.fingerprint():
            raise MagbayError(
                f"the key has the fingerprint {key.fingerprint()}, not {wanted}",
                hint="Is the last line there? Are all lines of the same sheet?",
            )
    if not fingerprints and len(key) != KEY_BYTES:
        raise MagbayError(
            f"the key is not complete: {len(key)} bytes of {KEY_BYTES}",
            hint="Type the last lines, too. A key file of another size needs --fingerprint.",
        )


def _line(number: int, piece: bytes) -> str:
    letters = base64.b32encode(piece).decode()
    groups = [letters[at : at + _GROUP] for at in range(0, len(letters), _GROUP)]
    return f"{number:03} {' '.join(groups)} {_check(number, piece)}"


def _check(number: int, piece: bytes) -> str:
    digest = hashlib.sha256(b"%d:" % number + piece).digest()
    return base64.b32encode(digest[:5]).decode()[:_CHECK]


def _read_line(typed: _Typed, line: re.Match[str]) -> None:
    number, words = int(line[1]), line[2].upper().translate(_MISREAD).split()
    letters = "".join(words[:-1]).rstrip("=")
    try:
        piece = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except binascii.Error:
        piece = b""
    if not piece or _check(number, piece) != words[-1]:
        typed.wrong[number] = "is mistyped"
    elif typed.pieces.setdefault(number, piece) != piece:
        typed.wrong[number] = "is there twice, with two contents"


def _read_code(typed: _Typed, code: re.Match[str]) -> None:
    number, typed.count = int(code[1]), int(code[2])
    if typed.fingerprint not in ("", code[3]):
        typed.wrong[number] = "is of another key"
        return
    typed.fingerprint = code[3]
    try:
        typed.pieces[number] = base64.b64decode(code[4], validate=True)
    except binascii.Error:
        typed.wrong[number] = "is damaged"
