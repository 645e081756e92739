"""`transfer`: a volume moves to another slot, or stays where it is and it is said why."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

import pytest

from appliance.changer import command, slotmap, transfer
from appliance.changer.service import Changer

pytestmark = pytest.mark.complaint(21)

CONFIG = (
    "state_dir: state\nrun_dir: run\nchanger: {name: c0, drives: 2, slots: 40}\n"
    "magazines:\n  - {name: m1, directory: m1}\n  - {name: m2, directory: m2}\n"
)
LABEL = b"\x00\x00\x00\x01\x00\x00\x00\xc8\x00\x00\x00\x00BB02"


class Box:
    """Two magazines; slot 1 and 2 are on the first, 3 and 4 on the second."""

    def __init__(self, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.root, self.capfd, self.config = root, capfd, root / "magbay.yaml"
        self.config.write_text(CONFIG)
        for magazine, names in (("m1", ("v1", "v2")), ("m2", ("w1", "w2"))):
            (root / magazine).mkdir()
            for name in names:
                (root / magazine / name).write_bytes(LABEL + name.encode() * 5000)
        assert self.run("list") == (0, "1:v1\n2:v2\n3:w1\n4:w2\n", "")

    def run(self, *words: str) -> tuple[int, str, str]:
        status = command.main([str(self.config), *words])
        return (status, *self.capfd.readouterr())

    def refusal(self, *words: str) -> str:
        before = self.run("list")
        files = {path: path.read_bytes() for path in self.root.glob("m[12]/*") if path.is_file()}
        status, out, err = self.run("transfer", *words)
        assert (status, out) == (1, "") and err.count("\n") == 1, (status, out, err)
        assert self.run("list") == before
        assert files == {path: path.read_bytes() for path in self.root.glob("m[12]/*") if path.is_file()}
        return err


@pytest.fixture
def box(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Box:
    return Box(tmp_path, capfd)


def test_a_volume_moves_to_the_magazine_whose_slot_it_gets(box: Box) -> None:
    bytes_of_v1 = (box.root / "m1" / "v1").read_bytes()
    os.utime(box.root / "m1" / "v1", (1_600_000_000, 1_600_000_000))
    (box.root / "m2" / "w1").unlink()
    # As Bareos sends it: source, target, and no drive.
    status, out, err = box.run("transfer", "1", "3")
    assert (status, err) == (0, "") and "v1" in out and "m2" in out
    assert box.run("list") == (0, "2:v2\n3:v1\n4:w2\n", "")
    moved = box.root / "m2" / "v1"
    assert moved.read_bytes() == bytes_of_v1 and moved.stat().st_mtime == 1_600_000_000
    assert sorted(path.name for path in box.root.glob("m[12]/*")) == ["v1", "v2", "w2"]
    assert not list(box.root.glob("m[12]/.*"))
    # The number stays with the volume on its new magazine, and the old one is free.
    (box.root / "m2").rename(box.root / "away")
    assert box.run("list")[1] == "2:v2\n3:\n4:\n"
    (box.root / "away").rename(box.root / "m2")
    assert box.run("load", "3", "x", "0") == (0, "", "")
    assert (box.root / "run" / "drives" / "0").readlink() == moved
    assert box.run("transfer", "2", "1", "/dev/null", "0")[0] == 0
    assert box.run("list")[1] == "1:v2\n3:v1\n4:w2\n"


def test_a_slot_that_was_never_given_changes_the_number_only(box: Box) -> None:
    assert box.run("transfer", "2", "17")[0] == 0
    assert box.run("list")[1] == "1:v1\n3:w1\n4:w2\n17:v2\n"
    assert (box.root / "m1" / "v2").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("1", "4"), "Destination Element Address 4 is Already Full: volume w2"),
        (("1", "1"), "Already Full"),
        (("9", "8"), "Source Element Address 9 is Empty"),
        (("1", "41"), "no slot 41"),
        (("0", "9"), "no slot 0"),
        (("1", "0"), "no slot 0"),
        (("1",), "needs source and target"),
        (("1", "/dev/x"), "target slot must be"),
        (("-1", "2"), "source slot must be"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_moves(box: Box, words: tuple[str, ...], says: str) -> None:
    assert says in box.refusal(*words)


def test_loaded_written_absent_and_taken_are_refused(box: Box) -> None:
    assert box.run("load", "1", "x", "1")[0] == 0
    assert "in drive 1" in box.refusal("1", "9")
    assert box.run("unload", "1", "x", "1")[0] == 0
    (box.root / "m2" / "w1").unlink()
    with (box.root / "m1" / "v1").open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert "being written" in box.refusal("1", "3")
    (box.root / "m2" / "v1").mkdir()
    assert "m2/v1 already" in box.refusal("1", "3")
    (box.root / "m2" / "v1").rmdir()
    (box.root / "m2").rename(box.root / "away")
    assert "w1 of magazine m2, which is not here" in box.refusal("1", "3")


@pytest.mark.parametrize("after", ["write", "rename"])
def test_killed_in_the_middle_it_loses_nothing_and_is_finished_by_the_same_command(
    box: Box, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """A child that dies without cleaning up: where the number is on disk, and where the file is on both magazines."""
    (box.root / "m2" / "w1").unlink()
    child = os.fork()
    if child == 0:
        if after == "write":
            monkeypatch.setattr(transfer, "commit", lambda move, copy: os._exit(9))
        else:
            monkeypatch.setattr(Path, "unlink", lambda path: os._exit(9))
        Changer.open(box.config).transfer(1, 3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    whole = LABEL + b"v1" * 5000
    assert (box.root / "m1" / "v1").read_bytes() == whole
    listed = {"write": "1:v1\n2:v2\n3:\n4:w2\n", "rename": "1:\n2:v2\n3:\n4:w2\n"}
    assert box.run("list") == (0, listed[after], "")
    assert box.run("transfer", "1", "3")[0] == 0
    assert box.run("list") == (0, "2:v2\n3:v1\n4:w2\n", "")
    assert (box.root / "m2" / "v1").read_bytes() == whole and not (box.root / "m1" / "v1").exists()
    assert set(slotmap.read(box.root / "state" / "slots.json").slots.values()) == {2, 3, 4}


def test_copies_that_differ_are_never_removed(box: Box) -> None:
    (box.root / "m2" / "w1").unlink()
    (box.root / "m2" / "v1").write_bytes((box.root / "m1" / "v1").read_bytes()[:-1] + b"X")
    path = box.root / "state" / "slots.json"
    slotmap.write(path, slotmap.read(path).give(("directory:m2", "v1"), 3, "m2"))
    assert "differ" in box.refusal("1", "3")


def test_a_copy_that_takes_longer_than_a_daemon_waits_is_given_up_at_once(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon would kill it in the end; a person may let it take its time."""
    monkeypatch.setattr(transfer, "_SYNC_BYTES", 1_000_000)
    monkeypatch.setattr(transfer, "WAIT_SECONDS", 1e-9)
    with (box.root / "m1" / "v1").open("ab") as file:
        file.write(bytes(9_000_000))
    (box.root / "m2" / "w1").unlink()
    err = box.refusal("1", "3")
    assert re.search(
        r"copying volume v1 \(0.0 GB\) would take \d+ s at \d+ MB/s, longer than a storage daemon waits", err
    )
    assert "--force" in err and not list(box.root.glob("m[12]/.*"))
    assert box.run("transfer", "1", "3", "--force")[0] == 0
    assert (box.root / "m2" / "v1").stat().st_size > 9_000_000
