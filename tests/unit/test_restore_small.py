"""Small files are made in one go, without a name until they are whole: whatever is in the way, or becomes so."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.storage import nameless
from appliance.storage.extract import Extractor
from appliance.storage.outcome import FileResult, Outcome, Replace, Summary
from appliance.storage.setting import Rights
from appliance.volumes.events import Data, Event, FileEnd
from appliance.volumes.reading import read_volumes
from appliance.volumes.stat64 import EncodedStat
from tests.unit.volume_builder import IDS, Job, one_job, volume

RIGHTS = Rights(os.geteuid(), trusted=True)


def saved(**numbers: int) -> EncodedStat:
    mine = EncodedStat(mode=stat.S_IFREG | 0o640, uid=os.geteuid(), gid=os.getegid(), atime=5, mtime=7)
    return mine._replace(**numbers)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_PATH)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("mask", [0o077, 0])
@pytest.mark.parametrize("mode", [0o640, 0, 0o4711, 0o777])
def test_a_file_is_what_was_saved(tmp_path: Path, folder: int, mode: int, mask: int) -> None:
    before = os.umask(mask)
    try:
        made = nameless.make(folder, b"file", b"content", saved(mode=stat.S_IFREG | mode), RIGHTS)
    finally:
        os.umask(before)
    assert made == nameless.Made([], foreign=False)
    found = (tmp_path / "file").stat()
    assert stat.S_IMODE(found.st_mode) == mode and (found.st_atime, found.st_mtime) == (5, 7)
    assert found.st_nlink == 1 and os.listdir(tmp_path) == ["file"]
    (tmp_path / "file").chmod(0o600)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_nothing_is_replaced_or_followed(tmp_path: Path, folder: int) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "directory").mkdir()
    for name in (b"file", b"link", b"directory"):
        assert nameless.make(folder, name, b"content", saved(), RIGHTS) is None
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "elsewhere").exists()
    assert sorted(os.listdir(tmp_path)) == ["directory", "file", "link"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = iter([3, None])  # a part of it, then no more

    def write(descriptor: int, data: bytes) -> int:
        if (count := next(writes)) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return count

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space"):
        nameless.make(folder, b"file", b"content", saved(), RIGHTS)
    assert os.listdir(tmp_path) == []


def twice(tmp_path: Path) -> Path:
    """A volume on which one file is saved two times, in a directory that is not in the target."""
    first, second = Job(ids=IDS), Job(ids=IDS._replace(session_id=8), job_id=4)
    first.file(b"/d/file", b"first", mtime=1_000)
    second.file(b"/d/file", b"the second", mtime=2_000)
    path = tmp_path / "volume"
    return volume(path, *first.end(), *second.end())


@pytest.mark.parametrize("replace", list(Replace))
def test_of_several_versions_the_last_one_counts(tmp_path: Path, replace: Replace) -> None:
    """Whatever is to become of files that were there before: these were not."""
    other = tmp_path / "out" / "d" / "file"
    summary = Extractor(tmp_path / "out", replace=replace, versions=True).run(read_volumes([twice(tmp_path)]))
    assert other.read_bytes() == b"the second" and summary.skipped == 0
    other.write_bytes(b"mine")
    os.utime(other, (1_500, 1_500))
    Extractor(tmp_path / "out", replace=replace, versions=True).run(read_volumes([twice(tmp_path)]))
    expected = {Replace.NEVER: b"mine", Replace.IF_OLDER: b"the second", Replace.IF_NEWER: b"the second"}
    assert other.read_bytes() == expected.get(replace, b"the second")


@pytest.mark.parametrize(
    ("replace", "content"),
    [
        (Replace.ALWAYS, b"the second"),
        (Replace.NEVER, b"first"),
        (Replace.IF_NEWER, b"the second"),
        (Replace.IF_OLDER, b"first"),
    ],
)
def test_the_same_name_twice(tmp_path: Path, replace: Replace, content: bytes) -> None:
    told: list[FileResult] = []
    summary = Extractor(tmp_path / "out", replace=replace, on_result=told.append).run(read_volumes([twice(tmp_path)]))
    assert (tmp_path / "out" / "d" / "file").read_bytes() == content
    kept = content == b"first"
    assert (summary.files, summary.skipped) == ((1, 1) if kept else (2, 0)) and not summary.errors
    assert [result.outcome for result in told] == [Outcome.RESTORED, Outcome.SKIPPED if kept else Outcome.RESTORED]


def extracted(tmp_path: Path, meanwhile: Callable[[], object], fill: Callable[[Job], object]) -> Summary:
    """*meanwhile* happens behind the first data, before their file ends."""

    def events() -> Iterator[Event]:
        done = False
        for event in read_volumes([one_job(tmp_path / "volume", fill)]):
            if isinstance(event, FileEnd) and seen and not done:
                done = True
                meanwhile()
            yield event
            if isinstance(event, Data):
                seen.append(event)

    seen: list[Event] = []
    return Extractor(tmp_path / "out").run(events())


def one_file(job: Job) -> None:
    job.symlink(b"/d/before", b"nowhere")  # makes the directory
    job.file(b"/d/file", b"content")


def test_a_link_that_appears_in_a_new_directory_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    place = tmp_path / "out" / "d" / "file"
    summary = extracted(tmp_path, lambda: place.symlink_to(victim), one_file)
    assert victim.read_text() == "mine" and not summary.errors
    assert not place.is_symlink() and place.read_bytes() == b"content"


def test_a_directory_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    def swap() -> None:
        (tmp_path / "out" / "d").rename(tmp_path / "out" / "moved")
        (tmp_path / "out" / "d").symlink_to(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").mkdir()
    extracted(tmp_path, swap, one_file)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "out" / "moved" / "file").read_bytes() == b"content"


def test_a_file_without_a_name_until_its_end(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    extracted(tmp_path, lambda: seen.append(os.listdir(tmp_path / "out" / "d")), one_file)
    assert seen == [["before"]] and sorted(os.listdir(tmp_path / "out" / "d")) == ["before", "file"]


def test_where_no_file_can_be_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a kernel or file system without them answers: EISDIR.
    monkeypatch.setattr(nameless, "_NAMELESS", os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECTORY)

    def fill(job: Job) -> None:
        for number in range(20):
            job.file(b"/d/%d" % number, b"x" * number, mode=0o4755)

    summary = extracted(tmp_path, lambda: None, fill)
    assert summary.files == 20 and not summary.errors and not summary.warnings
    for number in range(20):
        path = tmp_path / "out" / "d" / str(number)
        assert path.read_bytes() == b"x" * number and stat.S_IMODE(path.stat().st_mode) == 0o4755
    assert len(os.listdir(tmp_path / "out" / "d")) == 20


def test_many_open_at_once_are_not_held(tmp_path: Path) -> None:
    """Sessions that alternate, each with a file that is not at its end: memory has a limit."""
    jobs = [Job(ids=IDS._replace(session_id=number), max_block=1024) for number in range(100, 300)]
    for job in jobs:
        job.file(b"/%d" % job.ids.session_id, b"%d" % job.ids.session_id * 1000, chunk=500)
    blocks = [job.end() for job in jobs]
    path = tmp_path / "volume"
    volume(path, *(mine[at] for at in range(len(blocks[0])) for mine in blocks))
    summary = Extractor(tmp_path / "out").run(read_volumes([path]))
    assert summary.files == 200 and not summary.errors
    for job in jobs:
        assert (tmp_path / "out" / f"{job.ids.session_id}").read_bytes() == b"%d" % job.ids.session_id * 1000
