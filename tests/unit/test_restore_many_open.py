"""Volumes on which more files are begun than a process may have open."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.storage.extract import Extractor
from appliance.volumes.attributes import FileType
from appliance.volumes.events import Data, Event
from appliance.volumes.reading import read_volumes
from appliance.volumes.streams import Stream
from tests.unit.volume_builder import IDS, Job, volume

COUNT = 600
SIZE = 140_000  # more than is held until it is whole


@pytest.fixture(autouse=True)
def few() -> Iterator[None]:
    """Descriptors for less than half as many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, len(os.listdir("/proc/self/fd")) + 290), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def content(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def at_once(path: Path, *, ends: Callable[[int], bool]) -> Path:
    """As many jobs at the same time; of those without an end nothing comes behind the first half of their file."""
    jobs = [Job(ids=IDS._replace(session_id=number), job_id=number) for number in range(1, COUNT + 1)]
    half = SIZE // 2
    begun, rest = [], []
    for number, job in enumerate(jobs, 1):
        mode = 0o100640
        job.entry(FileType.REGULAR, b"/d/%d" % number, mode=mode, size=SIZE, mtime=number)
        job.record(Stream.FILE_DATA, content(number)[:half])
        job.writer.flush()
        begun += job.sink.blocks
        job.sink.blocks = []
        if ends(number):
            job.record(Stream.FILE_DATA, content(number)[half:])
            job.finish_file(content(number))
            rest += job.end()
    return volume(path, *begun, *rest)


def test_all_of_many_at_once(tmp_path: Path) -> None:
    path = at_once(tmp_path / "volume", ends=lambda number: True)
    summary = Extractor(tmp_path / "out").run(read_volumes([path]))
    assert (summary.files, summary.errors, summary.warnings) == (COUNT, [], [])
    for number in range(1, COUNT + 1):
        file = tmp_path / "out" / "d" / str(number)
        found = file.stat()
        assert (file.read_bytes(), found.st_mode, found.st_mtime) == (content(number), 0o100640, number)


def test_the_last_job_behind_many_that_never_ended(tmp_path: Path) -> None:
    path = at_once(tmp_path / "volume", ends=lambda number: number == COUNT)
    summary = Extractor(tmp_path / "out").run(read_volumes([path]))
    assert summary.errors == [] and summary.files == COUNT
    assert len([text for text in summary.warnings if "is not whole" in text]) == COUNT - 1
    assert (tmp_path / "out" / "d" / str(COUNT)).read_bytes() == content(COUNT)
    for number in range(1, COUNT):
        assert (tmp_path / "out" / "d" / str(number)).read_bytes() == content(number)[: SIZE // 2]


def test_one_that_somebody_puts_in_the_place_of_an_unfinished_file(tmp_path: Path) -> None:
    """What is set aside is not written to by its name alone."""
    path = at_once(tmp_path / "volume", ends=lambda number: True)
    victim = tmp_path / "victim"
    victim.write_text("mine")

    def events() -> Iterator[Event]:
        count = 0
        for event in read_volumes([path]):
            yield event
            count += isinstance(event, Data)
            if count == COUNT:
                count += 1
                first = min((tmp_path / "out" / "d").iterdir(), key=lambda one: int(one.name.rpartition("-")[2]))
                first.unlink()
                first.symlink_to(victim)

    summary = Extractor(tmp_path / "out").run(events())
    assert victim.read_text() == "mine"
    assert len(summary.errors) == 1 and summary.files == COUNT - 1
