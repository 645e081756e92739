"""Digest algorithms by their names as in configurations. Source: volume format, sections 5 and 8."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Protocol

from appliance.volumes import optional
from appliance.volumes.streams import DIGEST_STREAMS

# Name -> function of the library xxhash; all with seed 0, digests big-endian.
_XXH = {"XXHASH64": "xxh64", "XXH3_64": "xxh3_64", "XXH3_128": "xxh3_128", "XXH128": "xxh3_128"}


class Hash(Protocol):
    """What a hash object can do."""

    @property
    def digest_size(self) -> int:
        """Bytes of its digest."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object:
        """Take more bytes."""

    def digest(self) -> bytes:
        """The digest of all bytes so far."""

    def copy(self) -> Hash:
        """Another one that has seen the same bytes."""


def computable() -> frozenset[str]:
    """The algorithms that can be computed here."""
    return frozenset(DIGEST_STREAMS) | (frozenset(_XXH) if optional.find("xxhash") else frozenset())


def new(name: str) -> Hash:
    """A hash for the algorithm *name*, one of `computable`; for finding damage, not for secrets."""
    return _fresh(name).copy()  # a fifth of the time of a new one


@lru_cache
def _fresh(name: str) -> Hash:
    if name in _XXH:
        found: Hash = getattr(optional.need("xxhash"), _XXH[name])()
        return found
    return hashlib.new(name, usedforsecurity=False)
