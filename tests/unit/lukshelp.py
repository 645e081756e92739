"""LUKS containers in files: cryptsetup changes and tests their key slots without a device mapper."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.leaks import remember

needs_cryptsetup = pytest.mark.skipif(
    shutil.which("cryptsetup", path="/usr/sbin:/sbin:/usr/bin:/bin") is None, reason="cryptsetup is not installed"
)
_FAST = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]


def cryptsetup(*words: object, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run cryptsetup with *data* on its standard input."""
    return subprocess.run(
        ["cryptsetup", "--batch-mode", *map(str, words)],
        input=data,
        capture_output=True,
        timeout=60,
        env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
    )


@dataclass(frozen=True)
class LuksDisk:
    """A container in the file *node*."""

    node: Path
    uuid: str

    @classmethod
    def create(cls, node: Path, key: Path, kind: str = "luks2", uuid: str = "") -> LuksDisk:
        """A small container, with room for six slots, whose slot 0 opens with the key file *key*, made when missing."""
        with node.open("wb") as file:
            file.truncate(4 << 20)
        _make(key)
        words = ["--uuid", uuid] if uuid else []
        words += ["--offset", "6144", "--luks2-keyslots-size", "2M"] if kind == "luks2" else []
        done = cryptsetup("luksFormat", "--type", kind, *_FAST, *words, "--key-file", key, node)
        assert done.returncode == 0, done.stderr
        return cls(node, cryptsetup("luksUUID", node).stdout.decode().strip())

    def add(self, key: Path, new: Path) -> None:
        """Another slot, for the key file *new*, made when missing."""
        _make(new)
        done = cryptsetup("luksAddKey", *_FAST, "--key-file", key, self.node, new)
        assert done.returncode == 0, done.stderr

    def kdfs(self) -> dict[int, str]:
        """The key derivation of each slot in use."""
        dumped = json.loads(cryptsetup("luksDump", "--dump-json-metadata", self.node).stdout)
        return {int(number): slot["kdf"]["type"] for number, slot in dumped["keyslots"].items()}

    def opens(self, key: Path | bytes) -> bool:
        """Whether stock cryptsetup opens it with the key file or with these bytes."""
        if isinstance(key, bytes):
            return cryptsetup("open", "--test-passphrase", "--key-file", "-", self.node, data=key).returncode == 0
        return cryptsetup("open", "--test-passphrase", "--key-file", key, self.node).returncode == 0


def _make(key: Path) -> None:
    if not key.exists():
        key.write_bytes(os.urandom(4096))
        key.chmod(0o400)
    remember(key.read_bytes())
