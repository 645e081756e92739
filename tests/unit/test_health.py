"""The health of disks: documents of smartctl as real disks give them, what is made of them, and the agent's part."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.agents.health import HealthWatch
from appliance.agents.media import MediaAgent
from appliance.agents.names import MEDIA, MEDIA_ROOT
from appliance.cli.main import main
from appliance.config.care import HealthConfig
from appliance.config.schema import Config, Enrolment
from appliance.host.simulated import SimulatedDisk, World, simulated_host
from appliance.magazines.attached import known
from appliance.magazines.health import Condition, FirstSeen, Health, judge, parse
from appliance.magazines.prepare import enrol
from appliance.magazines.reports import DiskReport
from appliance.magazines.states import State


def attribute(number: int, name: str, value: int, raw: int, thresh: int = 0, when: str = "") -> dict[str, Any]:
    flags = {"value": 51, "string": "PO--CK ", "prefailure": bool(thresh), "updated_online": True}
    return {
        "id": number,
        "name": name,
        "value": value,
        "worst": value,
        "thresh": thresh,
        "when_failed": when,
        "flags": flags,
        "raw": {"value": raw, "string": str(raw)},
    }


def ata(passed: bool = True, status: int = 0, rotation: int = 7200, **raw: int) -> dict[str, Any]:
    """A disk with ATA attributes, such as a 4 TB desktop drive gives."""
    table = [
        attribute(1, "Raw_Read_Error_Rate", 200, 0, 51),
        attribute(5, "Reallocated_Sector_Ct", 200, raw.get("reallocated", 0), 140, "now" if raw.get("now") else ""),
        attribute(9, "Power_On_Hours", 71, 21400),
        attribute(194, "Temperature_Celsius", 117, 35),
        attribute(197, "Current_Pending_Sector", 200, raw.get("pending", 0)),
        attribute(198, "Offline_Uncorrectable", 100, raw.get("uncorrectable", 0)),
    ]
    if rotation == 0:
        table.append(attribute(177, "Wear_Leveling_Count", 87, 210, 5))
    return {
        "json_format_version": [1, 0],
        "smartctl": {"version": [7, 4], "argv": ["smartctl"], "exit_status": status},
        "device": {"name": "/dev/sdb", "info_name": "/dev/sdb [SAT]", "type": "sat", "protocol": "ATA"},
        "model_name": "WDC WD40EFRX-68N32N0",
        "serial_number": "WD-WCC7K0AAAAAA",
        "rotation_rate": rotation,
        "smart_support": {"available": True, "enabled": True},
        "smart_status": {"passed": passed},
        "ata_smart_attributes": {"revision": 16, "table": table},
        "power_on_time": {"hours": 21400},
        "temperature": {"current": 35},
    }


def scsi(asc: int | None = None, text: str = "", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "smartctl": {"exit_status": 8 if asc else 0},
        "device": {"type": "scsi", "protocol": "SCSI"},
        "serial_number": "Z1Z0",
        "smart_status": {"passed": asc is None},
        "scsi_grown_defect_list": 3,
        "power_on_time": {"hours": 40000, "minutes": 12},
    }
    if asc is not None:
        found["smart_status"]["scsi"] = {"asc": asc, "ascq": 0x10, "ie_string": text}
    return found | more


def nvme(warning: int = 0, used: int = 4) -> dict[str, Any]:
    log = {"critical_warning": warning, "percentage_used": used, "available_spare": 100, "media_errors": 0}
    return {
        "smartctl": {"exit_status": 8 if warning else 0},
        "device": {"type": "nvme", "protocol": "NVMe"},
        "smart_status": {"passed": not warning, "nvme": {"value": warning}},
        "nvme_smart_health_information_log": log,
        "power_on_time": {"hours": 812},
        "temperature": {"current": 41},
    }


BRIDGE = {
    "smartctl": {
        "exit_status": 2,
        "messages": [{"string": "/dev/sdb: Unknown USB bridge [0x1f75:0x0611 (0x104)]", "severity": "error"}],
    }
}
QEMU = {
    "smartctl": {"exit_status": 4},
    "device": {"type": "scsi", "protocol": "SCSI"},
    "smart_support": {"available": False},
    "temperature": {"current": 0},
}


@pytest.mark.parametrize(
    ("document", "condition", "words"),
    [
        (ata(), Condition.GOOD, ""),
        (ata(passed=False, status=8), Condition.FAILING, "FAILED"),
        (ata(now=1, status=16), Condition.FAILING, "Reallocated_Sector_Ct"),
        (ata(pending=16), Condition.GOOD, ""),
        (scsi(), Condition.GOOD, ""),
        (scsi(0x5D, "FAILURE PREDICTION THRESHOLD EXCEEDED"), Condition.FAILING, "failure prediction"),
        (scsi(0x0B, "WARNING - SPECIFIED TEMPERATURE EXCEEDED"), Condition.WORN, "temperature"),
        (nvme(), Condition.GOOD, ""),
        (nvme(1), Condition.FAILING, "spare"),
        (nvme(4 | 8), Condition.FAILING, "no longer reliable, it takes no more data"),
        (nvme(2), Condition.WORN, "hot"),
        (BRIDGE, Condition.UNKNOWN, "Unknown USB bridge"),
        (QEMU, Condition.UNKNOWN, "does not tell"),
        ({}, Condition.UNKNOWN, "does not tell"),
    ],
)
def test_documents_of_disks(document: dict[str, Any], condition: Condition, words: str) -> None:
    health = parse(json.dumps(document))
    assert health is not None and health.condition is condition, health
    assert words in health.reason and bool(words) is bool(health.reason)


def test_what_a_disk_tells_of_its_age() -> None:
    disk = parse(json.dumps(ata(reallocated=8, pending=2, uncorrectable=1)))
    assert disk is not None
    assert (disk.hours, disk.temperature, disk.reallocated, disk.pending, disk.uncorrectable) == (21400, 35, 8, 2, 1)
    assert disk.bad == 11 and disk.wear is None, "a disk that turns does not wear like flash"
    flash = parse(json.dumps(ata(rotation=0)))
    assert flash is not None and flash.wear == 13
    for document, wear in ((nvme(used=97), 97), (scsi(scsi_percentage_used_endurance_indicator=12), 12)):
        found = parse(json.dumps(document))
        assert found is not None and found.wear == wear
    assert parse(json.dumps(ata())[:-5]) is None, "still being written"


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for item in value.values() for key in _keys(item)}
    return {key for item in value for key in _keys(item)} if isinstance(value, list) else set()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted(_keys(ata()))), inner),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(_JSON)
def test_whatever_smartctl_says_is_no_crash(document: Any) -> None:
    found = parse(json.dumps(document))
    assert found is None or isinstance(found.condition, Condition)


def test_bad_sectors_count_from_when_the_disk_was_first_seen(tmp_path: Path) -> None:
    old = parse(json.dumps(ata(reallocated=40)))
    assert old is not None
    assert FirstSeen(tmp_path).since("u", old) == 0, "an old disk with old scars is none that is failing"
    for count, condition in ((40, Condition.GOOD), (41, Condition.WORN), (48, Condition.WORN), (49, Condition.FAILING)):
        now = parse(json.dumps(ata(reallocated=count)))
        assert now is not None
        verdict = judge(now, FirstSeen(tmp_path).since("u", now), 8)
        assert verdict.condition is condition and verdict.reallocated == count
    other = replace(old, serial="another disk")
    assert FirstSeen(tmp_path).since("u", other) == 0
    assert FirstSeen(tmp_path).since("v", Health(Condition.UNKNOWN)) == 0
    (tmp_path / "health.json").write_text("{")
    assert FirstSeen(tmp_path).since("u", old) == 0


class Bay:
    """One magazine in a simulated bay, with an agent, and what smartctl would leave."""

    def __init__(self, config: Config, folder: Path, content: Path) -> None:
        self.config, self.answers = config, folder / "answers"
        self.answers.mkdir()
        config.run_dir.mkdir(exist_ok=True)
        content.mkdir()
        self.disk = SimulatedDisk("SER1", "0000-1", "0000-2", content)
        enrol(config, Enrolment("mag1", "0000-2", "0000-1", serial="SER1"))
        self.world = World(config.mount_dir, lambda uuid: uuid == "0000-2")
        self.host = simulated_host(self.world)

    def told(self) -> list[str]:
        return [r["HEALTH"] for r in self.host.journal.records if "HEALTH" in r]  # type: ignore[attr-defined]


def test_a_failing_disk_is_offered_for_reading_only(config: Config, tmp_path: Path) -> None:
    async def story() -> None:
        bay = Bay(config, tmp_path, tmp_path / "content")
        (bay.answers / "1.json").write_text(json.dumps(ata(passed=False, status=8)))
        agent = MediaAgent(config, bay.host)
        agent._health = HealthWatch(config, bay.host, bay.answers)
        task = asyncio.create_task(agent.run())
        magazine = lambda: next(m for m in known(config) if m.name == "mag1")  # noqa: E731
        await _until(lambda: bay.host.notify.is_ready)  # type: ignore[attr-defined]
        bay.world.plug(bay.disk)
        await _until(lambda: magazine().attached)
        assert not magazine().writable and magazine().path is not None, "for reading it stays"
        found = json.loads((config.run_dir / "media.json").read_text())["disks"][0]
        assert found["state"] == "mounted" and "the disk is failing: its own overall verdict" in found["reason"]
        assert found["health"]["condition"] == "failing" and found["hint"]
        assert (config.run_dir / "read-only" / "0000-2").exists(), "autofs is to mount it for reading"
        assert bay.told() == ["failing"]
        bay.world.pull(bay.disk)
        await _until(lambda: not magazine().attached)
        # The same container on a disk that is well: all is as before, as soon as it has said so.
        bay.world.plug(bay.disk)
        await _until(lambda: magazine().attached)
        assert not magazine().writable and bay.told() == ["failing"]
        (bay.answers / "2.json").write_text(json.dumps(ata()))
        await bay.host.bus.call(MEDIA, MEDIA_ROOT, MEDIA, "Rescan")
        await _until(lambda: magazine().writable)
        assert not (config.run_dir / "read-only" / "0000-2").exists()
        task.cancel()

    asyncio.run(story())


def test_the_agent_asks_once_a_plug_and_not_for_strangers(config: Config, tmp_path: Path) -> None:
    async def story() -> None:
        bay = Bay(config, tmp_path, tmp_path / "content")
        started: list[str] = []

        async def start(unit: str) -> None:
            started.append(unit)

        bay.host.units.start_unit = start  # type: ignore[method-assign]
        watch = HealthWatch(config, bay.host, bay.answers)
        report = DiskReport(
            "/dev/sdb", "SER1", "", 0, State.MOUNTED, "", "", "mag1", "0000-1", "0000-2", read_only=False, sequence=7
        )
        stranger = replace(report, magazine="", filesystem_uuid="", sequence=8, state=State.FOREIGN)
        copy = replace(report, filesystem_uuid="", sequence=9, state=State.FAILED)
        for _ in range(3):
            found = watch.taken_in((report, stranger, copy))
            await asyncio.sleep(0)
        assert started == ["magbay-health@7.service"]
        assert found[0].health is not None and found[0].health.condition is Condition.UNKNOWN and not found[0].read_only
        assert found[1:] == (stranger, copy)
        bay.host.clock.time += 7 * 3600  # type: ignore[attr-defined]
        watch.taken_in((replace(report, state=State.IDLE),))
        assert len(started) == 1, "a disk that rests is not woken"
        watch.taken_in((report,))
        await asyncio.sleep(0)
        assert len(started) == 2
        (bay.answers / "7.json").write_text(json.dumps(nvme(1)))
        lenient = HealthWatch(replace(config, health=HealthConfig(refuse_failing=False)), bay.host, bay.answers)
        found = lenient.taken_in((report,))
        assert not found[0].read_only and found[0].health is not None
        assert found[0].health.condition is Condition.FAILING and bay.told() == ["failing"]
        # An agent that was restarted does not wake a disk that has stopped, nor ask what was answered already.
        again = HealthWatch(config, bay.host, bay.answers)
        again.taken_in((replace(report, state=State.SAFE, sequence=10),))
        HealthWatch(config, bay.host, bay.answers).taken_in((report,))
        await asyncio.sleep(0)
        assert len(started) == 2
        # Of many that come at once opening comes first, for a while.
        crowd = [replace(report, sequence=n, state=State.LOCKED, busy=True) for n in range(20, 24)]
        again.taken_in(crowd)
        await asyncio.sleep(0)
        assert len(started) == 2
        bay.host.clock.time += 181  # type: ignore[attr-defined]
        again.taken_in(crowd)
        await asyncio.sleep(0.01)
        assert len(started) == 6
        # Those that are mounted at once wait, too: others may follow.
        quick = [replace(report, sequence=n) for n in range(30, 33)]
        again.taken_in(quick)
        await asyncio.sleep(0.01)
        assert len(started) == 6
        bay.host.clock.time += 11  # type: ignore[attr-defined]
        again.taken_in(quick)
        await asyncio.sleep(0.01)
        assert len(started) == 9

    asyncio.run(story())


def test_the_commands_show_space_and_wear(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    health = parse(json.dumps(ata(passed=False, status=8, rotation=0, reallocated=3, pending=1)))
    assert health is not None
    enrol(config, Enrolment("mag1", "0000-2", "0000-1", serial="SER1"))
    (config.mount_dir / "0000-2").mkdir(parents=True)
    report = DiskReport(
        "/dev/sdb", "S\x1b[2J", "", 0, State.MOUNTED, "why", "do", "mag1", "0000-1", "0000-2", True, health=health
    )
    config.run_dir.mkdir(exist_ok=True)
    (config.run_dir / "media.json").write_text(json.dumps({"disks": [report.document()]}))
    told = "failing (its own overall verdict is FAILED), 21400 h, 13 % worn, 35 °C, 3 sectors replaced, 1 waiting"
    for words in (["status"], ["magazine", "show", "mag1"]):
        assert main(["--config", str(tmp_path / "magbay.yaml"), *words]) == 0
        text = capsys.readouterr().out
        assert told in text and " free" in text and "\x1b" not in text
    main(["--config", str(tmp_path / "magbay.yaml"), "--json", "magazine", "show", "mag1"])
    found = json.loads(capsys.readouterr().out)
    assert found["health"]["wear"] == 13 and 0 <= found["space"]["free"] <= found["space"]["bytes"]


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")
