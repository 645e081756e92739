"""What failed or was cancelled keeps no volume; what only looks so does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.config.schema import Config
from appliance.errors import ExitStatus, NotFoundError
from appliance.storage import backup, expiry, restore, scanning
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus, Level, NewJob
from tests.unit import test_scan
from tests.unit.enginehelp import bring_back, save, volume
from tests.unit.test_pools import configured, media, statuses

SMALL = "  Default: {maximum_volume_bytes: 300000, maximum_volumes: 2, retention: 90d}\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").write_bytes(os.urandom(100_000))
    return tmp_path / "data"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """More than the pool takes."""
    (tmp_path / "large").write_bytes(os.urandom(1_000_000))
    return tmp_path / "large"


def _needed(config: Config) -> set[int]:
    with Catalog(config.state_dir) as catalog:
        return expiry.needed(catalog, config)


def _cancelled(config: Config, path: Path) -> backup.JobResult:
    """A job that is cancelled when it has filled a volume."""
    return backup.run(
        config,
        backup.BackupRequest((path,)),
        log=lambda text, fields: None,
        cancelled=lambda: "m1-0002" in media(config),
    )


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_job_that_did_not_end_well_keeps_no_volume(tmp_path: Path, data: Path, large: Path, how: str) -> None:
    config = configured(tmp_path, SMALL)
    bad = save(config, large) if how == "failed" else _cancelled(config, large)
    assert bad.status.word == how and not _needed(config)
    lines: list[str] = []
    for number in range(4):  # two volumes of two jobs each
        request = backup.BackupRequest((data,), name=f"job{number}")
        done = backup.run(config, request, log=lambda text, fields: lines.append(text))
        assert done.status is JobStatus.DONE, done.errors
        assert bring_back(config, tmp_path / f"out{number}", job=done.job_id).exit_status is ExitStatus.DONE
    assert any("is written anew" in line and f"of job {bad.job_id} is not needed any more" in line for line in lines)
    assert statuses(config)[bad.job_id].word == how
    with pytest.raises(NotFoundError, match=f"job {bad.job_id}.* written over"):
        bring_back(config, tmp_path / "no", job=bad.job_id)
    # The good ones are within their retention.
    refused = save(config, large)
    assert refused.status is JobStatus.FAILED and "2 volumes" in refused.errors[0]


def test_a_good_job_keeps_the_volume_that_a_failed_one_shares(tmp_path: Path, data: Path, large: Path) -> None:
    config = configured(tmp_path, SMALL)
    good = save(config, data)
    assert save(config, large).status is JobStatus.FAILED
    again = save(config, data, name="other")
    assert again.volumes == ("m1-0002",)
    for job in (good, again):
        assert bring_back(config, tmp_path / f"out{job.job_id}", job=job.job_id).exit_status is ExitStatus.DONE


def test_without_retention_nothing_is_written_anew(tmp_path: Path, data: Path, large: Path) -> None:
    config = configured(tmp_path, SMALL.replace(", retention: 90d", ""))
    assert save(config, large).status is JobStatus.FAILED
    before = [volume(config, name).read_bytes() for name in ("m1-0001", "m1-0002")]
    save(config, large)
    with Catalog(config.state_dir) as catalog:
        assert {row for (row,) in catalog.rows("SELECT Recycled FROM Media")} == {0}
    assert volume(config, "m1-0001").read_bytes() == before[0]


def test_what_a_restore_reads_of_a_failed_job_is_not_written_over(tmp_path: Path, data: Path, large: Path) -> None:
    config = configured(tmp_path, SMALL.replace("maximum_volumes: 2", "maximum_volumes: 3, maximum_jobs: 1"))
    (tmp_path / "tree").mkdir()
    for name in "ab":
        (tmp_path / "tree" / name).write_bytes(os.urandom(100_000))
    (tmp_path / "tree" / "z").write_bytes(large.read_bytes())
    bad = save(config, tmp_path / "tree")
    assert bad.status is JobStatus.FAILED
    first = volume(config, "m1-0001").read_bytes()
    tried: list[tuple[str, ...]] = []

    def meanwhile(_count: int) -> None:
        if not tried:
            tried.append(save(config, data, name="other").volumes)

    request = restore.RestoreRequest(tmp_path / "out", job=bad.job_id)
    back = restore.run(config, request, log=lambda text, fields: None, progress=meanwhile)
    assert back.files >= 1 and tried and "m1-0001" not in tried[0]
    assert volume(config, "m1-0001").read_bytes() == first


def test_a_job_whose_process_is_still_there_is_needed_whatever_its_row_says(tmp_path: Path) -> None:
    config = configured(tmp_path, SMALL)
    with Catalog(config.state_dir) as catalog:
        with Catalog(config.state_dir) as other:
            job = other.start_job(NewJob("slow", Level.FULL, "Default", "[]", "md5"))
            change = "UPDATE Job SET JobStatus=?, Finished=Started WHERE JobId=?"
            catalog.change(change, (JobStatus.FAILED.value, job.job_id))
            assert expiry.needed(catalog, config) == {job.job_id}
        assert expiry.needed(catalog, config) == set()


def test_a_job_that_is_only_scanned_in_part_is_needed(tmp_path: Path, data: Path) -> None:
    """It is entered as failed until its other volumes are found."""
    config = configured(tmp_path, SMALL)
    (tmp_path / "tree").write_bytes(os.urandom(400_000))
    good = save(config, tmp_path / "tree")
    assert good.volumes == ("m1-0001", "m1-0002")
    first = volume(config, "m1-0001")
    kept = first.read_bytes()
    for name in good.volumes:
        volume(config, name).rename(tmp_path / name)
    test_scan.lose(config)
    for name in good.volumes:
        (tmp_path / name).rename(tmp_path / "m1" / name)
        assert _scan(config, tmp_path / "m1" / name) is not None
        state = statuses(config)[good.job_id]
        assert state is (JobStatus.DONE if name == "m1-0002" else JobStatus.FAILED)
        assert _needed(config) == {good.job_id}
        if name == "m1-0001":
            save(config, tmp_path / "tree", name="other")
            assert first.read_bytes() == kept
            break


def test_a_scanned_job_whose_end_says_that_it_was_cancelled_is_not_needed(tmp_path: Path, large: Path) -> None:
    config = configured(tmp_path, SMALL)
    bad = _cancelled(config, large)
    test_scan.lose(config)
    _scan(config, tmp_path / "m1")
    assert statuses(config) == {bad.job_id: JobStatus.CANCELLED}
    assert _needed(config) == set()


def _scan(config: Config, path: Path) -> scanning.ScanResult:
    return scanning.run(config, scanning.ScanRequest((path,)), log=lambda text, fields: None)
