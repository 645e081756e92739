"""The first use of a new magazine: who owns it, what it says of itself, and whether it gives back what it got."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

from appliance.config.schema import Config
from appliance.host.files import sync_directory
from appliance.magazines.containers import mounted
from appliance.magazines.leaflet import README, readme
from appliance.magazines.preparations import Preparation, folder
from appliance.magazines.wipe import BadDiskError

_TRIAL = ".magbay-trial"
_MOST_BYTES = 8 * 1024 * 1024
_CHUNK = 1024 * 1024


def mount_point(config: Config, state: Preparation) -> Path:
    """Where the magazine is mounted while it is prepared."""
    return folder(config) / state.mapping


def furnish(inner: Path, place: Path, config: Config, state: Preparation) -> str:
    """Mount *inner*; set owner and mode, write the README and a trial file, durably. Gives the trial's SHA-256 (hex).

    Raises `MagbayError`, `OSError`.
    """
    prepared = time.strftime("%Y-%m-%d", time.gmtime())
    text = readme(state.name, state.luks_uuid, state.filesystem_uuid, prepared)
    with mounted(inner, place):
        shutil.chown(place, config.prepare.owner, config.prepare.group)
        place.chmod(int(config.prepare.mode, 8))
        path = place / README
        path.write_bytes(text)
        shutil.chown(path, config.prepare.owner, config.prepare.group)
        path.chmod(0o644)
        free = os.statvfs(place)
        size = min(_MOST_BYTES, free.f_bavail * free.f_frsize // 4)
        digest = hashlib.sha256()
        with (place / _TRIAL).open("wb", buffering=0) as file:
            for _ in range(max(size // _CHUNK, 1)):
                data = os.urandom(_CHUNK)
                digest.update(data)
                file.write(data)
            os.fsync(file.fileno())
        with path.open("rb") as leaflet:
            os.fsync(leaflet.fileno())
        sync_directory(place)
    return digest.hexdigest()


def compare(inner: Path, place: Path, written: str, node: Path) -> None:
    """Mount *inner*, freshly unlocked, so that nothing of it is in memory, and read the trial file back; remove it.

    Raises `BadDiskError` when *node* gives other bytes, `MagbayError`.
    """
    with mounted(inner, place):
        digest = hashlib.sha256()
        try:
            with (place / _TRIAL).open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while data := file.read(_CHUNK):
                    digest.update(data)
            good = digest.hexdigest() == written
        except OSError:
            good = False
        if not good:
            raise BadDiskError(
                f"{node} does not give back what was written to it", hint="The disk or its dock is bad: take another."
            )
        (place / _TRIAL).unlink()
        sync_directory(place)
