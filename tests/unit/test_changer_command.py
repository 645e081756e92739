"""The Changer Command as a storage daemon runs it: words in, answer and exit status out."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.changer import command
from appliance.changer.view import current

COMMAND = Path(sys.executable).with_name("magbay-changer")
CONFIG = (
    "state_dir: state\nrun_dir: run\nmount_dir: mnt\nchanger: {name: c0, drives: 2, slots: 40}\n"
    "magazines:\n  - {name: m1, directory: m1}\n  - {name: m2, directory: m2}\n"
)
LABEL = b"\x00\x00\x00\x01\x00\x00\x00\xc8\x00\x00\x00\x00BB02" + bytes(200)
NOBODY = 65534


class Box:
    """A configuration with two directory magazines, and the command run on it."""

    def __init__(self, root: Path) -> None:
        self.root, self.config = root, root / "magbay.yaml"
        self.config.write_text(CONFIG)
        for name in ("m1", "m2"):
            (root / name).mkdir()

    def volume(self, magazine: str, name: str, data: bytes = LABEL) -> Path:
        path = self.root / magazine / name
        path.write_bytes(data)
        return path

    def run(self, *words: str | bytes, user: int | None = None) -> subprocess.CompletedProcess[bytes]:
        who = {"user": user, "group": user, "extra_groups": []} if user is not None else {}
        return subprocess.run(
            [COMMAND, self.config, *words], capture_output=True, cwd=self.root, timeout=30, check=False, **who
        )

    def answer(self, *words: str) -> str:
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout.decode()

    def refusal(self, *words: str | bytes, user: int | None = None) -> str:
        """The one line on stderr of a call that must fail."""
        done = self.run(*words, user=user)
        text = done.stderr.decode()
        assert done.returncode == 1 and done.stdout == b"", done
        assert text.count("\n") == 1 and text.startswith("magbay-changer: ") and "Traceback" not in text, text
        return text

    def age(self) -> None:
        """Make what was just written look old, so that the published answer is proved by it."""
        for path in (self.root, self.config, self.root / "m1", self.root / "m2", self.root / "state" / "magazines"):
            if path.exists():
                os.utime(path, (1_700_000_000, 1_700_000_000))

    def link(self, drive: int) -> Path:
        return self.root / "run" / "drives" / str(drive)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    made = Box(tmp_path)
    for name in ("v1", "v2", "v3"):
        made.volume("m1", name)
    made.volume("m2", "w1", b"")
    return made


def inside(box: Box, capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The same in this process: quicker, for the many cases."""
    status = command.main([str(box.config), *words])
    out, err = capfd.readouterr()
    return status, out, err


def test_the_answers_have_the_grammar_that_daemons_parse(box: Box) -> None:
    assert box.answer("loaded", "0", "/dev/null", "0") == "0\n"
    assert box.answer("slots") == "40\n"
    assert box.answer("list") == "1:v1\n2:v2\n3:v3\n4:w1\n"
    assert box.answer("load", "2", "/dev/null", "1") == ""
    assert box.answer("loaded", "0", "/dev/null", "1") == "2\n"
    assert box.link(1).readlink() == box.root / "m1" / "v2"
    # A loaded volume stays in `list` under its home slot, and is shown with its drive in `listall`.
    assert box.answer("list") == "1:v1\n2:v2\n3:v3\n4:w1\n"
    assert box.answer("listall").splitlines() == [
        "D:0:E",
        "D:1:F:2:v2",
        "S:1:F:v1",
        "S:2:E",
        "S:3:F:v3",
        "S:4:F:w1",
        *(f"S:{slot}:E" for slot in range(5, 11)),
    ]
    assert box.answer("unload", "2", "/dev/null", "1") == ""
    assert box.answer("loaded", "2", "/dev/null", "1") == "0\n"
    assert not box.link(1).is_symlink()


@pytest.mark.parametrize("published", [True, False], ids=["published", "afresh"])
def test_what_is_done_already_succeeds_and_what_contradicts_is_refused(
    box: Box, capfd: pytest.CaptureFixture[str], published: bool
) -> None:
    def call(*words: str) -> tuple[int, str, str]:
        if published:
            box.age()
            assert inside(box, capfd, "slots")[0] == 0
            assert current(str(box.config)) is not None
        return inside(box, capfd, *words)

    inside(box, capfd, "slots")
    assert call("unload", "3", "x", "0") == (0, "", "")
    assert call("load", "1", "x", "0") == (0, "", "")
    assert call("load", "1", "x", "0") == (0, "", "")
    assert call("load", "1", "x", "1") == (1, "", "magbay-changer: slot 1 (v1) is in drive 0. Unload drive 0 first.\n")
    status, out, err = call("load", "2", "x", "0")
    assert (status, out) == (1, "") and "drive 0 holds the volume of slot 1" in err
    assert call("loaded", "1", "x", "0") == (0, "1\n", "")
    # The slot of an unload is what the daemon believes.
    assert call("unload", "7", "x", "0") == (0, "", "")
    assert call("unload", "0", "x", "0") == (0, "", "")
    assert call("loaded", "0", "x", "0") == (0, "0\n", "")


def test_an_empty_slot_has_the_phrase_that_keeps_a_bareos_job_alive(box: Box) -> None:
    box.answer("list")
    assert "Source Element Address 9 is Empty" in box.refusal("load", "9", "x", "0")
    (box.root / "m1" / "v3").unlink()
    assert re.search(r"Source Element Address 3 is Empty: volume v3 .*m1", box.refusal("load", "3", "x", "0"))
    (box.root / "m2").rename(box.root / "away")
    assert re.search(r"Source Element Address 4 is Empty: volume w1 .*m2", box.refusal("load", "4", "x", "0"))
    assert box.answer("list") == "1:v1\n2:v2\n3:\n4:\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("load", "41", "x", "0"), "no slot 41"),
        (("load", "0", "x", "0"), "no slot 0"),
        (("load", "-1", "x", "0"), "slot must be"),
        (("load", "1 2", "x", "0"), "slot must be"),
        (("load", "", "x", "0"), "slot must be"),
        (("load", "9" * 5000, "x", "0"), "slot must be"),
        (("load", "１", "x", "0"), "slot must be"),
        (("load", "1", "x", "2"), "no drive 2"),
        (("loaded", "0", "x", "-1"), "drive must be"),
        (("loaded", "0", "x", "99999999999999999999"), "drive must be"),
        (("unload", "x", "x", "0"), "slot must be"),
        (("loaded", "0"), "needs slot"),
        (("load",), "needs slot"),
        (("transfer", "1", "2", "0"), "Already Full"),
        (("bad\nword",), "no changer command"),
        ((b"\xff\xfe",), "no changer command"),
        (("load", b"\xff", b"\xfe", b"\xfd"), "slot must be"),
        ((), "needed"),
    ],
)
def test_garbage_is_one_clear_line(box: Box, words: tuple[str | bytes, ...], says: str) -> None:
    assert says in box.refusal(*words)


def test_words_that_do_not_matter_are_ignored(box: Box) -> None:
    assert box.answer("LIST", "0", "x", "0", "y") == box.answer("list")
    assert box.answer("slots", "junk") == "40\n"
    assert box.answer("loaded", "-1", "/any/where/0", "0", "volume") == "0\n"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))), max_size=6))
def test_no_words_at_all_give_a_traceback(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    home = tmp_path_factory.getbasetemp() / "garbage"
    if not home.exists():
        home.mkdir()
        Box(home)
    for line in (words, [str(home / "magbay.yaml"), *words], [str(home / "magbay.yaml"), "load", *words]):
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            saved = os.dup(1), os.dup(2)
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                status = command.main(line)
            finally:
                os.dup2(saved[0], 1)
                os.dup2(saved[1], 2)
                os.close(saved[0])
                os.close(saved[1])
            out.seek(0)
            err.seek(0)
            said, answer = err.read(), out.read()
        assert status in (0, 1)
        assert b"internal error" not in said
        assert (said == b"") if status == 0 else (answer == b"" and said.count(b"\n") == 1 and said.endswith(b"\n"))


def test_configuration_trouble_is_one_line_too(box: Box) -> None:
    box.config.write_text(CONFIG + "nonsense: 1\n")
    assert "nonsense" in box.refusal("list")
    box.config.unlink()
    assert "no such file" in box.refusal("list")
    box.config.mkdir()
    box.refusal("list")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 9, "magazines": {}}', b"\xff\x00", b"[" * 100_000])
def test_a_damaged_slot_map_is_named_and_never_replaced(box: Box, damage: bytes) -> None:
    box.answer("list")
    file = box.root / "state" / "slots.json"
    file.write_bytes(damage)
    text = box.refusal("list")
    assert str(file) in text and "remove it" in text
    assert file.read_bytes() == damage
    file.unlink()  # what the message says
    assert box.answer("list") == "1:v1\n2:v2\n3:v3\n4:w1\n"


def test_two_volumes_with_one_slot_in_the_map_are_damage(box: Box) -> None:
    box.answer("list")
    file = box.root / "state" / "slots.json"
    document = json.loads(file.read_text())
    document["magazines"]["directory:m1"]["slots"]["v2"] = 1
    file.write_text(json.dumps(document))
    assert "slot 1 is given twice" in box.refusal("list")


def test_damaged_published_files_cost_nothing_but_time(box: Box) -> None:
    box.answer("list")
    for name in ("changer.json", "changer-seen.json"):
        for damage in (b"", b"{", b"[1]", b'{"format": 1}', b'{"directory:m1": 5}', b"\xff", b"[" * 100_000):
            (box.root / "run" / name).write_bytes(damage)
            assert box.answer("list") == "1:v1\n2:v2\n3:v3\n4:w1\n"


def test_a_damaged_answer_of_the_media_agent_is_named(box: Box) -> None:
    box.answer("list")
    (box.root / "run" / "media.json").write_text('{"disks": 3}')
    assert "media.json" in box.refusal("list")


def test_data_written_to_an_empty_drive_is_not_overwritten(box: Box) -> None:
    box.answer("load", "1", "x", "0")
    box.answer("unload", "1", "x", "0")
    box.link(0).write_bytes(LABEL)  # a daemon that creates what it cannot find
    assert box.answer("loaded", "0", "x", "0") == "0\n"
    assert str(box.link(0)) in box.refusal("load", "1", "x", "0")
    assert box.link(0).read_bytes() == LABEL
    box.link(0).write_bytes(b"")
    box.answer("load", "1", "x", "0")
    assert box.answer("loaded", "0", "x", "0") == "1\n"


def test_a_failure_to_write_the_answer_is_a_failure(box: Box) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([COMMAND, box.config, "list"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1 and b"No space left" in done.stderr


@pytest.mark.complaint(19, 28)
class TestLock:
    def test_a_killed_holder_leaves_no_lock(self, box: Box) -> None:
        box.answer("list")
        hold = (
            "import sys, time; from pathlib import Path; from appliance.changer.lock import lock\n"
            "with lock(Path(sys.argv[1])):\n  print('held', flush=True)\n  time.sleep(60)\n"
        )
        holder = subprocess.Popen([sys.executable, "-c", hold, box.root / "run"], stdout=subprocess.PIPE)
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            waiter = subprocess.Popen([COMMAND, box.config, "load", "1", "x", "0"])
            with pytest.raises(subprocess.TimeoutExpired):
                waiter.wait(0.3)  # it does wait
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.communicate()
        began = time.monotonic()
        assert waiter.wait(10) == 0 and time.monotonic() - began < 5
        assert box.answer("loaded", "0", "x", "0") == "1\n"

    def test_two_callers_never_have_one_slot_in_two_drives(self, box: Box) -> None:
        for _ in range(3):
            both = [subprocess.Popen([COMMAND, box.config, "load", "1", "x", d], stderr=-3) for d in "01"]
            assert sorted(caller.wait(20) for caller in both) == [0, 1]
            assert sorted(box.answer("loaded", "0", "x", drive) for drive in "01") == ["0\n", "1\n"]
            for drive in "01":
                box.answer("unload", "1", "x", drive)

    def test_concurrent_first_calls_agree_on_the_slots(self, box: Box) -> None:
        callers = [subprocess.Popen([COMMAND, box.config, "list"], stdout=subprocess.PIPE) for _ in range(4)]
        assert {caller.communicate(timeout=30)[0] for caller in callers} == {b"1:v1\n2:v2\n3:v3\n4:w1\n"}

    def test_questions_do_not_wait_for_the_lock_when_the_published_answer_holds(self, box: Box) -> None:
        box.answer("list")
        box.age()
        box.answer("list")
        with open(box.root / "run" / "changer.lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert box.answer("loaded", "0", "x", "0") == "0\n"
            assert box.answer("list") == "1:v1\n2:v2\n3:v3\n4:w1\n"

    def test_a_caller_killed_while_switching_leaves_nothing_behind(self, box: Box) -> None:
        box.answer("load", "1", "x", "0")
        box.link(0).with_name(".0.4711").symlink_to("/nowhere")
        box.volume("m1", "v4")
        box.answer("list")
        assert [path.name for path in box.link(0).parent.iterdir()] == ["0"]


class TestPublished:
    """The published answer may save time and must never be wrong."""

    def published(self, box: Box, capfd: pytest.CaptureFixture[str]) -> bool:
        inside(box, capfd, "list")
        box.age()
        inside(box, capfd, "list")
        return current(str(box.config)) is not None

    def test_it_holds_while_nothing_changes_and_needs_no_yaml(
        self, box: Box, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert self.published(box, capfd)
        script = (
            "import sys; from appliance.changer.command import main; status = main(sys.argv[1:])\n"
            "sys.exit(status or (3 if {'yaml', 'argparse', 'dataclasses', 'pathlib'} & set(sys.modules) else 0))\n"
        )
        for words in (("list",), ("loaded", "0", "x", "0"), ("listall",), ("slots",)):
            # -S: the environment's site module imports what it likes.
            line = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"]
            done = subprocess.run([*line, str(box.config), *words], capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, b""), words

    @pytest.mark.parametrize(
        ("change", "wanted"),
        [
            (lambda box: box.volume("m1", "v4"), "1:v1\n2:v2\n3:v3\n4:w1\n5:v4\n"),
            (lambda box: (box.root / "m1" / "v1").unlink(), "1:\n2:v2\n3:v3\n4:w1\n"),
            (lambda box: shutil.move(box.root / "m2", box.root / "away"), "1:v1\n2:v2\n3:v3\n4:\n"),
            (lambda box: box.volume("m2", "v1"), "1:\n2:v2\n3:v3\n4:w1\n"),
            (lambda box: box.config.write_text(CONFIG.replace("slots: 40", "slots: 2")), "1:v1\n2:v2\n"),
            (lambda box: (box.root / "magbay.d").mkdir(), "1:v1\n2:v2\n3:v3\n4:w1\n"),
            (lambda box: (box.root / "run" / "media.json").write_text('{"disks": []}'), "1:v1\n2:v2\n3:v3\n4:w1\n"),
        ],
    )
    def test_it_falls_with_anything_it_rests_on(
        self, box: Box, capfd: pytest.CaptureFixture[str], change: object, wanted: str
    ) -> None:
        assert self.published(box, capfd)
        change(box)  # type: ignore[operator]
        assert current(str(box.config)) is None
        assert inside(box, capfd, "list") == (0, wanted, "")

    def test_a_directory_that_was_just_changed_proves_nothing(
        self, box: Box, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for when in (time.time() + 1, int(time.time())):  # the second as on a file system that keeps seconds
            os.utime(box.root / "m1", (when, when))
            inside(box, capfd, "list")
            assert current(str(box.config)) is None

    def test_one_of_another_configuration_is_not_taken(self, box: Box, capfd: pytest.CaptureFixture[str]) -> None:
        assert self.published(box, capfd)
        other = box.root / "other.yaml"
        other.write_text(CONFIG.replace("slots: 40", "slots: 39"))
        assert command.main([str(other), "slots"]) == 0
        assert capfd.readouterr().out == "39\n"

    def test_an_odd_way_to_write_run_dir_is_only_slower(self, box: Box, capfd: pytest.CaptureFixture[str]) -> None:
        box.config.write_text(CONFIG.replace("run_dir: run", '"run_dir": "run"'))
        assert not self.published(box, capfd)
        assert inside(box, capfd, "list")[1].startswith("1:v1\n")


def _can_run(user: int) -> bool:
    try:
        done = subprocess.run([COMMAND], user=user, group=user, extra_groups=[], capture_output=True, check=False)
    except PermissionError:
        return False
    return b"needed" in done.stderr


@pytest.fixture
def public_box() -> Iterator[Box]:
    """A box that the user nobody can use: rights mean nothing to root, so these tests change the user."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to run the command as another user")
    root = Path(tempfile.mkdtemp(prefix="magbay-test-"))
    try:
        root.chmod(0o755)
        made = Box(root)
        made.volume("m1", "v1")
        made.volume("m2", "w1")
        for path in (root, *root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        if not _can_run(NOBODY):
            pytest.skip(f"the user nobody cannot run {COMMAND}")
        assert made.run("slots", user=NOBODY).returncode == 0
        yield made
    finally:
        shutil.rmtree(root)


class TestRights:
    def test_a_magazine_that_cannot_be_read_makes_no_partial_list(self, public_box: Box) -> None:
        box = public_box
        assert box.run("list", user=NOBODY).stdout == b"1:v1\n2:w1\n"
        assert box.run("load", "1", "x", "0", user=NOBODY).returncode == 0
        box.age()
        assert box.run("list", user=NOBODY).stdout == b"1:v1\n2:w1\n"
        (box.root / "m1").chmod(0)
        for words in (("list",), ("listall",)):
            assert "m1" in box.refusal(*words, user=NOBODY)
        # What is loaded is not thrown out, and the other magazine works.
        assert box.run("loaded", "0", "x", "0", user=NOBODY).stdout == b"1\n"
        assert box.run("load", "2", "x", "1", user=NOBODY).returncode == 0
        (box.root / "m1").chmod(0o755)
        assert box.run("list", user=NOBODY).stdout == b"1:v1\n2:w1\n"

    def test_a_read_only_magazine_is_listed_and_loaded(self, public_box: Box) -> None:
        box = public_box
        box.root.joinpath("m1", "v1").chmod(0o444)
        (box.root / "m1").chmod(0o555)
        assert box.run("list", user=NOBODY).stdout == b"1:v1\n2:w1\n"
        assert box.run("load", "1", "x", "0", user=NOBODY).returncode == 0

    def test_a_volume_that_may_not_be_read_is_not_loaded(self, public_box: Box) -> None:
        box = public_box
        assert box.run("list", user=NOBODY).stdout == b"1:v1\n2:w1\n"
        box.root.joinpath("m1", "v1").chmod(0)
        text = box.refusal("load", "1", "x", "0", user=NOBODY)
        assert "v1" in text and "Permission denied" in text and str(NOBODY) in text
        assert box.run("loaded", "0", "x", "0", user=NOBODY).stdout == b"0\n"
        assert box.run("list", user=NOBODY).stdout == b"1:v1\n2:w1\n"

    def test_a_slot_map_that_cannot_be_written_gives_no_slot_away(self, public_box: Box) -> None:
        box = public_box
        box.run("list", user=NOBODY)
        (box.root / "state").chmod(0o555)
        box.volume("m1", "v2")
        assert box.run("list", user=NOBODY).stdout == b"1:v1\n2:w1\n"
        (box.root / "state").chmod(0o755)
        assert box.run("list", user=NOBODY).stdout == b"1:v1\n2:w1\n3:v2\n"

    def test_a_daemon_that_may_not_see_the_state_answers_from_what_was_published(self, public_box: Box) -> None:
        box = public_box
        box.run("list", user=NOBODY)
        box.age()
        box.run("list", user=NOBODY)
        os.chown(box.root / "state", 0, 0)
        (box.root / "state").chmod(0o700)
        assert box.run("list", user=NOBODY).stdout == b"1:v1\n2:w1\n"
        assert box.run("load", "2", "x", "0", user=NOBODY).returncode == 0
        assert box.run("loaded", "2", "x", "0", user=NOBODY).stdout == b"2\n"
        # Without that it says so; it does not take every magazine for absent.
        for name in ("changer.json", "changer.txt"):
            (box.root / "run" / name).unlink()
        assert "state" in box.refusal("list", user=NOBODY)
        assert box.link(0).is_symlink()

    def test_agent_and_daemon_share_a_changer_through_their_group(self, public_box: Box) -> None:
        """As installed: run_dir 2775 of the agent's user and a group that the daemon's user is in."""
        box, agent, daemon, group = public_box, NOBODY, 54321, 54322
        run_dir = box.root / "run"
        shutil.rmtree(run_dir)
        run_dir.mkdir()
        os.chown(run_dir, agent, group)
        run_dir.chmod(0o2775)
        os.chown(box.root / "state", agent, group)
        (box.root / "state").chmod(0o2750)

        def call(user: int, *words: str) -> bytes:
            line = [COMMAND, str(box.config), *words]
            who = {"user": user, "group": user, "extra_groups": [group], "umask": 0o027}
            done = subprocess.run(line, capture_output=True, check=False, **who)  # type: ignore[call-overload]
            assert (done.returncode, done.stderr) == (0, b""), (user, words, done)
            return bytes(done.stdout)

        for first, second in ((agent, daemon), (daemon, agent)):
            assert call(first, "list") == b"1:v1\n2:w1\n"
            call(first, "load", "1", "x", "0")
            call(second, "unload", "1", "x", "0")
            call(second, "load", "2", "x", "1")
            assert call(first, "loaded", "2", "x", "1") == b"2\n"
            call(first, "unload", "2", "x", "1")
        # The daemon may not write the slot map: a new volume has no slot until the agent has looked.
        box.volume("m1", "v2")
        assert call(daemon, "list") == b"1:v1\n2:w1\n"
        assert call(agent, "list") == b"1:v1\n2:w1\n3:v2\n"
        assert call(daemon, "list") == b"1:v1\n2:w1\n3:v2\n"

    def test_the_vchanger_options_never_run_it_as_somebody_else(self, public_box: Box) -> None:
        box = public_box

        def call(*words: str, user: int | None) -> subprocess.CompletedProcess[bytes]:
            who = {"user": user, "group": user, "extra_groups": []} if user is not None else {}
            return subprocess.run([COMMAND, *words], capture_output=True, check=False, **who)

        config = str(box.config)
        assert call("-u", "nobody", "-g", "nogroup", config, "list", user=NOBODY).returncode == 0
        assert call(f"-u{NOBODY}", config, "list", user=NOBODY).returncode == 0
        for refused in (("-u", "root"), ("-g", "root"), ("--user=no-such-user",), ("-g", "99999999999"), ("-x", "y")):
            done = call(*refused, config, "list", user=NOBODY)
            assert (done.returncode, done.stdout) == (1, b"") and done.stderr.count(b"\n") == 1
        # Started by root it becomes that user: it cannot write to what only root may write.
        shutil.rmtree(box.root / "run")
        assert call("--user", "nobody", config, "load", "1", "x", "0", user=None).returncode == 0
        assert box.link(0).lstat().st_uid == NOBODY
        for unknown in ("no-such-user", "4000000000", "-"):
            assert call("-u", unknown, config, "list", user=None).returncode == 1

    def test_files_made_by_root_can_be_used_by_the_owner_of_the_directory(self, public_box: Box) -> None:
        box = public_box
        shutil.rmtree(box.root / "run")
        (box.root / "run").mkdir()
        os.chown(box.root / "run", NOBODY, NOBODY)
        assert box.run("load", "1", "x", "0").returncode == 0
        assert box.run("unload", "1", "x", "0", user=NOBODY).returncode == 0
        assert box.run("load", "2", "x", "0", user=NOBODY).returncode == 0
