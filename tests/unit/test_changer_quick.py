"""The quick half of the Changer Command: it gives the same answers as the other half, or hands over to it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.changer import command
from appliance.changer.plain import PLAIN

PROGRAM = Path(__file__).parents[2] / "bin" / "magbay-changer.c"
LABEL = b"\x00\x00\x00\x01\x00\x00\x00\xc8\x00\x00\x00\x00BB02" + bytes(200)
YAML = (
    "state_dir: state\nrun_dir: run\nchanger: {name: c0, drives: 3, slots: 40}\n"
    "magazines:\n  - {name: m1, directory: m1}\n  - {name: m2, directory: m2}\n  - {name: m3, directory: m3}\n"
)
OTHERS = (
    YAML.replace("run_dir: run", "run_dir: 'ROOT/elsewhere'   # with a comment"),
    YAML.replace("state_dir: state\nrun_dir: run\n", "") + 'run_dir: "r"\nstate_dir: s\n',
    "Storage Resource = s\r\nWork Dir = ROOT/work\r\nMagazine = ROOT/m1\r\nMagazine = ROOT/m2\r\n",
    "changer_name = c1\nslots_per_magazine = 2\nwork_dir = 'ROOT/work'\nVirtual_Drives = 2\n"
    "magazine = ROOT/m1\nmagazine = ROOT/m2\n",
    "Magazine = ROOT/m1\nMagazine = ROOT/m2\n workdir=work # relative to where it is called\n",
)
HANDED_OVER = "cannot run"


@dataclass(frozen=True)
class Box:
    """A changer with magazines m1 (v1, v2) and m2 (w1), and the program without the other half beside it."""

    root: Path
    config: Path

    def quick(self, *words: str, config: str = "") -> tuple[int, str, str]:
        line = [str(self.root / "bin" / "magbay-changer"), config or str(self.config), *words]
        done = subprocess.run(line, capture_output=True, cwd=self.root, timeout=30, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def alone(self, *words: str) -> str:
        """The answer of a call that must not need the other half."""
        status, out, err = self.quick(*words)
        assert (status, err) == (0, ""), (words, out, err)
        return out

    def hands_over(self, *words: str) -> bool:
        status, out, err = self.quick(*words)
        assert HANDED_OVER not in err or (status, out) == (1, "")
        return HANDED_OVER in err


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The program, with all warnings of the compiler and under the sanitizers."""
    program = tmp_path_factory.mktemp("compiled") / "magbay-changer"
    line = ["cc", "-std=gnu17", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
    line += ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
    done = subprocess.run([*line, "-o", program, PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # it lives for a millisecond and frees nothing
        yield program


def make(quick: Path, root: Path, text: str = YAML) -> Box:
    root.mkdir()
    for magazine, volumes in (("m1", ("v1", "v2")), ("m2", ("w1",))):
        (root / magazine).mkdir()
        for volume in volumes:
            (root / magazine / volume).write_bytes(LABEL)
    (root / "m1" / "README").write_text("no volume")
    (root / "bin").mkdir()
    shutil.copy(quick, root / "bin")
    (root / "magbay.yaml").write_text(text.replace("ROOT", str(root)))
    return Box(root, root / "magbay.yaml")


@pytest.fixture(scope="module")
def published(quick: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Box]:
    """Published boxes; first those with a configuration of OTHERS."""
    base, home = tmp_path_factory.mktemp("quick"), Path.cwd()
    made = [make(quick, base / f"other{n}", text) for n, text in enumerate(OTHERS)]
    made += [make(quick, base / str(n)) for n in range(28)]
    for _ in range(2):  # the first makes directories itself, which are too young then
        for box in made:
            os.chdir(box.root)
            assert command.main([str(box.config), "refresh"]) == 0
        time.sleep(0.05)
    os.chdir(home)
    return made


@pytest.fixture(scope="module")
def boxes(published: list[Box]) -> Callable[[], Box]:
    return iter(published[len(OTHERS) :]).__next__


@pytest.fixture
def box(boxes: Callable[[], Box]) -> Box:
    return boxes()


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_every_way_to_say_where_things_are(
    published: list[Box], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    box = published[number]
    monkeypatch.chdir(box.root)
    last = str(len(box.alone("list").splitlines()))
    assert both(box, capfd, "list").endswith(":w1\n")
    device = str(box.root / "work" / "0" / "drive0")
    if number == 3:  # vchanger 0.8
        (box.root / "work" / "0").mkdir()
        box.alone("load", "3", device, "0")
        assert os.readlink(device) == str(box.root / "m2" / "w1")
    else:
        box.alone("load", last, "x", "0")
    for words in (("loaded", "0", "x", "0"), ("loaded", "0", "x", "1"), ("listall",), ("slots",)):
        both(box, capfd, *words)


def both(box: Box, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """What both halves answer."""
    assert command.main([str(box.config), *words]) == 0
    wanted = capfd.readouterr().out
    assert box.alone(*words) == wanted, words
    return wanted


def same_answers(box: Box, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (("list",), ("listall",), ("slots",), *(("loaded", "0", "x", str(drive)) for drive in range(3))):
        both(box, capfd, *words)


def test_it_answers_as_the_other_half_through_loads_and_unloads(box: Box, capfd: pytest.CaptureFixture[str]) -> None:
    same_answers(box, capfd)
    assert box.alone("load", "2", "x", "1") == ""
    assert (box.root / "run" / "drives" / "1").readlink() == box.root / "m1" / "v2"
    assert both(box, capfd, "loaded", "0", "x", "1") == "2\n"
    assert box.alone("LOAD", "2", "x", "1") == ""  # again
    same_answers(box, capfd)
    assert box.alone("load", "03", "x", "0") == ""
    same_answers(box, capfd)
    assert box.alone("unload", "7", "x", "1") == ""
    assert box.alone("unload", "0", "x", "1") == ""
    same_answers(box, capfd)
    assert not (box.root / "run" / "drives" / "1").is_symlink()


def test_the_form_of_vchanger_0_8(box: Box, capfd: pytest.CaptureFixture[str]) -> None:
    device = str(box.root / "run" / "drives" / "0" / "drive0")
    assert box.hands_over("load", "1", device, "0")  # the directory is not there
    assert command.main([str(box.config), "load", "1", device, "0"]) == 0
    same_answers(box, capfd)
    assert box.alone("unload", "1", device, "0") == ""
    assert box.alone("load", "3", device, "0") == ""
    assert os.readlink(device) == str(box.root / "m2" / "w1")
    same_answers(box, capfd)


@pytest.mark.parametrize(
    "words",
    [
        ("transfer", "1", "9"),
        ("listmags",),
        ("refresh",),
        ("load", "9", "x", "0"),  # an empty slot
        ("load", "1", "x", "3"),  # no such drive
        ("loaded", "0", "x", "3"),
        ("load", "0", "x", "0"),
        ("load", "99999999999", "x", "0"),
        ("load", "1", "x", "0\n"),
        ("load", "1", "x"),
        ("load", "1.5", "x", "0"),
        ("list", "-x"),
        ("",),
        ("volume",),
    ],
)
def test_everything_else_is_handed_over(words: tuple[str, ...], shared: Box) -> None:
    assert shared.hands_over(*words)


@pytest.fixture(scope="module")
def shared(boxes: Callable[[], Box]) -> Box:
    return boxes()


def test_contradictions_are_handed_over(box: Box) -> None:
    assert box.alone("load", "1", "x", "0") == ""
    assert box.hands_over("load", "1", "x", "1")  # in another drive
    assert box.hands_over("load", "2", "x", "0")  # another volume in the drive
    (box.root / "run" / "drives" / "1").write_bytes(b"data of a daemon")
    assert box.hands_over("load", "2", "x", "1")
    assert box.alone("loaded", "0", "x", "1") == "0\n"


def _swap(box: Box) -> None:
    (box.root / "m2").rename(box.root / "m2.old")
    (box.root / "m1").rename(box.root / "m2")


def _restamp(box: Box) -> None:
    """A change whose time stamps are hidden as well as a user can."""
    before = (box.root / "m1").stat()
    (box.root / "m1" / "v2").unlink()
    os.utime(box.root / "m1", ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda box: (box.root / "m1" / "v9").write_bytes(LABEL),
        lambda box: (box.root / "m1" / "v1").unlink(),
        lambda box: (box.root / "m1" / "v1").rename(box.root / "m1" / "v0"),
        lambda box: shutil.rmtree(box.root / "m2"),
        lambda box: (box.root / "m3").mkdir(exist_ok=True) or (box.root / "m3" / "z").write_bytes(b""),
        _swap,
        _restamp,
        lambda box: box.config.write_text(YAML.replace("slots: 40", "slots: 39")),
        lambda box: (box.root / "magbay.d").mkdir(),
        lambda box: (box.root / "run" / "media.json").write_text('{"disks": []}'),
        lambda box: (box.root / "state" / "slots.json").unlink(),
        lambda box: (box.root / "state" / "magazines" / "x.directory").touch(),
        lambda box: (box.root / "run" / PLAIN).write_bytes(b"magbay-changer 2\n"),
        lambda box: (box.root / "run" / PLAIN).write_bytes(b""),
        lambda box: (box.root / "run" / PLAIN).unlink(),
    ],
)
def test_it_never_answers_when_anything_it_rests_on_has_changed(box: Box, change: Callable[[Box], object]) -> None:
    assert box.alone("list") == "1:v1\n2:v2\n3:w1\n"
    change(box)
    for words in (("list",), ("listall",), ("slots",), ("loaded", "0", "x", "0"), ("load", "1", "x", "0")):
        assert box.hands_over(*words)


def test_it_answers_right_after_a_change(box: Box) -> None:
    """Nanoseconds tell the change from the next one, so nobody has to wait until the seconds are over."""
    for number in range(3):
        (box.root / "m1" / f"v{number + 3}").write_bytes(LABEL)
        assert box.hands_over("list")
        past = time.time_ns() - 50_000_000  # as if the other half had taken a while to start
        os.utime(box.root / "m1", ns=(past, past + number))
        assert command.main([str(box.config), "refresh"]) == 0
        assert box.alone("list").endswith(f":v{number + 3}\n")


@pytest.mark.parametrize("age", [0, 2_000_000_000], ids=["within a tick", "whole seconds"])
def test_what_is_too_young_is_not_published(box: Box, age: int) -> None:
    now = time.time_ns() + 10_000_000_000  # a look that is quicker than the clock ticks
    os.utime(box.root / "m1", ns=(now, now // 1_000_000_000 * 1_000_000_000 - age if age else now))
    assert command.main([str(box.config), "list"]) == 0
    assert box.hands_over("list")


def test_a_load_waits_for_the_lock_and_questions_do_not(shared: Box) -> None:
    with open(shared.root / "run" / "changer.lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert shared.alone("list") == "1:v1\n2:v2\n3:w1\n"
        line = [str(shared.root / "bin" / "magbay-changer"), str(shared.config), "unload", "0", "x", "2"]
        waiting = subprocess.Popen(line)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.3)
    assert waiting.wait(10) == 0


def test_a_relative_configuration_and_the_tutorials_options(shared: Box) -> None:
    assert shared.quick("list", config="magbay.yaml") == (0, "1:v1\n2:v2\n3:w1\n", "")
    line = [str(shared.root / "bin" / "magbay-changer"), "-u", "nobody", "-g", "nogroup", str(shared.config), "list"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert HANDED_OVER in done.stderr if os.geteuid() == 0 else done.returncode in (0, 1)


def test_an_answer_that_cannot_be_written_is_a_failure(shared: Box) -> None:
    with open("/dev/full", "wb") as full:
        line = [str(shared.root / "bin" / "magbay-changer"), str(shared.config), "list"]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1 and b"No space left" in done.stderr


def test_it_finds_the_other_half_through_a_link(box: Box, tmp_path: Path) -> None:
    (box.root / "bin" / "magbay-changer-full").write_text('#!/bin/sh\necho "full: $*"\n')
    (box.root / "bin" / "magbay-changer-full").chmod(0o755)
    (tmp_path / "link").symlink_to(box.root / "bin" / "magbay-changer")
    done = subprocess.run([str(tmp_path / "link"), "a b", "listmags", ""], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "full: a b listmags \n", "")
