"""Volumes in slots that the catalog does not know: which command makes the Director know them.

`label barcodes` without `slots=` would label everything into one pool; so the slots are always named. A file that
holds only a label is added without being written. One that holds data is left alone: it belongs to another catalog,
and the Director would write over what it does not know.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from appliance.config.schema import DirectorConfig
from appliance.director.plan import quoted

# Volumes labelled in one command. Each takes four runs of the changer, and the drive is busy all the while.
MOST_LABELS = 20
# Block header of Bacula's file volumes: CRC32, block length and number (big endian u32 each), then "BB02" or "BB03".
_HEADER = 16
_IDS = (b"BB02", b"BB03")


class Content(Enum):
    """What a volume file holds."""

    EMPTY = "empty"
    LABEL = "label"
    DATA = "data"


@dataclass(frozen=True)
class Newcomer:
    """A volume in *slot* that the catalog does not know."""

    volume: str
    slot: int
    magazine: str
    content: Content


def content(path: Path) -> Content:
    """What the file *path* holds: nothing, one block (the label), or more. Raises `OSError`."""
    size = path.stat().st_size
    if size == 0:
        return Content.EMPTY
    with path.open("rb") as file:
        header = file.read(_HEADER)
    if header[12:16] in _IDS and int.from_bytes(header[4:8], "big") == size:
        return Content.LABEL
    return Content.DATA


def pool_of(item: Newcomer, settings: DirectorConfig) -> str:
    """The pool that *item* belongs into."""
    return settings.pools.get(item.magazine, settings.pool)


def commands(found: Collection[Newcomer], settings: DirectorConfig, drive: int) -> list[tuple[str, ...]]:
    """Sessions (lines each) that label the empty ones and add the labelled ones; *drive* is one that is free."""
    sessions: list[tuple[str, ...]] = []
    for pool, items in _by_pool(found, settings, Content.EMPTY).items():
        for first in range(0, len(items), MOST_LABELS):
            slots = _ranges([item.slot for item in items[first : first + MOST_LABELS]])
            command = (
                f"label storage={quoted(settings.storage)} pool={quoted(pool)} slots={slots} drive={drive} barcodes"
            )
            sessions.append((command, "yes"))
    for pool, items in _by_pool(found, settings, Content.LABEL).items():
        for item in items:
            # How many to create (0: one of this name), its name, its slot, whether it is in the changer.
            sessions.append(
                (f"add pool={quoted(pool)} storage={quoted(settings.storage)}", "0", item.volume, str(item.slot), "yes")
            )
    return sessions


def _by_pool(found: Collection[Newcomer], settings: DirectorConfig, wanted: Content) -> Mapping[str, list[Newcomer]]:
    pools: dict[str, list[Newcomer]] = {}
    for item in sorted(found, key=lambda newcomer: newcomer.slot):
        if item.content is wanted:
            pools.setdefault(pool_of(item, settings), []).append(item)
    return pools


def _ranges(slots: list[int]) -> str:
    """1-3,7 for [1, 2, 3, 7]."""
    parts: list[list[int]] = []
    for slot in slots:
        if parts and slot == parts[-1][-1] + 1:
            parts[-1].append(slot)
        else:
            parts.append([slot])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
