"""The end of a scan: jobs put together once, whatever their number, and by the next scan if this one is ended."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from appliance.config.schema import Config
from appliance.errors import ExitStatus
from appliance.storage import bases, expiry, scanning, settling, unsettled
from appliance.storage.catalog import Catalog
from appliance.storage.database import Database
from appliance.storage.model import JobStatus, Level
from appliance.storage.scanning import ScanRequest
from tests.unit.enginehelp import below, bring_back, configuration, save, statements, volume
from tests.unit.test_scan import assert_restores, history, lose, rows, scan
from tests.unit.volume_builder import IDS, Job
from tests.unit.volume_builder import volume as built


def _waiting(config: Config) -> set[int]:
    """Numbers of the jobs that are not put together yet."""
    with Catalog(config.state_dir) as catalog:
        return unsettled.jobs(catalog)


def _states(config: Config) -> dict[int, JobStatus]:
    with Catalog(config.state_dir) as catalog:
        return {job.job_id: job.status for job in catalog.jobs()}


def test_a_scan_that_is_ended_at_its_end_is_made_good_by_the_next(tmp_path: Path) -> None:
    magazines = "magazines:\n  - {name: m1, directory: m1}\n  - {name: m2, directory: m2}\n"
    config = configuration(tmp_path, magazines=magazines)
    (tmp_path / "m2").mkdir()
    states = history(tmp_path, config)
    before = rows(config)
    lose(config)
    # All volumes were read when the first job waits to be put together.
    request = ScanRequest(magazine="m1")
    ended = scanning.run(
        config, request, log=lambda text, fields: None, cancelled=lambda: len(_waiting(config)) == len(before["jobs"])
    )
    assert ended.cancelled and ended.exit_status is ExitStatus.FAILED
    assert ended.warnings == [
        "the jobs that were found are not put together yet: the next scan does that, whatever it reads"
    ]
    assert set(_states(config).values()) == {JobStatus.FAILED}
    with Catalog(config.state_dir) as catalog:
        assert "not put together yet" in catalog.log_lines(before["jobs"][0][0])[-1][2]
    built(tmp_path / "m2" / "nothing")
    assert scan(config, magazine="m2").exit_status is ExitStatus.DONE
    assert not _waiting(config)
    (tmp_path / "m2" / "nothing").unlink()
    after = rows(config)
    after["media"] = [row for row in after["media"] if row[0] != "nothing"]
    after["sessions"] = before["sessions"]
    assert after == before
    assert_restores(tmp_path, config, states)


def test_a_job_of_which_half_a_volume_was_read_waits_for_the_other_half(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 300000")
    (tmp_path / "data").write_bytes(random.Random(4).randbytes(500_000))
    saved = save(config, tmp_path / "data")
    assert len(saved.volumes) == 2
    first, second = (volume(config, name) for name in saved.volumes)
    (tmp_path / "elsewhere").mkdir()
    lose(config)

    def run(path: Path, cancelled: Any) -> scanning.ScanResult:
        return scanning.run(config, ScanRequest((path,)), log=lambda text, fields: None, cancelled=cancelled)

    assert run(first, lambda: bool(_waiting(config))).cancelled
    assert _waiting(config) == {saved.job_id}
    assert run(second, lambda: not _waiting(config)).cancelled  # as soon as it has met the job there
    assert not _waiting(config)
    assert [job.status for job in scan(config, first).jobs.values()] == ["failed"]
    assert scan(config, second).exit_status is ExitStatus.DONE
    assert _states(config) == {saved.job_id: JobStatus.DONE}
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    assert below(tmp_path / "out", tmp_path / "data").read_bytes() == (tmp_path / "data").read_bytes()


def test_jobs_are_read_once_however_many_come(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each job all of its name were read again: 3000 of them took nine seconds."""
    (tmp_path / "m1").mkdir()
    jobs = [Job(ids=IDS._replace(session_id=number), job_id=number) for number in range(1, 61)]
    built(tmp_path / "m1" / "many", *(block for job in jobs for block in job.end()))
    queries = statements(monkeypatch)
    assert len(scan(config, magazine="m1").jobs) == 60
    assert len([query for query in queries if "BaseJobId" in query and query.startswith("SELECT Started")]) == 1
    by_name = [query for query in queries if "FROM Job" in query and " WHERE Name=" in query]
    assert not by_name
    assert not any("SET BaseJobId" in query for query in queries)  # all are full ones


@pytest.mark.parametrize("seed", range(30))
def test_bases_are_those_that_the_rule_says(config: Config, seed: int) -> None:
    """Against the rule in its plainest form, for each job of the scan one after the other."""
    chance = random.Random(seed)
    with Catalog(config.state_dir) as catalog:
        with catalog.transaction() as db:
            for job_id in range(1, 80):
                _random_job(db, job_id, chance)
            new = {job_id for job_id in range(1, 80) if chance.random() < 0.6 and _is_scanned(db, job_id)}
            expected = dict(db.execute("SELECT JobId, BaseJobId FROM Job"))
            for job_id in sorted(new):
                _plainly(db, job_id, expected)
            bases.find(db, chance.sample(sorted(new), len(new)))
        assert dict(catalog.rows("SELECT JobId, BaseJobId FROM Job")) == expected


def _random_job(db: Database, job_id: int, chance: random.Random) -> None:
    values = (
        chance.choice("ab"), chance.choice("FDII"), chance.choice("TTWfAP"), chance.choice("xxy"),
        chance.choice([None, None, 5, 17]), chance.randrange(40), chance.choice(["", "one", "two"]),
        chance.choice("BBBBC"),
    )  # fmt: skip
    db.execute(
        "INSERT INTO Job(JobId, Pool, FileSet, VolSessionId, VolSessionTime, Name, Level, JobStatus, FileSetMD5, "
        "BaseJobId, Started, Client, Type) VALUES(?, '', '', 0, 0, ?, ?, ?, ?, ?, ?, ?, ?)",
        (job_id, *values),
    )
    if chance.random() < 0.7:
        ended = chance.choice(["", "T", "T", "W", "e", "A", "E"])
        db.execute("INSERT INTO Scanned(JobId, Begun, Ended) VALUES(?, 1, ?)", (job_id, ended))


def _is_scanned(db: Database, job_id: int) -> bool:
    return db.execute("SELECT 1 FROM Scanned WHERE JobId=?", (job_id,)).fetchone() is not None


def _plainly(db: Database, job_id: int, expected: dict[int, int | None]) -> None:
    name, fileset, client = db.execute("SELECT Name, FileSetMD5, Client FROM Job WHERE JobId=?", (job_id,)).fetchone()
    full = newest = None
    query = (
        "SELECT JobId, Level, JobStatus, Ended FROM Job LEFT JOIN Scanned USING(JobId) WHERE Name=? AND FileSetMD5=? "
        "AND Client IN (?, '') AND Type='B' ORDER BY Started, JobId"
    )
    for other, level, status, ended in db.execute(query, (name, fileset, client)):
        if ended is not None:
            expected[other] = None if level == Level.FULL.value else full if level == "D" else newest
        good = status in "TWP" if not ended or status == "P" else ended in "TWe" if ended in "TWeA" else status in "TW"
        if good:
            newest = other
            full = other if level == Level.FULL.value else full


def _spanning(folder: Path) -> tuple[Config, int]:
    """A job on two volumes whose catalog comes from a scan."""
    config = configuration(folder, "maximum_volume_bytes: 300000, retention: 1d, maximum_volumes: 2, keep_newest: no")
    for number in range(5):
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / str(number)).write_bytes(random.Random(number).randbytes(100_000))
    saved = save(config, folder / "data", name="old")
    assert len(saved.volumes) == 2
    lose(config)
    assert scan(config).exit_status is ExitStatus.DONE
    assert _states(config) == {saved.job_id: JobStatus.DONE}
    return config, saved.job_id


def _expired(config: Config, job_id: int) -> None:
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Job SET Finished=1 WHERE JobId=?", (job_id,))
        catalog.change("UPDATE Media SET VolStatus='Full'")


def test_what_is_left_of_a_job_that_was_written_over_is_no_good_job(tmp_path: Path) -> None:
    """Its beginning had been found by a scan before; it came back as good, with files lost by damage."""
    config, old = _spanning(tmp_path)
    _expired(config, old)
    (tmp_path / "new").write_bytes(b"new")
    new = save(config, tmp_path / "new", name="new")
    assert new.status is JobStatus.DONE and len(new.volumes) == 1
    assert _states(config)[old] is JobStatus.PURGED
    found = {job.job_id: job for job in scan(config).jobs.values()}
    assert _states(config) == {new.job_id: JobStatus.DONE, old: JobStatus.FAILED}
    assert "beginning was not found" in found[old].missing


def test_a_job_that_is_purged_while_it_is_put_together_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, old = _spanning(tmp_path)
    looked = settling._looked_at
    for when in ("before", "after"):
        with Catalog(config.state_dir) as catalog:
            catalog.change("UPDATE Job SET JobStatus='f' WHERE JobId=?", (old,))

        def purged(db: Database, job_id: int, when: str = when) -> Any:
            verdict = looked(db, job_id) if when == "after" else None
            expiry.forget(db, {job_id}, catalog.media()[0])
            db.execute("UPDATE Job SET JobStatus='P' WHERE JobId=?", (job_id,))
            return verdict or looked(db, job_id)

        with monkeypatch.context() as patch, Catalog(config.state_dir) as catalog:
            patch.setattr(settling, "_looked_at", purged)
            settling.settle(catalog, {old})
        assert _states(config) == {old: JobStatus.PURGED}
        assert scan(config).exit_status is ExitStatus.DONE
        assert _states(config) == {old: JobStatus.DONE}


def test_a_job_that_was_pruned_keeps_its_base_that_is_written_over(tmp_path: Path) -> None:
    """It came back with an older base: a restore had not all, and called itself done."""
    config = configuration(tmp_path, "maximum_jobs: 1, retention: 1d, keep_newest: no")
    tree = tmp_path / "tree"
    tree.mkdir()
    jobs = []
    for number, level in enumerate((Level.FULL, Level.INCREMENTAL, Level.INCREMENTAL)):
        (tree / str(number)).write_bytes(b"x")
        jobs.append(save(config, tree, level=level))
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Job SET Finished=1")
        assert len(expiry.prune(catalog, config)) == 3
    volume(config, jobs[1].volumes[0]).unlink()
    scan(config)
    with Catalog(config.state_dir) as catalog:
        assert catalog.job(jobs[2].job_id).base == jobs[1].job_id
    back = bring_back(config, tmp_path / "out", job=jobs[2].job_id)
    assert back.exit_status is ExitStatus.WARNINGS and f"job {jobs[1].job_id}, that it builds on" in back.warnings[0]
