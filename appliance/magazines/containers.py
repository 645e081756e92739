"""LUKS containers while a disk is prepared or taken over: made, opened, closed, and cleared away after a kill.

Once a disk is enrolled, only the unlock unit opens its container.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from appliance.errors import MagbayError
from appliance.host.commands import attempt, run
from appliance.host.real.mounts import parse
from appliance.keys import keyfile

_MAPPINGS = Path("/dev/mapper")
_TABLE = Path("/proc/self/mountinfo")
# A key file of 4096 random bytes needs no slow key derivation: PBKDF2 at its least (trap 8 of the design), else
# every plug would cost seconds and a gigabyte of memory.
_PBKDF = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
# Encrypted in pieces of 4096 bytes: quicker than 512, and the same in every dock, whatever sector size that claims.
_SECTOR = 4096


def format_disk(
    node: Path, luks_uuid: str, label: str, key_file: Path, size: int, descriptors: Iterable[int] = ()
) -> None:
    """Make a LUKS2 container on *node* (*size* bytes). Raises `MagbayError`."""
    sector = ("--sector-size", str(_SECTOR)) if size % _SECTOR == 0 else ()
    names = ("--type", "luks2", "--uuid", luks_uuid, "--label", label[:47])  # a LUKS2 label has 48 bytes with its end
    with keyfile.passed(key_file) as (key, inherited):
        run(
            ["cryptsetup", "luksFormat", "--batch-mode", *names, *sector, *_PBKDF, "--key-file", key, str(node)],
            f"making the LUKS container on {node}",
            descriptors=[*descriptors, *inherited],
        )


@contextlib.contextmanager
def opened(
    node: Path, mapping: str, key_file: Path, descriptors: Iterable[int] = (), *, read_only: bool = False
) -> Iterator[Path]:
    """The container of *node*, open as /dev/mapper/*mapping* within. Raises `MagbayError`."""
    mode = ("--readonly",) if read_only else ()
    with keyfile.passed(key_file) as (key, inherited):
        words = ["cryptsetup", "open", "--type", "luks", *mode, "--key-file", key, str(node), mapping]
        run(words, f"opening {node}", descriptors=[*descriptors, *inherited])
    try:
        yield _MAPPINGS / mapping
    except BaseException:
        # Whatever went wrong (the disk was pulled, say) is what should be told, not that closing fails then, too.
        with contextlib.suppress(MagbayError):
            close(mapping)
        raise
    close(mapping)


def close(mapping: str) -> None:
    """Close *mapping*. One that is held after its disk was pulled is put out of the way and goes when it is let go."""
    status, _, complaint = attempt(["cryptsetup", "close", mapping], f"closing {mapping}")
    if status == 0 or not os.path.lexists(_MAPPINGS / mapping):
        return
    dead = f"dead-{mapping}-{int(time.time())}"
    what = f"closing {mapping}: {complaint.strip()}"
    # Reads and writes that still come fail at once instead of waiting for a disk that is not there.
    attempt(["dmsetup", "wipe_table", "--noflush", mapping], what)
    run(["dmsetup", "rename", mapping, dead], what)
    run(["dmsetup", "remove", "--deferred", dead], what)


@contextlib.contextmanager
def mounted(inner: Path, place: Path, *options: str) -> Iterator[Path]:
    """The file system on *inner*, mounted at *place* within, which is made and removed. Raises `MagbayError`."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        choice = ("-o", ",".join(options)) if options else ()
        run(["mount", *choice, str(inner), str(place)], "mounting its file system")
        try:
            yield place
        except BaseException:
            attempt(["umount", str(place)], "unmounting its file system")
            raise
        run(["umount", str(place)], "unmounting its file system")
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()


def clear(mapping: str, place: Path) -> None:
    """Take away a mount at *place* and a *mapping* that a killed process has left behind. Raises `MagbayError`."""
    table = parse(_TABLE.read_text(encoding="utf-8", errors="surrogateescape"))
    for _mount in [mount for mount in table if mount.path == str(place)]:
        status, _, _ = attempt(["umount", str(place)], f"unmounting {place}")
        if status != 0:
            run(["umount", "-l", str(place)], f"unmounting {place}")
    with contextlib.suppress(OSError):
        place.rmdir()
    if os.path.lexists(_MAPPINGS / mapping):
        close(mapping)
