"""An edited configuration: what is accepted, what stays in force while it is wrong, what a change takes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from appliance.agents import changer as changer_agent
from appliance.agents.changer import ChangerAgent
from appliance.agents.media import MediaAgent
from appliance.agents.settings import Reloading
from appliance.cli import reload
from appliance.cli.reload import change_of
from appliance.config.accepted import accept, in_force, last
from appliance.config.loader import DEFAULT_PATH, load
from appliance.errors import ConfigError, ExitStatus
from appliance.host.simulated import MemoryJournal, World, simulated_host
from appliance.storage import timers
from tests.unit.enginehelp import PREFIX, magbay

NIGHTLY = 'jobs:\n  home: {paths: [data], schedule: [{at: "02:00"}], retry_pause: 700s}\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "magbay.yaml"
    path.write_text(PREFIX + text)
    return path


def test_the_one_before_stays_in_force(tmp_path: Path) -> None:
    path, copy = write(tmp_path, NIGHTLY), tmp_path / "elsewhere" / "accepted.yaml"
    copy.parent.mkdir()
    fragments = tmp_path / "magbay.d"
    fragments.mkdir()
    (fragments / "more.yaml").write_text("jobs:\n  work: {paths: [/srv], hooks: {before: ['echo \"a: b\" # c']}}\n")
    path.chmod(0o640)
    good = accept(path, copy)
    assert sorted(good.jobs) == ["home", "work"] and copy.stat().st_mode & 0o777 == 0o640
    # The same wherever the copy lies: relative paths, durations, commands.
    assert last(path, copy) == good and good.jobs["home"].paths == (tmp_path / "data",)
    assert in_force(path, copy).config == good and in_force(path, copy).words == ""

    for wrong in ("jobs: [", "jobs: {home: {paths: [data], schedule: [{at: whenever}]}}", "colour: blue\n"):
        write(tmp_path, wrong)
        with pytest.raises(ConfigError):
            accept(path, copy)
        found = in_force(path, copy)
        assert found.config == good and "stays in force" in found.words and str(path) in found.words
    path.unlink()
    assert in_force(path, copy).config == good
    copy.write_text("of: another version\n")
    with pytest.raises(ConfigError, match="no such file"):
        in_force(path, copy)


def test_other_configurations_have_no_copy(tmp_path: Path) -> None:
    write(tmp_path, "jobs: [")
    done = magbay(tmp_path, "backup", "--scheduled", "home")
    assert done.status == ExitStatus.CONFIG
    assert magbay(tmp_path, "reload").status == ExitStatus.USAGE


def changed(folder: Path, before: str | None, after: str) -> tuple[tuple[str, ...], ...]:
    """The commands for a change of the configuration from *before* (None: not known) to *after*."""
    made = folder / "generator"
    made.mkdir(exist_ok=True)
    old = None
    if before is not None:
        path = write(folder, before)
        old = load(path)
        timers.write(old, path, made)
    path = write(folder, after)
    return change_of(old, load(path), path, made).commands()


AGENTS = ("magbay-media.service", "magbay-changer.service")
RELOAD = ("systemctl", "try-reload-or-restart", *AGENTS)
TIMER = "magbay-schedule-home-full.timer"


@pytest.mark.parametrize(
    ("before", "after", "commands"),
    [
        (NIGHTLY, NIGHTLY, ()),
        ("", NIGHTLY, (("systemctl", "daemon-reload"), ("systemctl", "start", TIMER), RELOAD)),
        (NIGHTLY, "", (("systemctl", "daemon-reload"), ("systemctl", "stop", TIMER), RELOAD)),
        (NIGHTLY, NIGHTLY.replace("02:00", "03:00"), (("systemctl", "daemon-reload"), RELOAD)),
        ("", "mounts: {idle_timeout: 7}\n", (RELOAD,)),
        (None, NIGHTLY, (("systemctl", "daemon-reload"), ("systemctl", "start", TIMER), RELOAD)),
        (
            "",
            "jobs: {home: {paths: [data], limits: {cpu_weight: 20}}}\n",
            (("systemctl", "daemon-reload"), RELOAD),
        ),
    ],
)
def test_what_a_change_takes(tmp_path: Path, before: str | None, after: str, commands: Any) -> None:
    assert changed(tmp_path, before, after) == commands


def test_directories_take_a_restart(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    old = load(path)
    path.write_text(PREFIX.replace("run_dir: run\n", "run_dir: walk\n"))
    (found,) = change_of(old, load(path), path, tmp_path).commands()
    assert found == ("systemctl", "try-restart", *AGENTS)


@pytest.mark.parametrize(
    ("limits", "path", "runs"),
    [
        ("{write_bandwidth: 80MB}", DEFAULT_PATH, 1),
        ("{cpu_weight: 9}", DEFAULT_PATH, 0),
        ("{write_bandwidth: 1MB}", None, 0),
    ],
)
def test_jobs_are_limited_on_a_disk_that_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: str, path: Path | None, runs: int
) -> None:
    """`magbay prepare` and `import`; an ordinary user's own configuration has no units."""
    said: list[list[str]] = []
    monkeypatch.setattr(reload.commands, "run", lambda words, what: said.append(words))
    mine = write(tmp_path, f"jobs: {{home: {{paths: [data], limits: {limits}}}}}\n")
    reload.limit_new_disks(load(mine), path or mine)
    assert said == [["systemctl", "start", "--no-block", "magbay-reload.service"]] * runs


# -- agents -----------------------------------------------------------------------------------------------------------


class Agents:
    """Both agents on a simulated machine, with real signals."""

    def __init__(self, folder: Path, text: str) -> None:
        self.path = write(folder, text)
        self.config = load(self.path)
        self.config.run_dir.mkdir()
        self.host = simulated_host(World(self.config.mount_dir, lambda uuid: True))
        self.started: list[str] = []

        async def start_unit(unit: str) -> None:
            self.started.append(unit)

        self.host.units.start_unit = start_unit  # type: ignore[method-assign]

    def journal(self) -> list[str]:
        journal = self.host.journal
        assert isinstance(journal, MemoryJournal)
        return [record["MESSAGE"] for record in journal.records]

    async def until(self, condition: Any) -> None:
        for _ in range(500):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(self.journal())


def run_media(agents: Agents) -> Any:
    return MediaAgent(agents.config, agents.host, Reloading(agents.path, in_force(agents.path), agents.host)).run()


def run_changer(agents: Agents) -> Any:
    reloading = Reloading(agents.path, in_force(agents.path), agents.host)

    def reread() -> changer_agent.Parts | None:
        config = reloading.read()
        return changer_agent.parts_of(agents.path, config, agents.host) if config else None

    parts = changer_agent.parts_of(agents.path, agents.config, agents.host)
    return ChangerAgent(parts.changer, agents.host, parts.link, parts.jobs, reread).run()


def test_an_agent_goes_on_with_the_new_configuration_and_not_with_a_wrong_one(tmp_path: Path) -> None:
    agents = Agents(tmp_path, "eject: {power_down: yes}\n")
    settings = agents.config.run_dir / "settings"

    async def story() -> None:
        task = asyncio.create_task(run_media(agents))
        await agents.until(lambda: agents.host.notify.is_ready)  # type: ignore[attr-defined]
        assert settings.read_text() == "power_down=yes\n"
        write(tmp_path, "eject: {power_down: perhaps}\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await agents.until(lambda: any("stays as it was" in line for line in agents.journal()))
        assert settings.read_text() == "power_down=yes\n"
        write(tmp_path, "eject: {power_down: no}\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await agents.until(lambda: settings.read_text() == "power_down=no\n")
        await agents.until(lambda: agents.host.notify.is_ready)  # type: ignore[attr-defined]
        agents.path.write_text(agents.path.read_text().replace("state_dir: state", "state_dir: other"))
        os.kill(os.getpid(), signal.SIGHUP)
        await agents.until(lambda: any("until the agent is restarted" in line for line in agents.journal()))
        assert not task.done()
        task.cancel()

    asyncio.run(story())


def test_new_jobs_of_arriving_magazines_are_known(tmp_path: Path) -> None:
    agents = Agents(tmp_path, "magazines:\n  - {name: m1, directory: m1}\n")

    async def story() -> None:
        task = asyncio.create_task(run_changer(agents))
        await agents.until(lambda: agents.host.notify.is_ready)  # type: ignore[attr-defined]
        assert agents.started == []
        jobs = "jobs: {home: {paths: [data], run_on_attach: [m2]}}\n"
        write(tmp_path, f"magazines:\n  - {{name: m1, directory: m1}}\n  - {{name: m2, directory: m2}}\n{jobs}")
        os.kill(os.getpid(), signal.SIGHUP)
        await agents.until(lambda: agents.started == ["magbay-job@home.service"])
        assert not task.done()
        task.cancel()

    asyncio.run(story())
