"""The commands as users and other programs see them: JSON, exit statuses, no traceback, the smallest configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli.main import main
from tests.unit.enginehelp import ROOT, assert_same, below, magbay, rich_tree

# Literally as the design page has it.
SMALLEST = """\
state_dir: state
run_dir: run
changer: {name: c0, drives: 2}
magazines:
  - {name: m1, directory: m1}
  - {name: m2, directory: m2}
pools:
  Default: {maximum_volume_bytes: 10GB, signature: MD5}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the smallest configuration and nothing else."""
    (tmp_path / "magbay.yaml").write_text(SMALLEST)
    return tmp_path


def test_the_whole_road_on_the_smallest_configuration(place: Path) -> None:
    tree = rich_tree(place / "source")
    done = magbay(place, "backup", str(tree), json_output=True)
    assert (done.status, done.stderr) == (0, "")
    saved = done.document
    assert saved["status"] == "done" and saved["volumes"] == ["m1-0001"] and saved["level"] == "full"
    assert isinstance(saved["job_id"], int) and saved["files"] > 50 and saved["bytes"] > 4_000_000
    done = magbay(place, "restore", "--job", str(saved["job_id"]), "--to", str(place / "out"), json_output=True)
    assert (done.status, done.stderr) == (0, "")
    back = done.document
    assert (back["job_id"], back["files"], back["bytes"]) == (saved["job_id"], saved["files"], saved["bytes"])
    assert (back["status"], back["errors"], back["warnings"], back["to"]) == ("done", [], [], str(place / "out"))
    assert_same(tree, below(place / "out", tree))
    assert magbay(place, "verify", json_output=True).document["files"] == saved["files"]
    jobs = magbay(place, "jobs", json_output=True).document["jobs"]
    assert [job["job_id"] for job in jobs] == [saved["job_id"]]
    shown = magbay(place, "job", "show", str(saved["job_id"]), json_output=True).document
    assert shown["volumes"] == ["m1-0001"] and shown["log"][0]["kind"] == "info"
    told = magbay(place, "job", "show", str(saved["job_id"]))
    assert told.status == 0 and "m1-0001" in told.stdout


def test_a_relative_configuration_and_relative_paths(place: Path) -> None:
    (place / "data").mkdir()
    (place / "data" / "file").write_text("x")
    command = [sys.executable, "-m", "appliance", "--config", "magbay.yaml"]
    options = {"cwd": place, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "check": True}
    subprocess.run([*command, "backup", "data"], **options)  # type: ignore[call-overload]
    subprocess.run([*command, "restore", "--to", "out"], **options)  # type: ignore[call-overload]
    assert (below(place / "out", place / "data") / "file").read_text() == "x"


def test_label(place: Path) -> None:
    done = magbay(place, "label", "--magazine", "m2", "--count", "3", json_output=True)
    assert [v["volume"] for v in done.document["volumes"]] == ["m2-0001", "m2-0002", "m2-0003"]
    assert sorted(p.name for p in (place / "m2").iterdir()) == ["m2-0001", "m2-0002", "m2-0003"]
    assert all(p.stat().st_mode & 0o777 == 0o640 for p in (place / "m2").iterdir())
    assert magbay(place, "backup", str(place / "magbay.yaml"), json_output=True).document["volumes"] == ["m2-0001"]


def test_a_job_of_the_configuration(place: Path) -> None:
    (place / "data").mkdir()
    for name in ("keep", "drop.tmp"):
        (place / "data" / name).write_text(name)
    with open(place / "magbay.yaml", "a") as file:
        file.write('jobs:\n  documents: {paths: [data], exclude: ["*.tmp"]}\n')
    done = magbay(place, "backup", "documents", json_output=True)
    assert (done.status, done.document["name"], done.document["files"]) == (0, "documents", 2)
    done = magbay(place, "backup", "documents", "--level", "incremental", json_output=True)
    assert (done.status, done.document["level"]) == (0, "incremental")
    done = magbay(place, "restore", "--latest", "documents", "--file", "keep", "--to", str(place / "out"))
    assert done.status == 0
    assert [p.name for p in below(place / "out", place / "data").iterdir()] == ["keep"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (4, ["backup", "/no/such/path"]),
        (4, ["backup", "--pool", "Other", "/etc/hostname"]),
        (4, ["restore", "--to", "out"]),
        (4, ["restore", "--job", "77", "--to", "out"]),
        (4, ["job", "show", "77"]),
        (4, ["verify", "--job", "77"]),
        (4, ["verify", "--magazine", "m9"]),
        (4, ["label", "--magazine", "m9"]),
        (2, ["restore"]),
        (2, ["backup"]),
        (2, ["backup", ""]),
        (2, ["backup", "--name", "a b", "/etc/hostname"]),
        (2, ["label", "--count", "0"]),
        (2, ["restore", "--job", "1", "--latest", "x", "--to", "out"]),
    ],
)
def test_expected_trouble(place: Path, capsys: pytest.CaptureFixture[str], status: int, words: list[str]) -> None:
    try:
        ended: int | str | None = main(["--config", str(place / "magbay.yaml"), *words])
    except SystemExit as usage:  # argparse's way
        ended = usage.code
    told = capsys.readouterr()
    assert ended == status and told.err and not told.out


def test_trouble_shows_no_traceback(place: Path) -> None:
    done = magbay(place, "backup", "/no/such/path")
    assert done.status == 4 and "/no/such/path" in done.stderr


def test_trouble_is_one_document_in_json(place: Path) -> None:
    done = magbay(place, "restore", "--job", "77", "--to", str(place / "out"), json_output=True)
    assert done.status == 4
    assert done.document == {"error": "there is no job 77", "hint": "'magbay jobs' lists them.", "status": 4}


def test_odd_names_survive_json(place: Path) -> None:
    folder = place / "source"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/odd\xff", "wb") as file:
        file.write(b"x" * 100_000)
    assert magbay(place, "backup", str(folder)).status == 0
    volume = place / "m1" / "m1-0001"
    data = bytearray(volume.read_bytes())
    data[50_000] ^= 1
    volume.write_bytes(data)
    done = magbay(place, "restore", "--to", str(place / "out"), json_output=True)
    assert done.status == 1
    assert any("odd\udcff" in line for line in done.document["errors"])
    assert "odd" in magbay(place, "verify").stderr


def test_progress_as_json_lines(place: Path) -> None:
    (place / "data").write_bytes(os.urandom(200 << 20))
    command = [sys.executable, "-m", "appliance", "--config", str(place / "magbay.yaml"), "--progress", "json"]
    done = subprocess.run([*command, "backup", str(place / "data")], cwd=ROOT, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 0 and lines
    assert lines[-1]["progress"] == "backup" and lines[-1]["total"] == 200 << 20 and lines[-1]["eta"] is not None
