"""What scripts rely on: one JSON document whatever happens, exit statuses, jobs that do not depend on who listens."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from appliance.cli import running
from appliance.cli.main import main
from appliance.cli.output import Output, Progress
from appliance.cli.running import stoppable
from tests.unit.enginehelp import ROOT, configuration, magbay


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a configuration and something to save."""
    configuration(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("content")
    return tmp_path


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (2, []),
        (2, ["nonsense"]),
        (2, ["backup"]),
        (2, ["status", "--watch"]),
        (2, ["volume", "list"]),
        (2, ["label", "--count", "0"]),
        (2, ["jobs", "--bogus"]),
        (4, ["job", "show", "9" * 30]),
        (4, ["restore", "--job", "9" * 30, "--to", "out"]),
        (4, ["verify", "--job", "9" * 30]),
        (4, ["restore", "--latest", "\udcff", "--to", "out"]),
        (4, ["jobs", "--name", "\udcff"]),
        (4, ["jobs", "--name", "bakup"]),
        (4, ["backup", "--level", "incremental", "bakup"]),  # a full one has its reader started ahead
    ],
)
def test_one_json_document_also_for_wrong_words(
    place: Path, capsys: pytest.CaptureFixture[str], status: int, words: list[str]
) -> None:
    assert main(["--config", str(place / "magbay.yaml"), "--json", *words]) == status
    document = json.loads(capsys.readouterr().out)
    assert status == 0 or (document["status"] == status and document["error"] and document["hint"])


def test_global_options_may_stand_behind_the_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "--json", "--config", str(place / "magbay.yaml")]) == 0
    assert json.loads(capsys.readouterr().out) == {"jobs": []}


def test_names_that_are_nearly_right(place: Path) -> None:
    """A job that nobody knows is not found; it is said which may be meant, and that paths were looked for, too."""
    with (place / "magbay.yaml").open("a") as file:
        file.write(f"jobs:\n  Home: {{paths: [{place}/data], pool: Default}}\n  mail: {{paths: [/nowhere]}}\n")
    never = magbay(place, "jobs", "--name", "Home")
    assert (never.status, never.stdout) == (0, "job Home has not run yet\n")
    assert magbay(place, "jobs", "--name", "Home", json_output=True).document == {"jobs": []}
    wrong = magbay(place, "jobs", "--name", "homes")
    assert wrong.status == 4 and "no job called homes" in wrong.stderr and "Do you mean Home?" in wrong.stderr
    for words in (["home"], ["hmoe"], [str(place / "data"), "hom"]):
        done = magbay(place, "backup", *words)
        assert done.status == 4 and f"{words[-1]} is neither a job" in done.stderr, done.stderr
        assert "Do you mean Home?" in done.stderr
    assert "Jobs are Home, mail." in magbay(place, "backup", "xyz").stderr
    level = magbay(place, "backup", "Home@ful")
    assert level.status == 4 and "no level ful" in level.stderr and "full, differential, incremental" in level.stderr
    both = magbay(place, "backup", "Home", "mail")
    assert both.status == 2 and "Home is a job" in both.stderr
    assert "/nowhere cannot be saved" in magbay(place, "backup", "mail").stderr
    assert magbay(place, "backup", "Home").status == 0
    latest = magbay(place, "restore", "--latest", "Hone", "--to", "out")
    assert latest.status == 4 and "Do you mean Home?" in latest.stderr


def _shell(place: Path, line: str) -> subprocess.CompletedProcess[str]:
    program = f"{sys.executable} -m appliance --config {place / 'magbay.yaml'}"
    done = subprocess.run(
        ["bash", "-c", line.replace("MAGBAY", program)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_job_does_not_depend_on_a_reader(place: Path) -> None:
    line = (
        f"MAGBAY backup {place}/data | true; s=${{PIPESTATUS[0]}}; MAGBAY backup {place}/data >&- 2>&- || s=9; exit $s"
    )
    assert _shell(place, line).returncode == 0
    jobs = magbay(place, "jobs", json_output=True).document["jobs"]
    assert [(job["status"], job["files"]) for job in jobs] == [("done", 2), ("done", 2)]


def test_a_listing_may_be_left_early(place: Path) -> None:
    for number in range(500):
        (place / "data" / f"{number:03}-{'n' * 200}").touch()
    assert magbay(place, "backup", str(place / "data")).status == 0
    done = _shell(place, "MAGBAY restore --list | head -n 1; exit ${PIPESTATUS[0]}")
    assert done.returncode == 1 and done.stderr == ""


# The interrupt comes while the program is still being loaded.
_EARLY = """\
import sys
from appliance.__main__ import main
def interrupt(event, details):
    if event == "import" and details[0] == "appliance.config.loader":
        raise KeyboardInterrupt
sys.addaudithook(interrupt)
sys.exit(main())
"""


@pytest.mark.parametrize("words", [["jobs"], ["--json", "jobs"]])
def test_an_early_interrupt_is_told_as_any_other(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _EARLY, *words], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "magbay: interrupted\n")
    wanted = {"error": "interrupted", "hint": "", "status": 130}
    assert (json.loads(done.stdout) if done.stdout else {}) == (wanted if "--json" in words else {})


def test_an_answer_that_cannot_be_written_is_a_failure(place: Path) -> None:
    done = _shell(place, "MAGBAY --json jobs >/dev/full")
    assert done.returncode == 1 and "No space left" in done.stderr


def test_progress_that_nobody_reads_ends_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        display = Progress("backup", 100, "json")
        display._drawn -= 1
        display.advance(50)
    assert display.done == 50


def test_a_line_takes_the_place_of_the_progress(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(progress_style="text")
    with out.progress("verify", 100) as display:
        display._drawn -= 1
        display.advance(50)
        out.line("job 1: good")
    assert capsys.readouterr().err.endswith("left\r\x1b[K\r\x1b[K")


@pytest.mark.parametrize("columns", [0, 1, 20])
def test_progress_is_never_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 5, columns, 0, 0))
    with os.fdopen(side, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        display = Progress("backup", 10**15, "text")
        display._drawn -= 1
        display.advance(10**9)
    drawn = os.read(terminal, 1000).decode().removeprefix("\r\x1b[K")
    os.close(terminal)
    assert drawn == "backup: 1.0 GB of 1000.0 TB"[:19] if columns == 20 else drawn.startswith("b")
    assert 0 < len(drawn) < (max(columns, 2) if columns else 80)


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("text", ["{", "[]", '{"disks": 3}', '{"disks": [{"state": "mounted"}]}', '{"disks": ["x"]}'])
@pytest.mark.parametrize("words", [["status"], ["magazine", "list"], ["eject", "m1"], ["slots"]])
def test_a_damaged_answer_of_the_agent_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    (place / "run").mkdir()
    (place / "run" / "media.json").write_text(text)
    assert main(["--config", str(place / "magbay.yaml"), *words]) == 1
    assert "media.json is damaged" in capsys.readouterr().err


def test_a_damaged_enrolment_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "state" / "magazines").mkdir(parents=True)
    (place / "state" / "magazines" / "1234.yaml").write_text("name: x\n")
    assert main(["--config", str(place / "magbay.yaml"), "magazine", "list"]) == 3
    told = capsys.readouterr()
    assert "m1" in told.out and "1234.yaml" in told.err


def test_something_else_in_the_place_of_a_magazine(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "m1").touch()
    for words in (["backup", str(place / "data")], ["label"], ["status"]):
        assert main(["--config", str(place / "magbay.yaml"), *words]) == 1
        assert "magazine m1" in (told := capsys.readouterr().err) and "another directory" in told


def test_a_trouble_is_told_once(place: Path) -> None:
    (place / "m1").mkdir()
    done = magbay(place, "backup", str(place / "data"), str(place / "m1"))
    assert done.status == 3 and "belongs to magbay" in done.stderr and "belongs to magbay" not in done.stdout


def test_names_give_no_orders_to_the_terminal(place: Path) -> None:
    (place / "data" / "odd\x1b[2J\nname").symlink_to("to\x1b[0m")
    os.mkdir(b"%s/data/bytes\xff" % os.fsencode(place))
    assert magbay(place, "backup", str(place / "data")).status == 0
    listed = subprocess.run(
        [sys.executable, "-m", "appliance", "volume", "list", str(place / "m1" / "m1-0001")],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout
    assert b"odd\\x1b[2J\\nname -> to\\x1b[0m\n" in listed and b"bytes\xff/\n" in listed and b"\x1b" not in listed


def test_a_directory_has_no_disk_to_eject(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(place / "magbay.yaml"), "eject", "m1"]) == 1
    assert "plain directory" in capsys.readouterr().err


def test_the_agent_is_asked_to_eject_before_the_configuration_is_read(place: Path) -> None:
    """It works while the command still starts. With a configuration of its own nothing is asked in vain."""
    loaded = "'appliance.config.loader' in sys.modules"
    program = (
        "import sys; from pathlib import Path; from appliance.cli import eject; from appliance.cli.main import main\n"
        f"def ask(*words): print('asked', *words, {loaded}); raise eject.MagbayError('the agent: no')\n"
        "eject.ask = ask\n"
        "if len(sys.argv) > 1: eject.DEFAULT_PATH = Path(sys.argv[1])\n"
        f"sys.exit(main(['--config', {str(place / 'magbay.yaml')!r}, 'eject', 'm1']))\n"
    )
    for words, told in (([str(place / "magbay.yaml")], "asked Eject s m1 False\n"), ([], "")):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stdout) == (1, told), done.stderr
        assert "plain directory" in done.stderr, "what the command finds out says more than the agent"


def test_what_was_cancelled_is_not_said_to_be_good_or_restored(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "data" / "large").write_bytes(os.urandom(3_000_000))
    assert magbay(place, "backup", str(place / "data")).status == 0
    for words in (["verify"], ["verify", "--disk"], ["restore", "--to", f"{place}/out"]):
        for looks in (0, 1, 2):
            counted = iter(range(looks))
            asked = threading.Event()
            asked.is_set = lambda counted=counted: next(counted, None) is None  # type: ignore[method-assign]
            monkeypatch.setattr(running, "stoppable", lambda asked=asked: contextlib.nullcontext(asked))
            assert main(["--config", f"{place}/magbay.yaml", *words]) == 1, (words, looks)
            told = capsys.readouterr()
            assert "cancelled" in told.err, (words, looks)
            assert "good" not in told.out and "is restored" not in told.err, (words, looks)
