"""What the changer offers at one moment, the answers drawn from it, and its published copy `run_dir/changer.json`.

The published copy names every file and directory that it was computed from, with what stat(2) said of each. While
all of that is unchanged, a Changer Command answers from it without reading YAML, state or magazines. A daemon waits
for that command, so this module imports nothing that is slow to import.
"""

# pathlib is among what is slow to import.
# ruff: noqa: PTH109, PTH114, PTH116, PTH118, PTH120
from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from enum import Enum

from appliance.changer import drives
from appliance.errors import AwayError, MagbayError, NotFoundError, UsageError

PUBLISHED = "changer.json"
LOCK = "changer.lock"
DEFAULT_RUN_DIR = "/run/magbay"
_FORMAT = 2
# `listall` shows at least this many slots, so that an empty changer does not look like a broken one.
_LEAST_SHOWN = 10
# What changed just before it was looked at may change again within the same time stamp: what was seen of it cannot be
# proved current later. File systems that keep nanoseconds stamp with the kernel's tick, at most 10 ms; some keep whole
# seconds (ext3, some NFS servers) or every second one (FAT), which shows in a stamp without fractions.
_FINE_NS, _COARSE_NS = 20_000_000, 2_500_000_000
_TICK_NS = 10_000_000
# More than a configuration file may have.
_MOST_BYTES = 1_000_000

# Device, inode, time of the last change to contents and to owner or mode (ns), size; None where nothing was; False
# for "cannot be proved".
Stamp = list[int] | None | bool
Stamps = list[tuple[str, Stamp]]


class Presence(Enum):
    """Why the volume of a slot can or cannot be loaded."""

    HERE = "in bay"
    AWAY = "away"
    MISSING = "missing"  # the magazine is here, the volume is no longer on it
    DUPLICATE = "on two magazines"
    UNREADABLE = "unreadable"  # the magazine is here and cannot be read


class Entry:
    """One slot that has been given to a volume. *path* is the volume's file, empty while it cannot be reached."""

    __slots__ = ("magazine", "path", "presence", "slot", "volume")

    def __init__(self, slot: int, volume: str, magazine: str, path: str, presence: Presence) -> None:
        self.slot, self.volume, self.magazine, self.path, self.presence = slot, volume, magazine, path, presence


class View:
    """The slots at one moment, *entries* in order of slots. *unreadable*: magazines that could not be looked at.

    *drive_dir* and *folders*: where the drives are, see `drives`; *listed*: how many of them listall names anyway.
    """

    __slots__ = (
        "config",
        "drive_dir",
        "drives",
        "entries",
        "folders",
        "listed",
        "run_dir",
        "slots",
        "stamps",
        "unreadable",
    )

    def __init__(
        self, config: str, run_dir: str, drives: int, slots: int, entries: list[Entry], unreadable: list[str]
    ) -> None:
        self.config, self.run_dir, self.drives, self.slots = config, run_dir, drives, slots
        self.entries, self.unreadable = entries, unreadable
        self.drive_dir, self.folders, self.listed = f"{run_dir}/drives", False, drives
        self.stamps: Stamps = []

    def loaded(self, drive: int) -> int:
        """The slot whose volume is in *drive*, 0 when it is empty. Raises `UsageError` for a drive that is not."""
        self._check_drive(drive)
        path = drives.target(self.drive_dir, drive)
        return next((entry.slot for entry in self.entries if entry.path == path), 0) if path else 0

    def holders(self) -> dict[int, int]:
        """Slot to drive of all that is loaded."""
        found = {self.loaded(drive): drive for drive in range(self.drives)}
        return {slot: drive for slot, drive in found.items() if slot}

    def list_text(self) -> str:
        """`SLOT:NAME` for every slot ever given to a volume; the name is empty when the volume cannot be loaded."""
        self._check_complete()
        return "".join(
            f"{entry.slot}:{entry.volume if entry.presence is Presence.HERE else ''}\n" for entry in self.entries
        )

    def listall_text(self) -> str:
        """`D:` lines for every drive, `S:` lines for every slot up to the highest ever given to a volume."""
        self._check_complete()
        names = {entry.slot: entry.volume for entry in self.entries if entry.presence is Presence.HERE}
        drive_of = self.holders()
        slot_of = {drive: slot for slot, drive in drive_of.items() if slot in names}
        lines = [
            f"D:{drive}:F:{slot_of[drive]}:{names[slot_of[drive]]}\n" if drive in slot_of else f"D:{drive}:E\n"
            for drive in range(max([self.listed, *(drive + 1 for drive in slot_of)]))
        ]
        return "".join(lines) + self.shelf_text(drive_of)

    def shelf_text(self, loaded: Collection[int]) -> str:
        """The `S:` lines of `listall` when the slots *loaded* are in drives."""
        names = {entry.slot: entry.volume for entry in self.entries if entry.presence is Presence.HERE}
        last = min(self.slots, max([_LEAST_SHOWN, *(entry.slot for entry in self.entries)]))
        full = {slot: f"F:{name}" for slot, name in names.items() if slot not in loaded}
        return "".join(f"S:{slot}:{full.get(slot, 'E')}\n" for slot in range(1, last + 1))

    def load(self, slot: int, drive: int, device: str = "") -> None:
        """Make *drive* point at the volume of *slot*, which can be read when this returns. Call it under the lock.

        *device*: the path that the daemon opens, if it told; with the form of vchanger 0.8 the drive gets that form.

        Raises `UsageError` (no such slot or drive), `AwayError` or `NotFoundError` (empty slot), `MagbayError`.
        """
        self._check_drive(drive)
        entry = self.loadable(slot)
        holder = self.holders().get(slot, drive)
        if holder != drive:
            hint = f"Unload drive {holder} first."
            raise MagbayError(f"slot {slot} ({entry.volume}) is in drive {holder}", hint=hint)
        now = self.loaded(drive)
        if now not in (0, slot):
            raise MagbayError(f"drive {drive} holds the volume of slot {now}", hint=f"Unload drive {drive} first.")
        _probe(entry)
        folder = self._in_folder(drive, device)
        if now != slot or not os.path.islink(drives.place(self.drive_dir, drive, folder=folder)):
            drives.point(self.drive_dir, drive, entry.path, folder=folder)

    def unload(self, drive: int) -> bool:
        """Empty *drive*; whether something was loaded. Raises `UsageError`, `OSError`. Call it under the lock."""
        self._check_drive(drive)
        return drives.clear(self.drive_dir, drive)

    def document(self) -> dict[str, object]:
        """For JSON; `parse` reads it."""
        rows = [[e.slot, e.volume, e.magazine, e.path, e.presence.value] for e in self.entries]
        names = ("config", "run_dir", "drive_dir", "folders", "listed", "drives", "slots", "stamps")
        head = {name: getattr(self, name) for name in names}
        return {"format": _FORMAT, **head, "entries": rows}

    def _check_drive(self, drive: int) -> None:
        if not 0 <= drive < self.drives:
            raise UsageError(f"there is no drive {drive}; this changer has drives 0 to {self.drives - 1}")

    def _in_folder(self, drive: int, device: str) -> bool:
        if device.endswith(f"/drive{drive}"):
            return True
        return self.folders and device != drives.place(self.drive_dir, drive)

    def _check_complete(self) -> None:
        # A partial list makes the Director clear the slots that are left out.
        if self.unreadable:
            raise MagbayError("cannot list the slots: " + "; ".join(self.unreadable))

    def loadable(self, slot: int) -> Entry:
        """The entry of *slot*, whose volume is here. Raises as `load` does."""
        if not 1 <= slot <= self.slots:
            raise UsageError(f"there is no slot {slot}; this changer has slots 1 to {self.slots}")
        entry = next((entry for entry in self.entries if entry.slot == slot), None)
        # Bareos looks for this very phrase: with it the job goes on to another volume.
        empty = f"Source Element Address {slot} is Empty"
        if entry is None:
            raise NotFoundError(f"{empty}: no volume ever had this slot")
        what = f"{empty}: volume {entry.volume} of magazine {entry.magazine}"
        if entry.presence is Presence.AWAY:
            raise AwayError(f"{what} is not here", hint="Plug that magazine in.")
        if entry.presence is Presence.MISSING:
            raise NotFoundError(f"{what} is no longer on it", hint="Put the file back or delete the volume.")
        if entry.presence is Presence.DUPLICATE:
            raise MagbayError(f"{what} is on another magazine too", hint="Pull one of the two magazines.")
        return entry


def _probe(entry: Entry) -> None:
    """Read from the volume: proves that it can be read, and has autofs mount the magazine first."""
    try:
        fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.read(fd, 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise MagbayError(
            f"volume {entry.volume} of magazine {entry.magazine} cannot be read by user {os.geteuid()}: "
            f"{error.strerror} ({entry.path})",
            hint="Check the file's owner and mode, and the disk.",
        ) from None


def stamp(path: str, *, settled: bool = False) -> Stamp:
    """What stat(2) says of *path*. *settled*: give False for what may still change without a new stamp.

    Files that are always replaced and never written in place do not need it. Raises `OSError`.
    """
    now = time.time_ns()
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    unsure = _FINE_NS if found.st_mtime_ns % _TICK_NS else _COARSE_NS
    if settled and now - found.st_mtime_ns < unsure:
        return False
    return [found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size]


def current(config: str) -> View | None:
    """The published view of the configuration file *config* (absolute), or None when it is not proved current."""
    try:
        with open(os.path.join(_run_dir(config), PUBLISHED), "rb") as file:
            view = parse(json.loads(file.read()))
        return view if view.config == config and all(_unchanged(*item) for item in view.stamps) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # absent, damaged or of another release: it is computed afresh


def parse(document: dict[str, object]) -> View:
    """A view from its JSON. Raises `ValueError`, `KeyError` or `TypeError`."""
    if document["format"] != _FORMAT:
        raise ValueError("another format")
    rows: list[list[object]] = document["entries"]  # type: ignore[assignment]
    entries = [Entry(int(str(s)), str(v), str(m), str(p), Presence(e)) for s, v, m, p, e in rows]
    count, most = (int(str(document[name])) for name in ("drives", "slots"))
    view = View(str(document["config"]), str(document["run_dir"]), count, most, entries, [])
    view.drive_dir, view.folders = str(document["drive_dir"]), document["folders"] is True
    view.listed = int(str(document["listed"]))
    view.stamps = [(str(path), then) for path, then in document["stamps"]]  # type: ignore[attr-defined]
    return view


def _unchanged(path: str, then: Stamp) -> bool:
    if then is False:
        return False
    try:
        return stamp(path) == then
    except PermissionError:
        # The daemon's user may not look into the state directory; the agent that may has published this.
        return True


def _run_dir(config: str) -> str:
    """Where *config* most likely puts run_dir. A wrong guess does no harm: `current` then finds nothing that fits."""
    with open(config, "rb") as file:
        for line in file.read(_MOST_BYTES).splitlines():
            if line.startswith(b"run_dir:"):
                return os.path.join(os.path.dirname(config), _unquoted(line[8:]))
            # The work directory of vchanger, in either spelling, from the working directory.
            key, equals, value = line.partition(b"=")
            if equals and key.strip().lower().replace(b" ", b"").replace(b"_", b"") in (b"workdir", b"statedir"):
                return os.path.join(os.getcwd(), _unquoted(value))
    return DEFAULT_RUN_DIR


def _unquoted(text: bytes) -> str:
    return os.fsdecode(text.split(b" #")[0].strip().strip(b"'\""))
