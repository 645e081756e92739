"""The Changer Command against words, files and callers as they should not be."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.changer import command

BIN = Path(sys.executable).parent
QUICK, FULL = BIN / "magbay-changer", BIN / "magbay-changer-full"
LABEL = b"\x00\x00\x00\x01\x00\x00\x00\xc8\x00\x00\x00\x00BB02" + bytes(200)
LISTED = "1:v1\n2:v2\n3:v3\n4:w1\n"


class Box:
    """A changer with three drives, and magazines m1 (v1 to v3) and m2 (w1), in a folder whose name has blanks."""

    def __init__(self, root: Path) -> None:
        self.root, self.config = root / "a box", root / "a box" / "my magbay.yaml"
        self.root.mkdir()
        self.config.write_text(
            "state_dir: the state\nrun_dir: the run\nchanger: {name: c0, drives: 3, slots: 40}\n"
            "magazines:\n  - {name: m1, directory: mag one}\n  - {name: m2, directory: mag two}\n"
        )
        self.m1, self.m2, self.drives = self.root / "mag one", self.root / "mag two", self.root / "the run" / "drives"
        for folder, names in ((self.m1, ("v1", "v2", "v3")), (self.m2, ("w1",))):
            folder.mkdir()
            for name in names:
                (folder / name).write_bytes(LABEL)
        for _ in range(2):
            assert command.main([str(self.config), "refresh"]) == 0
            time.sleep(0.03)  # until time stamps tell

    def run(self, *words: str | bytes, program: Path = QUICK) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([program, self.config, *words], capture_output=True, timeout=30, check=False)

    def answer(self, *words: str) -> str:
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, b""), (words, done)
        return done.stdout.decode()

    def refusal(self, *words: str | bytes) -> str:
        done = self.run(*words)
        text = done.stderr.decode()
        assert (done.returncode, done.stdout, text.count("\n")) == (1, b"", 1), (words, done)
        assert text.startswith("magbay-changer: ") and "internal error" not in text and "Traceback" not in text
        return text

    def links(self) -> dict[int, Path]:
        """Drive to what it points at; every link is whole."""
        found = {}
        for path in self.drives.iterdir():
            if path.name.isdigit():
                assert path.is_symlink() and path.stat().st_size
                found[int(path.name)] = path.readlink()
        return found

    def lock_is_free(self) -> bool:
        with open(self.root / "the run" / "changer.lock", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Box:
    return Box(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


GARBAGE: list[tuple[str | bytes, ...]] = [
    (),
    ("",),
    ("list ",),
    (" list",),
    ("list\n",),
    ("lİst",),
    ("\x7f\x1b[2J",),
    (bytes(range(1, 256)),),
    ("loaded list", "0", "x", "0"),
    ("load", "-1", "x", "0"),
    ("load", "+1", "x", "0"),
    ("load", "1", "x", "-0"),
    ("load", "0x1", "x", "0"),
    ("load", "1e0", "x", "0"),
    ("load", "1 ", "x", "0"),
    ("load", "1\n", "x", "0"),
    ("load", "٣", "x", "0"),
    ("load", "²", "x", "0"),
    ("load", "９", "x", "0"),
    ("load", b"\xb9", "x", "0"),
    ("load", "9" * 100_000, "x", "0"),
    ("load", "4294967297", "x", "0"),
    ("load", "41", "x", "0"),
    ("load", "32768", "x", "0"),
    ("load", "0", "x", "0"),
    ("load", "00", "x", "0"),
    ("load", "5", "x", "0"),
    ("load", "1", "x", "3"),
    ("load", "1", "x", "4294967296"),
    ("loaded", "0", "x", "3"),
    ("loaded", "0", "x", "-1"),
    ("unload", "1", "x", "99"),
    ("unload", "", "", ""),
    ("unload", "1", "x"),
    ("transfer", "1", "1"),
    ("transfer", "1", "41"),
    ("transfer", "0", "1"),
    ("transfer", "5", "6"),
    ("transfer", "1"),
    ("transfer", "1", b"\xff"),
    ("createvols", "-1", "1"),
    ("createvols", "0", "10000"),
    ("createvols", "0", "1", "-l", "a b"),
    ("createvols", "0", "1", "-l", "../x"),
    ("initmag", "99999999999"),
    ("-u", "list"),
    ("list", "-u"),
    ("drives",),
    ("volume", "1"),
]


@pytest.mark.parametrize("words", GARBAGE, ids=lambda words: ascii(words)[:40])
def test_garbage_is_refused_in_one_line_and_changes_nothing(shared: Box, words: tuple[str | bytes, ...]) -> None:
    shared.refusal(*words)


def test_nothing_was_changed_by_it(shared: Box) -> None:
    assert shared.answer("list") == LISTED and shared.links() == {}
    assert sorted(path.name for path in shared.m1.iterdir()) == ["v1", "v2", "v3"]


def test_blanks_in_paths(box: Box) -> None:
    """Configuration, run directory and magazines have blanks in their names; both halves live with that."""
    assert box.answer("load", "2", f"{box.drives}/1", "1") == ""
    assert box.links() == {1: box.m1 / "v2"}
    for program in (QUICK, FULL):
        assert box.run("loaded", "0", f"{box.drives}/1", "1", program=program).stdout == b"2\n"
        assert box.run("list", program=program).stdout.decode() == LISTED
    assert box.answer("unload", "2", f"{box.drives}/1", "1") == "" and box.links() == {}


def test_volumes_whose_names_have_blanks_are_not_offered(box: Box) -> None:
    """No Director would take such a line of a listing."""
    (box.m1 / "has blanks").write_bytes(LABEL)
    (box.m1 / "ends ").write_bytes(LABEL)
    (box.m1 / "new\nline").write_bytes(LABEL)
    assert box.answer("list") == LISTED
    assert "has blanks" not in box.answer("listall")


@pytest.mark.complaint(23)
class TestDeletedBehindOurBack:
    def test_not_loaded(self, box: Box) -> None:
        (box.m1 / "v2").unlink()
        assert "Source Element Address 2 is Empty: volume v2 of magazine m1 is no longer on it" in box.refusal(
            "load", "2", "x", "0"
        )
        assert box.answer("list") == "1:v1\n2:\n3:v3\n4:w1\n"

    def test_loaded(self, box: Box) -> None:
        box.answer("load", "2", "x", "0")
        (box.m1 / "v2").unlink()
        assert box.answer("loaded", "0", "x", "0") == "0\n"
        assert box.answer("unload", "2", "x", "0") == ""
        assert box.answer("load", "3", "x", "0") == "" and box.links() == {0: box.m1 / "v3"}

    def test_between_the_answer_and_the_load(self, box: Box) -> None:
        """What was published says that it is there: only an open file is proof."""
        assert box.answer("list") == LISTED
        stamp = box.m1.stat()
        (box.m1 / "v2").unlink()
        os.utime(box.m1, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert "is no longer on it" in box.refusal("load", "2", "x", "0")
        assert box.links() == {}

    def test_put_back_under_the_same_name(self, box: Box) -> None:
        (box.m1 / "v2").rename(box.root / "aside")
        assert "2:\n" in box.answer("list")
        (box.root / "aside").rename(box.m1 / "v2")
        assert box.answer("list") == LISTED

    def test_a_directory_or_a_link_took_its_place(self, box: Box) -> None:
        for make in (lambda path: path.mkdir(), lambda path: path.symlink_to(box.m1 / "v1"), os.mkfifo):
            path = box.m1 / "v2"
            path.rmdir() if path.is_dir() else path.unlink()
            make(path)
            assert "Source Element Address 2 is Empty" in box.refusal("load", "2", "x", "0")
            assert box.links() == {}


@pytest.mark.complaint(19)
def test_one_label_on_two_disks(box: Box) -> None:
    """Neither is offered, a drive that holds one is emptied, both magazines are named; one goes, one is back."""
    box.answer("load", "2", "x", "0")
    (box.m2 / "v2").write_bytes(LABEL)
    assert box.answer("list").splitlines()[:2] == ["1:v1", "2:"]
    assert box.answer("loaded", "0", "x", "0") == "0\n" and box.links() == {}
    assert "volume v2 of magazine m1 is on another magazine too" in box.refusal("load", "2", "x", "0")
    (box.m1 / "v2").unlink()
    assert [line for line in box.answer("list").splitlines() if line.endswith(":v2")] == ["5:v2"]


# For each number that it reads, runs the words in a child that is killed at that many steps; says how it ended.
STEP = """\
import os, sys
from appliance.changer import command, drives, lock, look, plain, service
import appliance.config.loader, appliance.host.files, appliance.config.vchanger
KINDS = {"open", "fcntl.flock", "os.rename", "os.symlink", "os.remove", "os.mkdir", "os.chmod", "os.listdir"}
for line in sys.stdin:
    child = os.fork()
    if not child:
        left = int(line)
        def hook(event, args):
            global left
            if event in KINDS and (event == "fcntl.flock" or "a box" in str(args[0]) + str(args[-1])):
                left -= 1
                if not left:
                    os.kill(os.getpid(), 9)
        sys.addaudithook(hook)
        os._exit(command.main(sys.argv[1:]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.complaint(27)
class TestKilled:
    """SIGKILL at any moment: the drive holds the old volume, the new one or none, and the next call simply works."""

    def after(self, box: Box, allowed: set[Path | None]) -> None:
        assert box.lock_is_free()
        assert box.links().get(0) in allowed
        assert box.answer("list") == LISTED

    def test_the_full_half_at_every_step_of_a_load(self, box: Box) -> None:
        line = [sys.executable, "-c", STEP, str(box.config), "load", "2", "x", "0"]
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as runner:
            assert runner.stdin is not None and runner.stdout is not None
            for step in range(1, 500):
                for name in ("changer.txt", "changer.json"):
                    (box.root / "the run" / name).unlink(missing_ok=True)
                runner.stdin.write(f"{step}\n")
                runner.stdin.flush()
                status = int(runner.stdout.readline())
                if status == 0:
                    break
                assert status == -signal.SIGKILL
                assert box.lock_is_free() and box.links().get(0) in (None, box.m1 / "v2")
                if box.links():
                    box.drives.joinpath("0").unlink()
            runner.stdin.close()
        assert step > 15  # it was killed at that many places
        self.after(box, {box.m1 / "v2"})
        assert [path.name for path in box.drives.iterdir()] == ["0"]

    @pytest.mark.parametrize(("program", "most", "rounds"), [(QUICK, 0.0015, 120), (FULL, 0.12, 12)])
    def test_at_random_moments(self, box: Box, program: Path, most: float, rounds: int) -> None:
        dice = random.Random(most)
        killed = 0
        for turn in range(rounds):
            words = ("load", str(turn % 3 + 1), "x", "0") if turn % 2 else ("unload", "1", "x", "0")
            caller = subprocess.Popen([program, box.config, *words], stderr=subprocess.DEVNULL)
            time.sleep(dice.random() * most)
            caller.kill()
            killed += caller.wait(10) < 0
            assert box.lock_is_free()
            assert box.links().get(0) in (None, *(box.m1 / f"v{n}" for n in (1, 2, 3)))
        assert killed > rounds // 8
        self.after(box, {None, *(box.m1 / f"v{n}" for n in (1, 2, 3))})
        box.answer("unload", "1", "x", "0")
        box.answer("load", "4", "x", "0")
        (box.m1 / "touch").mkdir()  # the next full look removes what killed callers left
        box.answer("list")
        assert [path.name for path in box.drives.iterdir()] == ["0"]


@pytest.mark.complaint(28)
def test_a_killed_caller_leaves_no_lock_and_an_ended_pipe(box: Box) -> None:
    """EOF ends a call for the daemon: nothing that lives on may hold the pipe. And the next caller need not wait."""
    for words in (("load", "1", "x", "0"), ("transfer", "1", "9")):
        with open(box.root / "the run" / "changer.lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            caller = subprocess.Popen([QUICK, box.config, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            with pytest.raises(subprocess.TimeoutExpired):
                caller.wait(0.2)
            caller.kill()
            assert caller.stdout is not None and caller.stdout.read() == b""  # does not hang
            caller.wait(10)
        assert box.lock_is_free()
    began = time.monotonic()
    assert box.answer("load", "1", "x", "0") == "" and time.monotonic() - began < 5


class TestManyCallers:
    def test_every_answer_is_consistent(self, box: Box) -> None:
        """Four callers load, unload and ask at once: no slot is ever in two drives, no answer is half an answer."""
        wrong: list[object] = []

        def caller(seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(8):
                slot, drive = str(dice.randrange(1, 5)), str(dice.randrange(3))
                word = dice.choice(["load", "load", "unload", "listall", "list", "loaded"])
                done = box.run(word, slot, "x", drive)
                wrong.extend(self._wrong(word, done))

        threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        held = list(box.links().values())
        assert len(held) == len(set(held))
        assert box.answer("list") == LISTED

    def _wrong(self, word: str, done: subprocess.CompletedProcess[bytes]) -> Iterator[object]:
        out, err = done.stdout.decode(), done.stderr.decode()
        if word == "list" and out != LISTED:
            yield done
        if word == "listall":
            held = [line.split(":")[3] for line in out.splitlines() if line.startswith("D:") and ":F:" in line]
            if len(held) != len(set(held)) or not out.startswith("D:0:"):
                yield done
        if word in ("load", "unload") and (out or (done.returncode == 1) != bool(err)):
            yield done
        if err and "Unload drive" not in err:
            yield done
