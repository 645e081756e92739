"""The rotation plan: whose turn it is, calendar days across time zones and clock changes, what is told and when."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.agents.changer import ChangerAgent
from appliance.agents.media import MediaAgent
from appliance.agents.rotation import Rotation
from appliance.changer.service import Changer
from appliance.cli.main import main
from appliance.config.care import RotationConfig, RotationSet, Weekday
from appliance.config.loader import load
from appliance.config.schema import Config, Enrolment
from appliance.errors import ConfigError
from appliance.host.simulated import SimulatedDisk, World, simulated_host
from appliance.magazines.prepare import enrol
from appliance.magazines.rotation import (
    History,
    Place,
    Standing,
    due_after,
    keep_history,
    news,
    note,
    plan,
    read_history,
)

BERLIN = ZoneInfo("Europe/Berlin")
OURS = [Enrolment(name, f"0000-{n}", f"1111-{n}") for n, name in enumerate(("a", "b", "c"))]
UUIDS = {item.name: item.filesystem_uuid for item in OURS}


def at(text: str, zone: str = "Europe/Berlin") -> float:
    """Unix seconds of a local time."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def rotation(**more: object) -> RotationConfig:
    item = RotationSet(("a", "b", "c"), **{"due": Weekday.FRIDAY} | more)  # type: ignore[arg-type]
    return RotationConfig("Europe/Berlin", {"offsite": item})


class Shelf:
    """A plan and its history, driven by hand."""

    def __init__(self, config: RotationConfig) -> None:
        self.config, self.history = config, History()

    def bays(self, names: str, when: float) -> bool:
        return note(self.history, {UUIDS[name] for name in names}, when, self.config, OURS)

    def look(self, when: float) -> tuple[Standing, str, str]:
        found = plan(self.config, OURS, self.history, when)[0]
        return found.standing, found.wanted, found.due.isoformat() if found.due else ""


def test_the_turns_of_a_set() -> None:
    shelf = Shelf(rotation())
    assert shelf.look(at("2026-11-02 12:00")) == (Standing.DUE, "a", ""), "at first, one is wanted now"
    assert shelf.bays("a", at("2026-11-02 12:00"))  # a Monday
    assert not shelf.bays("a", at("2026-11-02 12:01")), "nothing new"
    assert shelf.look(at("2026-11-05 23:59")) == (Standing.WAITING, "b", "2026-11-06")
    assert shelf.look(at("2026-11-06 00:00")) == (Standing.DUE, "b", "2026-11-06")
    assert shelf.look(at("2026-11-07 23:59")) == (Standing.DUE, "b", "2026-11-06")
    assert shelf.look(at("2026-11-08 00:00")) == (Standing.OVERDUE, "b", "2026-11-06")
    # The disk is only dusted: pulled and pushed back in. That is no change.
    shelf.bays("", at("2026-11-08 09:00"))
    shelf.bays("a", at("2026-11-08 09:05"))
    assert shelf.look(at("2026-11-08 10:00")) == (Standing.OVERDUE, "b", "2026-11-06")
    shelf.bays("b", at("2026-11-08 11:00"))
    assert shelf.look(at("2026-11-08 11:00")) == (Standing.WAITING, "c", "2026-11-13")
    shelf.bays("c", at("2026-11-13 11:00"))
    assert shelf.look(at("2026-11-13 11:00")) == (Standing.WAITING, "a", "2026-11-20"), "the longest out comes next"
    # Somebody takes another one than the plan says: then the one that waits longest is next.
    shelf.bays("b", at("2026-11-20 11:00"))
    assert shelf.look(at("2026-11-20 11:00"))[1] == "a"
    shelf.bays("abc", at("2026-11-21 11:00"))
    assert shelf.look(at("2026-12-21 11:00")) == (Standing.COMPLETE, "", "")
    shelf.bays("", at("2026-11-22 11:00"))
    members = plan(shelf.config, OURS, shelf.history, at("2026-11-22 11:00"))[0].members
    assert [m.place for m in members] == [Place.OUT] * 3 and members[0].since == at("2026-11-22 11:00")


def test_a_set_of_one_and_magazines_that_are_not_enrolled() -> None:
    alone = RotationConfig("Europe/Berlin", {"s": RotationSet(("a",), every_days=7)})
    shelf = Shelf(alone)
    shelf.bays("a", at("2026-01-01 08:00"))
    shelf.bays("", at("2026-01-01 18:00"))
    assert shelf.look(at("2026-01-07 23:59")) == (Standing.WAITING, "a", "2026-01-08")
    shelf.bays("a", at("2026-01-08 08:00"))
    shelf.bays("", at("2026-01-08 18:00"))
    assert shelf.look(at("2026-01-09 08:00")) == (Standing.WAITING, "a", "2026-01-15")
    unknown = RotationConfig("", {"s": RotationSet(("a", "nobody"), every_days=7)})
    found = plan(unknown, OURS, History(), at("2026-01-01 08:00"))[0]
    assert [m.place for m in found.members] == [Place.NEVER, Place.UNKNOWN] and found.wanted == "a"


@pytest.mark.parametrize(
    ("change", "before", "due"),
    [
        # The nights in which an hour is left out or comes twice: 23 and 25 hours are a day.
        ("2026-03-28 23:30", "2026-03-31 23:59:59", "2026-04-01 00:00"),
        ("2026-03-29 01:59", "2026-04-01 23:59:59", "2026-04-02 00:00"),
        ("2026-10-24 23:30", "2026-10-27 23:59:59", "2026-10-28 00:00"),
        ("2026-10-25 00:30", "2026-10-28 23:59:59", "2026-10-29 00:00"),
        ("2026-12-30 12:00", "2027-01-02 23:59:59", "2027-01-03 00:00"),
        ("2028-02-27 12:00", "2028-03-01 23:59:59", "2028-03-02 00:00"),
    ],
)
def test_days_are_calendar_days_when_the_clock_is_changed(change: str, before: str, due: str) -> None:
    shelf = Shelf(rotation(due=None, every_days=4))
    shelf.bays("a", at(change))
    assert shelf.look(at(before))[0] is Standing.WAITING
    assert shelf.look(at(due))[0] is Standing.DUE


@pytest.mark.parametrize(
    ("zone", "day"),
    [("Pacific/Kiritimati", "2026-11-13"), ("America/Los_Angeles", "2026-11-06"), ("UTC", "2026-11-06")],
)
def test_a_day_begins_where_the_people_are(zone: str, day: str) -> None:
    """Thursday 23:00 UTC is Friday already on Kiritimati, and Thursday afternoon in Los Angeles."""
    config = replace(rotation(), timezone=zone)
    history = History()
    note(history, {UUIDS["a"]}, at("2026-11-05 23:00", "UTC"), config, OURS)
    found = plan(config, OURS, history, at("2026-11-05 23:00", "UTC"))[0]
    assert found.due is not None and found.due.isoformat() == day


@settings(max_examples=200, deadline=None)
@given(st.dates(date(2000, 1, 1), date(2090, 1, 1)), st.sampled_from(list(Weekday)), st.integers(1, 3660))
def test_due_days(change: date, weekday: Weekday, days: int) -> None:
    due = due_after(RotationSet(("a",), due=weekday), change)
    assert f"{due:%A}".lower() == weekday.value and timedelta(1) <= due - change <= timedelta(7)
    assert due_after(RotationSet(("a",), every_days=days), change) - change == timedelta(days)


def test_each_notice_is_given_once(config: Config) -> None:
    """Also across restarts of the agent; the next turn is news again."""
    world = World(config.mount_dir, lambda uuid: True)
    host = simulated_host(world)
    for item in OURS:
        enrol(config, item)
    planned = replace(config, rotation=rotation())
    clock, journal, bus = host.clock, host.journal, host.bus

    def told() -> list[str]:
        return [f"{r['MAGAZINE']} {r['STATE']} {r['DUE']}" for r in journal.records]  # type: ignore[attr-defined]

    for moment, count in (("2026-11-02 12:00", 1), ("2026-11-02 13:00", 1)):
        clock.time = at(moment)  # type: ignore[attr-defined]
        Rotation(planned, host).round(())
        assert len(told()) == count
    history = read_history(config.state_dir)
    note(history, {UUIDS["a"]}, at("2026-11-02 14:00"), planned.rotation, OURS)
    note(history, set(), at("2026-11-02 15:00"), planned.rotation, OURS)
    keep_history(config.state_dir, history)
    for moment in ("2026-11-03 12:00", "2026-11-06 06:00", "2026-11-06 07:00", "2026-11-09 07:00", "2026-11-19 07:00"):
        clock.time = at(moment)  # type: ignore[attr-defined]
        for _ in range(2):
            Rotation(planned, host).round(())
    assert told() == ["a due ", "b due 2026-11-06", "b overdue 2026-11-06"]
    signals = [s[3] for s in bus.signals if s[2] == "RotationDue"]  # type: ignore[attr-defined]
    assert signals[-1] == ("offsite", "b", "2026-11-06", True)
    assert [r["PRIORITY"] for r in journal.records] == ["5", "5", "4"]  # type: ignore[attr-defined]


def test_a_damaged_history_begins_anew(tmp_path: Path) -> None:
    for text in ("", "[]", "{", '{"magazines": 3}', '{"magazines": {"u": {"came": "x", "left": null}}, "told": {}}'):
        (tmp_path / "rotation.json").write_text(text)
        assert read_history(tmp_path) == History()
    history = History()
    note(history, {"0000-0"}, 5.0, RotationConfig(), OURS)
    news(plan(rotation(), OURS, History(), 7.0), history)
    keep_history(tmp_path, history)
    assert read_history(tmp_path) == history


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{sets: {s: {magazines: [a]}}}", "either"),
        ("{sets: {s: {magazines: [a], due: friday, every_days: 3}}}", "either"),
        ("{sets: {s: {magazines: [], due: friday}}}", "at least one"),
        ("{sets: {s: {magazines: [a, a], due: friday}}}", "twice"),
        ("{sets: {s: {magazines: [a], due: friday}, t: {magazines: [a], due: monday}}}", "twice"),
        ("{sets: {s: {magazines: [a], due: fryday}}}", "wants one of monday"),
        ("{sets: {s: {magazines: [a], due: friday, overdue_after: 0}}}", "from 1 to"),
        ("{timezone: Europe/Nowhere}", "no zone"),
        ("{timezone: ../../etc/passwd}", "time zone such as"),
        ("{set: {}}", "unknown key"),
    ],
)
def test_the_configuration_is_strict(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "magbay.yaml"
    file.write_text(f"rotation: {text}\n")
    with pytest.raises(ConfigError, match=word) as caught:
        load(file)
    assert "rotation" in caught.value.message


def test_the_commands_show_it(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "magbay.yaml"
    assert main(["--config", str(file), "rotation"]) == 0
    assert "no rotation plan" in capsys.readouterr().out
    sets = "{s: {magazines: [a, b], every_days: 7}}"
    file.write_text(f"{file.read_text()}rotation: {{timezone: UTC, sets: {sets}}}\n")
    for item in OURS:
        enrol(config, item)
    history = History()
    note(history, {UUIDS["a"]}, datetime(2020, 1, 1, 12, tzinfo=UTC).timestamp(), RotationConfig(), OURS)
    keep_history(config.state_dir, history)
    assert main(["--config", str(file), "rotation"]) == 3, "overdue is a warning"
    text = capsys.readouterr().out
    assert "insert magazine b, overdue: it was due on Wednesday, 2020-01-08" in text
    assert "in bay        since Wed 2020-01-01 12:00" in text
    main(["--config", str(file), "--json", "rotation"])
    found = json.loads(capsys.readouterr().out)["sets"][0]
    assert (found["standing"], found["wanted"], found["due"]) == ("overdue", "b", "2020-01-08")
    assert found["magazines"][0] == {
        "magazine": "a",
        "place": "in bay",
        "since": "2020-01-01T12:00:00Z",
        "next": False,
    }
    main(["--config", str(file), "status"])
    assert "insert magazine b" in capsys.readouterr().out
    main(["--config", str(file), "--json", "status"])
    assert json.loads(capsys.readouterr().out)["rotation"] == [found]


def _everything(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_nothing_is_deleted_because_a_disk_came_back(config: Config, tmp_path: Path) -> None:
    """vchanger's users lost volumes that way. Years overdue, or back too early: each byte is as it was."""
    file = tmp_path / "magbay.yaml"
    sets = "{s: {magazines: [a, b], every_days: 1, overdue_after: 1}}"
    file.write_text(f"{file.read_text()}rotation: {{timezone: UTC, sets: {sets}}}\n")
    planned = load(file)
    disks = {}
    for number, item in enumerate(OURS[:2]):
        content = tmp_path / "content" / item.name
        content.mkdir(parents=True)
        for name in ("README.txt", f"{item.name}-0001", f"{item.name}-0002", "foreign file"):
            (content / name).write_bytes(b"BB02" * 300 * (number + 1))
        enrol(config, item)
        disks[item.name] = SimulatedDisk(f"SER-{item.name}", item.luks_uuid, item.filesystem_uuid, content)
    before = _everything(tmp_path / "content")

    async def story() -> None:
        planned.run_dir.mkdir(exist_ok=True)
        world = World(planned.mount_dir, lambda uuid: uuid in UUIDS.values())
        host = simulated_host(world)
        tasks = [
            asyncio.create_task(MediaAgent(planned, host).run()),
            asyncio.create_task(ChangerAgent(Changer.open(file), host).run()),
        ]
        for name, days in (("a", 0), ("b", 1), ("a", 900), ("a", 2), ("b", 5000)):
            host.clock.time += days * 86400.0  # type: ignore[attr-defined]
            world.plug(disks[name])
            await _until(lambda: disks[name].filesystem_uuid in world.mounted)  # noqa: B023
            assert _everything(tmp_path / "content") == before
            world.pull(disks[name])
            await _until(lambda: not world.mounted)
        for task in tasks:
            task.cancel()
        assert "overdue" in {r.get("STATE") for r in host.journal.records}  # type: ignore[attr-defined]

    asyncio.run(story())
    assert _everything(tmp_path / "content") == before


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")
