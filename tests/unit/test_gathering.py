"""Files that another process reads: the same volume as with one process, whoever ends whom and when."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config.filesets import Compression, FilesetConfig, Signature
from appliance.errors import ExitStatus, MagbayError
from appliance.host import workers
from appliance.storage import READER, backup, saver
from appliance.storage.direct import Direct
from appliance.storage.gatherer import RingOutput
from appliance.storage.gathering import Intake
from appliance.storage.limits import Limits
from appliance.storage.model import JobStatus, Level
from appliance.storage.output import Cancelled, Output
from appliance.storage.saver import Saver
from appliance.storage.saving_options import SavingOptions
from appliance.storage.walk import Walker
from appliance.volumes.blocks import SessionIds
from appliance.volumes.writer import SessionWriter
from tests.unit.enginehelp import (
    ROOT,
    assert_same,
    below,
    bring_back,
    configuration,
    in_one_process,
    magbay,
    rich_tree,
    save,
)

MAGBAY = [sys.executable, "-m", "appliance", "--config"]


class Session:
    """What comes to the volume, the catalog and the log, kept."""

    def __init__(self) -> None:
        self.blocks: list[tuple[bytes, int, int]] = []
        self.rows: list[tuple[object, ...]] = []
        self.words: list[str] = []
        self.count = 0
        self.writer = SessionWriter(self, SessionIds(1, 2))
        self.output = Direct(self.writer, self, self, self._advance, lambda: False)  # type: ignore[arg-type]

    def write_block(self, block: memoryview, first_index: int, last_index: int) -> None:
        self.blocks.append((bytes(block), first_index, last_index))

    def add(self, *row: object) -> None:
        self.rows.append(row)

    def info(self, text: str) -> None:
        self.words.append("info " + text)

    def warning(self, text: str) -> None:
        self.words.append("warning " + text)

    def _advance(self, count: int) -> None:
        self.count += count

    def all(self) -> tuple[object, ...]:
        self.writer.flush()
        return self.blocks, self.rows, self.words, self.count, self.writer.job_bytes


class Loop:
    """A ring without another process: what is handed over arrives at once. *behind*: as if many segments waited."""

    def __init__(self, session: Session, behind: bool) -> None:
        self._segments = deque(memoryview(bytearray(workers.SEGMENT)) for _ in range(workers.SEGMENTS))
        self.segment = self._segments[0]
        self.waiting = workers.SEGMENTS if behind else 0
        self._intake = Intake()
        self._session = session

    def hand_over(self, used: int) -> None:
        self._intake.take(self.segment[:used], self._session.output)
        self._segments.rotate(-1)
        self.segment = self._segments[0]
        self.segment[:] = bytes(workers.SEGMENT)


def through_a_ring(session: Session, act: Callable[[Output], object], *, behind: bool) -> None:
    loop = Loop(session, behind)
    output = RingOutput(loop)  # type: ignore[arg-type]
    output.hand_over()  # only now it is known how far the other one is
    act(output)
    output.hand_over()


def saving(tree: Path, rules: FilesetConfig) -> Callable[[Output], object]:
    def act(output: Output) -> None:
        saver = Saver(output, SavingOptions(rules, Signature.SHA1))
        for found in Walker(Limits.of([], rules), saver.trouble, output.info).walk(os.fsencode(tree)):
            saver.save(found)
        saver.close()

    return act


def flush(tree: Path) -> None:
    """To the disk: before, files have fewer blocks than then."""
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("more", [{}, {"signature": Signature.NONE}, {"compression": Compression.GZIP1}])
def test_the_same_blocks_rows_and_words(tmp_path: Path, more: dict[str, Any], behind: bool) -> None:
    tree = rich_tree(tmp_path / "source")
    pick = random.Random(1)
    for number in range(300):
        (tree / f"small-{number}").write_bytes(pick.randbytes(pick.choice([0, 1, 5000, 65535, 65536, 65537])))
    rules = FilesetConfig((tree,), **more)
    flush(tree)
    saving(tree, rules)(Session().output)  # a first look may change access times
    one, two = Session(), Session()
    saving(tree, rules)(one.output)
    through_a_ring(two, saving(tree, rules), behind=behind)
    assert one.count > 10_000_000
    assert one.all() == two.all()


class Slow:
    """A hash that is always late."""

    digest_size = 20

    def __init__(self, name: str) -> None:
        self._plain = hashlib.new(name)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        time.sleep(0.01)
        self._plain.update(data)

    def digest(self) -> bytes:
        return self._plain.digest()


def test_what_is_still_digested_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    (tree / "large").write_bytes(random.Random(2).randbytes((workers.SEGMENTS + 9) * workers.SEGMENT + 77))
    rules = FilesetConfig((tree,))
    flush(tree)
    one, two = Session(), Session()
    saving(tree, rules)(one.output)
    monkeypatch.setattr(saver, "new_hash", Slow)
    through_a_ring(two, saving(tree, rules), behind=False)
    assert one.all() == two.all()


_CALLS = st.one_of(
    st.tuples(st.just("record"), st.sampled_from([1, 2, 1001, -1]), st.sampled_from([0, 1, 70_000, 262_145, 3 << 20])),
    st.tuples(st.sampled_from(["data", "placed"]), st.sampled_from([0, 1, 65_536, 262_145, 3 << 20]), st.none()),
    st.tuples(st.just("small"), st.binary(min_size=1, max_size=300), st.sampled_from([0, 1, 64_000, 65_536])),
    st.tuples(st.just("row"), st.binary(min_size=1, max_size=300), st.sampled_from(["", "MD5", "SHA512"])),
    st.tuples(st.sampled_from(["info", "warning"]), st.binary(max_size=70_000), st.none()),
    st.tuples(st.just("advance"), st.integers(0, 1 << 40), st.none()),
)


def put(output: Output, number: int, left: int) -> None:
    while left:
        assert output.place
        room = output.place()[:left]
        room[:] = bytes([number % 256]) * len(room)
        output.data(number, room)
        left -= len(room)


def call(output: Output, number: int, what: str, first: Any, second: Any) -> None:
    if what == "record":
        output.record(number, first, bytes([number % 256]) * second)
    elif what == "data" or (what == "placed" and output.place is None):
        output.data(number, bytes([number % 256]) * first)
    elif what == "placed":
        put(output, number, first)
    elif what == "small":
        name = b"/" + first.replace(b"\0", b"")
        data = memoryview(bytes([number % 256]) * second)
        algorithm = (None, "MD5", "SHA1", "SHA256", "SHA512")[number % 5]
        output.small(number, 3 if second else 2, name, b"A B C", data, algorithm)
    elif what == "row":
        output.row(number, 5, b"/" + first, b"A B", second)
    elif what == "advance":
        output.advance(first)
    else:
        (output.info if what == "info" else output.warning)(os.fsdecode(first))


@settings(max_examples=60, deadline=None)
@given(calls=st.lists(_CALLS, max_size=60), behind=st.booleans())
def test_any_sequence_of_what_can_be_said(calls: list[tuple[str, Any, Any]], behind: bool) -> None:
    def act(output: Output) -> None:
        for number, words in enumerate(calls, 1):
            call(output, number, *words)

    one, two = Session(), Session()
    act(one.output)
    through_a_ring(two, act, behind=behind)
    assert one.all() == two.all()


def many(tree: Path, count: int = 3000) -> Path:
    tree.mkdir()
    for number in range(count):
        (tree / f"{number}").write_bytes(bytes([number % 256]) * 10_000)
    return tree


def readers() -> list[psutil.Process]:
    """The processes that read for this one."""
    return [child for child in psutil.Process().children() if any("gatherer" in word for word in child.cmdline())]


def test_what_one_process_saves_and_what_two_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = rich_tree(tmp_path / "source")
    config = configuration(tmp_path)
    monkeypatch.setattr(workers, "worthwhile", lambda: True)
    two = save(config, tree)
    in_one_process(monkeypatch)
    one = save(config, tree)
    assert (one.files, one.bytes, one.warnings) == (two.files, two.bytes, two.warnings)
    for job in (one, two):
        bring_back(config, tmp_path / str(job.job_id), job=job.job_id)
        assert_same(tree, below(tmp_path / str(job.job_id), tree))


def test_a_reader_that_is_killed_fails_the_job_and_the_next_one_is_whole(tmp_path: Path) -> None:
    tree, config = many(tmp_path / "source"), configuration(tmp_path)
    killed: list[int] = []

    def progress(_count: int) -> None:
        if not killed:
            (reader,) = readers()
            reader.send_signal(signal.SIGKILL)
            killed.append(reader.pid)

    done = save_with(config, tree, progress=progress)
    assert (done.status, done.exit_status) == (JobStatus.FAILED, ExitStatus.FAILED)
    assert "the process that reads the files ended in the middle: signal 9" in done.errors[0]
    assert not readers()
    assert save(config, tree).status is JobStatus.DONE
    bring_back(config, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))


def test_a_cancelled_job_leaves_no_reader(tmp_path: Path) -> None:
    tree, config = many(tmp_path / "source"), configuration(tmp_path)
    seen: list[int] = []
    done = save_with(config, tree, progress=seen.append, cancelled=lambda: bool(seen))
    assert done.status is JobStatus.CANCELLED
    assert not readers()


def test_a_reader_that_gives_nothing_can_be_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits for a dead file server."""
    (tmp_path / "silent.py").write_text("import time\ndef main(words): time.sleep(600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    worker = workers.Worker("silent")

    def check() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        list(worker.segments(check))
    worker.close()
    assert not psutil.Process().children()


def test_one_that_was_started_ahead_is_used_or_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, config = many(tmp_path / "source", 3), configuration(tmp_path)
    monkeypatch.setattr(workers, "worthwhile", lambda: True)
    workers.start_ahead(READER)
    (ahead,) = readers()
    assert save(config, tree).status is JobStatus.DONE
    assert not ahead.is_running()
    workers.start_ahead(READER)
    assert save(config, tree, level=Level.INCREMENTAL).status is JobStatus.DONE
    assert not readers()


def test_a_reader_that_cannot_even_begin_is_told(tmp_path: Path) -> None:
    worker = workers.Worker("no.such.module")
    with pytest.raises(MagbayError, match="exit status 1"):
        list(worker.segments(lambda: None))
    worker.close()


def test_signals_of_a_terminal_are_for_the_first_process(tmp_path: Path) -> None:
    """Ctrl-C goes to both; the reader must not end before it is told to, or the job would count as failed."""
    tree = many(tmp_path / "source", 20_000)
    configuration(tmp_path)
    command = [*MAGBAY, str(tmp_path / "magbay.yaml"), "--json", "backup", str(tree)]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )
    while not any("gatherer" in " ".join(child.cmdline()) for child in psutil.Process(running.pid).children()):
        time.sleep(0.01)
    volume = tmp_path / "m1" / "m1-0001"
    while not volume.exists() or volume.stat().st_size < 1 << 20:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)
    output, complaint = running.communicate(timeout=60)
    assert '"cancelled"' in output, output + complaint


def test_a_reader_whose_first_process_is_killed_ends(tmp_path: Path) -> None:
    tree = many(tmp_path / "source", 20_000)
    configuration(tmp_path)
    command = [*MAGBAY, str(tmp_path / "magbay.yaml"), "backup", str(tree)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    while not (children := psutil.Process(running.pid).children()):
        time.sleep(0.01)
    running.kill()
    running.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert magbay(tmp_path, "backup", str(tree)).status == 0


def save_with(config: Any, tree: Path, **more: Any) -> Any:
    return backup.run(config, backup.BackupRequest((tree,)), log=lambda text, fields: None, **more)
