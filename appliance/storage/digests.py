"""Digests as the catalog has them: base 64 without padding."""

from __future__ import annotations

import binascii
import hashlib

ALGORITHMS = {22: "MD5", 27: "SHA1", 43: "SHA256", 86: "SHA512"}  # by the length of base64 without padding


def digest_text(digest: bytes) -> str:
    """*digest* for the catalog; empty when there is none."""
    return binascii.b2a_base64(digest, newline=False).rstrip(b"=").decode("ascii") if digest else ""


def link_digest(text: bytes) -> str:
    """What the row of a symbolic link has for a digest: SHA256 of where it leads, whatever the job's algorithm."""
    return digest_text(hashlib.sha256(text).digest())


def algorithm_of(digest: str) -> str | None:
    """The algorithm that made *digest* (as in `SavedFile`); None when there is none."""
    return ALGORITHMS.get(len(digest))
