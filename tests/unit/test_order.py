"""Which job is the newest, what builds on what and what is still needed: with wrong clocks, two catalogs, two hosts."""

from __future__ import annotations

import random
import shutil
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from appliance.config.schema import Config
from appliance.storage import expiry, order, verify
from appliance.storage.backup import JobResult
from appliance.storage.catalog import Catalog
from appliance.storage.device import FileVolume
from appliance.storage.model import JobStatus, Level, VolumeStatus
from tests.unit.enginehelp import below, bring_back, configuration, save, volume
from tests.unit.test_bases import only
from tests.unit.test_catalog_copies import recover
from tests.unit.test_pools import configured, statuses
from tests.unit.test_scan import lose, scan
from tests.unit.test_schedule import Arrivals, Told, run
from tests.unit.test_two_machines import machine

DAY = 86_400


class Clock:
    """This process's clock, so many seconds ahead of the true one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def grown(config: Config, tree: Path, name: str, level: Level = Level.INCREMENTAL, accurate: bool = True) -> JobResult:
    """A backup after one more file has come, whose times are those of the (wrong) clock."""
    (tree / name).write_bytes(name.encode())
    job = save(config, tree, level=level, accurate=accurate)
    assert job.status is JobStatus.DONE, job.errors
    return job


def names(config: Config, tree: Path, to: Path, **options: object) -> set[str]:
    """What a restore brings back."""
    result = bring_back(config, to, **options)
    assert (result.errors, result.warnings) == ((), ())
    return {path.name for path in below(to, tree).iterdir()}


@dataclass(frozen=True)
class Made:
    """A job as `order` sees it."""

    job_id: int
    client: str
    session_id: int
    session_time: int
    started: int


@pytest.mark.parametrize("seed", range(50))
def test_jobs_of_one_count_are_in_its_order_whatever_the_clock_said(seed: int) -> None:
    chance = random.Random(seed)
    now = int(time.time())
    count, true = chance.randrange(1, 500_000_000), now - 1000 * DAY
    jobs = []
    for number in range(chance.randrange(1, 60)):
        count += chance.randrange(1, 300)
        true += chance.randrange(1, 10 * DAY)
        wrong = chance.choice([0, 0, 0, -1000 * DAY, -3600, 7200, 5000 * DAY])
        jobs.append(Made(number, "host", count, true + wrong, true + wrong + chance.randrange(2)))
    assert order.oldest_first(chance.sample(jobs, len(jobs))) == jobs
    began = order.times(jobs)
    past = [job for job in jobs if job.started <= now]
    assert all(began[job.job_id] >= job.started for job in past)
    assert not past or all(began[job.job_id] <= now for job in jobs)


def test_between_two_counts_the_times_tell() -> None:
    def made(job_id: int, number: int, when: int, client: str = "host") -> Made:
        return Made(job_id, client, number, when, when)

    # A catalog that was begun anew has the lower JobIds, and here the higher numbers; Bacula has small ones.
    old = [made(10 + n, 1000 + n, 100 * n) for n in range(5)]
    new = [made(n, 300_000_000 + n, 1000 + 100 * n) for n in range(1, 4)]
    other = [made(20, 1002, 250, "elsewhere"), made(21, 1001, 350, "elsewhere")]
    foreign = [replace(made(30 + n, 3 - n, 120 + 200 * n, "host"), session_time=1) for n in range(2)]
    found = order.oldest_first([*new, *other, *foreign, *old])
    assert [job.started for job in found if job.client == "host"] == sorted(j.started for j in [*old, *new, *foreign])
    # The numbers of one host say nothing of another's; there the clock was wrong.
    assert order.times([*old, *other])[20] == 350
    # A catalog of yesterday was put back: numbers that come twice are in no order.
    twice = [made(1, 50, 1000), made(2, 51, 2000), made(3, 51, 5000), made(4, 52, 3000)]
    assert [job.job_id for job in order.oldest_first(twice)] == [1, 2, 4, 3]


@pytest.mark.parametrize("ahead", [30 * DAY, -30 * DAY])
def test_after_a_scan_a_job_of_a_wrong_clock_has_its_place_in_the_chain(
    tmp_path: Path, config: Config, clock: Clock, tree: Path, ahead: int
) -> None:
    for number in range(4):
        clock.ahead = ahead if number == 1 else 0
        # A file that came with the wrong clock has its times: nothing else saves it again.
        grown(config, tree, f"file-{number}", Level.INCREMENTAL if number else Level.FULL)
        with Catalog(config.state_dir) as catalog:
            before = [(job.job_id, job.base) for job in catalog.jobs()]
    clock.ahead = 0
    lose(config)
    assert not scan(config).errors
    with Catalog(config.state_dir) as catalog:
        assert [(job.job_id, job.base) for job in catalog.jobs()] == before
    assert names(config, tree, tmp_path / "out") == {f"file-{number}" for number in range(4)}


@pytest.mark.parametrize("how", ["copies", "volumes"])
def test_the_newest_job_of_two_catalogs_is_the_newest(tmp_path: Path, clock: Clock, tree: Path, how: str) -> None:
    """A machine that was set up anew has made backups before its old catalog is brought back."""
    config = machine(tmp_path / "a", "m1", "m2")
    for number in range(5):
        clock.ahead = (number - 20) * DAY
        grown(config, tree, f"old-{number}", Level.INCREMENTAL if number else Level.FULL)
    lose(config)
    (tmp_path / "a" / "m1").rename(tmp_path / "a" / "away")
    (tmp_path / "a" / "m2").mkdir()
    clock.ahead = -2 * DAY
    first = grown(config, tree, "new-0", Level.FULL)
    clock.ahead = -DAY
    last = grown(config, tree, "new-1")
    clock.ahead = 0
    (tmp_path / "a" / "away").rename(tmp_path / "a" / "m1")
    recover(config) if how == "copies" else scan(config)
    with Catalog(config.state_dir) as catalog:
        found = catalog.jobs()
        assert max(job.job_id for job in found) > last.job_id  # an old one has the highest number
        assert [job.job_id for job in found[:2]] == [last.job_id, first.job_id]
    everything = {path.name for path in tree.iterdir()}
    assert names(config, tree, tmp_path / "newest") == everything
    at = int(time.time() - 1.5 * DAY)
    assert names(config, tree, tmp_path / "then", before=at) == everything - {"new-1"}
    again = grown(config, tree, "new-2")
    with Catalog(config.state_dir) as catalog:
        assert catalog.job(again.job_id).base == last.job_id


def test_no_job_builds_on_one_of_another_host(
    tmp_path: Path, clock: Clock, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = machine(tmp_path / "a", "m1", "m2"), machine(tmp_path / "b", "m2")
    clock.ahead = -3600
    full = grown(ours, tree, "first", Level.FULL)
    clock.ahead = 0
    (tree / "second").write_bytes(b"after our full backup, and before that of the other host")
    clock.ahead = 60
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        elsewhere = tmp_path / "elsewhere"
        tree.rename(elsewhere)  # the other host has the same path, and other files there
        tree.mkdir()
        grown(theirs, tree, "other", Level.FULL)
        shutil.rmtree(tree)
        elsewhere.rename(tree)
    (tmp_path / "b" / "m2").rename(tmp_path / "a" / "m2")
    assert scan(ours, magazine="m2").exit_status == 0
    clock.ahead = 120
    after = grown(ours, tree, "third", accurate=False)
    with Catalog(ours.state_dir) as catalog:
        assert catalog.job(after.job_id).base == full.job_id
    assert names(ours, tree, tmp_path / "out", job=after.job_id) == {"first", "second", "third"}


def test_the_newest_job_of_each_host_is_needed(tmp_path: Path, clock: Clock, tree: Path) -> None:
    config = configured(tmp_path, "  Default: {retention: 1d}\n")
    clock.ahead = -9 * DAY
    mine = grown(config, tree, "mine", Level.FULL)
    other = grown(config, tree, "theirs", Level.FULL)
    clock.ahead = 0
    with Catalog(config.state_dir) as catalog:
        assert expiry.needed(catalog, config) == {other.job_id}
        catalog.change("UPDATE Job SET Client='elsewhere' WHERE JobId=?", (other.job_id,))
        assert expiry.needed(catalog, config) == {mine.job_id, other.job_id}


def test_a_clock_that_was_behind_does_not_make_a_job_older(tmp_path: Path, clock: Clock, tree: Path) -> None:
    config = configured(tmp_path, "  Default: {retention: 10d}\n")
    clock.ahead = -3 * DAY
    grown(config, tree, "first", Level.FULL)
    clock.ahead = -9000 * DAY  # without a battery, and without a network to ask
    behind = grown(config, tree, "second", Level.FULL)
    clock.ahead = -DAY
    grown(config, tree, "third", Level.FULL)
    clock.ahead = 0
    with Catalog(config.state_dir) as catalog:
        assert behind.job_id in expiry.needed(catalog, config)
        assert not expiry.prune(catalog, config)
        clock.ahead = 8 * DAY  # its retention counts from the job before it
        assert behind.job_id not in expiry.needed(catalog, config)


def test_what_a_missing_job_may_build_on_is_needed(tmp_path: Path, clock: Clock, tree: Path) -> None:
    """Three magazines of one chain; the middle one is away when the catalog is brought back."""
    folder = tmp_path / "a"
    folder.mkdir()
    lines = "".join(f"  - {{name: {name}, directory: {name}, create: no}}\n" for name in ("m1", "m2", "m3"))
    config = configuration(folder, "retention: 10d", f"magazines:\n{lines}")
    chain = []
    for name, days in (("m1", 40), ("m1", 30), ("m1", 20), ("m2", 6), ("m3", 3)):
        only(folder, name)
        clock.ahead = -days * DAY
        chain.append(grown(config, tree, f"days-{days}", Level.FULL if days >= 30 else Level.INCREMENTAL).job_id)
    clock.ahead = 0
    lose(config)
    only(folder, "m1", "m3")
    recover(config)
    first, full, third, lost, last = chain
    with Catalog(config.state_dir) as catalog:
        assert catalog.job(lost).name == "unknown"
        # The full one before that is not: the missing job was made when there was a newer one.
        assert expiry.needed(catalog, config) == {full, third, lost, last}
        assert [job.job_id for job in expiry.prune(catalog, config)] == [first]
    only(folder, "m1", "m2", "m3")
    recover(config)
    assert names(config, tree, tmp_path / "out") == {path.name for path in tree.iterdir()}


@pytest.mark.parametrize("seed", range(60))
def test_what_jobs_with_holes_before_them_may_build_on(seed: int, config: Config) -> None:
    """As defined, said anew: with holes in many chains no job may be overlooked."""
    chance = random.Random(seed)
    now = int(time.time())
    with Catalog(config.state_dir) as catalog:
        with catalog.transaction() as db:
            for number in range(1, 30):
                level = chance.choice("FIIIID")
                base = None if level == "F" or number == 1 else chance.choice([None, chance.randrange(1, number)])
                values = (
                    number,
                    level,
                    chance.choice("TTTTfRP"),
                    base,
                    5000 + number,
                    now + number,
                    chance.choice("ab"),
                )
                db.execute(
                    "INSERT INTO Job(JobId, Name, Level, JobStatus, Pool, FileSet, BaseJobId, VolSessionId, "
                    "VolSessionTime, Started, Finished, FileSetMD5, Client) "
                    "VALUES(?1, 'x', ?2, ?3, 'Default', '', ?4, ?5, ?6, ?6, ?6, ?7, 'h')",
                    values,
                )
        jobs = {job.job_id: job for job in catalog.jobs()}
    wanted = {chance.randrange(1, 30)}
    got = set(wanted)
    expiry._add_bases(jobs, got)
    left = list(wanted)
    while left:
        job = jobs[left.pop()]
        base = jobs.get(job.base or 0)
        more = {base.job_id} if base else set()
        if job.level is not Level.FULL and (base is None or base.status.bad):
            like = [one for one in jobs.values() if one.fileset_md5 == job.fileset_md5 and one.status.good]
            for one in (one for one in like if one.job_id < job.job_id):  # newest first
                more.add(one.job_id)
                if one.level is Level.FULL:
                    break
        left += more - wanted
        wanted |= more
    assert got == wanted


def test_of_a_job_whose_base_is_forgotten_its_own_files_come_back(tmp_path: Path, clock: Clock, tree: Path) -> None:
    config = configured(tmp_path, "  Default: {maximum_jobs: 1, maximum_volumes: 3, retention: 1d}\n")
    clock.ahead = -9 * DAY
    full = grown(config, tree, "first", Level.FULL)
    after = grown(config, tree, "second")
    clock.ahead = 0
    grown(config, tree, "third", Level.FULL)
    grown(config, tree, "fourth", Level.FULL)
    assert statuses(config)[full.job_id] is JobStatus.PURGED
    assert statuses(config)[after.job_id] is JobStatus.DONE
    result = bring_back(config, tmp_path / "out", job=after.job_id)
    assert not result.errors and (below(tmp_path / "out", tree) / "second").read_bytes() == b"second"
    assert len(result.warnings) == 1 and f"job {full.job_id}, that it builds on, is beyond" in result.warnings[0]


def test_a_volume_that_is_used_up_keeps_its_length(tmp_path: Path, tree: Path) -> None:
    """Another job may have entered it between the look at the volume and the note that it is used up."""
    config = configured(tmp_path, "  Default: {}\n")
    grown(config, tree, "first", Level.FULL)
    with Catalog(config.state_dir) as catalog:
        (seen,) = catalog.media()
        now = replace(seen, bytes=seen.bytes + 1000, last_written=seen.last_written + 5)
        catalog.update_media(now)
        catalog.mark_media(seen, VolumeStatus.USED)
        assert catalog.media() == [replace(now, status=VolumeStatus.USED)]
        anew = replace(now, status=VolumeStatus.APPEND, bytes=200, first_written=0, last_written=0)
        catalog.update_media(anew)
        catalog.mark_media(seen, VolumeStatus.USED)
        assert catalog.media() == [anew]


def test_a_start_that_is_still_to_come_keeps_no_job_from_starting(tmp_path: Path, clock: Clock) -> None:
    dock = Arrivals(tmp_path, "[m1]", "    attach_interval: 1d\n")
    clock.ahead = 30 * DAY
    run(dock.config, Told())
    clock.ahead = 0
    (tmp_path / "m1").mkdir()
    assert dock.look() == ["magbay-job@home.service"]


@pytest.mark.parametrize("how", ["pruned", "written anew"])
def test_verify_goes_on_when_a_job_is_purged_meanwhile(tmp_path: Path, clock: Clock, tree: Path, how: str) -> None:
    """Its files were told as not in the catalog; and a volume that was being written anew ended all of it."""
    config = configured(tmp_path, "  Default: {maximum_jobs: 1, retention: 1d}\n")
    clock.ahead = -9 * DAY
    for number in range(3000):
        (tree / f"{number}").write_bytes(b"x")
    old = grown(config, tree, "old", Level.FULL)
    clock.ahead = 0
    new = grown(config, tree, "new", Level.FULL)
    device = None
    left = [True]

    def meanwhile(count: int) -> None:
        if left and how == "pruned":
            left.clear()
            with Catalog(config.state_dir) as catalog:
                assert [job.job_id for job in expiry.prune(catalog, config)] == [old.job_id]

    if how == "written anew":
        device = FileVolume.open(volume(config, old.volumes[0]), "m1")
        assert device.keep_readers_out()
    found = verify.run(config, verify.VerifyRequest(), log=lambda text, fields: None, progress=meanwhile)
    assert (found.errors, found.jobs) == ([], [new.job_id])
    if device:
        device.close()
        told = f"job {old.job_id} is not verified: volume {old.volumes[0]} is being written anew"
        assert found.warnings == [told]
    else:
        assert not left and found.warnings == []
