"""When jobs run and what happens around them: calendars, units, hooks, attempts, cancelling, arrival of magazines."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.agents.onattach import AttachedJobs
from appliance.config.loader import load
from appliance.config.schedules import is_calendar
from appliance.config.schema import Config
from appliance.errors import ConfigError, ExitStatus, MagbayError
from appliance.host import commands
from appliance.host.simulated import MemoryJournal, World, simulated_host
from appliance.storage import backup, runner, timers
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus, Level
from tests.unit.enginehelp import PREFIX, ROOT, magbay

GOOD = ["daily", "Sun 02:00", "Mon..Fri 22:30:15", "Mon,Wed *-*-* 04:00", "*-*-01 03:00", "2026-12-24", "12..20:00"]
GOOD += ["weekly UTC", "Sat 01:00 Europe/Berlin", "*:0/15", "*-02~03 05:00", "monday 3:00", "hourly"]
BAD = ["", "noon", "25:00", "12:60", "Sun Sun 02:00", "02:00 Sun", "*-", "Mo 3:00", "now", "daily daily", "3 h", "a:b"]


@pytest.mark.parametrize("text", GOOD + BAD)
def test_calendars(text: str) -> None:
    assert is_calendar(text) is (text in GOOD)
    if shutil.which("systemd-analyze") and text not in ("now", ""):
        done = subprocess.run(["systemd-analyze", "calendar", text], capture_output=True)
        assert (done.returncode == 0) is (text in GOOD)


def configured(folder: Path, job: str, magazines: str = "magazines:\n  - {name: m1, directory: m1}\n") -> Config:
    (folder / "data").write_bytes(b"data")
    (folder / "magbay.yaml").write_text(f"{PREFIX}{magazines}jobs:\n  home:\n    paths: [data]\n{job}")
    return load(folder / "magbay.yaml")


WEEK = """    level: incremental
    schedule:
      - {at: "Sun 02:00", level: full, delay: 10m}
      - {at: "Mon..Sat 02:00"}
      - {at: "Mon..Sat 14:00", level: incremental}
    limits: {cpu_weight: 20, cpu_quota: 150, io_weight: 30, write_bandwidth: 80MB, memory: 512MiB}
"""


def test_units_of_a_schedule(tmp_path: Path) -> None:
    config = configured(tmp_path, WEEK)
    (tmp_path / "units").mkdir()
    assert magbay(tmp_path, "schedule", "--write", str(tmp_path / "units")).status == 0
    found = {str(p.relative_to(tmp_path / "units")) for p in (tmp_path / "units").rglob("*") if not p.is_dir()}
    services = ["home", "home@full", "home@differential", "home@incremental"]
    limits = {f"magbay-job@{name}.service.d/50-limits.conf" for name in services}
    names = {f"magbay-schedule-home-{level}.timer" for level in ("full-within-600s", "incremental")}
    assert found == limits | names | {f"timers.target.wants/{name}" for name in names}
    full = (tmp_path / "units" / "timers.target.wants" / "magbay-schedule-home-full-within-600s.timer").read_text()
    lines = set(full.splitlines())
    assert {"OnCalendar=Sun 02:00", "Persistent=yes", "Unit=magbay-job@home@full.service"} <= lines
    assert "RandomizedDelaySec=600s" in lines
    other = (tmp_path / "units" / "magbay-schedule-home-incremental.timer").read_text()
    assert other.count("OnCalendar=Mon..Sat ") == 2 and "RandomizedDelaySec" not in other
    drop_in = (tmp_path / "units" / "magbay-job@home.service.d" / "50-limits.conf").read_text().splitlines()
    assert {"CPUWeight=20", "CPUQuota=150%", "IOWeight=30", "MemoryMax=536870912"} <= set(drop_in)
    assert f"IOWriteBandwidthMax={tmp_path}/m1 80000000" in drop_in
    assert timers.units(config, tmp_path / "magbay.yaml")["magbay-schedule-home-full-within-600s.timer"] == full


def test_no_schedule_no_units(tmp_path: Path) -> None:
    assert timers.units(configured(tmp_path, ""), tmp_path / "magbay.yaml") == {}


def test_the_generator_never_fails(tmp_path: Path) -> None:
    generator = ROOT / "systemd" / "generators" / "magbay-schedule-generator"
    text = generator.read_text().replace("/etc/magbay", str(tmp_path)).replace("/usr/bin/magbay", str(tmp_path / "run"))
    (tmp_path / "generator").write_text(text)
    (tmp_path / "run").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m appliance "$@"\n')
    (tmp_path / "run").chmod(0o755)
    bad = "jobs: {a: {paths: [/etc], schedule: [{at: x}]}}"
    for content, made in (("schedule: [", False), (bad, False), (WEEK, True)):
        (tmp_path / "magbay.yaml").write_text(content)
        if made:
            configured(tmp_path, WEEK)
        units = tmp_path / "units"
        units.mkdir(exist_ok=True)
        done = subprocess.run(["sh", tmp_path / "generator", units, units, units], capture_output=True, text=True)
        assert done.returncode == 0
        assert (units / "magbay-schedule-home-incremental.timer").exists() is made
        assert made or "magbay" in done.stderr
        assert not list(units.glob(".magbay-*"))


def test_what_comes_next(tmp_path: Path) -> None:
    configured(tmp_path, WEEK + "    run_on_attach: [m1]\n")
    found = magbay(tmp_path, "schedule", json_output=True).document["schedule"]
    assert [(entry["level"], entry["at"]) for entry in found if entry["at"] == ""] == [("incremental", "")]
    assert len(found) == 4
    if shutil.which("systemd-analyze"):
        times = [entry["next"] for entry in found if entry["at"]]
        assert times == sorted(times) and all(0 < when - time.time() < 8 * 86_400 for when in times)
        sunday = next(entry for entry in found if entry["level"] == "full")
        assert time.localtime(sunday["next"])[3:7] == (2, 0, 0, 6)
    told = magbay(tmp_path, "schedule").stdout
    assert "Sun 02:00" in told and "when it comes" in told


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("    schedule: [{at: whenever}]\n", "a time such as"),
        ("    schedule: [{level: full}]\n", "at: is missing"),
        ("    schedule: [{at: daily, level: some}]\n", "one of full"),
        ("    hooks: {failure: maybe}\n", "one of fail, warn"),
        ("    limits: {cpu_weight: 99999}\n", "from 0 to 10000"),
        ("    retries: -1\n", "from 0 to 100"),
    ],
)
def test_errors_of_the_configuration(tmp_path: Path, job: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configured(tmp_path, job)


# -- around a job -----------------------------------------------------------------------------------------------------


class Told:
    """Callbacks that remember."""

    def __init__(self, pause: Any = None) -> None:
        self.lines: list[tuple[str, dict[str, str]]] = []
        self.status: list[str] = []
        self.stop = False
        self.paused = 0.0
        self._pause = pause
        self.callbacks = runner.Callbacks(
            log=lambda text, fields: self.lines.append((text, fields)),
            status=self.status.append,
            pause=self.wait,
            cancelled=lambda: self.stop,
        )

    def wait(self, seconds: float) -> None:
        self.paused += seconds
        if self._pause:
            self._pause(self)


def run(config: Config, told: Told, word: str = "home") -> backup.JobResult:
    return runner.run(config, backup.request_for(config, [word]), told.callbacks)


def test_levels_of_a_configured_job(tmp_path: Path) -> None:
    config = configured(tmp_path, "    level: incremental\n")
    assert [run(config, Told()).level for _ in range(2)] == [Level.FULL, Level.INCREMENTAL]
    assert run(config, Told(), "home@full").level is Level.FULL
    assert run(config, Told(), "home@differential").level is Level.DIFFERENTIAL
    assert magbay(tmp_path, "backup", "home@some").status == ExitStatus.NOT_FOUND


def test_commands_around_a_job_know_its_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOP_SECRET", "hunter2")
    config = configured(
        tmp_path,
        f"    hooks:\n      before: ['echo made > {tmp_path}/data; echo ready']\n"
        f"      after: ['env > {tmp_path}/after', 'exit 3']\n      failure: warn\n",
    )
    told = Told()
    result = run(config, told)
    facts = dict(line.split("=", 1) for line in (tmp_path / "after").read_text().splitlines())
    assert facts["MAGBAY_JOB"] == "home" and facts["MAGBAY_JOB_ID"] == str(result.job_id)
    assert (facts["MAGBAY_STATUS"], facts["MAGBAY_LEVEL"], facts["MAGBAY_FILES"]) == ("done", "full", "1")
    assert (facts["MAGBAY_BYTES"], facts["MAGBAY_VOLUMES"]) == ("5", "m1-0001")
    assert "hunter2" not in facts.values()
    assert (result.status, result.exit_status) == (JobStatus.DONE, ExitStatus.WARNINGS)
    assert result.warnings == ("command 2 after the job ended with status 3",)
    assert "  ready" in [text for text, _ in told.lines]


def test_a_failing_command_before_keeps_the_job_from_starting(tmp_path: Path) -> None:
    after = f"after: ['echo $MAGBAY_STATUS > {tmp_path}/after']"
    config = configured(tmp_path, f"    hooks: {{before: ['false', 'touch {tmp_path}/never'], {after}}}\n")
    with pytest.raises(MagbayError, match="command 1 before the job ended with status 1"):
        run(config, Told())
    assert (tmp_path / "after").read_text() == "failed\n"
    assert not (tmp_path / "never").exists() and not (tmp_path / "state" / "catalog.db").exists()
    config = configured(tmp_path, "    hooks: {after: ['false']}\n")
    result = run(config, Told())
    assert (result.status, result.exit_status) == (JobStatus.DONE, ExitStatus.FAILED)


def test_the_text_of_a_command_is_nowhere_but_in_the_configuration(tmp_path: Path) -> None:
    """It may hold a password of a database, say."""
    for lines, words in {
        "before: ['true', 'PGPASSWORD=hunter2 false']": "command 2 before the job ended with status 1",
        "after: ['PGPASSWORD=hunter2 false']": "command 1 after the job ended with status 1",
        "before: ['exec sleep 600 # hunter2'], timeout: 1s": "command 1 before the job did not end within 1 s",
    }.items():
        configured(tmp_path, f"    hooks: {{{lines}}}\n")
        done = magbay(tmp_path, "backup", "home")
        assert done.status == ExitStatus.FAILED and words in done.stdout + done.stderr
        assert "hunter2" not in done.stdout + done.stderr
    kept = [path for name in ("state", "run", "m1") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if b"hunter2" in path.read_bytes()]


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    status, output = commands.shell("echo begun; sleep 60 & sleep 60", {}, timeout=0.2)
    assert (status, output) == (None, "begun\n") and time.monotonic() - began < 30


@pytest.mark.parametrize("timeout", [0.2, 86_400])
@pytest.mark.parametrize("start", ["setsid sleep 600 &", "sleep 600 &", "(while echo more; do sleep 0.01; done) &"])
def test_a_command_ends_with_its_shell(tmp_path: Path, start: str, timeout: float) -> None:
    """What it leaves behind has the pipe, and is not waited for; it goes on."""
    status, output = commands.shell(f"echo begun; {start} echo $! > {tmp_path}/pid; exit 3", {}, timeout=timeout)
    if "echo more" not in start:  # that one ends when nobody reads any more
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # it is still there
    assert status == 3 and output.startswith("begun\n")
    assert output.replace("more\n", "") == "begun\n"


def test_a_cancelled_job_does_not_wait_for_its_commands(tmp_path: Path) -> None:
    before = f"before: ['touch {tmp_path}/begun; sleep 600 & sleep 600', 'touch {tmp_path}/never']"
    after = f"after: ['echo $MAGBAY_STATUS > {tmp_path}/after']"
    config = configured(tmp_path, f"    retries: 3\n    hooks: {{{before}, timeout: 1h, failure: warn, {after}}}\n")
    told = Told()
    callbacks = replace(told.callbacks, cancelled=(tmp_path / "begun").exists)
    with pytest.raises(MagbayError, match="job home was cancelled before it began"):
        runner.run(config, backup.request_for(config, ["home"]), callbacks)
    assert (tmp_path / "after").read_text() == "cancelled\n" and told.paused == 0
    assert not (tmp_path / "never").exists() and not (tmp_path / "state" / "catalog.db").exists()


def test_a_command_that_fails_at_first_has_further_attempts(tmp_path: Path) -> None:
    before = f"before: ['test -e {tmp_path}/second || ! touch {tmp_path}/second']"
    config = configured(tmp_path, f"    retries: 1\n    retry_pause: 5m\n    hooks: {{{before}}}\n")
    told = Told()
    assert (run(config, told).status, told.paused) == (JobStatus.DONE, 300)
    assert "job home failed: attempt 2 of 2 in 300 s" in told.status
    config = configured(tmp_path, "    retries: 2\n    retry_pause: 1m\n    hooks: {before: ['false']}\n")
    told = Told()
    with pytest.raises(MagbayError, match="command 1 before the job ended with status 1"):
        run(config, told)
    assert told.paused == 120


def test_further_attempts(tmp_path: Path) -> None:
    away = "magazines:\n  - {name: m1, directory: m1, create: no}\n"
    config = configured(tmp_path, "    retries: 3\n    retry_pause: 5m\n", away)

    def plug(told: Told) -> None:
        if told.paused > 450:
            (tmp_path / "m1").mkdir(exist_ok=True)

    told = Told(plug)
    result = run(config, told)
    assert (result.status, told.paused) == (JobStatus.DONE, 600)
    assert [text for text in told.status if "attempt" in text] == [
        "job home failed: attempt 2 of 4 in 300 s", "job home failed: attempt 3 of 4 in 300 s"
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "m1")
    last = Told()
    assert run(config, last).exit_status is ExitStatus.AWAY and last.paused == 900

    def stop(told: Told) -> None:
        told.stop = told.paused > 10

    stopped = Told(stop)
    assert run(config, stopped).status is JobStatus.FAILED and stopped.paused == 11


def test_a_job_runs_only_once_at_a_time(tmp_path: Path) -> None:
    config = configured(tmp_path, "")
    with runner.alone(config.state_dir, "home"):
        done = magbay(tmp_path, "backup", "home")
        assert done.status == 1 and "running already" in done.stderr
    assert magbay(tmp_path, "backup", "home").status == 0


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A job that waits for its magazine, in a process of its own."""
    away = "magazines:\n  - {name: m1, directory: m1, create: no}\n"
    configured(tmp_path, "    wait_for_magazine: 1h\n", away)
    command = [sys.executable, "-m", "appliance", "--config", str(tmp_path / "magbay.yaml"), "--json", "backup", "home"]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 30
        while not waiting_for(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield process
        process.kill()


def waiting_for(folder: Path) -> list[str]:
    if not (folder / "state" / "catalog.db").exists():
        return []
    with Catalog(folder / "state") as catalog:
        return [job.waiting for job in catalog.jobs() if job.waiting]


@pytest.mark.parametrize("by", ["name", "id"])
def test_cancelling(tmp_path: Path, waiting: subprocess.Popen[str], by: str) -> None:
    assert waiting_for(tmp_path) == ["m1"]
    with Catalog(tmp_path / "state") as catalog:
        number = catalog.jobs()[0].job_id
    done = magbay(tmp_path, "cancel", "home" if by == "name" else str(number))
    assert (done.status, done.stdout) == (0, f"job {number} (home) has ended\n")
    told, _ = waiting.communicate(timeout=30)
    assert json.loads(told)["status"] == "cancelled"
    assert magbay(tmp_path, "cancel", "home").status == ExitStatus.NOT_FOUND


def test_a_dead_job_is_not_signalled(tmp_path: Path, waiting: subprocess.Popen[str]) -> None:
    waiting.send_signal(signal.SIGKILL)
    waiting.wait()
    assert magbay(tmp_path, "cancel", "home").status == ExitStatus.NOT_FOUND


# -- arrival of magazines ------------------------------------------------------------------------------------------


class Arrivals:
    """The part of the agent, on a simulated host, with directories as magazines."""

    def __init__(self, folder: Path, words: str, more: str = "") -> None:
        away = "".join(f"  - {{name: {name}, directory: {name}, create: no}}\n" for name in ("m1", "m2", "m3"))
        sets = "rotation: {sets: {weekly: {magazines: [m2], due: friday}}}\n"
        self.config = configured(folder, f"    run_on_attach: {words}\n{more}", f"{sets}magazines:\n{away}")
        self.config.run_dir.mkdir(exist_ok=True)
        self.host = simulated_host(World(self.config.mount_dir, lambda uuid: False))
        self.started: list[str] = []

        async def start_unit(unit: str) -> None:
            self.started.append(unit)

        self.host.units.start_unit = start_unit  # type: ignore[method-assign]

    def look(self) -> list[str]:
        self.started.clear()
        asyncio.run(AttachedJobs(self.config, self.host).round())  # as an agent that was just started
        return list(self.started)


def test_a_job_starts_once_for_each_stay_of_its_magazine(tmp_path: Path) -> None:
    dock = Arrivals(tmp_path, "[m1]", "    attach_interval: 0\n")
    assert dock.look() == []
    (tmp_path / "m2").mkdir()
    assert dock.look() == []
    (tmp_path / "m1").mkdir()
    assert dock.look() == ["magbay-job@home.service"]
    assert dock.look() == []
    (tmp_path / "m1").rename(tmp_path / "shelf")
    assert dock.look() == []
    (tmp_path / "shelf").rename(tmp_path / "m1")
    assert dock.look() == ["magbay-job@home.service"]
    journal = dock.host.journal
    assert isinstance(journal, MemoryJournal)


def test_sets_any_and_the_interval(tmp_path: Path) -> None:
    dock = Arrivals(tmp_path, "[weekly]", "    attach_interval: 1d\n")
    for name in ("m1", "m2", "m3"):
        (tmp_path / name).mkdir()
    assert dock.look() == ["magbay-job@home.service"]
    run(dock.config, Told())
    (tmp_path / "m2").rename(tmp_path / "shelf")
    dock.look()
    (tmp_path / "shelf").rename(tmp_path / "m2")
    assert dock.look() == []  # too soon
    with Catalog(dock.config.state_dir) as catalog:
        catalog.change("UPDATE Job SET Started=Started-90000")
    assert dock.look() == []  # the stay had its turn
    (tmp_path / "any").mkdir()
    everything = Arrivals(tmp_path, "[any]", "    attach_interval: 0\n")
    assert everything.look() == ["magbay-job@home.service"] * 2  # m1 and m3; m2 had its turn


def test_what_fails_is_tried_again(tmp_path: Path) -> None:
    dock = Arrivals(tmp_path, "[m1]")
    (tmp_path / "m1").mkdir()
    good = dock.host.units.start_unit

    async def refuse(unit: str) -> None:
        raise MagbayError(f"{unit} is refused")

    dock.host.units.start_unit = refuse  # type: ignore[method-assign]
    with pytest.raises(MagbayError):
        dock.look()
    dock.host.units.start_unit = good  # type: ignore[method-assign]
    assert dock.look() == ["magbay-job@home.service"]
    (dock.config.run_dir / "on-attach.json").write_text("[]")
    with pytest.raises(MagbayError, match="damaged"):
        dock.look()
