"""What schedules mean: missed runs, random delay, runs that overlap, clocks that are changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from appliance.config.schema import Config
from appliance.storage import backup, runner, timers
from appliance.storage.catalog import Catalog
from appliance.storage.model import Level
from tests.unit.test_schedule import Told, configured

ROOT = Path(__file__).parents[2]
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def schedule(folder: Path, *entries: str) -> Config:
    return configured(folder, "    schedule:\n" + "".join(f"      - {{{entry}}}\n" for entry in entries))


def units(folder: Path, *entries: str) -> dict[str, str]:
    return timers.units(schedule(folder, *entries), folder / "magbay.yaml")


@needs_systemd
def test_the_units_are_good_for_systemd(tmp_path: Path) -> None:
    config = schedule(tmp_path, 'at: "Sun 02:00", delay: 10m', 'at: "Mon..Sat 02:00", level: incremental', "at: daily")
    made = tmp_path / "units"
    made.mkdir()
    timers.write(config, tmp_path / "magbay.yaml", made)
    # The program is not here, which verify would say.
    service = (ROOT / "systemd/magbay-job@.service").read_text().replace("/usr/bin/magbay", "/bin/true")
    (made / "magbay-job@.service").write_text(service)
    names = sorted(path.name for path in made.glob("*.timer"))
    assert len(names) == 3
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{made}:"}
    words = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *(str(made / name) for name in names)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "magbay" not in done.stderr, done.stderr


def test_what_was_due_while_the_machine_was_off_is_made_up_for_once(tmp_path: Path) -> None:
    """Persistent= goes by a time stamp with the timer's name (systemd.timer(5)): an edited time must keep the name."""
    before = units(tmp_path, 'at: "Sun 02:00"')
    after = units(tmp_path, 'at: "Sun 03:00"', 'at: "Wed 03:00"')
    assert set(before) == set(after) == {"magbay-schedule-home-full.timer"}
    (text,) = after.values()
    # One timer for all times of a level: however many were missed, it is one run.
    assert text.count("OnCalendar=") == 2 and "Persistent=yes" in text and "AccuracySec=1s" in text


def test_a_random_delay_is_for_the_times_that_have_it(tmp_path: Path) -> None:
    found = units(tmp_path, 'at: "02:00", delay: 10m', 'at: "14:00"', 'at: "16:00", delay: 600s')
    assert set(found) == {"magbay-schedule-home-full.timer", "magbay-schedule-home-full-within-600s.timer"}
    late = found["magbay-schedule-home-full-within-600s.timer"]
    assert re.findall("OnCalendar=(.*)", late) == ["02:00", "16:00"] and "RandomizedDelaySec=600s" in late
    assert "Delay" not in found["magbay-schedule-home-full.timer"]


def elapses(at: str, base: str, count: int) -> list[str]:
    """The next times of a calendar event after *base* in Berlin, in UTC."""
    words = ["systemd-analyze", "calendar", f"--base-time={base}", f"--iterations={count}", at]
    environment = os.environ | {"TZ": "Europe/Berlin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return re.findall(r"\(in UTC\): \w+ (\S+ \S+) UTC", done.stdout)


@needs_systemd
@pytest.mark.skipif(not Path("/usr/share/zoneinfo/Europe/Berlin").exists(), reason="tzdata is not installed")
def test_days_on_which_clocks_are_changed(tmp_path: Path) -> None:
    """As docs/engine.md says: a time that does not exist is left out, one that comes twice counts once, UTC always."""
    # 29 March 2026: after 01:59:59 it is 03:00:00.
    assert elapses("02:30", "2026-03-28 12:00:00 UTC", 1) == ["2026-03-30 00:30:00"]
    assert elapses("03:30", "2026-03-28 12:00:00 UTC", 1) == ["2026-03-29 01:30:00"]
    assert elapses("02:30 UTC", "2026-03-28 12:00:00 UTC", 1) == ["2026-03-29 02:30:00"]
    # 25 October 2026: after 02:59:59 it is 02:00:00 once more.
    assert elapses("02:30", "2026-10-24 12:00:00 UTC", 2) == ["2026-10-25 00:30:00", "2026-10-26 01:30:00"]


class Running:
    """A run of the job `home` that is under way, at *level*, until somebody has waited for it a while."""

    def __init__(self, config: Config, level: Level, well: bool = True) -> None:
        self._config, self._level, self._well = config, level, well
        self._held = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._held.wait(30)

    def _run(self) -> None:
        with runner.alone(self._config.state_dir, "home"):
            self._held.set()
            self._end.wait(30)
            if self._well:
                words = [f"home@{self._level.word}"]
                backup.run(self._config, backup.request_for(self._config, words), log=lambda text, fields: None)

    def ended(self, told: Told) -> None:
        """For `Told`: after three seconds of waiting."""
        if told.paused >= 3 and self._thread.is_alive():
            self._end.set()
            self._thread.join(30)


@pytest.mark.parametrize(
    ("running", "due", "well", "runs"),
    [
        (Level.FULL, Level.INCREMENTAL, True, False),
        (Level.FULL, Level.FULL, True, False),
        (Level.DIFFERENTIAL, Level.FULL, True, True),
        (Level.FULL, Level.INCREMENTAL, False, True),
    ],
)
def test_two_levels_that_are_due_at_once(tmp_path: Path, running: Level, due: Level, well: bool, runs: bool) -> None:
    """The second waits; it is left out only when the first has saved as much, and went well."""
    config = configured(tmp_path, "")
    first = backup.run(config, backup.request_for(config, ["home"]), log=lambda text, fields: None)
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Job SET Started=Started-99, Finished=Finished-99")
    other = Running(config, running, well)
    told = Told(other.ended)
    result = runner.run_in_turn(config, backup.request_for(config, [f"home@{due.word}"]), told.callbacks)
    assert (result is not None) is runs and told.paused == 3
    assert "waiting for its end" in told.status[0]
    with Catalog(config.state_dir) as catalog:
        levels = [job.level for job in reversed(catalog.jobs(name="home")) if job.job_id > first.job_id]
    assert levels == [running] * well + ([due] if runs else [])


def test_waiting_for_another_run_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    config = configured(tmp_path, "")
    other = Running(config, Level.FULL, well=False)

    def stop(told: Told) -> None:
        told.stop = told.paused >= 5

    told = Told(stop)
    assert runner.run_in_turn(config, backup.request_for(config, ["home"]), told.callbacks) is None
    assert told.paused == 5
    other.ended(told)
