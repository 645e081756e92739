"""Moving a volume from one slot to another: a Bareos Director's `move`, `import` and `export`.

A slot that is kept for a volume that is no longer on its magazine belongs to that magazine: the file goes there. A
slot that was never given belongs to none: the volume stays where it is and only its number changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.changer.slotmap import Key, SlotMap
from appliance.changer.view import Entry, Presence, View
from appliance.errors import AwayError, MagbayError, NotFoundError, PermissionDeniedError, UsageError
from appliance.host.files import sync_directory
from appliance.magazines.attached import Magazine

_PIECE = 4 * 1024 * 1024  # bytes copied at a time
# Bytes between two syncs: what the page cache takes says nothing of a disk, and only so is the rate that of the disk.
_SYNC_BYTES = 128 * 1024 * 1024
# A daemon waits 300 s for a call unless it is told otherwise (Maximum Changer Wait), and then kills it.
WAIT_SECONDS = 270.0


@dataclass(frozen=True)
class Move:
    """What one transfer does. *file* goes to *place* (the same path when only the number changes); *finish*: a killed
    transfer has copied it already. *displaced*: the missing volume that the target slot was kept for, if any."""

    volume: str
    source: Key
    target: Key
    slot: int
    file: Path
    place: Path
    displaced: Key | None
    finish: bool = False

    @property
    def copies(self) -> bool:
        """Whether bytes have to be moved."""
        return self.file != self.place and not self.finish


def plan(view: View, slot_map: SlotMap, magazines: tuple[Magazine, ...], source: int, target: int) -> Move:
    """What moves the volume of slot *source* to slot *target*.

    Raises `UsageError` (no such slot), `NotFoundError` or `AwayError` (empty source, absent magazine), `MagbayError`
    (target full, volume in a drive, name taken), `PermissionDeniedError` (a magazine cannot be written).
    """
    keys = {slot: key for key, slot in slot_map.slots.items()}
    entries = {entry.slot: entry for entry in view.entries}
    if not 1 <= target <= view.slots:
        raise UsageError(f"there is no slot {target}; this changer has slots 1 to {view.slots}")
    attached = {magazine.identity: magazine for magazine in magazines}
    finish = _is_half_done(entries.get(source), entries.get(target))
    entry = entries[source] if finish else view.loadable(source)
    if source in view.holders():
        drive = view.holders()[source]
        raise MagbayError(f"slot {source} ({entry.volume}) is in drive {drive}", hint=f"Unload drive {drive} first.")
    home = _writable(attached, keys[source][0])
    there = entries.get(target)
    if not finish:
        _check_free(there, target)
    magazine = _writable(attached, keys[target][0]) if there is not None else home
    assert home.path is not None and magazine.path is not None
    move = Move(
        entry.volume,
        keys[source],
        (magazine.identity, entry.volume),
        target,
        home.path / entry.volume,
        magazine.path / entry.volume,
        keys.get(target),
        finish,
    )
    if move.copies and os.path.lexists(move.place):
        raise MagbayError(f"there is a file {move.place} already", hint="Move it away first.")
    return move


@contextlib.contextmanager
def copied(move: Move, seconds: float) -> Iterator[Path]:
    """Copy the volume beside its new place, durably, and hold it against writers meanwhile; gives the copy.

    A copy that is not renamed is removed. Raises `MagbayError` when the volume is being written, there is no room, or
    the disks turn out so slow that it would take more than *seconds*.
    """
    copy = move.place.with_name(f".{move.volume}.transfer")
    with _held(move.file) as source, _held(copy, os.O_RDWR | os.O_CREAT) as target:
        try:
            _copy(source, target, move, seconds)
            yield copy
        finally:
            with contextlib.suppress(OSError):
                copy.unlink()


def commit(move: Move, copy: Path | None) -> None:
    """Give the *copy* its name and remove the original. Killed in between, both are there, and neither is offered."""
    if copy is not None:
        copy.rename(move.place)
        sync_directory(move.place.parent)
    elif move.finish and not _same(move.file, move.place):
        raise MagbayError(f"{move.file} and {move.place} differ", hint="Look at both and remove the wrong one.")
    if move.file != move.place:
        move.file.unlink()
        sync_directory(move.file.parent)


def _check_free(there: Entry | None, target: int) -> None:
    if there is None or there.presence is Presence.MISSING:
        return
    if there.presence is Presence.AWAY:
        raise AwayError(
            f"slot {target} is kept for volume {there.volume} of magazine {there.magazine}, which is not here",
            hint="Plug that magazine in, or name another slot.",
        )
    # As mtx says it, which a person at a console knows.
    raise MagbayError(f"Destination Element Address {target} is Already Full: volume {there.volume}")


def _is_half_done(source: Entry | None, target: Entry | None) -> bool:
    """Whether a transfer was killed when the volume was on both magazines."""
    return (
        source is not None
        and target is not None
        and source.slot != target.slot
        and source.volume == target.volume
        and source.presence is Presence.DUPLICATE
        and target.presence is Presence.DUPLICATE
    )


def _writable(attached: dict[str, Magazine], identity: str) -> Magazine:
    magazine = attached.get(identity)
    if magazine is None or magazine.path is None:
        raise NotFoundError(f"magazine {identity} is not here")
    if not os.access(magazine.path, os.W_OK | os.X_OK):
        raise PermissionDeniedError(
            f"user {os.geteuid()} may not write on magazine {magazine.name} ({magazine.path})",
            hint="It may be write-protected; a transfer removes the volume where it was.",
        )
    return magazine


@contextlib.contextmanager
def _held(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open *path* with the lock that writers of volumes take."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MagbayError(f"{path} is being written", hint="Try again when the job is done.") from None
        yield fd
    finally:
        os.close(fd)


def _copy(source: int, target: int, move: Move, seconds: float) -> None:
    began = time.monotonic()
    before = os.fstat(source)
    room = os.fstatvfs(target)
    if before.st_size > room.f_bavail * room.f_frsize:
        raise MagbayError(f"no room for volume {move.volume} ({before.st_size} bytes) in {move.place.parent}")
    os.ftruncate(target, 0)
    done = synced = 0
    while piece := os.read(source, _PIECE):
        done += len(piece)
        while piece:
            piece = piece[os.write(target, piece) :]
        if done - synced >= _SYNC_BYTES:
            os.fdatasync(target)
            synced = done
            _check_time(move, before.st_size, done, time.monotonic() - began, seconds)
    with contextlib.suppress(PermissionError):  # a file system without owners, or none of ours to give
        os.fchown(target, before.st_uid, before.st_gid)
    with contextlib.suppress(PermissionError):
        os.fchmod(target, before.st_mode & 0o777)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.fsync(target)
    after, made = os.fstat(source), os.fstat(target)
    if made.st_size != after.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise MagbayError(f"volume {move.volume} changed while it was copied", hint="Try again when nothing writes it.")


def _check_time(move: Move, size: int, done: int, took: float, seconds: float) -> None:
    """Give up at once rather than be killed in the end. *size*, *done* in bytes, *took* so far."""
    expected = took * size / done
    if expected > seconds:
        raise MagbayError(
            f"copying volume {move.volume} ({size / 1e9:.1f} GB) would take {expected:.0f} s at "
            f"{done / took / 1e6:.0f} MB/s, longer than a storage daemon waits",
            hint="Run it by hand, which has no limit: magbay-changer --force CONFIG transfer SLOT TARGET",
        )


def _same(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while piece := first.read(_PIECE):
            if piece != second.read(len(piece)):
                return False
        return not second.read(1)
