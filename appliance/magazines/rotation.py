"""The rotation plan: which magazine is where since when, and which one is due in a bay.

All arithmetic is on calendar days of one time zone, so an hour more or less in a night changes nothing. The plan only
tells; no room below or above deletes or overwrites anything because of it.

`state_dir/rotation.json` is kept by the media agent: `{"format": 1, "magazines": {FILE-SYSTEM UUID: {"came": UNIX
SECONDS or null, "left": UNIX SECONDS or null}}, "told": {SET: TEXT}}`; `left` is null while it is in a bay.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import Enum
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from appliance.config.care import RotationConfig, RotationSet, Weekday
from appliance.config.schema import Enrolment
from appliance.host.files import write_atomic

HISTORY = "rotation.json"
_FORMAT = 1
_WEEK = 7


class Place(Enum):
    """Where a magazine of the plan is."""

    IN_BAY = "in bay"
    OUT = "out"
    NEVER = "never seen"
    UNKNOWN = "not enrolled"


class Standing(Enum):
    """How a set stands."""

    WAITING = "waiting"  # until the due day
    DUE = "due"
    OVERDUE = "overdue"
    COMPLETE = "complete"  # all of its magazines are in bays: nothing can be changed


@dataclass(frozen=True)
class Stay:
    """The last coming and leaving of a magazine, Unix seconds; *left* is None while it is in a bay."""

    came: float | None = None
    left: float | None = None


@dataclass
class History:
    """What is remembered of all magazines, and which notices were given."""

    stays: dict[str, Stay] = field(default_factory=dict)  # by file-system UUID
    told: dict[str, str] = field(default_factory=dict)  # by set: day and standing

    def document(self) -> dict[str, Any]:
        """For JSON."""
        stays = {uuid: {"came": stay.came, "left": stay.left} for uuid, stay in sorted(self.stays.items())}
        return {"format": _FORMAT, "magazines": stays, "told": dict(sorted(self.told.items()))}


@dataclass(frozen=True)
class Member:
    """A magazine of a set. *since*: Unix seconds of its coming or leaving. *next*: it is the one to be brought."""

    name: str
    place: Place
    since: float | None
    next: bool


@dataclass(frozen=True)
class SetPlan:
    """A set at one moment. *due*: the day of the next change; *overdue*: the first day on which it is overdue."""

    name: str
    standing: Standing
    due: date | None
    overdue: date | None
    members: tuple[Member, ...]

    @property
    def wanted(self) -> str:
        """The magazine that is to be brought; empty when there is none."""
        return next((member.name for member in self.members if member.next), "")

    def sentence(self) -> str:
        """For people."""
        day = f"{self.due:%A, %Y-%m-%d}" if self.due else "now"
        if self.standing is Standing.COMPLETE:
            return f"set {self.name}: all its magazines are in bays"
        if self.standing is Standing.WAITING:
            return f"set {self.name}: magazine {self.wanted} is due on {day}"
        if self.standing is Standing.DUE:
            return f"set {self.name}: insert magazine {self.wanted}, due {day}"
        return f"set {self.name}: insert magazine {self.wanted}, overdue: it was due on {day}"

    def document(self) -> dict[str, Any]:
        """For JSON: days as ISO 8601 dates, moments as ISO 8601 in UTC."""
        members = [
            {"magazine": m.name, "place": m.place.value, "since": _moment(m.since), "next": m.next}
            for m in self.members
        ]
        return {
            "set": self.name,
            "standing": self.standing.value,
            "wanted": self.wanted,
            "due": self.due.isoformat() if self.due else None,
            "overdue_from": self.overdue.isoformat() if self.overdue else None,
            "sentence": self.sentence(),
            "magazines": members,
        }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_history(state_dir: Path) -> History:
    """The history. A damaged file is an empty one: the plan then begins anew, and nothing else depends on it."""
    try:
        found = json.loads((state_dir / HISTORY).read_bytes())
        stays = {
            str(uuid): Stay(_seconds(item["came"]), _seconds(item["left"])) for uuid, item in found["magazines"].items()
        }
        return History(stays, {str(name): str(text) for name, text in found["told"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return History()


def _seconds(value: Any) -> float | None:
    return None if value is None else float(value)


def keep_history(state_dir: Path, history: History) -> None:
    """Write *history* durably. Raises `OSError`."""
    write_atomic(state_dir / HISTORY, json.dumps(history.document(), indent=1).encode() + b"\n", mode=0o644)


def note(
    history: History, here: Collection[str], now: float, config: RotationConfig, enrolments: Iterable[Enrolment]
) -> bool:
    """Take into *history* which magazines (file-system UUIDs) are in a bay at *now*; whether anything changed.

    The magazine that was brought last and only comes back, with no other of its set in between, was not changed: its
    turn goes on.
    """
    changed = False
    by_name = {enrolment.name: enrolment.filesystem_uuid for enrolment in enrolments}
    partners = {}
    for item in config.sets.values():
        uuids = [by_name[name] for name in item.magazines if name in by_name]
        partners.update({uuid: uuids for uuid in uuids})
    for uuid in sorted(set(history.stays) | set(here)):
        stay = history.stays.get(uuid, Stay(left=now))
        if uuid in here and (stay.left is not None or stay.came is None):
            same = len(partners.get(uuid, ())) > 1 and uuid == _current(partners[uuid], history)
            history.stays[uuid] = Stay(stay.came if same else now)
        elif uuid not in here and stay.left is None:
            history.stays[uuid] = Stay(stay.came, now)
        else:
            continue
        changed = True
    return changed


def _current(uuids: Iterable[str], history: History) -> str:
    """The magazine of a set that was brought last; empty when none ever was."""
    came = {uuid: history.stays[uuid].came or 0.0 for uuid in uuids if uuid in history.stays}
    return max(came, key=lambda uuid: came[uuid], default="")


def zone(config: RotationConfig) -> tzinfo | None:
    """The time zone of the plan; None is the machine's own."""
    return ZoneInfo(config.timezone) if config.timezone else None


def plan(config: RotationConfig, enrolments: Iterable[Enrolment], history: History, now: float) -> tuple[SetPlan, ...]:
    """Every set at the moment *now* (Unix seconds)."""
    by_name = {enrolment.name: enrolment.filesystem_uuid for enrolment in enrolments}
    where = zone(config)
    return tuple(
        _plan(name, item, by_name, history, datetime.fromtimestamp(now, where).date(), where)
        for name, item in config.sets.items()
    )


def _plan(
    name: str, item: RotationSet, by_name: Mapping[str, str], history: History, today: date, where: tzinfo | None
) -> SetPlan:
    stays = {magazine: history.stays.get(by_name.get(magazine, ""), Stay()) for magazine in item.magazines}
    places = {magazine: _place(magazine in by_name, stays[magazine]) for magazine in item.magazines}
    out = [magazine for magazine, place in places.items() if place in (Place.OUT, Place.NEVER)]
    # Whose turn it is: who was in a bay the longest ago; the order of the configuration among those who never were.
    wanted = min(out, key=lambda magazine: stays[magazine].came or 0.0, default="")
    came = [stay.came for stay in stays.values() if stay.came is not None]
    due = overdue = None
    if not wanted:
        standing = Standing.COMPLETE
    elif not came:
        standing = Standing.DUE
    else:
        due = due_after(item, datetime.fromtimestamp(max(came), where).date())
        overdue = due + timedelta(days=item.overdue_after)
        standing = Standing.WAITING if today < due else Standing.DUE if today < overdue else Standing.OVERDUE
    members = tuple(
        Member(magazine, places[magazine], _since(places[magazine], stays[magazine]), magazine == wanted)
        for magazine in item.magazines
    )
    return SetPlan(name, standing, due, overdue, members)


def _place(enrolled: bool, stay: Stay) -> Place:
    if not enrolled:
        return Place.UNKNOWN
    if stay.came is None:
        return Place.NEVER
    return Place.IN_BAY if stay.left is None else Place.OUT


def _since(place: Place, stay: Stay) -> float | None:
    return stay.came if place is Place.IN_BAY else stay.left if place is Place.OUT else None


def due_after(item: RotationSet, change: date) -> date:
    """The day on which the next change is due after one on the day *change*: never that day itself."""
    if item.due is None:
        return change + timedelta(days=item.every_days)
    weekday = list(Weekday).index(item.due)
    return change + timedelta(days=(weekday - change.weekday() - 1) % _WEEK + 1)


def news(plans: Iterable[SetPlan], history: History) -> tuple[SetPlan, ...]:
    """The sets that have become due or overdue since that was last told; notes in *history* that it is told now."""
    found = []
    for item in plans:
        text = f"{item.wanted} {item.due} {item.standing.value}"
        if item.standing not in (Standing.DUE, Standing.OVERDUE):
            history.told.pop(item.name, None)
        elif history.told.get(item.name) != text:
            history.told[item.name] = text
            found.append(item)
    return tuple(found)
