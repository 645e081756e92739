"""Real file systems on disks that fail: what the kernel says, and what its memory still has and the disk has not."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.errors import ExitStatus
from appliance.storage import recovering, scanning, scrub, verify
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus, VolumeStatus
from tests.unit.enginehelp import configuration, magbay, save

_SHUTDOWN = 0x8004587D  # XFS_IOC_GOINGDOWN, which ext4 has as EXT4_IOC_SHUTDOWN (linux/fs/xfs/libxfs/xfs_fs.h)
_NO_LOG = 2
ONE = "magazines:\n  - {name: m1, directory: m1}\n"


def _run(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes the directory m1 a file system of its own on a disk; the memory that the disk is made of is beside it."""
    if os.geteuid():
        pytest.skip("only root mounts file systems")
    undo: list[tuple[str | Path, ...]] = []

    def make(kind: str, size: str, *options: str) -> Path:
        memory, place = tmp_path / "memory", tmp_path / "m1"
        for folder in (memory, place):
            folder.mkdir()
        _run("mount", "-t", "tmpfs", "none", memory)
        undo.append(("umount", "-l", memory))
        _run("truncate", "-s", size, memory / "disk")
        _run(f"mkfs.{kind}", "-q", *options, memory / "disk")
        loop = _run("losetup", "--find", "--show", memory / "disk")
        undo.append(("losetup", "--detach", loop))
        _run("mount", "-t", kind, loop, place)
        undo.append(("umount", place))
        return place

    yield make
    for words in reversed(undo):
        subprocess.run([str(word) for word in words], check=True)


def shut_down(place: Path) -> None:
    """What XFS does by itself at an error of its disk that it cannot pass over."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG))
    finally:
        os.close(descriptor)


def test_a_magazine_that_cannot_be_looked_at_takes_no_other_one_away(tmp_path: Path, disk: Callable[..., Path]) -> None:
    place = disk("xfs", "320M")
    config = configuration(tmp_path)
    (tmp_path / "data").write_bytes(b"x" * 1000)
    assert save(config, tmp_path / "data").volumes == ("m1-0001",)
    shut_down(place)
    with pytest.raises(OSError, match="Input/output error"):
        place.is_dir()
    assert save(config, tmp_path / "data").volumes == ("m2-0001",)
    assert verify.run(config, verify.VerifyRequest(), log=lambda text, fields: None).exit_status is ExitStatus.DONE
    for words in (["status"], ["magazine", "list"], ["restore", "--to", str(tmp_path / "out")]):
        assert magbay(tmp_path, *words).status == ExitStatus.DONE, words
    slots = magbay(tmp_path, "slots")
    assert "m2-0001" in slots.stdout and "m1 cannot be read: Input/output error" in slots.stderr
    alone = save(configuration(tmp_path, magazines=ONE), tmp_path / "data")
    assert alone.exit_status is ExitStatus.AWAY
    assert "m1 cannot be read: Input/output error" in alone.errors[0] and "journalctl -k" in alone.hint


def test_without_its_state_it_says_how_to_restore(tmp_path: Path, disk: Callable[..., Path]) -> None:
    place = disk("xfs", "320M")
    configuration(tmp_path, magazines="magazines:\n  - {name: m2, directory: m2}\n")
    file = tmp_path / "magbay.yaml"
    file.write_text(file.read_text().replace("state_dir: state", f"state_dir: {place}/state"))
    (tmp_path / "data").write_bytes(b"x" * 1000)
    assert magbay(tmp_path, "backup", str(tmp_path / "data")).status == ExitStatus.DONE
    shut_down(place)
    told = magbay(tmp_path, "restore", "--to", str(tmp_path / "out"))
    assert told.status == ExitStatus.FAILED
    assert "Input/output error" in told.stderr and "magbay volume extract" in told.stderr
    words = ["volume", "extract", str(tmp_path / "m2" / "m2-0001"), "--to", str(tmp_path / "out")]
    assert magbay(tmp_path, *words).status == ExitStatus.DONE


def failing_disk(tmp_path: Path, disk: Callable[..., Path]) -> Path:
    """The directory m1 on a disk with room for another 2 MiB by what it says, and errors behind that."""
    place = disk("ext4", "64M", "-m", "0", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard")
    (place / "begun").write_bytes(b"x" * 8192)
    os.sync()
    space = os.statvfs(tmp_path / "memory")
    used = (space.f_blocks - space.f_bfree) * space.f_frsize
    _run("mount", "-o", f"remount,size={used + (2 << 20)}", tmp_path / "memory")
    return place


def test_a_further_attempt_begins_on_another_magazine_than_one_that_fails(
    tmp_path: Path, disk: Callable[..., Path]
) -> None:
    failing_disk(tmp_path, disk)
    (tmp_path / "data").write_bytes(os.urandom(8 << 20))
    configuration(tmp_path)
    file = tmp_path / "magbay.yaml"
    job = f"jobs:\n  daily: {{paths: [{tmp_path / 'data'}], retries: 1, retry_pause: 1s}}\n"
    file.write_text(file.read_text() + job)
    done = magbay(tmp_path, "--json", "backup", "daily")
    assert done.status == ExitStatus.DONE, done.stderr
    assert json.loads(done.stdout)["volumes"] == ["m2-0001"]


def test_a_magazine_that_is_avoided_is_taken_where_no_other_one_has_room(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x")
    avoid = frozenset({"m1"})
    assert save(configuration(tmp_path), tmp_path / "data").volumes == ("m1-0001",)
    assert save(configuration(tmp_path), tmp_path / "data", avoid=avoid).volumes == ("m2-0001",)
    assert save(configuration(tmp_path, magazines=ONE), tmp_path / "data", avoid=avoid).volumes == ("m1-0001",)


def test_another_magazine_is_written_anew_before_one_that_is_avoided_is_begun_on(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volumes: 2, retention: 1d, keep_newest: no")
    (tmp_path / "data").write_bytes(b"x")
    assert save(config, tmp_path / "data", name="begun").volumes == ("m1-0001",)
    assert save(config, tmp_path / "data", name="old", avoid=frozenset({"m1"})).volumes == ("m2-0001",)
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Job SET Started=1, Finished=1 WHERE Name='old'")
        catalog.change("UPDATE Media SET VolStatus='Used' WHERE VolumeName='m2-0001'")
    assert save(config, tmp_path / "data", name="new", avoid=frozenset({"m1"})).volumes == ("m2-0001",)
    with Catalog(config.state_dir) as catalog:
        assert {job.name: job.status for job in catalog.jobs()}["old"] is JobStatus.PURGED
    assert save(config, tmp_path / "data", name="more").volumes == ("m1-0001",)


@pytest.mark.parametrize("way", ["scan", "restore of the catalog"])
def test_what_only_memory_has_is_not_entered_as_saved(tmp_path: Path, disk: Callable[..., Path], way: str) -> None:
    """The disk takes nothing more, the flush fails, and so does the job; but who reads its volume finds all of it."""
    place = failing_disk(tmp_path, disk)
    config = configuration(tmp_path, magazines=ONE)
    (tmp_path / "small").write_bytes(b"x" * 1000)
    (tmp_path / "data").write_bytes(os.urandom(8 << 20))
    assert save(config, tmp_path / "small").status is JobStatus.DONE
    assert save(config, tmp_path / "data").status is JobStatus.FAILED
    assert (place / "m1-0001").read_bytes().count(b"BB02") > 100, "memory has it all: else this test shows nothing"
    if way == "scan":
        scanning.run(config, scanning.ScanRequest(everything=True), log=lambda text, fields: None)
    else:
        recovering.run(config, [], scan=True, log=lambda text, fields: None)
    with Catalog(config.state_dir) as catalog:
        assert [job.status for job in catalog.jobs()] == [JobStatus.FAILED, JobStatus.DONE]


def test_who_verifies_reads_the_disk(tmp_path: Path, disk: Callable[..., Path]) -> None:
    """What was just written is in memory, where it is as good as when it was written."""
    disk("ext4", "64M", "-m", "0")
    config = configuration(tmp_path, magazines=ONE)
    (tmp_path / "data").write_bytes(os.urandom(8 << 20))
    assert save(config, tmp_path / "data").status is JobStatus.DONE

    def read_by(work: Callable[[], object]) -> int:
        """Bytes that had to come from a disk for *work* (proc(5), /proc/pid/io)."""
        before, _, after = _read_bytes(), work(), _read_bytes()
        return after - before

    def quiet(text: str, fields: dict[str, str]) -> None:
        pass

    assert read_by(lambda: verify.run(config, verify.VerifyRequest(), log=quiet)) >= 8 << 20
    assert read_by(lambda: scrub.run(config, scrub.ScrubRequest("m1"), log=quiet)) >= 8 << 20
    assert read_by(lambda: scanning.run(config, scanning.ScanRequest(everything=True), log=quiet)) >= 8 << 20
    with Catalog(config.state_dir) as catalog:
        assert catalog.media()[0].status is VolumeStatus.APPEND


def _read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
