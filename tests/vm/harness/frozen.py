"""Boot once for each image, freeze the running guest, and start every scenario from there in about two seconds.

A frozen guest is a directory of the cache with the disk as it was (a qcow2 overlay on the image), the memory, and the
console log of the boot. It fits only the QEMU and the machine it was made with, hence its key.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.vm.harness.channels import ChannelError
from tests.vm.harness.guest import MODULES, Guest, GuestTimeout
from tests.vm.harness.image import build_package, cache_directory
from tests.vm.harness.machine import Firmware, Machine, arguments, overlay, qemu_version

KEEP = 3


@dataclass(frozen=True)
class Frozen:
    """A frozen guest of *image* in *directory*."""

    image: Path
    directory: Path

    @property
    def console(self) -> str:
        """The serial console of the boot that led to it."""
        return (self.directory / "console.log").read_text(errors="replace")

    def restore(self, folder: Path) -> Guest:
        """A guest that goes on from the frozen moment; its changes go to *folder*. Boots when that does not work."""
        folder.mkdir(parents=True, exist_ok=True)
        root = folder / "root.qcow2"
        overlay(root, self.directory / "root.qcow2", "qcow2")
        guest: Guest | None = None
        try:
            guest = Guest(Machine(root, folder, Firmware.BIOS, self.directory / "memory"))
            guest.machine.wait_restored()
            guest.connect(30)
            guest.run(f"date --set=@{time.time():.3f}")
            return guest
        except (ChannelError, GuestTimeout) as error:
            if guest is not None:
                guest.close()
            print(f"The frozen guest could not be restored ({error}); booting.")
            return Guest.boot(self.image, folder)


def _freeze(guest: Guest, directory: Path) -> None:
    """Freeze *guest*, whose overlay is in its folder, into the new *directory*, all or nothing."""
    guest.run(f"modprobe -a {' '.join(MODULES)}; udevadm settle; sync; echo 3 > /proc/sys/vm/drop_caches")
    folder = guest.machine.directory
    guest.machine.freeze(folder / "memory")
    guest.close()
    new = directory.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for name in ("root.qcow2", "memory", "console.log"):
        shutil.move(folder / name, new / name)
    new.rename(directory)


def _key(image: Path) -> str:
    status = image.stat()
    facts = [image.name, str(status.st_ino), str(status.st_size), qemu_version()]
    facts += arguments(Path("disk"), Path("folder"), Firmware.BIOS)
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with (cache_directory() / "frozen.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prune() -> None:
    found = sorted(cache_directory().glob("frozen-*[0-9a-f]"), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in found[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def frozen_guest(image: Path, progress: Callable[[str], None] | None = None) -> Frozen:
    """The frozen guest of *image*: from the cache, or booted and frozen now (about a minute)."""
    directory = cache_directory() / f"frozen-{_key(image)}"
    with _locked():
        if not directory.exists():
            with tempfile.TemporaryDirectory(prefix="magbay-freeze-", dir=cache_directory()) as folder:
                with Guest.boot(image, Path(folder), progress=progress) as guest:
                    _freeze(guest, directory)
            _prune()
        os.utime(directory)
    return Frozen(image, directory)
