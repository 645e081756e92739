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
from tests.vm.harness.image import build_package, cache_directory, image_path
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


def freeze(guest: Guest, image: Path, directory: Path) -> Frozen:
    """Freeze *guest*, whose overlay is in its folder, into the new *directory*, all or nothing."""
    guest.run(f"modprobe -a {' '.join(MODULES)}; udevadm settle; sync")
    folder = guest.machine.directory
    guest.machine.freeze(folder / "memory")
    guest.close()
    new = directory.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for name in ("root.qcow2", "memory", "console.log"):
        shutil.move(folder / name, new / name)
    (new / "image").write_text(str(image))
    new.rename(directory)
    return Frozen(image, directory)


def _key(*facts: str) -> str:
    machine = [qemu_version(), *arguments(Path("disk"), Path("folder"), Firmware.BIOS), *MODULES]
    return hashlib.sha256("\0".join((*facts, *machine)).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with (cache_directory() / "frozen.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _newest(kind: str) -> list[Path]:
    found = cache_directory().glob(f"{kind}-*[0-9a-f]")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _prune(kind: str) -> None:
    for old in _newest(kind)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def frozen_guest(image: Path, progress: Callable[[str], None] | None = None) -> Frozen:
    """The frozen guest of *image*: from the cache, or booted and frozen now (about a minute)."""
    status = image.stat()
    directory = cache_directory() / f"frozen-{_key(image.name, str(status.st_ino), str(status.st_size))}"
    with _locked():
        if not directory.exists():
            with contextlib.ExitStack() as stack:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="freeze-", dir=cache_directory()))
                guest = stack.enter_context(Guest.boot(image, Path(folder), progress=progress))
                freeze(guest, image, directory)
            _prune("frozen")
        os.utime(directory)
    return Frozen(image, directory)


def upgraded_guest() -> Frozen:
    """The newest frozen guest, whatever its image, with the package of this checkout installed over its own.

    Ten seconds from a change of our code to a running guest instead of a minute and a half. Not for a verdict: what the
    image does at boot, and whatever the older package left behind, is that guest's and not this checkout's.
    """
    package = build_package()
    with _locked():
        images = {path: Path((path / "image").read_text()) for path in _newest("frozen") if (path / "image").exists()}
        base = next((path for path, image in images.items() if image.exists()), None)
        if base is not None:
            directory = cache_directory() / f"quick-{_key(base.name, package.parent.name)}"
            if not directory.exists():
                _upgrade(Frozen(images[base], base), package, directory)
                _prune("quick")
            for path in (base, directory):
                os.utime(path)
            return Frozen(images[base], directory)
    return frozen_guest(image_path())


def _upgrade(base: Frozen, package: Path, directory: Path) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="freeze-", dir=cache_directory()))
        guest = stack.enter_context(base.restore(Path(folder)))
        guest.put("/var/tmp/magbay.deb", package.read_bytes())
        guest.run("dpkg --install /var/tmp/magbay.deb && rm /var/tmp/magbay.deb", timeout=600)
        guest.run("systemctl reset-failed; systemctl is-system-running --wait", check=False, timeout=600)
        freeze(guest, base.image, directory)
