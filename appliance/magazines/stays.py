"""What has to be remembered of a disk from its plug to its pull: one stay of one disk.

A stay is known by the kernel's plug sequence number (DISKSEQ): a replugged disk starts clean. What must outlive
the agent (an eject that was asked for, that the disk is idle and not fresh) is in a small file below `run_dir`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from appliance.host.files import write_atomic


@dataclass
class Retry:
    """When something that failed is tried again: *quick* times after half a second, then after *first* seconds,
    twice that, and so on, at most *longest*."""

    first: float
    longest: float = 300.0
    quick: int = 0
    failures: int = 0
    last: float = 0.0
    open: bool = True  # begun, and how it ended was not noted yet

    def begun(self) -> None:
        """It is being tried."""
        self.open = True

    def failed(self, now: float) -> None:
        """It failed at *now* (Unix seconds)."""
        self.failures += 1
        self.last, self.open = now, False

    def due(self, now: float) -> bool:
        """Whether it is time (also when the clock was set back)."""
        return self.failures == 0 or not 0 <= now - self.last < self._pause()

    @property
    def often(self) -> bool:
        """Whether the quick tries are used up: worth telling."""
        return self.failures > self.quick

    def _pause(self) -> float:
        return min(self.first * 2 ** min(self.failures - self.quick - 1, 30), self.longest) if self.often else 0.5

    def reset(self) -> None:
        """It worked, or is to be tried at once."""
        self.failures = 0


@dataclass
class Stay:
    """One disk in one bay. *eject*: somebody asked for it. *was_mounted*: since its container was opened. *unlocking*:
    when opening it was asked for last (Unix seconds)."""

    sequence: int
    eject: bool = False
    was_mounted: bool = False
    attempted: bool = False
    unlocking: float = 0.0
    mount_error: str = ""
    stuck_since: float = 0.0
    mounting: asyncio.Task[None] | None = None
    unlocks: Retry = field(default_factory=lambda: Retry(15.0))
    checks: Retry = field(default_factory=lambda: Retry(15.0))
    ejects: Retry = field(default_factory=lambda: Retry(2.0, longest=60.0))
    mounts: Retry = field(default_factory=lambda: Retry(5.0, quick=4))

    def retry(self) -> None:
        """Somebody asked to try again."""
        self.attempted, self.mount_error = False, ""
        for what in (self.unlocks, self.checks, self.mounts, self.ejects):
            what.reset()


def stays_folder(run_dir: Path) -> Path:
    """Where the files of the stays are."""
    return run_dir / "stays"


def write_stay(where: Path, luks_uuid: str, sequence: int, *, eject: bool, was_mounted: bool = False) -> None:
    """Put the stay of the disk that was plugged as *sequence* on file in the folder *where*. Raises `OSError`."""
    document = {"sequence": sequence, "eject": eject, "was_mounted": was_mounted}
    write_atomic(where / luks_uuid, json.dumps(document).encode(), mode=0o644, durable=False)


class Stays:
    """The stays of now, by LUKS UUID; their files are in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stays: dict[str, Stay] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, luks_uuid: str) -> Stay | None:
        """The stay of the disk, if it is here."""
        return self._stays.get(luks_uuid)

    def items(self) -> Iterable[tuple[str, Stay]]:
        """All of them, by LUKS UUID."""
        return self._stays.items()

    def of(self, luks_uuid: str, sequence: int) -> Stay:
        """The stay of the disk that was plugged as *sequence*: remembered, read from its file, or new."""
        stay = self._stays.get(luks_uuid)
        if stay is None or stay.sequence != sequence:
            self.forget(luks_uuid)
            stay = self._stays[luks_uuid] = self._read(luks_uuid, sequence)
        return stay

    def _read(self, luks_uuid: str, sequence: int) -> Stay:
        try:
            kept = json.loads((self._folder / luks_uuid).read_bytes())
            if kept["sequence"] == sequence:
                return Stay(sequence, eject=bool(kept["eject"]), was_mounted=bool(kept["was_mounted"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or of another version: the disk is looked at as if it was plugged now
        return Stay(sequence)

    def keep(self, luks_uuid: str, *, eject: bool | None = None, was_mounted: bool | None = None) -> None:
        """Change what must outlive the agent, on file first. Raises `OSError`."""
        stay = self._stays[luks_uuid]
        new = (stay.eject if eject is None else eject, stay.was_mounted if was_mounted is None else was_mounted)
        if new != (stay.eject, stay.was_mounted):
            write_stay(self._folder, luks_uuid, stay.sequence, eject=new[0], was_mounted=new[1])
            stay.eject, stay.was_mounted = new

    def forget(self, luks_uuid: str) -> None:
        """The disk was pulled."""
        stay = self._stays.pop(luks_uuid, None)
        if stay is not None and stay.mounting is not None:
            stay.mounting.cancel()

    def forget_others(self, here: set[str]) -> None:
        """Forget all but the disks *here* (LUKS UUIDs)."""
        for gone in set(self._stays) - here:
            self.forget(gone)

    def retry(self) -> None:
        """Try everything that failed again."""
        for stay in self._stays.values():
            stay.retry()
