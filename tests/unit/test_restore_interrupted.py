"""A restore that is killed: what it leaves is taken away by the next one, and nothing else is."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError
from appliance.host import files, unfinished
from appliance.storage.extract import Extractor
from appliance.volumes.reading import read_volumes
from tests.unit.enginehelp import ROOT, assert_same, below, bring_back, save
from tests.unit.volume_builder import Job, one_job

_KILLED = """
import os, signal, sys
from pathlib import Path
from appliance.config.loader import load
from appliance.storage import restore

seen = 0

def progress(count):
    global seen
    seen += count
    if seen > 2_000_000:
        os.kill(os.getpid(), signal.SIGKILL)

request = restore.RestoreRequest(Path(sys.argv[2]))
restore.run(load(Path(sys.argv[1])), request, log=lambda *told: None, progress=progress)
"""


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".magbay-unfinished-*"))


def killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "magbay.yaml"), str(tmp_path / "out")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_restore_leaves_goes_with_the_next(tmp_path: Path, config: Config) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "large").write_bytes(os.urandom(3_000_000))
    (source / "small").write_bytes(b"small")
    save(config, source)
    killed(tmp_path)
    assert len(left(tmp_path / "out")) == 1
    killed(tmp_path)
    assert len(left(tmp_path / "out")) == 1  # of the second: it had taken away that of the first
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    assert_same(source, below(tmp_path / "out", source))


def test_only_what_is_surely_dead_goes(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    living, name = unfinished.create(directory)
    other, dead = unfinished.create(directory)
    os.close(other)
    os.link(tmp_path / os.fsdecode(dead), tmp_path / "kept")
    assert unfinished.remove_dead(directory) == 0  # somebody gave it another name
    (tmp_path / "kept").unlink()
    others = ["1-1x", "x", "1", "-1-1", "1-2\n"]
    for number, word in enumerate(others):
        (tmp_path / f".magbay-unfinished-{word}").write_text(str(number))
    (tmp_path / ".magbay-unfinished-7-1").mkdir()
    (tmp_path / ".magbay-unfinished-7-2").symlink_to(os.fsdecode(name))
    os.mkfifo(tmp_path / ".magbay-unfinished-7-3")
    assert unfinished.remove_dead(directory) == 1
    assert not (tmp_path / os.fsdecode(dead)).exists() and len(left(tmp_path)) == len(others) + 4
    os.close(living)
    assert unfinished.remove_dead(directory) == 1 and not (tmp_path / os.fsdecode(name)).exists()
    os.close(directory)


def test_a_file_that_was_taken_for_dead_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    flock, races = fcntl.flock, []

    def raced(descriptor: int, how: int) -> None:
        if not races:
            races.append(True)
            assert unfinished.remove_dead(directory) == 1
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", raced)
    descriptor, name = unfinished.create(directory)
    assert os.listdir(tmp_path) == [os.fsdecode(name)]
    assert os.path.samestat(os.fstat(descriptor), (tmp_path / os.fsdecode(name)).stat())
    os.close(descriptor)
    os.close(directory)


def test_a_restore_is_done_when_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(job: Job) -> None:
        job.file(b"/d/file", b"content")

    volume = one_job(tmp_path / "volume", fill)
    flushed: list[int] = []

    def sync(descriptor: int) -> None:
        assert (tmp_path / "out" / "d" / "file").read_bytes() == b"content"
        flushed.append(os.fstat(descriptor).st_dev)

    monkeypatch.setattr(files, "sync_file_system", sync)
    Extractor(tmp_path / "out").run(read_volumes([volume]))
    assert flushed == [(tmp_path / "out").stat().st_dev]

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "sync_file_system", failing)
    with pytest.raises(MagbayError, match="may not be on the disk"):
        Extractor(tmp_path / "again").run(read_volumes([volume]))


def test_what_was_written_shows_when_it_is_flushed(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    files.sync_file_system(descriptor)
    os.close(descriptor)
    with pytest.raises(OSError):
        files.sync_file_system(descriptor)
