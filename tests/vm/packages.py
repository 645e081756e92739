"""Debian packages that only some scenarios need in the guest, which has no network: fetched by the host's apt, kept in
the cache, unpacked there."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from tests.vm.harness import CHECKOUT, Guest, cache_directory

_SOURCES = CHECKOUT / "image/mkosi/mkosi.sandbox/etc/apt/sources.list.d"
_STATUS = "/var/lib/dpkg/status"


def install(guest: Guest, *names: str) -> None:
    """Unpack the packages *names* and what they need there. Skips the test when they cannot be had."""
    files = _fetched(guest.get(_STATUS), names)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file in files:
            archive.add(file, file.name)
    guest.put("/var/tmp/packages.tar", packed.getvalue())
    guest.run("mkdir /var/tmp/packages && tar -xf /var/tmp/packages.tar -C /var/tmp/packages", timeout=300)
    # Their scripts, which set up services and dictionaries, would take minutes under emulation.
    guest.run("for file in /var/tmp/packages/*.deb; do dpkg-deb --extract $file / || exit; done; ldconfig", timeout=300)


def _fetched(status: bytes, names: tuple[str, ...]) -> list[Path]:
    """The files of what is missing on a machine with that *status* of dpkg."""
    key = hashlib.sha256(status + " ".join(names).encode()).hexdigest()[:16]
    kept = cache_directory() / "guest-packages" / key
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as work:
            _fetch(Path(work), status, names)
            (Path(work) / "cache/archives").rename(kept)
    return sorted(kept.glob("*.deb"))


def _fetch(work: Path, status: bytes, names: tuple[str, ...]) -> None:
    for folder in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"):
        (work / folder).mkdir(parents=True)
    (work / "status").write_bytes(status)
    places = {"State": "state", "State::status": "status", "Cache": "cache", "Etc": "etc"}
    lines = [f'Dir::{place} "{work / name}";' for place, name in places.items()]
    lines += [f'Dir::Etc::sourceparts "{_SOURCES}";', 'APT::Install-Recommends "false";', 'APT::Sandbox::User "root";']
    (work / "apt.conf").write_text("\n".join(lines))
    environment = os.environ | {"APT_CONFIG": str(work / "apt.conf")}
    for words in (["update"], ["install", "--yes", "--download-only", *names]):
        done = subprocess.run(["apt-get", "-qq", *words], env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"packages {', '.join(names)} cannot be had: {done.stderr.strip()[-300:]}")
