"""Configuration of what is watched over time: which magazine is due in which bay, and how healthy the disks are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from zoneinfo import ZoneInfo

from appliance.config.kinds import NAME, Choice, Integer, ListOf, MapOf, Record, Text, YesNo, setting

_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}")


class Weekday(Enum):
    """A day of the week; the order is that of `datetime.date.weekday`."""

    MONDAY = "monday"
    TUESDAY = "tuesday"
    WEDNESDAY = "wednesday"
    THURSDAY = "thursday"
    FRIDAY = "friday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"


@dataclass(frozen=True)
class RotationSet:
    """Magazines that take turns in the bays."""

    magazines: tuple[str, ...] = setting(
        ListOf(NAME, least=1), "Magazines that take turns, in this order at first.", example="[offsite-1, offsite-2]"
    )
    due: Weekday | None = setting(
        Choice(Weekday), "Weekday on which the next magazine is due.", default=None, example="friday"
    )
    every_days: int = setting(
        Integer(0, 3660),
        "Instead of a weekday: days after the last change on which the next one is due (0: by weekday).",
        default=0,
        example="0",
    )
    overdue_after: int = setting(
        Integer(1, 366), "Days after the due day from which the change is overdue.", default=2, example="2"
    )

    def __post_init__(self) -> None:
        if (self.due is None) == (self.every_days == 0):
            raise ValueError("wants either due (a weekday) or every_days (a number of days)")


@dataclass(frozen=True)
class RotationConfig:
    """The rotation plan. It only tells people: nothing is ever deleted or overwritten because of it."""

    timezone: str = setting(
        Text("a time zone such as Europe/Berlin", _ZONE),
        "Time zone in which a day begins; that of the machine if not set.",
        default="",
        example="Europe/Berlin",
    )
    sets: Mapping[str, RotationSet] = setting(
        MapOf(Record(RotationSet)), "Sets of magazines that take turns, by name.", default={}
    )

    def __post_init__(self) -> None:
        if self.timezone:
            try:
                ZoneInfo(self.timezone)
            except (KeyError, ValueError, OSError):
                raise ValueError(f"timezone: no zone of this machine is called {self.timezone}") from None
        names = [name for item in self.sets.values() for name in item.magazines]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"sets: magazine {name} stands there twice")


@dataclass(frozen=True)
class HealthConfig:
    """What is made of the health that a disk tells of itself (SMART)."""

    refuse_failing: bool = setting(
        YesNo(),
        "Whether a magazine on a disk that is failing is offered for reading only.",
        default=True,
        example="yes",
    )
    bad_sectors: int = setting(
        Integer(0, 1_000_000),
        "Sectors that may go bad since a disk was first seen; with more it is failing.",
        default=8,
        example="8",
    )
