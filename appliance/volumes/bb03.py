"""Blocks of format BB03: deciphering and checksum. Source: volume format, section 16."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import NotFoundError
from appliance.volumes import optional
from appliance.volumes.blocks import BLOCK_HEADER, BlockHeader, Option
from appliance.volumes.errors import VolumeError

_SIZE = BLOCK_HEADER.size + 8
_NO_CHECKSUM = bytes(8)
_KEY_BYTES = {"AES_128_XTS": 32, "AES_256_XTS": 64}
_MAX_FILE = 4096
_CHECKED = "Compare it with what the storage daemon's key manager keeps: lines 'cipher:' and 'cipher_key:'."


@dataclass(frozen=True)
class VolumeKey:
    """The key of an enciphered volume: two AES keys for XTS, one behind the other. Never printed."""

    secret: bytes = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> VolumeKey:
        """From a file as the storage daemon's key manager keeps it. Raises `VolumeError`, never with the key in it."""
        try:
            lines = path.read_bytes()[:_MAX_FILE].decode("ascii", "replace").splitlines()
        except OSError as error:
            raise VolumeError(f"{path}: {error.strerror}", hint="Give the volume's key file.") from None
        values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = _KEY_BYTES.get(values.get("cipher", ""))
        if size is None:
            raise VolumeError(f"{path}: is not the key of a volume (AES_128_XTS or AES_256_XTS)", hint=_CHECKED)
        try:
            secret = base64.b64decode(values.get("cipher_key", ""), validate=True)
        except binascii.Error:
            secret = b""
        if len(secret) != size or secret[: size // 2] == secret[size // 2 :]:
            raise VolumeError(f"{path}: its cipher_key is not a key of {size} bytes", hint=_CHECKED)
        return cls(secret)


class VolumeKeys:
    """Where the keys of volumes are: *places* are key files and directories.

    In a directory the key of a volume is the file with its name, or that and `.key`; a key file given by itself is for
    every volume that no directory knows. `NotFoundError` for a place that is not there.
    """

    def __init__(self, places: Sequence[Path] = ()) -> None:
        self._folders = [place for place in places if place.is_dir()]
        self._files = [VolumeKey.load(place) for place in places if place not in self._folders and _there(place)]

    def of(self, volume: Path, label_name: str) -> tuple[VolumeKey, ...]:
        """The keys to try for the file *volume*, whose label says *label_name* (empty: not known)."""
        for name in (label_name, volume.name):
            for folder in self._folders if name and "/" not in name else []:
                for path in (folder / f"{name}.key", folder / name):
                    if path.is_file() and not path.samefile(volume):
                        return (VolumeKey.load(path),)
        return tuple(self._files)


def _there(place: Path) -> bool:
    if not place.exists():
        raise NotFoundError(f"{place}: no such key file or directory", hint="Look at the spelling of --volume-key.")
    return True


def library() -> Any:
    """The library for checksums of BB03, or None where it is not installed."""
    return optional.find("xxhash")


def is_whole(head: memoryview, body: memoryview | bytes) -> bool:
    """Whether the checksum in the header (32 bytes) is that of the block with its deciphered *body*."""
    state = library().xxh3_64()
    for part in (head[: BLOCK_HEADER.size], _NO_CHECKSUM, body):
        state.update(part)
    return bool(state.digest() == head[BLOCK_HEADER.size : _SIZE])


def decipher(key: VolumeKey, header: BlockHeader, body: memoryview) -> bytes:
    """The plain bytes behind the header of an enciphered block; whether the key was right shows in the checksum."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # slow to import, seldom needed

    tweak = struct.pack(">IIII", header.number, header.ids.session_id, header.ids.session_time, 0)
    decryptor = Cipher(algorithms.AES(key.secret), modes.XTS(tweak)).decryptor()
    return decryptor.update(body) + decryptor.finalize()


def judge(header: BlockHeader, block: memoryview, keys: Sequence[VolumeKey]) -> memoryview | str:
    """The whole block with its body deciphered, or what is wrong with it, in words."""
    if not header.options & Option.CHECKSUM:
        return f"a block of {header.length} bytes without a checksum"
    if not header.options & Option.BLOCK_ENCIPHERED:
        return block if is_whole(block, block[_SIZE:]) else f"wrong checksum of a block of {header.length} bytes"
    if len(block) < _SIZE + 16:
        return f"an enciphered block of only {header.length} bytes"
    for key in keys:
        plain = decipher(key, header, block[_SIZE:])
        if is_whole(block, plain):
            return memoryview(bytes(block[:_SIZE]) + plain)
    return f"wrong checksum of an enciphered block of {header.length} bytes, or it is not the key of this volume"
