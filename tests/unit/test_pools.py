"""Pools: when a volume takes no more, which one is written anew and which never, scratch, magazines, waiting."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ConfigError, ExitStatus, MagbayError, NotFoundError, UsageError
from appliance.storage import backup, expiry, labelling, readers, restore, source
from appliance.storage.catalog import Catalog, CatalogError
from appliance.storage.model import JobStatus, Level, Media, NewJob, VolumeStatus
from appliance.storage.waiting import Waiting
from tests.unit.enginehelp import ROOT, assert_same, below, bring_back, configuration, magbay, rich_tree, save, volume

ONE = "magazines:\n  - {name: m1, directory: m1}\n"


def configured(folder: Path, pools: str, magazines: str = ONE, more: str = "") -> Config:
    config = configuration(folder, magazines=magazines)
    file = folder / "magbay.yaml"
    text = file.read_text()
    file.write_text(text[: text.index("pools:")] + f"pools:\n{pools}{more}")
    return load(file) if config else config


def age(config: Config, seconds: int, *jobs: int) -> None:
    """As if these jobs (all, when none is named) had ended so long ago."""
    with Catalog(config.state_dir) as catalog:
        for job in jobs or [job.job_id for job in catalog.jobs()]:
            catalog.change("UPDATE Job SET Finished=Finished-? WHERE JobId=?", (seconds, job))
        catalog.change("UPDATE Media SET FirstWritten=FirstWritten-? WHERE FirstWritten>0", (seconds,))


def media(config: Config) -> dict[str, Media]:
    with Catalog(config.state_dir) as catalog:
        return {item.name: item for item in catalog.media()}


def statuses(config: Config) -> dict[int, JobStatus]:
    with Catalog(config.state_dir) as catalog:
        return {job.job_id: job.status for job in catalog.jobs()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").write_bytes(os.urandom(100_000))
    return tmp_path / "data"


def test_number_of_jobs_and_time_end_the_use_of_a_volume(tmp_path: Path, data: Path) -> None:
    config = configured(tmp_path, "  Default: {maximum_jobs: 2}\n  Timed: {use_duration: 1d}\n")
    assert [save(config, data).volumes[0] for _ in range(3)] == ["m1-0001", "m1-0001", "m1-0002"]
    assert media(config)["m1-0001"].status is VolumeStatus.USED
    assert [save(config, data, pool="Timed").volumes[0] for _ in range(2)] == ["m1-0003", "m1-0003"]
    age(config, 86_500)
    assert save(config, data, pool="Timed").volumes == ("m1-0004",)
    assert media(config)["m1-0003"].status is VolumeStatus.USED


def test_an_expired_volume_is_written_anew_only_when_there_is_no_other_room(tmp_path: Path, data: Path) -> None:
    pool = "  Default: {maximum_jobs: 1, retention: 7d, maximum_volumes: 3}\n"
    config = configured(tmp_path, pool)
    first, second = save(config, data), save(config, data)
    age(config, 8 * 86_400, first.job_id)
    third = save(config, data)
    assert third.volumes == ("m1-0003",)  # there was room for a new one
    before = volume(config, "m1-0002").read_bytes()
    fourth = save(config, data)
    assert (fourth.volumes, fourth.exit_status) == (("m1-0001",), ExitStatus.DONE)
    assert statuses(config)[first.job_id] is JobStatus.PURGED
    assert volume(config, "m1-0002").read_bytes() == before
    with pytest.raises(NotFoundError, match="retention"):
        bring_back(config, tmp_path / "no", job=first.job_id)
    for job in (second, third, fourth):
        assert bring_back(config, tmp_path / f"out{job.job_id}", job=job.job_id).exit_status is ExitStatus.DONE
    refused = save(config, data)
    assert refused.status is JobStatus.FAILED and "3 volumes" in refused.errors[0]
    assert refused.exit_status is ExitStatus.FAILED


def test_a_full_magazine_is_written_anew_within_one_job(tmp_path: Path) -> None:
    config = configured(tmp_path, "  Default: {maximum_volume_bytes: 300000, retention: 1d, maximum_volumes: 8}\n")
    (tmp_path / "old").write_bytes(os.urandom(1_000_000))
    old = save(config, tmp_path / "old", name="old")
    newer = save(config, tmp_path / "old", name="old")
    age(config, 2 * 86_400)
    (tmp_path / "new").write_bytes(os.urandom(800_000))
    new = save(config, tmp_path / "new", name="new")
    assert new.exit_status is ExitStatus.DONE, new.errors
    assert statuses(config) == {
        old.job_id: JobStatus.PURGED, newer.job_id: JobStatus.DONE, new.job_id: JobStatus.DONE
    }  # fmt: skip
    assert bring_back(config, tmp_path / "o", job=newer.job_id).exit_status is ExitStatus.DONE
    assert bring_back(config, tmp_path / "n", job=new.job_id).exit_status is ExitStatus.DONE


def test_the_newest_backup_stays_unless_the_pool_says_otherwise(tmp_path: Path, data: Path) -> None:
    rest = "maximum_jobs: 1, maximum_volumes: 1, retention: 1d"
    config = configured(tmp_path, f"  Default: {{{rest}}}\n")
    only = save(config, data)
    age(config, 90_000)
    assert save(config, data).status is JobStatus.FAILED
    assert bring_back(config, tmp_path / "out", job=only.job_id).exit_status is ExitStatus.DONE
    config = configured(tmp_path, f"  Default: {{{rest}, keep_newest: no}}\n")
    assert save(config, data).status is JobStatus.DONE
    assert statuses(config)[only.job_id] is JobStatus.PURGED


def test_what_an_incremental_builds_on_is_needed_with_it(tmp_path: Path, data: Path) -> None:
    config = configured(tmp_path, "  Default: {retention: 1d}\n")
    jobs = [save(config, data, level=level) for level in (Level.FULL, Level.INCREMENTAL, Level.INCREMENTAL)]
    other = save(config, data, name="other")
    last = save(config, data, name="other")
    age(config, 90_000)
    with Catalog(config.state_dir) as catalog:
        assert expiry.needed(catalog, config) == {*(job.job_id for job in jobs), last.job_id}
        assert other.job_id not in expiry.needed(catalog, config)


@pytest.mark.parametrize("how", ["foreign block", "other label", "garbage", "no retention", "recycle off", "away"])
def test_volumes_that_are_never_written_anew(tmp_path: Path, data: Path, how: str) -> None:
    rest = "maximum_jobs: 1, maximum_volumes: 1, keep_newest: no"
    more = {"no retention": "", "recycle off": ", retention: 1d, recycle: no"}.get(how, ", retention: 1d")
    config = configured(tmp_path, f"  Default: {{{rest}{more}}}\n")
    save(config, data)
    age(config, 90_000)
    path = volume(config, "m1-0001")
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    if how in ("foreign block", "other label"):
        other = configured(stranger, "  Default: {}\n", "magazines:\n  - {name: x1, directory: m1}\n")
        with Catalog(other.state_dir) as catalog:
            for _ in range(50):
                catalog.new_session()
        save(other, data)
        theirs = (stranger / "m1" / "x1-0001").read_bytes()
        path.write_bytes(theirs if how == "other label" else path.read_bytes() + theirs)
    elif how == "garbage":
        path.write_bytes(path.read_bytes() + b"x" * 100)
    before = path.read_bytes()
    if how == "away":
        (tmp_path / "m1").rename(tmp_path / "shelf")
        path = tmp_path / "shelf" / "m1-0001"
    refused = save(config, data)
    assert refused.status is JobStatus.FAILED
    assert path.read_bytes() == before
    assert JobStatus.PURGED not in statuses(config).values()


def test_a_volume_that_is_being_restored_is_not_written_anew(tmp_path: Path, data: Path) -> None:
    config = configured(tmp_path, "  Default: {maximum_jobs: 1, maximum_volumes: 1, retention: 1d, keep_newest: no}\n")
    first = save(config, data)
    age(config, 90_000)
    tried: list[JobStatus] = []

    def meanwhile(_count: int) -> None:
        tried.append(save(config, data).status)

    request = restore.RestoreRequest(tmp_path / "out", job=first.job_id)
    back = restore.run(config, request, log=lambda text, fields: None, progress=meanwhile)
    assert back.exit_status is ExitStatus.DONE and set(tried) == {JobStatus.FAILED}
    assert save(config, data).status is JobStatus.DONE
    with readers.reading([volume(config, "m1-0001")]):
        pass  # it may be read again


def test_nothing_builds_on_a_job_that_was_just_purged(tmp_path: Path, config: Config, data: Path) -> None:
    first = save(config, data)
    second = save(config, data, level=Level.INCREMENTAL)
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Job SET JobStatus=? WHERE JobId=?", (JobStatus.PURGED.value, first.job_id))
        for base in (first.job_id, second.job_id):  # what a base builds on counts, too
            with pytest.raises(CatalogError, match=f"job {first.job_id} was just purged"):
                catalog.start_job(NewJob("backup", Level.INCREMENTAL, "Default", "[]", "md5", base))
    assert save(config, data, level=Level.INCREMENTAL).level is Level.FULL


def test_a_crash_behind_the_catalogs_word_costs_nothing_more(tmp_path: Path, data: Path) -> None:
    config = configured(tmp_path, "  Default: {maximum_jobs: 1, maximum_volumes: 1, retention: 1d, keep_newest: no}\n")
    save(config, data)
    age(config, 90_000)
    with Catalog(config.state_dir) as catalog:
        [item] = catalog.media()
        catalog.update_media(replace(item, status=VolumeStatus.RECYCLE, bytes=0, first_written=0, last_written=0))
    for content in (b"", volume(config, "m1-0001").read_bytes()[:30]):
        volume(config, "m1-0001").write_bytes(content)
        done = save(config, data)
        assert (done.status, done.volumes) == (JobStatus.DONE, ("m1-0001",))
        age(config, 90_000)
        with Catalog(config.state_dir) as catalog:
            catalog.update_media(replace(catalog.media()[0], status=VolumeStatus.RECYCLE, bytes=0, last_written=0))


def test_scratch_volumes_are_taken_before_new_ones_are_made(tmp_path: Path, data: Path) -> None:
    config = configured(tmp_path, "  Scratch: {}\n  Default: {scratch: Scratch, maximum_jobs: 1}\n")
    labelling.create(config, magazine=None, pool="Scratch", count=1)
    assert save(config, data).volumes == ("m1-0001",)
    assert media(config)["m1-0001"].pool == "Default"
    assert volume(config, "m1-0001").read_bytes()[:200].count(b"Default\0") == 1
    assert save(config, data).volumes == ("m1-0002",)


def test_pools_keep_to_their_magazines(tmp_path: Path, data: Path) -> None:
    two = "magazines:\n  - {name: m1, directory: m1}\n  - {name: m2, directory: m2}\n"
    rotation = "rotation:\n  sets:\n    weekly: {magazines: [m2], due: friday}\n"
    config = configured(tmp_path, "  Default: {magazines: [m1]}\n  Weekly: {rotation_set: weekly}\n", two, rotation)
    assert save(config, data).volumes == ("m1-0001",)
    assert save(config, data, pool="Weekly").volumes == ("m2-0001",)
    assert [m.magazine for m in labelling.create(config, magazine=None, pool="Weekly", count=1)] == ["m2"]
    with pytest.raises(UsageError):
        labelling.create(config, magazine="m1", pool="Weekly", count=1)
    shutil.rmtree(tmp_path / "m2")
    away = save(config, data, pool="Weekly")
    assert away.exit_status is ExitStatus.AWAY and "m2" in away.hint and "m1" not in away.hint


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ("  P: {scratch: Q}\n", "scratch pool Q"),
        ("  P: {rotation_set: Q}\n", "rotation set Q"),
        ("  P: {magazines: [a], rotation_set: Q}\n", "either magazines"),
        ("  P: {retention: forever}\n", "a duration"),
    ],
)
def test_errors_of_the_configuration(tmp_path: Path, pools: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configured(tmp_path, pools)


def test_labelling_beyond_the_maximum_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, "  Default: {maximum_volumes: 2}\n")
    labelling.create(config, magazine=None, pool="Default", count=2)
    with pytest.raises(MagbayError, match="2 volumes"):
        labelling.create(config, magazine=None, pool="Default", count=1)


def test_a_catalog_of_the_version_before_is_brought_up(tmp_path: Path, config: Config, data: Path) -> None:
    save(config, data)
    with Catalog(config.state_dir) as catalog:
        for statement in (
            *(f"ALTER TABLE JobMedia DROP COLUMN {name}" for name in ("FirstBlock", "LastBlock", "DataBytes")),
            *(f"ALTER TABLE Job DROP COLUMN {name}" for name in ("Client", "Type")),
            *("DROP TABLE Scanned", "DROP TABLE Loose", "DROP TABLE Counter", "DROP INDEX JobSession"),
            *(f"DROP INDEX {name}" for name in ("FilePath", "FileName", "PathFolder")),
            *("ALTER TABLE Path DROP COLUMN Folder", "DROP TABLE Alone"),
            "ALTER TABLE Media DROP COLUMN Recycled",
            "ALTER TABLE Job DROP COLUMN Waiting",
            "PRAGMA user_version=1",
        ):
            catalog.change(statement)
    assert save(config, data, level=Level.INCREMENTAL).level is Level.INCREMENTAL


# -- waiting for magazines, and several jobs at once ----------------------------------------------------------------

SHELF = "magazines:\n  - {name: m1, directory: m1}\n  - {name: m2, directory: m2, create: no}\n"


def test_a_job_goes_on_when_the_next_magazine_comes(tmp_path: Path) -> None:
    pool = "  Default: {maximum_volume_bytes: 4MB}\n"
    config = configured(tmp_path, pool, SHELF)
    tree = rich_tree(tmp_path / "source")
    lines: list[tuple[str, dict[str, str]]] = []
    told: list[str] = []

    def run_out(_seconds: float) -> None:
        with Catalog(config.state_dir) as catalog:
            assert catalog.jobs()[0].waiting == "m2"
        assert "waiting for m2" in magbay(tmp_path, "status").stdout
        (tmp_path / "m2").mkdir()

    def free(path: Path | None) -> int:
        return 0 if path == tmp_path / "m1" and (tmp_path / "m1" / "m1-0001").exists() else 1 << 30

    request = backup.BackupRequest((tree,), waiting=Waiting(next=60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_free_bytes", free)  # room for one volume on the first magazine
        done = backup.run(
            config, request, log=lambda text, fields: lines.append((text, fields)), status=told.append, pause=run_out
        )
    assert (done.exit_status, done.volumes) == (ExitStatus.DONE, ("m1-0001", "m2-0001")), done.errors
    assert told == ["waiting for magazine m2", "running"]
    [asked] = [fields for text, fields in lines if "waiting for m2, at most 1 min" in text]
    assert asked["MAGAZINE"] == "m2" and asked["JOB"] == str(done.job_id)
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    assert_same(tree, below(tmp_path / "out", tree))


def test_waiting_ends_by_time_and_by_cancelling(tmp_path: Path, data: Path) -> None:
    config = configured(tmp_path, "  Default: {}\n", "magazines:\n  - {name: m2, directory: m2, create: no}\n")
    request = backup.BackupRequest((data,), waiting=Waiting(first=3600))
    asked: list[float] = []
    stopped = backup.run(
        config, request, log=lambda text, fields: None, pause=asked.append, cancelled=lambda: len(asked) > 2
    )
    assert (stopped.status, len(asked)) == (JobStatus.CANCELLED, 3)
    now = [time.monotonic()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now[0])

        def pass_time(seconds: float) -> None:
            now[0] += seconds

        late = backup.run(config, request, log=lambda text, fields: None, pause=pass_time)
    assert (late.status, late.exit_status) == (JobStatus.FAILED, ExitStatus.AWAY)
    with Catalog(config.state_dir) as catalog:
        assert [job.waiting for job in catalog.jobs()] == ["", ""]
    assert backup.run(config, backup.BackupRequest((data,)), log=lambda t, f: None).exit_status is ExitStatus.AWAY


def test_jobs_at_once_take_different_magazines_and_never_one_volume(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    (tmp_path / "big").write_bytes(os.urandom(6_000_000))
    others: list[subprocess.Popen[bytes]] = []

    def start_more(_count: int) -> None:
        if not others:
            for number in range(3):
                command = [sys.executable, "-m", "appliance", "--config", str(tmp_path / "magbay.yaml")]
                command += ["backup", str(tmp_path / "big"), "--name", f"other-{number}"]
                others.append(
                    subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
                )
            for process in others:
                assert process.wait(60) == 0

    request = backup.BackupRequest((tmp_path / "big",), name="first")
    first = backup.run(config, request, log=lambda text, fields: None, progress=start_more)
    assert (first.status, first.volumes) == (JobStatus.DONE, ("m1-0001",))
    with Catalog(config.state_dir) as catalog:
        jobs = catalog.jobs()
        assert len(jobs) == 4 and all(job.status is JobStatus.DONE for job in jobs)
        used = {job.name: {s.media_id for s in catalog.stretches(job.job_id)} for job in jobs}
        magazines = {item.media_id: item.magazine for item in catalog.media()}
    assert {magazines[m] for one in used.values() for m in one} == {"m1", "m2"}
    assert not used["first"] & (used["other-0"] | used["other-1"] | used["other-2"])
    for job in jobs:
        back = restore.run(
            config, restore.RestoreRequest(tmp_path / f"o{job.job_id}", job=job.job_id), log=lambda text, fields: None
        )
        assert back.exit_status is ExitStatus.DONE
