"""The slot map: which volume of which magazine has which slot, for ever.

Kept in `state_dir/slots.json`: `{"format": 1, "magazines": {IDENTITY: {"name": NAME, "slots": {VOLUME: SLOT}}}}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.changer.inventory import legal_name
from appliance.errors import MagbayError
from appliance.host.files import write_atomic

SLOT_MAP = "slots.json"
_FORMAT = 1
_NUMBER = re.compile(r"[0-9]{1,9}$")

# Identity of a magazine and name of a volume on it.
Key = tuple[str, str]


@dataclass(frozen=True)
class SlotMap:
    """*slots*: volume to slot (from 1); *names*: identity of a magazine to the name it last had."""

    slots: Mapping[Key, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def place(
        self,
        volumes: Iterable[Key],
        names: Mapping[str, str],
        most: int,
        ranges: Mapping[str, range] | None = None,
        numbered: bool = False,
    ) -> tuple[SlotMap, tuple[Key, ...]]:
        """Give each of *volumes* that has none the lowest slot that never was given, up to *most*.

        *ranges*: slots that are kept for the magazine of an identity; its volumes come there first. *numbered*: a
        volume whose name ends in the number n comes to the n-th of them. Gives the new map and the volumes that are
        left without a slot. Slots once given do not change.
        """
        slots, used = dict(self.slots), set(self.slots.values())
        ranges = ranges or {}
        kept = {slot for own in ranges.values() for slot in own}
        rest = (slot for slot in range(1, most + 1) if slot not in kept and slot not in used)
        left = []
        for key in volumes:
            if key in slots:
                continue
            own = ranges.get(key[0], range(0))
            wish = _numbered(key[1], own) if numbered else 0
            free = wish if wish and wish not in used else next((slot for slot in own if slot not in used), 0)
            free = free or next(rest, 0)
            if not 0 < free <= most:
                left.append(key)
                continue
            slots[key] = free
            used.add(free)
        placed = {identity for identity, _volume in slots}
        now = {identity: name for identity, name in names.items() if identity in placed}
        return SlotMap(slots, {**self.names, **now}), tuple(left)

    def give(self, key: Key, slot: int, name: str) -> SlotMap:
        """*slot* for the volume *key* on the magazine that is called *name*; nobody else keeps it."""
        others = {other: number for other, number in self.slots.items() if number != slot}
        return SlotMap({**others, key: slot}, {**self.names, key[0]: name})

    def without(self, key: Key) -> SlotMap:
        """The map in which *key* has no slot."""
        return SlotMap({other: slot for other, slot in self.slots.items() if other != key}, self.names)


def read(path: Path) -> SlotMap:
    """The map in *path*; empty when there is none yet. Raises `MagbayError` for a damaged file, `OSError`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return SlotMap()
    try:
        return _parse(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MagbayError(
            f"{path}: the slot map is damaged ({error or type(error).__name__})",
            hint="Put the file back from a backup. Without one, remove it: the volumes of the attached magazines then "
            "get new slots in order of magazine and name, and 'update slots' tells the Director.",
        ) from None


def write(path: Path, slot_map: SlotMap) -> None:
    """Keep *slot_map* in *path*, durably. Raises `OSError`."""
    magazines: dict[str, Any] = {identity: {"name": name, "slots": {}} for identity, name in slot_map.names.items()}
    for (identity, volume), slot in sorted(slot_map.slots.items(), key=lambda item: item[1]):
        magazines[identity]["slots"][volume] = slot
    text = json.dumps({"format": _FORMAT, "magazines": magazines}, indent=1)
    # Nothing in it is secret; who may see it is said by the directory. A daemon's user reads it to answer by itself.
    write_atomic(path, text.encode() + b"\n", mode=0o644)


def _numbered(volume: str, own: range) -> int:
    """The slot of *own* that the number at the end of *volume* names, 0 for none."""
    match = _NUMBER.search(volume)
    number = int(match[0]) if match else 0
    return own[number - 1] if 1 <= number <= len(own) else 0


def _parse(document: Any) -> SlotMap:
    if document["format"] != _FORMAT:
        raise ValueError(f"format {document['format']} is not known to this release")
    slots: dict[Key, int] = {}
    names: dict[str, str] = {}
    used: set[int] = set()
    for identity, magazine in document["magazines"].items():
        if not isinstance(magazine["name"], str):
            raise ValueError(f"magazine {identity} has no name")
        names[identity] = magazine["name"]
        for volume, slot in magazine["slots"].items():
            if not legal_name(volume) or type(slot) is not int or slot < 1:
                raise ValueError(f"{volume!r} with slot {slot!r}")
            if slot in used:
                raise ValueError(f"slot {slot} is given twice")
            slots[identity, volume] = slot
            used.add(slot)
    return SlotMap(slots, names)
