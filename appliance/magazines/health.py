"""The health that a disk tells of itself (SMART), from the JSON of smartctl(8).

Names and units are those of smartctl's JSON (version 1, smartmontools 7). A disk without SMART, as behind many USB
bridges, is unknown and not failing. Reading a magazine is never refused because of its health.

`state_dir/health.json` keeps the counts of bad sectors that each disk had when it was first read:
`{"format": 1, "disks": {LUKS UUID: {"serial": TEXT, "bad": NUMBER}}}`; what counts is how many have come since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from appliance.host.files import write_atomic

FIRST_SEEN = "health.json"
_FORMAT = 1
# Bits of smartctl's exit status, smartctl(8): the device could not be opened; it says that it is failing.
_NOT_OPENED, _FAILING = 1 << 1, 1 << 3
# Additional sense codes that a SCSI disk gives for its health (SPC-4, table F.1).
_FAILURE_PREDICTED = 0x5D
_WARNING = 0x0B
# Attributes of ATA disks: sectors that were replaced, wait for it, could not be read at all.
_REALLOCATED, _PENDING, _UNCORRECTABLE = 5, 197, 198
# Attributes whose normalised value counts down from 100 as flash wears out, the most telling first.
_WEAR = (231, 233, 202, 177, 173)
# Bits of the critical warning of an NVMe disk (NVM Express base specification, SMART log page).
_NVME_WARNINGS = {
    0: "its spare blocks are used up",
    1: "it is too hot or too cold",
    2: "it is no longer reliable",
    3: "it takes no more data",
    4: "its power-loss protection has failed",
}
_NVME_HARMLESS = 1 << 1  # a temperature passes


class Condition(Enum):
    """How a disk is."""

    GOOD = "good"
    WORN = "worn"  # usable, and worth replacing soon
    FAILING = "failing"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Health:
    """What is known of a disk. Numbers are None where the disk does not tell them. *wear*: percent of its life."""

    condition: Condition
    reason: str = ""
    hours: int | None = None  # power-on hours
    wear: int | None = None
    temperature: int | None = None  # degrees Celsius
    reallocated: int | None = None
    pending: int | None = None
    uncorrectable: int | None = None
    serial: str = ""

    @property
    def bad(self) -> int:
        """Sectors that were replaced or cannot be read."""
        return (self.reallocated or 0) + (self.pending or 0) + (self.uncorrectable or 0)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        names = ("reason", "hours", "wear", "temperature", "reallocated", "pending", "uncorrectable")
        return {"condition": self.condition.value} | {name: getattr(self, name) for name in names}


UNKNOWN = Health(Condition.UNKNOWN, "it has not been read yet")


def parse(text: str) -> Health | None:
    """The health in a document of smartctl; None when *text* is not a whole one (it is still being written)."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _read(Node(found)) if isinstance(found, dict) else None


@dataclass(frozen=True)
class Node:
    """A part of a document that may lack anything or have it in another type."""

    value: Any

    def at(self, *keys: str) -> Node:
        """What is below *keys*."""
        value = self.value
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return Node(value)

    def number(self) -> int | None:
        """A whole number, or None."""
        value = self.value
        return (
            int(value)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18
            else None
        )

    def text(self) -> str:
        """A text, or an empty one."""
        return self.value if isinstance(self.value, str) else ""

    def items(self) -> list[Node]:
        """The entries of a list."""
        return [Node(item) for item in self.value] if isinstance(self.value, list) else []


def _read(found: Node) -> Health:
    status = found.at("smartctl", "exit_status").number() or 0
    attributes = {item.at("id").number(): item for item in found.at("ata_smart_attributes", "table").items()}
    facts = {
        "hours": found.at("power_on_time", "hours").number(),
        "temperature": found.at("temperature", "current").number(),
        "serial": found.at("serial_number").text(),
        "wear": _wear(found, attributes),
        "reallocated": _first(_raw(attributes, _REALLOCATED), found.at("scsi_grown_defect_list").number()),
        "pending": _raw(attributes, _PENDING),
        "uncorrectable": _first(
            _raw(attributes, _UNCORRECTABLE), found.at("nvme_smart_health_information_log", "media_errors").number()
        ),
    }
    if status & _NOT_OPENED:
        words = [item.at("string").text() for item in found.at("smartctl", "messages").items()]
        return Health(Condition.UNKNOWN, next(filter(None, words), "it cannot be asked"), **facts)  # type: ignore[arg-type]
    condition, reason = _condition(found, status, attributes)
    return Health(condition, reason, **facts)  # type: ignore[arg-type]


def _first(*numbers: int | None) -> int | None:
    return next((number for number in numbers if number is not None), None)


def _raw(attributes: Mapping[int | None, Node], number: int) -> int | None:
    return attributes[number].at("raw", "value").number() if number in attributes else None


def _wear(found: Node, attributes: Mapping[int | None, Node]) -> int | None:
    told = _first(
        found.at("nvme_smart_health_information_log", "percentage_used").number(),
        found.at("scsi_percentage_used_endurance_indicator").number(),
        found.at("endurance_used", "current_percent").number(),
    )
    if told is not None:
        return told
    if found.at("rotation_rate").number() != 0:
        return None  # these attributes mean other things on disks that turn
    left = (attributes[number].at("value").number() for number in _WEAR if number in attributes)
    return next((100 - value for value in left if value is not None and 0 <= value <= 100), None)


def _condition(found: Node, status: int, attributes: Mapping[int | None, Node]) -> tuple[Condition, str]:
    passed = found.at("smart_status", "passed").value
    scsi = found.at("smart_status", "scsi")
    code, words = scsi.at("asc").number(), scsi.at("ie_string").text().lower()
    warnings = (
        found.at("nvme_smart_health_information_log", "critical_warning").number()
        or found.at("smart_status", "nvme", "value").number()
    )
    now = [item.at("name").text() for item in attributes.values() if item.at("when_failed").text() == "now"]
    if code == _FAILURE_PREDICTED:
        return Condition.FAILING, f"it predicts its failure ({words or 'SCSI sense code 5D'})"
    if warnings and warnings & ~_NVME_HARMLESS:
        return Condition.FAILING, ", ".join(text for bit, text in _NVME_WARNINGS.items() if warnings >> bit & 1)
    if now:
        return Condition.FAILING, f"below the maker's threshold: {', '.join(now)}"
    failed = passed is False or (passed is None and bool(status & _FAILING))
    if failed and code != _WARNING and not warnings:
        return Condition.FAILING, "its own overall verdict is FAILED"
    if passed is None and code is None:
        return Condition.UNKNOWN, "it does not tell its health"
    if code == _WARNING or warnings:
        return Condition.WORN, f"it warns ({words or _NVME_WARNINGS[1]})"
    return Condition.GOOD, ""


@dataclass
class FirstSeen:
    """The counts of bad sectors when each disk was read for the first time."""

    state_dir: Path
    _known: dict[str, tuple[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            found = json.loads((self.state_dir / FIRST_SEEN).read_bytes())
            self._known = {str(k): (str(v["serial"]), int(v["bad"])) for k, v in found["disks"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._known = {}  # absent or damaged: what is seen next is the first

    def since(self, luks_uuid: str, health: Health) -> int:
        """How many bad sectors came since the disk was first read, noting a first time. Raises `OSError`."""
        known = self._known.get(luks_uuid)
        if health.condition is Condition.UNKNOWN:
            return 0
        if known is None or known[0] != health.serial:
            self._known[luks_uuid] = (health.serial, health.bad)
            disks = {uuid: {"serial": serial, "bad": bad} for uuid, (serial, bad) in sorted(self._known.items())}
            text = json.dumps({"format": _FORMAT, "disks": disks}, indent=1)
            write_atomic(self.state_dir / FIRST_SEEN, text.encode() + b"\n", mode=0o644)
            return 0
        return max(0, health.bad - known[1])


def judge(health: Health, more_bad: int, most_bad: int) -> Health:
    """*health* with *more_bad* sectors gone bad since it was first read taken in; more than *most_bad* is failing."""
    if health.condition is Condition.FAILING or not more_bad:
        return health
    failing = more_bad > most_bad
    reason = f"{more_bad} sector{'s' if more_bad > 1 else ''} went bad since it was first seen"
    condition = Condition.FAILING if failing else Condition.WORN
    return replace(health, condition=condition, reason=reason)
