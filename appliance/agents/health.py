"""The media agent's part in the health of disks: has each magazine's disk read at its plug, and judges it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.host.api import Host
from appliance.host.files import names_in
from appliance.magazines.health import UNKNOWN, Condition, FirstSeen, Health, judge, parse
from appliance.magazines.media import READ_ONLY
from appliance.magazines.reports import DiskReport
from appliance.magazines.states import State

# Where magbay-health@.service leaves what smartctl said, one file for each plug of a disk.
ANSWERS = Path("/run/magbay-health")
_AGAIN = 6 * 3600.0  # seconds until a disk that stays in its bay is read again
_PATIENCE = 60.0  # seconds until a disk that has not answered counts as one that does not
_AT_ONCE = 4  # requests to the service manager that are under way
_CROWD = 2  # disks that are new or on their way to being mounted; with more of them opening comes first
_NEW = 10.0  # seconds since it was seen first in which a disk counts as new: others may follow
_LATEST = 180.0  # seconds that a disk waits at most for its turn in a crowd
_RESTING = (State.EJECTING, State.SAFE)
_HINT = "Its volumes can still be read: copy them, and replace the disk."


class HealthWatch:
    """Called after each look at the disks."""

    def __init__(self, config: Config, host: Host, answers: Path = ANSWERS) -> None:
        self.config, self._host, self._answers = config, host, answers
        self._asked: dict[int, float] = {}  # plug number to when
        self._seen: dict[int, float] = {}  # the same of the first look at it
        self._known: dict[int, tuple[int, Health]] = {}  # plug number to mark of the answer, and what it said
        self._told: set[tuple[int, Condition]] = set()
        self._first = FirstSeen(config.state_dir)
        self._markers = config.run_dir / READ_ONLY
        self._few = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def taken_in(self, reports: Iterable[DiskReport]) -> tuple[DiskReport, ...]:
        """*reports* with the health of their disks. What is failing is read-only, and says why."""
        found, everything = [], tuple(reports)
        crowded, markers = self._arriving(everything) > _CROWD, names_in(self._markers)
        for report in everything:
            if not report.magazine or not report.filesystem_uuid or not report.sequence:
                found.append(report)
                continue
            self._ask(report, crowded=crowded)
            health = self._of(report)
            self._tell(report, health)
            found.append(self._applied(report, health, marked=report.filesystem_uuid in markers))
        here = {report.sequence for report in found}
        for number in set(self._seen) - here:
            del self._seen[number]
            self._asked.pop(number, None)
            self._known.pop(number, None)
        self._told = {item for item in self._told if item[0] in here}
        return tuple(found)

    def _arriving(self, reports: Iterable[DiskReport]) -> int:
        """How many magazines are new in their bay or on their way to being mounted."""
        now = self._host.clock.now()
        return sum(
            report.busy or 0 <= now - self._seen.get(report.sequence, now) < _NEW
            for report in reports
            if report.filesystem_uuid and report.sequence
        )

    def _ask(self, report: DiskReport, *, crowded: bool) -> None:
        number, now = report.sequence, self._host.clock.now()
        seen = self._seen.setdefault(number, now)
        if number not in self._asked and (self._answers / f"{number}.json").exists():
            self._asked[number] = now  # by an agent before this one
        asked = self._asked.get(number)
        if asked is None:
            # A disk that was ejected has stopped its motor.
            due = report.state not in _RESTING and (not crowded or now - seen > _LATEST)
        else:
            # Later only while it is in use: a disk that rests is not woken for that.
            due = report.state is State.MOUNTED and now - asked > _AGAIN
        if not due:
            return
        self._asked[number] = now
        # Beside the agent's own work: unlocking does not wait for it.
        task = asyncio.create_task(self._start(number, report.magazine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, number: int, magazine: str) -> None:
        async with self._few:
            try:
                await self._host.units.start_unit(f"magbay-health@{number}.service")
            except MagbayError as error:
                text = f"the health of magazine {magazine} cannot be asked for: {error.message}"
                self._host.journal.send(text, priority=4, MAGAZINE=magazine)

    def _of(self, report: DiskReport) -> Health:
        path = self._answers / f"{report.sequence}.json"
        _mark, before = self._known.get(report.sequence, (0, UNKNOWN))
        try:
            mark = path.stat().st_mtime_ns
            if mark == _mark:
                return before
            read = parse(path.read_text(encoding="utf-8", errors="replace"))
            if read is None:
                return before
            more = self._first.since(report.luks_uuid, read)
        except OSError:
            return before
        health = judge(read, more, self.config.health.bad_sectors)
        self._known[report.sequence] = (mark, health)
        return health

    def _applied(self, report: DiskReport, health: Health, *, marked: bool) -> DiskReport:
        """*report* with *health*, and the marker for autofs as it follows from that; *marked*: there is one."""
        asked = self._asked.get(report.sequence)
        waiting = asked is None or self._host.clock.now() - asked < _PATIENCE
        if report.sequence not in self._known and waiting:
            # No answer yet: what was failing at its last stay still counts as that.
            refused, reason = marked, "only for reading until its health is known: the disk was failing"
        else:
            refused = health.condition is Condition.FAILING and self.config.health.refuse_failing
            reason = f"only for reading, the disk is failing: {health.reason}"
            if refused and not marked:
                self._markers.mkdir(exist_ok=True)
                (self._markers / report.filesystem_uuid).touch()
            elif marked and not refused:
                (self._markers / report.filesystem_uuid).unlink(missing_ok=True)
        if not refused or report.state is State.FAILED:
            return dataclasses.replace(report, health=health)
        return dataclasses.replace(
            report,
            health=health,
            read_only=True,
            reason=f"{report.reason}; {reason}" if report.reason else reason,
            hint=report.hint or _HINT,
        )

    def _tell(self, report: DiskReport, health: Health) -> None:
        key = (report.sequence, health.condition)
        if health.condition not in (Condition.FAILING, Condition.WORN) or key in self._told:
            return
        self._told.add(key)
        failing = health.condition is Condition.FAILING
        self._host.journal.send(
            f"the disk of magazine {report.magazine} ({report.node}) is {health.condition.value}: {health.reason}",
            priority=3 if failing else 4,
            MAGAZINE=report.magazine,
            DISK=report.node,
            SERIAL=report.serial,
            HEALTH=health.condition.value,
            REASON=health.reason,
        )
