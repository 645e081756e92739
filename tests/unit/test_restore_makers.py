"""Small files that other processes make: the same tree as with one process, whoever ends whom and when."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError
from appliance.host import workers
from appliance.storage import restore, small
from appliance.storage.extract import Extractor
from appliance.storage.making import Crew
from appliance.storage.opened import OpenFile
from appliance.storage.outcome import FileResult, Outcome, Replace
from appliance.storage.output import Cancelled
from appliance.storage.targets import Place
from appliance.volumes.events import Event
from appliance.volumes.reading import read_volumes
from appliance.volumes.streams import Stream
from tests.unit.enginehelp import ROOT, assert_same, below, bring_back, rich_tree, save
from tests.unit.volume_builder import IDS, Job, one_job, volume

COUNT = 3000
MAGBAY = [sys.executable, "-m", "appliance", "--config"]


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[OpenFile]:
    """Other processes are there nearly from the first file on; these are the files that they got."""
    found: list[OpenFile] = []

    class Counting(Crew):
        def take(self, one: OpenFile, place: Place) -> bool:
            taken = super().take(one, place)
            if taken:
                found.append(one)
            return taken

    monkeypatch.setattr(small, "_ENOUGH", 1)
    monkeypatch.setattr("appliance.storage.extract.berths", lambda: [2])
    monkeypatch.setattr(small, "Crew", Counting)
    return found


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The other processes, stopped before they do anything."""
    started: list[subprocess.Popen[bytes]] = []
    start = workers.start

    def stopped(module: str, words: list[str], descriptors: tuple[int, ...]) -> subprocess.Popen[bytes]:
        process = start(module, words, descriptors)
        process.send_signal(signal.SIGSTOP)
        started.append(process)
        return process

    monkeypatch.setattr(workers, "start", stopped)
    return started


def makers(process: psutil.Process | None = None) -> list[psutil.Process]:
    """The processes that make files for this one."""
    found = []
    for child in (process or psutil.Process()).children():
        with contextlib.suppress(psutil.Error):
            if any("storage.maker" in word for word in child.cmdline()):
                found.append(child)
    return found


def many(tree: Path, count: int = COUNT) -> Path:
    pick = random.Random(5)
    for number in range(count):
        folder = tree / f"{number % 37}" / ("x" if number % 3 else "y")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}").write_bytes(bytes([number % 256]) * pick.choice([0, 1, 3000, 20_000]))
    return tree


def volume_of(tmp_path: Path, count: int = COUNT, **more: int) -> Path:
    def fill(job: Job) -> None:
        for number in range(count):
            job.file(b"/d/%d" % number, b"%d" % number * 50, **more)

    return one_job(tmp_path / "volume", fill)


def test_the_same_tree(tmp_path: Path, config: Config, handed: list[OpenFile]) -> None:
    tree = rich_tree(tmp_path / "source")
    many(tree / "many")
    for number in range(0, COUNT, 100):
        os.link(tree / "many" / f"{number % 37}" / ("x" if number % 3 else "y") / f"{number}", tree / f"link-{number}")
    save(config, tree)
    result = bring_back(config, tmp_path / "out")
    assert result.exit_status is ExitStatus.DONE and not result.warnings
    assert_same(tree, below(tmp_path / "out", tree))
    assert len(handed) > COUNT // 2 and not makers()
    again = bring_back(config, tmp_path / "out", replace=Replace.NEVER)
    assert (again.files, again.skipped) == (0, result.files)
    assert_same(tree, below(tmp_path / "out", tree))
    once_more = bring_back(config, tmp_path / "out")
    assert (once_more.files, once_more.bytes) == (result.files, result.bytes)
    assert_same(tree, below(tmp_path / "out", tree))


def test_results_and_what_could_not_be_set(tmp_path: Path, handed: list[OpenFile]) -> None:
    def fill(job: Job) -> None:
        for number in range(200):
            job.file(b"/d/%d" % number, b"content")
            if number == 100:
                job.record(Stream.LINUX_ACCESS_ACL, b"user::rwx\nnonsense\n\0")

    told: list[FileResult] = []
    path = one_job(tmp_path / "volume", fill)
    summary = Extractor(tmp_path / "out", on_result=told.append).run(read_volumes([path]))
    assert summary.warnings == ["/d/100: ACL not set (the ACL has the line 'nonsense')"]
    assert {one.path: one.outcome for one in told} == {
        f"/d/{number}": Outcome.WARNED if number == 100 else Outcome.RESTORED for number in range(200)
    }
    assert summary.files == len(told) == 200 and len(handed) == 199


@pytest.mark.parametrize("how_many", [1, 2])
def test_processes_that_are_killed(
    tmp_path: Path, handed: list[OpenFile], held_up: list[subprocess.Popen[bytes]], how_many: int
) -> None:
    """What they were given is made here; that it happened is told."""

    def act() -> None:
        for process in held_up[:how_many]:
            process.kill()
        for process in held_up[how_many:]:
            process.send_signal(signal.SIGCONT)

    summary = Extractor(tmp_path / "out").run(then(volume_of(tmp_path), act))
    assert summary.files == COUNT and not summary.errors
    assert (
        summary.warnings
        == ["a process that made small files was ended (signal 9): they are made without it"] * how_many
    )
    assert_numbers(tmp_path / "out" / "d", COUNT)
    assert len(handed) > 500 and not makers()


def then(path: Path, act: Callable[[], object]) -> Iterator[Event]:
    yield from read_volumes([path])
    act()


def assert_numbers(folder: Path, count: int) -> None:
    assert len(os.listdir(folder)) == count
    for number in range(count):
        assert (folder / f"{number}").read_bytes() == b"%d" % number * 50


def test_one_that_is_killed_in_the_middle(tmp_path: Path, config: Config, handed: list[OpenFile]) -> None:
    tree = many(tmp_path / "source")
    save(config, tree)
    killed: list[int] = []

    def cancelled() -> bool:
        if len(handed) > 300 and not killed and (found := makers()):
            found[0].send_signal(signal.SIGKILL)
            killed.append(found[0].pid)
        return False

    request = restore.RestoreRequest(tmp_path / "out")
    result = restore.run(config, request, log=lambda *told: None, cancelled=cancelled)
    assert killed and result.exit_status is ExitStatus.WARNINGS and not result.errors
    assert ["signal 9" in line for line in result.warnings] == [True]
    assert_same(tree, below(tmp_path / "out", tree))


def test_what_is_in_the_way_meanwhile(
    tmp_path: Path, handed: list[OpenFile], held_up: list[subprocess.Popen[bytes]]
) -> None:
    """Names that are taken between handing over and making: replaced, and no link is followed."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "out" / "d"

    def act() -> None:
        (folder / "10").symlink_to(victim)
        (folder / "11").mkdir()
        (folder / "12").write_text("somebody else's")
        for process in held_up:
            process.send_signal(signal.SIGCONT)

    summary = Extractor(tmp_path / "out").run(then(volume_of(tmp_path, 40), act))
    assert summary.files == 40 and not summary.errors and len(handed) == 39
    assert victim.read_text() == "mine" and not (folder / "10").is_symlink()
    assert_numbers(folder, 40)


def test_a_directory_that_becomes_a_link_meanwhile(
    tmp_path: Path, handed: list[OpenFile], held_up: list[subprocess.Popen[bytes]]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def act() -> None:
        (tmp_path / "out" / "d").rename(tmp_path / "out" / "moved")
        (tmp_path / "out" / "d").symlink_to(elsewhere)
        for process in held_up:
            process.send_signal(signal.SIGCONT)

    Extractor(tmp_path / "out").run(then(volume_of(tmp_path, 40), act))
    assert list(elsewhere.iterdir()) == [] and handed
    assert_numbers(tmp_path / "out" / "moved", 40)


@pytest.mark.parametrize(
    ("replace", "which"),
    [(Replace.ALWAYS, b"new"), (Replace.NEVER, b"old"), (Replace.IF_NEWER, b"new"), (Replace.IF_OLDER, b"old")],
)
def test_names_that_come_twice(tmp_path: Path, handed: list[OpenFile], replace: Replace, which: bytes) -> None:
    one, two = Job(ids=IDS, max_block=2000), Job(ids=IDS._replace(session_id=8), job_id=4, max_block=2000)
    for number in range(200):
        one.file(b"/d/%d" % number, b"old", mtime=1_000)
        two.file(b"/d/%d" % number, b"new", mtime=2_000)
    pairs = zip(one.end(), two.end(), strict=False)
    path = volume(tmp_path / "volume", *(block for pair in pairs for block in pair))
    summary = Extractor(tmp_path / "out", replace=replace).run(read_volumes([path]))
    assert not summary.errors and handed
    assert summary.files + summary.skipped == 400
    found = {(tmp_path / "out" / "d" / str(number)).read_bytes() for number in range(200)}
    assert found == {which}


def test_what_takes_the_place_of_a_file_that_is_being_made(tmp_path: Path, handed: list[OpenFile]) -> None:
    """The order of the volume stays: a symbolic link, a directory, a file with another name to it."""
    one, two = Job(ids=IDS), Job(ids=IDS._replace(session_id=8), job_id=4)
    for number in range(100):
        one.file(b"/d/%d" % number, b"old")
    two.symlink(b"/d/50", b"nowhere")
    two.directory(b"/d/51/")
    two.file(b"/d/52", b"with two names", nlink=2)
    path = volume(tmp_path / "volume", *one.end(), *two.end())
    summary = Extractor(tmp_path / "out").run(read_volumes([path]))
    folder = tmp_path / "out" / "d"
    assert not summary.errors and summary.files == 103 and handed
    assert os.readlink(folder / "50") == "nowhere" and (folder / "51").is_dir()
    assert (folder / "52").read_bytes() == b"with two names" and (folder / "53").read_bytes() == b"old"


def test_a_cancelled_restore_counts_what_is_there(tmp_path: Path, handed: list[OpenFile]) -> None:
    def events() -> Iterator[Event]:
        for event in read_volumes([volume_of(tmp_path)]):
            if len(handed) > 1000:
                raise Cancelled
            yield event

    extractor = Extractor(tmp_path / "out")
    with pytest.raises(Cancelled):
        extractor.take(events())
    extractor.close()
    assert 1000 < extractor.summary.files < COUNT and not makers()
    assert len(os.listdir(tmp_path / "out" / "d")) == extractor.summary.files


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk(tmp_path: Path, handed: list[OpenFile]) -> None:
    place = tmp_path / "place"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "magbay-test", str(place)]).returncode:
        pytest.skip("no file system can be mounted here")
    try:

        def fill(job: Job) -> None:
            for number in range(400):
                job.file(b"/d/%d" % number, b"x" * 20_000)

        path = one_job(tmp_path / "volume", fill)
        with pytest.raises(MagbayError, match=r"No space left on device \(/d/\d+ is not whole\)") as told:
            Extractor(place / "out").run(read_volumes([path]))
        assert "make room" in str(told.value.hint) and handed and not makers()
        for name in os.listdir(place / "out" / "d"):
            assert (place / "out" / "d" / name).stat().st_size == 20_000
    finally:
        subprocess.run(["umount", str(place)], check=True)


def running(tmp_path: Path, tree: Path, **more: bool) -> subprocess.Popen[str]:
    """A restore by the command line, whose other process is at work."""
    command = [*MAGBAY, str(tmp_path / "magbay.yaml"), "--json", "restore", "--to", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    while not makers(psutil.Process(process.pid)) and process.poll() is None:
        time.sleep(0.005)
    return process


@pytest.mark.skipif(not workers.worthwhile(), reason="one processor only")
def test_signals_of_a_terminal_are_for_the_first_process(tmp_path: Path, config: Config) -> None:
    tree = many(tmp_path / "source", 20_000)
    save(config, tree)
    process = running(tmp_path, tree)
    os.killpg(process.pid, signal.SIGINT)
    output, complaint = process.communicate(timeout=60)
    document = json.loads(output)
    assert document["status"] == "cancelled" and not document["warnings"], output + complaint


@pytest.mark.skipif(not workers.worthwhile(), reason="one processor only")
def test_a_restore_that_is_killed_leaves_no_process_and_no_half_file(tmp_path: Path, config: Config) -> None:
    tree = many(tmp_path / "source", 20_000)
    save(config, tree)
    process = running(tmp_path, tree)
    children = makers(psutil.Process(process.pid))
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    top = below(tmp_path / "out", tree)
    found = [path for path in top.rglob("*") if path.is_file() and not path.name.startswith(".magbay")]
    for path in found:
        assert path.read_bytes() == (tree / path.relative_to(top)).read_bytes()
    assert len(found) < 20_000
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    assert_same(tree, top)


def test_where_no_process_can_be_started(
    tmp_path: Path, handed: list[OpenFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(module: str, words: list[str], descriptors: tuple[int, ...]) -> subprocess.Popen[bytes]:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(workers, "start", refuse)
    summary = Extractor(tmp_path / "out").run(read_volumes([volume_of(tmp_path)]))
    assert summary.files == COUNT and not summary.warnings and not handed
    assert_numbers(tmp_path / "out" / "d", COUNT)


def test_one_that_cannot_begin_is_done_without(
    tmp_path: Path, handed: list[OpenFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.storage.making._MODULE", "no.such.module")
    summary = Extractor(tmp_path / "out").run(read_volumes([volume_of(tmp_path)]))
    assert summary.files == COUNT and not summary.errors
    assert all("exit status 1" in line for line in summary.warnings) and summary.warnings
    assert_numbers(tmp_path / "out" / "d", COUNT)
