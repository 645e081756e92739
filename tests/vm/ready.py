"""Magazines made on the host in a second each, without a kernel's help: for scenarios that need many, or need one soon.

A LUKS2 container made by cryptsetup in a file with a given volume key; the file system inside is made by mkfs.ext4 in
another file and encrypted here (aes-xts-plain64, sectors of 512 bytes: what cryptsetup's default means).
"""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from appliance.volumes.blocks import SessionIds
from appliance.volumes.labels import VolumeLabel
from appliance.volumes.writer import label_block
from tests.vm.harness import Disk, Guest

_SECTOR = 512
_HEADER = 3 << 20  # with room for eight key slots
_CONTENT = 7 << 20
_KEYS = "/etc/magbay/keys"
_ENROLMENTS = "/var/lib/magbay/magazines"


@dataclass(frozen=True)
class Ready:
    """A magazine and its disk. *volumes*: names of the labelled volumes on it."""

    name: str
    disk: Disk
    luks_uuid: str
    filesystem_uuid: str
    volumes: tuple[str, ...]

    @property
    def enrolment(self) -> str:
        """The enrolment file."""
        return (
            f"name: {self.name}\nfilesystem_uuid: {self.filesystem_uuid}\nluks_uuid: {self.luks_uuid}\n"
            f"serial: {self.disk.serial}\nprepared: '2026-11-24T12:00:00Z'\n"
        )


def patience() -> float:
    """How many times longer than alone something takes on this host now."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _run(*words: str | Path) -> None:
    done = subprocess.run([*words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


def make_key(folder: Path) -> Path:
    """A key file for all magazines of a scenario."""
    path = folder / "magbay.key"
    path.write_bytes(random.Random("key").randbytes(4096))
    return path


def make_magazine(folder: Path, name: str, key: Path, owner: str, volumes: int = 2, size: int = _CONTENT) -> Ready:
    """A magazine called *name*, whose top directory belongs to *owner* (uid:gid), with a file system of *size* bytes;
    the same each time."""
    chance = random.Random(name)
    luks, filesystem = (str(UUID(bytes=chance.randbytes(16), version=4)) for _ in range(2))
    names = tuple(f"{name}-{number:04}" for number in range(1, volumes + 1))
    content = folder / f"{name}.content"
    content.mkdir()
    for number, volume in enumerate(names, 1):
        label = VolumeLabel(volume, "Default", "File", label_time=0, write_time=0)
        (content / volume).write_bytes(label_block(label, SessionIds(number, 1)))
    plain, image = folder / f"{name}.plain", folder / f"{name}.raw"
    for path, length in ((plain, size), (image, _HEADER + size)):
        with path.open("xb") as file:
            file.truncate(length)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-U", filesystem, "-E", f"root_owner={owner}", "-d", content, plain)
    secret = folder / f"{name}.secret"
    secret.write_bytes(chance.randbytes(64))
    slim = ["--luks2-metadata-size", "16k", "--luks2-keyslots-size", "2m", "--offset", str(_HEADER // _SECTOR)]
    fast = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--cipher", "aes-xts-plain64", "--key-size", "512"]
    words = ["cryptsetup", "luksFormat", "-q", "--type", "luks2", *slim, *fast, "--sector-size", str(_SECTOR)]
    _run(*words, "--uuid", luks, "--label", name, "--volume-key-file", secret, "--key-file", key, image)
    _encrypt(plain, image, secret.read_bytes(), size)
    plain.unlink()
    return Ready(name, Disk(image, f"SER-{name}"), luks, filesystem, names)


def _encrypt(plain: Path, image: Path, secret: bytes, size: int) -> None:
    with plain.open("rb") as source, image.open("r+b") as target:
        target.seek(_HEADER)
        for number in range(size // _SECTOR):
            cipher = Cipher(algorithms.AES(secret), modes.XTS(number.to_bytes(16, "little"))).encryptor()
            target.write(cipher.update(source.read(_SECTOR)))


def owner_in(guest: Guest) -> str:
    """Who owns the volumes there, as uid:gid."""
    return guest.run("echo $(id -u magbay):$(getent group tape | cut -d: -f3)").stdout.strip()


def enrol_in(guest: Guest, magazines: list[Ready], key: Path) -> None:
    """Make *guest* know *magazines*, as `magbay prepare` would have left them."""
    guest.put(f"{_KEYS}/magbay.key", key.read_bytes(), mode=0o400)
    files = "".join(f"cat > {_ENROLMENTS}/{m.filesystem_uuid}.yaml <<'END'\n{m.enrolment}END\n" for m in magazines)
    guest.run(["/bin/sh", "-ec", f"mkdir -p {_ENROLMENTS}\n{files}"])
    guest.run("busctl call org.magbay.Media1 /org/magbay/Media1 org.magbay.Media1 Rescan")
