"""A PostgreSQL server that goes away in the middle of a job and comes back, or does not."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from appliance.config.schema import Config
from appliance.errors import ExitStatus
from appliance.storage import backup, saved_files, verify
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus, Level
from appliance.storage.postgresql import PostgreSQL
from tests.native.postgres import Server, server
from tests.native.test_catalog_postgresql import configured
from tests.unit.enginehelp import assert_same, below, bring_back, in_one_process, magbay, save


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """One server for all tests of this file; what it does not wait for it keeps for long."""
    with server() as one:
        one.sql("ALTER SYSTEM SET wal_writer_delay = '10s'")
        one.sql("SELECT pg_reload_conf()")
        yield one


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told file by file, so that the server goes away where a test wants it to."""
    in_one_process(monkeypatch)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for number in range(120):
        place = folder / f"d{number // 10}" / f"file-{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(os.urandom(3000))
    return folder


class Told:
    """The lines of a job, and what happens once it has saved so many pieces of data."""

    def __init__(self, pieces: int, then: Callable[[], object]) -> None:
        self.lines: list[str] = []
        self._left, self._then = pieces, then

    def log(self, text: str, fields: dict[str, str]) -> None:
        self.lines.append(text)

    def progress(self, _count: int) -> None:
        self._left -= 1
        if self._left == 0:
            self._then()


def run(config: Config, tree: Path, told: Told, **options: Any) -> backup.JobResult:
    more = {key: options.pop(key) for key in ("cancelled", "pause") if key in options}
    request = backup.BackupRequest((tree,), **options)
    return backup.run(config, request, log=told.log, progress=told.progress, **more)


def assert_whole(tmp_path: Path, config: Config, tree: Path, done: backup.JobResult, rows: int) -> None:
    """The catalog has every file once, the volumes have what it says, and all of it comes back."""
    with Catalog.of(config) as catalog:
        assert [saved.file_index for saved in saved_files.of_job(catalog, done.job_id)] == list(range(1, rows + 1))
        stretches = catalog.stretches(done.job_id)
        assert len({(one.media_id, one.start) for one in stretches}) == len(stretches)
    found = verify.run(config, verify.VerifyRequest(done.job_id), log=lambda text, fields: None)
    assert found.exit_status is ExitStatus.DONE and found.files == rows, found.errors
    to = tmp_path / f"out-{done.job_id}"
    assert bring_back(config, to, job=done.job_id).exit_status is ExitStatus.DONE
    assert_same(tree, below(to, tree))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
def test_the_job_goes_on_when_the_server_is_back(
    tmp_path: Path, postgres: Server, tree: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setattr(saved_files, "_BATCH", 5)
    config = configured(tmp_path, postgres.address("back"), wait="2m")
    lost: list[int] = []

    def restart() -> None:
        before = int(postgres.sql("SELECT count(*) FROM back.File"))
        postgres.stop(how)
        started = threading.Timer(1.5, postgres.start)
        started.start()
        lost.append(before)

    again, repeat = [], saved_files.FileWriter._repeat

    def look(rows: saved_files.FileWriter, db: Any) -> None:
        if lost:
            again.append(lost[0] - int(db.execute("SELECT count(*) FROM File").fetchone()[0]))
        repeat(rows, db)

    monkeypatch.setattr(saved_files.FileWriter, "_repeat", look)
    told = Told(100, restart)
    done = run(config, tree, told)
    assert (done.status, done.exit_status, done.warnings) == (JobStatus.DONE, ExitStatus.DONE, ()), done.errors
    # A crash has taken away what was not waited for, or this proves little.
    assert again and (again[-1] > 0) is (how is signal.SIGQUIT)
    assert any("away, waiting for it" in line for line in told.lines) and any("is back" in line for line in told.lines)
    assert_whole(tmp_path, config, tree, done, 133)
    with Catalog.of(config) as catalog:
        assert any("is back after" in text for _, _, text in catalog.log_lines(done.job_id))


def test_deletions_are_noted_rightly_across_an_outage(tmp_path: Path, postgres: Server, tree: Path) -> None:
    """The table of what was there before is of one connection: it is made again, and what was met stays met."""
    config = configured(tmp_path, postgres.address("accurate"), wait="2m")
    assert save(config, tree).status is JobStatus.DONE
    for number in (3, 55, 111):
        (tree / f"d{number // 10}" / f"file-{number}").unlink()
    for number in range(0, 120, 4):
        (tree / f"d{number // 10}" / f"file-{number}").write_bytes(b"changed")

    def restart() -> None:
        postgres.stop()
        threading.Timer(1.0, postgres.start).start()

    done = run(config, tree, Told(15, restart), level=Level.INCREMENTAL)
    assert (done.status, done.deleted, done.level) == (JobStatus.DONE, 3, Level.INCREMENTAL), done.errors
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    assert_same(tree, below(tmp_path / "out", tree))


class Breaking:
    """The connection breaks before the n-th statement, or right behind it, when its answer was not heard."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at, self.behind = 0, 0, False
        real = psycopg.Connection.execute
        breaking = self

        def execute(connection: Any, query: Any, *words: Any, **options: Any) -> Any:
            if not breaking.at or connection.closed:
                return real(connection, query, *words, **options)
            breaking.count += 1
            hit = breaking.count == breaking.at
            if hit and not breaking.behind:
                connection.pgconn.finish()
            answer = real(connection, query, *words, **options)
            if hit:
                connection.pgconn.finish()
                raise psycopg.OperationalError("the answer was not heard")
            return answer

        monkeypatch.setattr(psycopg.Connection, "execute", execute)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, where there is one: the jobs are many, and none has to outlive the test."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as name:
        yield Path(name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_a_connection_that_breaks_at_any_statement(
    memory: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    """For every n: the job is done, and what it did in the catalog stands there once."""
    breaking = Breaking(monkeypatch)
    breaking.behind = behind
    n = reached = 0
    outlast = Catalog.outlast
    while reached >= n:
        n += 1
        folder = memory / str(n)
        tree = folder / "source"
        tree.mkdir(parents=True)
        for number in range(4):
            (tree / f"file-{number}").write_bytes(os.urandom(60_000))
        config = configured(folder, postgres.address("statements"), wait="1m", pool="maximum_volume_bytes: 150000")
        save(config, tree)
        (tree / "file-0").unlink()
        (tree / "file-1").write_bytes(os.urandom(200_000))
        with monkeypatch.context() as patch:

            def armed(catalog: Catalog, outage: Any, number: int = n) -> None:
                outlast(catalog, outage)
                breaking.count, breaking.at = 0, number

            patch.setattr(Catalog, "outlast", armed)
            done = run(config, tree, Told(0, lambda: None), level=Level.INCREMENTAL)
        breaking.at, reached = 0, breaking.count
        where = f"statement {n}"
        assert done.status is JobStatus.DONE, f"{where}: {done.errors}"
        with Catalog.of(config) as catalog:
            stretches = catalog.stretches(done.job_id)
            assert len({(one.media_id, one.start) for one in stretches}) == len(stretches), where
            names = [media.name for media in catalog.media()]
            assert len(names) == len(set(names)) == len(list((folder / "m1").glob("m1-*"))), where
        found = verify.run(config, verify.VerifyRequest(), log=lambda text, fields: None)
        assert found.exit_status is ExitStatus.DONE and len(found.jobs) == 2, f"{where}: {found.errors}"
        assert done.deleted == 1, where
        shutil.rmtree(folder)
    assert n > 40


def test_a_server_that_does_not_come_back(tmp_path: Path, postgres: Server, tree: Path) -> None:
    config = configured(tmp_path, postgres.address("never"), wait="2s")
    before = save(config, tree)
    lines: list[str] = []
    try:
        told = Told(60, postgres.stop)
        result = run(config, tree, told)
        lines = told.lines
        assert (result.status, result.exit_status) == (JobStatus.FAILED, ExitStatus.FAILED)
        assert any("did not come back within 2 s" in line for line in result.errors), result.errors
        assert "volume scan" in result.hint
        assert sum("away, waiting for it" in line for line in lines) == 1
    finally:
        postgres.start()
    assert_whole(tmp_path, config, tree, before, 133)
    with Catalog.of(config) as catalog:
        catalog.recover()
        assert catalog.job(result.job_id).status is JobStatus.FAILED


def test_what_is_whole_on_its_volumes_is_entered_by_a_scan(
    tmp_path: Path, postgres: Server, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: everything is on the volume, the end label too, and the catalog is gone for good."""
    config = configured(tmp_path, postgres.address("scanned"), wait="1s")
    finish = Catalog.finish_job

    def away(catalog: Catalog, *words: Any) -> None:
        postgres.stop()
        finish(catalog, *words)

    monkeypatch.setattr(Catalog, "finish_job", away)
    try:
        result = run(config, tree, Told(0, lambda: None))
    finally:
        postgres.start()
    assert result.status is JobStatus.FAILED and "volume scan" in result.hint
    monkeypatch.undo()
    assert magbay(tmp_path, "jobs", json_output=True).document["jobs"][0]["status"] == "failed"
    scanned = magbay(tmp_path, "volume", "scan", "--all")
    assert scanned.status == 0, scanned.stderr
    with Catalog.of(config) as catalog:
        assert catalog.job(result.job_id).status is JobStatus.DONE
    assert_whole(tmp_path, config, tree, result, 133)
    more = save(config, tree, level=Level.INCREMENTAL)
    assert more.status is JobStatus.DONE and more.volumes == ("m1-0001",)
    assert_whole(tmp_path, config, tree, result, 133)


def test_a_job_that_waits_for_its_catalog_can_be_cancelled(tmp_path: Path, postgres: Server, tree: Path) -> None:
    config = configured(tmp_path, postgres.address("cancelled"), wait="1h")
    waited: list[float] = []
    began = time.monotonic()
    try:
        result = run(config, tree, Told(60, postgres.stop), pause=waited.append, cancelled=lambda: len(waited) > 2)
    finally:
        postgres.start()
    assert result.status is JobStatus.FAILED and len(waited) == 3 and time.monotonic() - began < 60
    with Catalog.of(config) as catalog:
        catalog.recover()
        assert catalog.job(result.job_id).status is JobStatus.FAILED


def test_numbers_of_transactions(postgres: Server) -> None:
    db = PostgreSQL(postgres.address("numbers"))
    db.begin(durable=True)
    number = db.transaction()
    other = PostgreSQL(db._address)
    assert other.has_kept(number) is None
    db.commit()
    assert other.has_kept(number) is True
    db.begin(durable=True)
    db.rollback()
    assert other.has_kept(db.transaction()) is False and other.has_kept(number + 1000) is False
    db.close()
    other.close()
