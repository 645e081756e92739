"""What the replies of a Director say, as data: the table of volumes, the state of the drives, running jobs.

Observed with Bacula 9.6.7; Bareos prints the same words, column names in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from appliance.errors import MagbayError

_JOB = re.compile(r"^(?:Writing|Reading):\s+.*?\bjob (\S+) JobId=(\d+)")
_JOB_DEVICE = re.compile(r'\bdevice="([^"]+)"')
# `Device File: "x" (path) is not open.` or, while it works, `Device File is "x" (path) waiting for:`
_DEVICE = re.compile(r'^Device [^:"]*(?::| is) "([^"]+)"(?: \(([^)]*)\))?')
# Of an idle drive: what the storage daemon believes to be in it. Bareos: "Slot 6 is loaded in drive 0."
_LOADED = re.compile(r"^\s+Slot (\d+) (?:was last|is) loaded in drive \d+", re.MULTILINE)
_DRIVE = re.compile(r"\bdrive (\d+)\b", re.IGNORECASE)
_BLOCKED_VOLUME = re.compile(r'BLOCKED waiting for mount of volume "([^"]*)"')
_POOL = re.compile(r"^\s+Pool:\s+(.+?)\s*$")


@dataclass(frozen=True)
class CatalogVolume:
    """One row of the Director's table of volumes."""

    name: str
    pool: str
    status: str  # Append, Full, Used, Recycle, Purged, Error, …
    enabled: bool
    slot: int
    in_changer: bool
    media_type: str


class Waiting(Enum):
    """What a blocked drive waits for."""

    VOLUME = "volume"  # a named one
    APPENDABLE = "appendable"  # any of its pool that can be written


@dataclass(frozen=True)
class Blocked:
    """A drive whose job waits. *volume* is empty for `Waiting.APPENDABLE`; *drive* is -1 when the text hides it."""

    device: str
    drive: int
    waiting: Waiting
    volume: str
    pool: str
    job: str = ""
    job_id: int = 0


@dataclass(frozen=True)
class StorageStatus:
    """*blocked* drives, the names of all devices that a job uses (blocked ones too), and what is *loaded*: device
    to slot, of the drives that the storage daemon does not believe empty and that nobody blocked or unmounted."""

    blocked: tuple[Blocked, ...]
    busy: frozenset[str]
    devices: tuple[str, ...]
    paths: tuple[str, ...]  # the Archive Device of each
    loaded: Mapping[str, int] = field(default_factory=dict)


def volumes(reply: str) -> dict[str, CatalogVolume]:
    """The volumes in the reply to `list volumes`, by name."""
    found = {}
    pool, header = "", list[str]()
    for line in reply.splitlines():
        if line.startswith("Pool:"):
            pool, header = line[5:].strip(), []
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not header:
                header = [cell.lower() for cell in cells]
            elif len(cells) == len(header) and "volumename" in header:
                volume = _volume(dict(zip(header, cells, strict=True)), pool)
                found[volume.name] = volume
    return found


def _volume(row: dict[str, str], pool: str) -> CatalogVolume:
    return CatalogVolume(
        name=row["volumename"],
        pool=row.get("pool", pool),
        status=row.get("volstatus", ""),
        enabled=row.get("enabled", "1") not in ("0", "no"),
        slot=_number(row.get("slot", "0")),
        in_changer=row.get("inchanger", "0") in ("1", "yes"),
        media_type=row.get("mediatype", ""),
    )


def _number(text: str) -> int:
    digits = text.replace(",", "")
    return int(digits) if digits.isdigit() else 0


def names(reply: str) -> frozenset[str]:
    """The names in the reply to `.storage` or `.pools`: a line each."""
    return frozenset(line.strip() for line in reply.splitlines())


def storage_status(reply: str) -> StorageStatus:
    """The reply to `status storage=…`. Raises `MagbayError` when the storage daemon did not give it."""
    if "Device status:" not in reply:
        raise MagbayError(
            "the Director does not reach the storage daemon",
            hint="Is it running, and are Address, port and Password of the Storage resource right?",
        )
    jobs = dict(_jobs(reply))
    blocked, devices, paths, loaded = [], [], [], {}
    for device, path, text in _device_paragraphs(reply):
        devices.append(device)
        paths.append(path)
        if (slot := _loaded_slot(text)) and not any("BLOCKED" in line for line in text):
            loaded[device] = slot
        found = _blocked(device, text)
        if found is not None:
            name, number = jobs.get(device, ("", 0))
            blocked.append(Blocked(device, found[0], found[1], found[2], found[3], name, number))
    return StorageStatus(tuple(blocked), frozenset(jobs), tuple(devices), tuple(paths), loaded)


def _jobs(reply: str) -> Iterator[tuple[str, tuple[str, int]]]:
    """Device and (job, JobId) of the running jobs."""
    job: tuple[str, int] | None = None
    for line in reply.splitlines():
        if match := _JOB.match(line):
            job = (match[1], int(match[2]))
        elif job and (match := _JOB_DEVICE.search(line)):
            yield match[1], job
            job = None


def _device_paragraphs(reply: str) -> Iterator[tuple[str, str, list[str]]]:
    """Name, Archive Device and the lines about it, of each device."""
    device, path, lines = "", "", list[str]()
    for line in reply.splitlines():
        match = _DEVICE.match(line)
        if (match or line.startswith("==")) and device:
            yield device, path, lines
            device = ""
        if match:
            device, path, lines = match[1], match[2] or "", []
        elif device:
            lines.append(line)


def _loaded_slot(lines: list[str]) -> int:
    match = _LOADED.search("\n".join(lines))
    return int(match[1]) if match else 0


def _blocked(device: str, lines: list[str]) -> tuple[int, Waiting, str, str] | None:
    text = "\n".join(lines)
    if match := _BLOCKED_VOLUME.search(text):
        waiting, volume = Waiting.VOLUME, match[1]
    elif "BLOCKED waiting to create a volume" in text or "BLOCKED waiting for media" in text:
        waiting, volume = Waiting.APPENDABLE, ""
    else:
        # Among the rest is "BLOCKED: user unmounted": somebody wants it so.
        return None
    pool = next((match[1] for line in lines if (match := _POOL.match(line))), "")
    # "Drive 1 is not loaded." or "Slot 6 was last loaded in drive 0."; else the name that our own piece gives.
    drive = _DRIVE.search(text) or re.search(r"-(\d+)$", device)
    return (int(drive[1]) if drive else -1), waiting, volume, pool
