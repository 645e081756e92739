"""Backups of LUKS headers: `state_dir/headers/LUKS_UUID.img`, for root only, replaced atomically.

The header with its key slots is all that stands between the key and the data: a disk whose first megabytes are
destroyed is lost without it. A backup opens with the keys that were in the slots when it was made, so it is made anew
after every change of a slot.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import MagbayError, NotFoundError
from appliance.host.commands import run
from appliance.host.files import locked, sync_directory
from appliance.keys import luks


def directory(state_dir: Path) -> Path:
    """`state_dir/headers`, made when missing. Raises `MagbayError` when others than its owner could get at it.

    Agents own *state_dir*, root writes here: a link or a directory of somebody else in this place is refused.
    """
    path = state_dir / "headers"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
        sync_directory(state_dir)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise MagbayError(
            f"{path} is not a directory that only its owner may enter", hint="Move it away; it is made anew."
        )
    return path


def path_of(state_dir: Path, luks_uuid: str) -> Path:
    """Where the backup of the header of the container *luks_uuid* is or would be."""
    return state_dir / "headers" / f"{luks_uuid}.img"


def backup(node: str | Path, luks_uuid: str, state_dir: Path) -> Path:
    """Save the LUKS header with all key slots of the disk *node*, durably (16 MiB for LUKS2); gives the file.

    An older backup is there until the new one is complete. Raises `MagbayError`, also when the disk does not carry
    *luks_uuid*; `OSError`.
    """
    check_uuid(node, luks_uuid)
    folder = directory(state_dir)
    target = folder / f"{luks_uuid}.img"
    for leftover in folder.glob(f".{luks_uuid}.*"):
        shutil.rmtree(leftover)  # of a power cut
    fresh = Path(tempfile.mkdtemp(prefix=f".{luks_uuid}.", dir=folder)) / "img"
    try:
        run(
            ["cryptsetup", "luksHeaderBackup", "--batch-mode", "--header-backup-file", str(fresh), str(node)],
            f"saving the LUKS header of {node}",
            hint="The disk itself is not harmed. 16 MiB of space are needed below the state directory.",
        )
        check_uuid(fresh, luks_uuid)
        fd = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o600)
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.replace(target)
        sync_directory(folder)
    finally:
        shutil.rmtree(fresh.parent)
    return target


def current(node: str | Path, luks_uuid: str, state_dir: Path) -> bool:
    """Whether the backup has the key slots that are on the disk *node* now. Raises `MagbayError`."""
    image = path_of(state_dir, luks_uuid)
    return image.exists() and luks.header(image).material == luks.header(node).material


@contextlib.contextmanager
def changing(state_dir: Path, luks_uuid: str) -> Iterator[None]:
    """Hold the right to change the key slots of *luks_uuid*: one process at a time."""
    with locked(directory(state_dir) / f"{luks_uuid}.lock"):
        yield


def restore(node: str | Path, luks_uuid: str, state_dir: Path) -> None:
    """Write the saved header of *luks_uuid* back to *node*. The caller has made sure that it is this magazine's disk.

    Raises `NotFoundError` when there is no backup, `MagbayError`.
    """
    image = existing(state_dir, luks_uuid)
    check_uuid(image, luks_uuid)
    run(
        ["cryptsetup", "luksHeaderRestore", "--batch-mode", "--header-backup-file", str(image), str(node)],
        f"restoring the LUKS header of {node}",
    )


def existing(state_dir: Path, luks_uuid: str) -> Path:
    """The backup of the header *luks_uuid*. Raises `NotFoundError` when there is none."""
    image = path_of(state_dir, luks_uuid)
    if not image.exists():
        raise NotFoundError(
            f"there is no backup of the LUKS header {luks_uuid}: {image} does not exist",
            hint="Put a copy of it there, if you have one elsewhere.",
        )
    return image


def check_uuid(node: str | Path, luks_uuid: str) -> None:
    """Make sure that *node* (a disk or a header backup) has the LUKS header *luks_uuid*. Raises `MagbayError`."""
    found = run(["cryptsetup", "luksUUID", str(node)], f"reading the LUKS header of {node}").strip().lower()
    if found != luks_uuid:
        raise MagbayError(f"{node} has the LUKS UUID {found}, not {luks_uuid}", hint="It is another disk.")
