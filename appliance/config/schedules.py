"""The configuration of when jobs run, and of what happens around them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

import yaml

from appliance.config.kinds import Choice, Duration, Integer, ListOf, Record, Size, Text, Where, scalar, setting

_SHORT = frozenset(
    {"minutely", "hourly", "daily", "monthly", "weekly", "yearly", "annually", "quarterly", "semiannually"}
)
_DAY = "(?:mon|tue|wed|thu|fri|sat|sun)"
_LONG_DAY = "(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday)"
_DAYS = re.compile(rf"(?:{_LONG_DAY}|{_DAY})(?:(?:,|\.\.|-)(?:{_LONG_DAY}|{_DAY}))*,?", re.IGNORECASE)
_ONE = r"(?:\*|\d{1,4}(?:\.\.\d{1,4})?)(?:/\d{1,3})?"
_MANY = rf"{_ONE}(?:,{_ONE})*"
_DATE = re.compile(rf"(?:{_MANY}-)?{_MANY}[-~]{_MANY}")
_TIME = re.compile(rf"{_MANY}:{_MANY}(?::{_MANY}(?:\.\d+)?)?")
_ZONE = re.compile(r"UTC|[A-Z][A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+")


class JobLevel(Enum):
    """How much a backup saves."""

    FULL = "full"
    DIFFERENTIAL = "differential"
    INCREMENTAL = "incremental"


def is_calendar(text: str) -> bool:
    """Whether *text* has the form of systemd's calendar events (systemd.time(7)): what of it is never reached is not
    found out, which `systemd-analyze calendar` does."""
    words = text.split()
    if len(words) == 1 and words[0].lower() in _SHORT:
        return True
    if words and words[-1].lower() not in _SHORT and len(words) > 1 and _ZONE.fullmatch(words[-1]):
        words.pop()
        if len(words) == 1 and words[0].lower() in _SHORT:
            return True
    found = 0
    for form in (_DAYS, _DATE, _TIME):
        if words and form.fullmatch(words[0]):
            words.pop(0)
            found += 1
    return found > 0 and not words and _possible(text)


def _possible(text: str) -> bool:
    """Hours, minutes and seconds within their bounds."""
    for match in re.finditer(r"(?<![\d:.,/-])(\d{1,4}):(\d{1,4})(?::(\d{1,4}))?", text):
        hour, minute, second = int(match[1]), int(match[2]), int(match[3] or 0)
        if hour > 23 or minute > 59 or second > 59:
            return False
    return True


@dataclass(frozen=True)
class Calendar:
    """A calendar event of systemd."""

    def read(self, node: yaml.Node, where: Where) -> str:
        text = scalar(node, where, "a time").strip()
        if not is_calendar(text):
            hint = "'systemd-analyze calendar' tells whether an expression is one (systemd.time(7))."
            raise where.error(node, f"wants a time such as 'Sun 02:00' or 'daily', got {text[:60]!r}", hint)
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True)
class ScheduleConfig:
    """One time at which a job runs."""

    at: str = setting(Calendar(), "When, as a calendar event of systemd.time(7).", example="Sun 02:00")
    level: JobLevel | None = setting(
        Choice(JobLevel), "Level of these runs; the job's if not set.", default=None, example="full"
    )
    delay: int = setting(Duration(), "Begin at a random moment within so long.", default=0, example="10m")


class HookFailure(Enum):
    """What a failed command means for the job."""

    FAIL = "fail"
    WARN = "warn"


_COMMANDS = ListOf(Text("a command"))


@dataclass(frozen=True)
class HooksConfig:
    """Commands around a job: run by /bin/sh as the job's user, with facts of the job in MAGBAY_… variables."""

    before: tuple[str, ...] = setting(
        _COMMANDS, "Commands that run before it.", default=(), example='["/usr/local/bin/dump-database"]'
    )
    after: tuple[str, ...] = setting(
        _COMMANDS, "Commands that run after it, however it ended.", default=(), example='["rm -f /var/tmp/dump"]'
    )
    failure: HookFailure = setting(
        Choice(HookFailure),
        "Whether a command that fails means that the job fails (before: it does not start), or a warning.",
        default=HookFailure.FAIL,
        example="fail",
    )
    timeout: int = setting(Duration(), "A command that takes longer is ended.", default=600, example="10m")


@dataclass(frozen=True)
class LimitsConfig:
    """What a job may take of the machine, when systemd runs it (systemd.resource-control(5))."""

    cpu_weight: int = setting(Integer(0, 10000), "CPUWeight; 0: not set.", default=0, example="50")
    cpu_quota: int = setting(Integer(0, 100_000), "CPUQuota in percent of one CPU; 0: not set.", default=0, example="0")
    io_weight: int = setting(Integer(0, 10000), "IOWeight; 0: not set.", default=0, example="50")
    write_bandwidth: int | None = setting(
        Size(1), "Bytes a second written to each magazine (IOWriteBandwidthMax).", default=None, example="80MB"
    )
    memory: int | None = setting(Size(1 << 26), "MemoryMax.", default=None, example="512MiB")


SCHEDULES = ListOf(Record(ScheduleConfig))
