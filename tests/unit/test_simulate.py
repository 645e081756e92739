"""`magbay --simulate`: all agents in one process, without root, as a person would use it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from appliance.agents.simulate import default_config


def simulate(lines: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", *options, "--simulate"]
    return subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=60)


def test_a_story_with_every_kind_of_disk() -> None:
    lines = [
        "plug m1",
        "plug foreign",
        "plug wrongkey",
        "plug copy",
        "slots",
        "status",
        "eject m1",
        "wait 0.5",
        "status",
    ]
    done = simulate(lines)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "magazine m1 is mounted",
        "magazine m1: slots 1-3 hold the volumes",
        "foreign: an unknown LUKS disk",
        "the key file does not open this disk",
        "same LUKS UUID",
        "magazine m1 is safe to remove",
        "magazine m1: its slots are empty",
    ):
        assert words in done.stdout, words + "\n" + done.stdout


def test_unknown_lines_are_answered_and_counted() -> None:
    done = simulate(["plug nobody", "dance", "eject m2"])
    assert done.returncode == 1
    assert "no simulated disk is called" in done.stdout and "unknown: 'dance" in done.stdout
    assert "magazine m2 is not here" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_an_interrupt_ends_it_at_once(tmp_path: Path) -> None:
    """Ctrl-C while it waits for a line that nobody types."""
    agents = subprocess.Popen(
        [sys.executable, "-m", "appliance", "--config", str(default_config(tmp_path)), "--simulate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agents.stdin is not None and agents.stdout is not None
    try:
        agents.stdin.write("plug m1\n")
        agents.stdin.flush()
        while "is mounted" not in agents.stdout.readline():
            pass
        agents.stdin.write("wait 600\n")
        agents.stdin.flush()
        agents.send_signal(signal.SIGINT)
        assert agents.wait(20) == 0
    finally:
        agents.kill()
        agents.wait()
        agents.stdin.close()
        agents.stdout.close()


def test_other_commands_see_the_simulated_magazines(tmp_path: Path) -> None:
    """A backup and a restore on a simulated disk, by the real commands, while the agents run."""
    config = default_config(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"contents" * 1000)
    agents = subprocess.Popen(
        [sys.executable, "-m", "appliance", "--config", str(config), "--simulate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agents.stdin is not None and agents.stdout is not None

    def magbay(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "appliance", "--config", str(config), "--json", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    try:
        agents.stdin.write("plug m2\n")
        agents.stdin.flush()
        while "slots 1-3 hold" not in agents.stdout.readline():
            pass
        assert {slot["magazine"] for slot in json.loads(magbay("slots").stdout)} == {"m2"}
        saved = magbay("backup", str(source))
        assert saved.returncode == 0, saved.stderr
        result = json.loads(saved.stdout)
        assert result["status"] == "done"
        assert magbay("restore", "--job", str(result["job_id"]), "--to", str(tmp_path / "back")).returncode == 0
        assert (tmp_path / f"back{source}" / "file").read_bytes() == b"contents" * 1000
        agents.stdin.write("pull m2\n")
        agents.stdin.flush()
        while "its slots are empty" not in agents.stdout.readline():
            pass
        away = magbay("restore", "--job", str(result["job_id"]), "--to", str(tmp_path / "again"))
        assert away.returncode == 75, away.stdout + away.stderr
        assert "m2" in away.stderr and "Traceback" not in away.stderr
    finally:
        agents.kill()
        agents.wait()
        agents.stdin.close()
        agents.stdout.close()
