"""`magbay volume scan`: the catalog from volumes alone, and what is missing added to one that exists."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.config.schema import Config
from appliance.errors import AwayError, ExitStatus, NotFoundError, UsageError
from appliance.magazines import attached
from appliance.storage import digests, plan, scanning, searching, source, verify
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus, Level, VolumeStatus
from appliance.storage.scanning import ScanRequest, ScanResult
from appliance.volumes.attributes import FileType
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.blocks import SessionIds
from tests.unit.enginehelp import (
    assert_same,
    below,
    bring_back,
    configuration,
    magbay,
    rich_tree,
    save,
    sessions_from_one,
    volume,
)
from tests.unit.test_volumes_corpus import CANCELLED, SAMPLES
from tests.unit.volume_builder import CORPUS, Job, label_of, sample

JOBS = (
    "SELECT JobId, Name, Level, JobStatus, Pool, FileSetMD5, BaseJobId, VolSessionId, VolSessionTime, Started, "
    "JobFiles, ReadBytes, JobBytes, JobErrors, Warnings, Client, Type FROM Job ORDER BY JobId"
)
PLACES = (
    "SELECT JobId, VolumeName, FirstIndex, LastIndex, StartAddress, EndAddress FROM JobMedia JOIN Media USING(MediaId) "
    "WHERE FirstIndex>0 ORDER BY JobId, JobMediaId"
)
FILES = "SELECT JobId, FileIndex, Path, Name, Type, LStat, Digest FROM File JOIN Path USING(PathId) ORDER BY 1, 2"
# Without the status: whether the next block would fit on a volume shows only when a job tries.
MEDIA = "SELECT VolumeName, Magazine, Identity, Pool, VolBytes FROM Media ORDER BY VolumeName"
SESSIONS = "SELECT VolSessionId, VolSessionTime FROM Session ORDER BY VolSessionId"


def rows(config: Config) -> dict[str, list[Any]]:
    """What makes up a catalog, without the ids that only it knows."""
    with Catalog(config.state_dir) as catalog:
        queries = {"jobs": JOBS, "places": PLACES, "files": FILES, "media": MEDIA, "sessions": SESSIONS}
        return {name: list(catalog.rows(query)) for name, query in queries.items()}


def scan(config: Config, *paths: Path, **options: Any) -> ScanResult:
    """Run a scan, of everything if no paths are given."""
    if not paths and "magazine" not in options:
        options["everything"] = True
    return scanning.run(config, ScanRequest(paths, **options), log=lambda text, fields: None)


def lose(config: Config) -> None:
    """Nothing is left but the volumes."""
    shutil.rmtree(config.state_dir)


def change(tree: Path, number: int) -> None:
    """Something new, something changed, something gone."""
    (tree / f"new-{number}").write_bytes(os.urandom(70_000))
    (tree / "plain.txt").write_bytes(b"state %d" % number)
    for name in (f"new-{number - 1}", "past" if number == 1 else "future"):
        (tree / name).unlink(missing_ok=True)


def history(tmp_path: Path, config: Config) -> dict[int, Path]:
    """A full, incrementals, a differential, and a job of another name; gives a copy of the tree as each job saw it."""
    tree = rich_tree(tmp_path / "source")
    states = {}
    levels = [Level.FULL, Level.INCREMENTAL, Level.INCREMENTAL, Level.DIFFERENTIAL, Level.INCREMENTAL]
    for number, level in enumerate(levels):
        change(tree, number) if number else None
        saved = save(config, tree, name="tree", level=level)
        assert saved.status is JobStatus.DONE
        states[saved.job_id] = shutil.copytree(tree, tmp_path / f"state{number}", symlinks=True, ignore=_special)
        if number == 1:
            save(config, tmp_path / "state0", name="other")
    return states


def _special(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not (Path(folder) / name).is_symlink() and _is_odd(Path(folder) / name)}


def _is_odd(path: Path) -> bool:
    return not (path.is_file() or path.is_dir())


def assert_restores(tmp_path: Path, config: Config, states: dict[int, Path]) -> None:
    """Every job gives the tree that it saw."""
    for job_id, state in states.items():
        target = tmp_path / f"out-{random.random()}"
        back = bring_back(config, target, job=job_id)
        assert (back.errors, back.warnings) == ((), ())
        got = below(target, tmp_path / "source")
        wanted = {path.relative_to(state) for path in state.rglob("*")}
        found = {path.relative_to(got) for path in got.rglob("*")}
        assert wanted == {path for path in found if not _is_odd(got / path) or (got / path).is_symlink()}
        for path in wanted:
            if (state / path).is_file() and not (state / path).is_symlink():
                assert (got / path).read_bytes() == (state / path).read_bytes()


def test_what_was_lost_is_there_again(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 3MB")
    states = history(tmp_path, config)
    before = rows(config)
    assert len({place[1] for place in before["places"]}) > 4
    lose(config)
    result = scan(config)
    assert (result.errors, result.warnings, result.exit_status) == ([], [], ExitStatus.DONE)
    assert all(job.new and not job.missing for job in result.jobs.values())
    assert rows(config) == before
    assert_restores(tmp_path, config, states)
    # Again: nothing is new, nothing changes. And the next job goes on: new ids, builds on what was scanned.
    again = scan(config)
    assert again.exit_status is ExitStatus.DONE and not any(job.new for job in again.jobs.values())
    assert rows(config) == before
    after = save(config, tmp_path / "source", name="tree", level=Level.INCREMENTAL)
    assert after.level is Level.INCREMENTAL and after.job_id > max(job[0] for job in before["jobs"])
    with Catalog(config.state_dir) as catalog:
        job = catalog.job(after.job_id)
    assert job.base == max(states)
    assert (job.session_id, job.session_time) not in {(one[7], one[8]) for one in before["jobs"]}
    checked = verify.run(config, verify.VerifyRequest(), log=lambda text, fields: None)
    assert checked.exit_status is ExitStatus.DONE


@pytest.mark.parametrize("seed", range(2))
def test_volumes_in_any_order_on_any_magazine(tmp_path: Path, seed: int) -> None:
    """One volume a scan, in random order, as magazines come and go: records that volumes' ends cut are joined."""
    config = configuration(tmp_path, "maximum_volume_bytes: 70000")
    tree = tmp_path / "source"
    for number in range(25):
        folder = tree / f"directory-{number}" / ("x" * 200)
        folder.mkdir(parents=True)
        for name in range(12):
            (folder / f"{'n' * 150}-{name}").write_bytes(os.urandom(random.Random(number).randrange(3000)))
    (tree / "large").write_bytes(os.urandom(400_000))
    saved = save(config, tree)
    before = rows(config)
    names = list(saved.volumes)
    assert len(names) > 10
    total = len(before["files"])
    lose(config)
    (shown,) = scan(config, dry_run=True).jobs.values()
    assert (shown.files, shown.new) == (total, True)
    dice = random.Random(seed)
    dice.shuffle(names)
    told = 0
    attached.create_directories(config)
    for name in names[: len(names) // 2]:
        (tmp_path / "m1" / name).rename(tmp_path / "m2" / name)
    for name in names[:-1]:
        result = scan(config, volume(config, name))
        assert result.exit_status is ExitStatus.DONE, result.errors
        (job,) = result.jobs.values()
        assert job.missing and job.status == "failed" and job.new
        told += job.files
    result = scan(config, volume(config, names[-1]))
    (job,) = result.jobs.values()
    assert (job.missing, job.status) == ("", "done")
    # Each file is told once, those whose attributes lie on two volumes when the second one was read.
    assert told + job.files == total
    for dry_run in (False, True):
        (again,) = scan(config, dry_run=dry_run).jobs.values()
        assert (again.files, again.new) == (total, False)
    after = rows(config)
    for what in ("jobs", "places", "files", "sessions"):
        assert after[what] == before[what]
    assert {row[0]: row[1] for row in after["media"]} == {
        name: "m2" if name in names[: len(names) // 2] else "m1" for name in names
    }
    with Catalog(config.state_dir) as catalog:
        assert list(catalog.rows("SELECT * FROM Loose")) == []
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    assert_same(tree, below(tmp_path / "out", tree))


def test_a_restore_reads_only_what_it_needs(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.storage.sink.STRETCH_BYTES", 1 << 20)
    monkeypatch.setattr("appliance.storage.scanned.STRETCH_BYTES", 1 << 20)
    tree = tmp_path / "source"
    tree.mkdir()
    for number in range(40):
        (tree / f"file-{number:02}").write_bytes(os.urandom(200_000))
    saved = save(config, tree)
    lose(config)
    scan(config)
    with Catalog(config.state_dir) as catalog:
        wanted = searching.wanted_files(catalog, [catalog.job(saved.job_id)], ("file-20",))[0]
        (part,) = plan.parts_for(catalog, config, wanted.job, wanted=wanted)
    assert part.size < 2_200_000 < volume(config, "m1-0001").stat().st_size // 3
    assert bring_back(config, tmp_path / "out", globs=("file-20",)).exit_status is ExitStatus.DONE
    assert (below(tmp_path / "out", tree) / "file-20").read_bytes() == (tree / "file-20").read_bytes()


def test_what_is_missing_is_added_to_a_catalog_that_exists(tmp_path: Path, config: Config) -> None:
    states = history(tmp_path, config)
    before = rows(config)
    with Catalog(config.state_dir) as catalog:
        catalog.change("DELETE FROM File WHERE JobId=3")
        catalog.change("UPDATE Job SET JobStatus='P' WHERE JobId=3")
        catalog.change("DELETE FROM JobMedia WHERE JobId=4")
    result = scan(config)
    assert {job.job_id for job in result.jobs.values() if job.new} == {3, 4}
    assert rows(config) == before
    assert_restores(tmp_path, config, states)


def test_one_lost_volume_of_a_good_job_is_added(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 500kB")
    tree = rich_tree(tmp_path / "source")
    saved = save(config, tree)
    before = rows(config)
    for name in (saved.volumes[0], saved.volumes[3], saved.volumes[-1]):
        with Catalog(config.state_dir) as catalog:
            (lost,) = catalog.media(name=name)
            catalog.change("DELETE FROM JobMedia WHERE MediaId=?", (lost.media_id,))
            catalog.change("DELETE FROM Media WHERE MediaId=?", (lost.media_id,))
        (job,) = scan(config, volume(config, name)).jobs.values()
        assert (job.status, job.missing) == ("done", "")
        after = rows(config)
        for what in ("jobs", "places", "files", "media"):
            assert [row for row in after[what] if what != "jobs"] == [row for row in before[what] if what != "jobs"]
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    assert_same(tree, below(tmp_path / "out", tree))


def test_dry_run_writes_nothing(tmp_path: Path, config: Config) -> None:
    history(tmp_path, config)
    before = rows(config)
    shown = scan(config, dry_run=True)
    assert [job.new for job in shown.jobs.values()] == [False] * 6 and rows(config) == before
    lose(config)
    shown = scan(config, dry_run=True)
    assert [(job.job_id, job.files) for job in shown.jobs.values()] == [(job[0], job[10]) for job in before["jobs"]]
    assert rows(config) == {name: [] for name in before}


def test_unfinished_sessions_are_failed_jobs(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    whole = save(config, tree, name="whole")
    path = volume(config, "m1-0001")
    first = path.stat().st_size
    save(config, tree, name="torn")
    with open(path, "r+b") as file:
        file.truncate(first + 100_000)
    lose(config)
    result = scan(config)
    # The block that is cut off is told; what the torn job left is there, and is cut off by the next job.
    assert result.exit_status is ExitStatus.FAILED and "cut short" in result.errors[0]
    states = {job.name: (job.status, bool(job.missing)) for job in result.jobs.values()}
    assert states == {"whole": ("done", False), "torn": ("failed", True)}
    assert all(job.new for job in result.jobs.values())
    # Once more: nothing of the unfinished job is new.
    for dry_run in (False, True):
        again = scan(config, dry_run=dry_run)
        assert [(job.name, job.new) for job in again.jobs.values()] == [("whole", False), ("torn", False)]
    assert bring_back(config, tmp_path / "out").job_id == whole.job_id
    assert save(config, tree, name="whole").volumes == ("m1-0001",)
    again = scan(config)
    assert (again.errors, again.exit_status) == ([], ExitStatus.DONE)


def test_damage_is_told_and_what_is_readable_is_entered(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    for number in range(300):
        (tree / f"file-{number:03}").write_bytes(os.urandom(2000))
    save(config, tree, name="hurt")
    save(config, tree / "file-001", name="good")
    path = volume(config, "m1-0001")
    with open(path, "r+b") as file:
        file.seek(200_000)
        file.write(b"damage")
    lose(config)
    result = scan(config)
    assert result.exit_status is ExitStatus.FAILED and any("checksum" in error for error in result.errors)
    found = {job.name: job for job in result.jobs.values()}
    assert (found["good"].status, found["good"].missing) == ("done", "")
    assert found["hurt"].status == "warnings" and "lost by damage" in found["hurt"].missing
    assert 240 < found["hurt"].files < 300
    back = bring_back(config, tmp_path / "out", latest="hurt")
    assert back.files > 240
    with Catalog(config.state_dir) as catalog:
        assert catalog.media()[0].status is VolumeStatus.ERROR
    assert save(config, tree, name="next").volumes == ("m1-0002",)


def test_a_volume_that_a_job_writes_on_is_left_alone(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    seen: list[ScanResult] = []

    def meanwhile(_count: int) -> None:
        if not seen:
            seen.append(scan(config, dry_run=False))

    from appliance.storage import backup

    done = backup.run(config, backup.BackupRequest((tree,)), log=lambda text, fields: None, progress=meanwhile)
    assert done.status is JobStatus.DONE
    assert seen[0].exit_status is ExitStatus.WARNINGS and "in use by a job" in seen[0].warnings[0]
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE


def test_volumes_of_one_name(tmp_path: Path, config: Config) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"x" * 1000)
    save(config, data)
    # A copy, while the original is gone: it has moved.
    (tmp_path / "m2").mkdir(exist_ok=True)
    (tmp_path / "m1" / "m1-0001").rename(tmp_path / "m2" / "m1-0001")
    assert scan(config).exit_status is ExitStatus.DONE
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    # Another volume of that name is not mixed with it.
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    (tmp_path / "elsewhere").mkdir()
    other = configuration(tmp_path / "elsewhere")
    save(other, data)
    shutil.copy(volume(other, "m1-0001"), tmp_path / "m1" / "m1-0001")
    before = rows(config)
    result = scan(config)
    assert result.exit_status is ExitStatus.FAILED and "another volume m1-0001" in result.errors[0]
    assert rows(config) == before


def test_magazines_of_another_machine_get_other_numbers(tmp_path: Path, config: Config) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"here")
    save(config, data, name="here")
    (tmp_path / "elsewhere").mkdir()
    other = configuration(tmp_path / "elsewhere", magazines="magazines:\n  - {name: far, directory: far}\n")
    data.write_bytes(b"there")
    save(other, data, name="clash")  # in the same second with the same number: the same session ids
    save(other, data, name="there")
    change_to = b"there, later"
    data.write_bytes(change_to)
    save(other, data, name="there", level=Level.INCREMENTAL)
    shutil.copy(volume(other, "far-0001"), tmp_path / "m2" / "far-0001")
    with Catalog(config.state_dir) as catalog, Catalog(other.state_dir) as theirs:
        ids = [(job.session_id, job.session_time) for job in (catalog.jobs()[0], theirs.jobs(name="clash")[0])]
    result = scan(config, magazine="m2")
    assert [error for error in result.errors if "clash" in error] == result.errors
    assert bool(result.errors) is (ids[0] == ids[1])
    for latest, content in (("here", b"here"), ("there", change_to)):
        assert bring_back(config, tmp_path / latest, latest=latest).exit_status is ExitStatus.DONE
        assert below(tmp_path / latest, data).read_bytes() == content


def test_a_volume_with_a_job_that_is_not_entered_is_never_written_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines whose timers start their first job in the same second give it the same session ids."""
    now = time.time
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    sessions_from_one(monkeypatch)
    pool = "maximum_volume_bytes: 100000, maximum_volumes: 2, retention: 3650d"
    config = configuration(tmp_path, pool)
    data = tmp_path / "data"
    data.write_bytes(os.urandom(90_000))
    save(config, data, name="here")
    (tmp_path / "elsewhere").mkdir()
    other = configuration(tmp_path / "elsewhere", magazines="magazines:\n  - {name: far, directory: far}\n")
    data.write_bytes(os.urandom(200_000))
    save(other, data, name="theirs")
    (tmp_path / "m2").mkdir(exist_ok=True)
    far = tmp_path / "m2" / "far-0001"
    shutil.copy(volume(other, "far-0001"), far)
    before = far.read_bytes()
    for _ in range(2):
        result = scan(config, magazine="m2")
        assert result.exit_status is ExitStatus.FAILED and "theirs" in result.errors[0]
        with Catalog.of(config) as catalog:
            assert catalog.media(name="far-0001")[0].status is VolumeStatus.ERROR
    monkeypatch.setattr("time.time", now)
    assert save(config, data, name="more").exit_status is ExitStatus.FAILED  # there is no room that is nobody's
    assert far.read_bytes() == before
    assert magbay(tmp_path, "volume", "extract", str(far), "--to", f"{tmp_path}/out").status == 0
    assert below(tmp_path / "out", data).read_bytes() == data.read_bytes()


def test_a_job_of_another_machine_is_not_mixed_with_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what lies on volumes that it only goes on on, where no label says whose it is."""
    now = time.time
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    sessions_from_one(monkeypatch)
    data = tmp_path / "data"
    data.mkdir()
    config, magazines = (
        configuration(tmp_path, "maximum_volume_bytes: 100000"),
        "magazines: [{name: far, directory: far}]\n",
    )
    (data / "ours").write_bytes(os.urandom(150_000))
    ours = save(config, data, name="ours")
    data = tmp_path / "elsewhere" / "data"
    data.mkdir(parents=True)
    other = configuration(tmp_path / "elsewhere", "maximum_volume_bytes: 100000", magazines)
    (data / "long").write_bytes(os.urandom(350_000))
    for number in range(8):
        (data / f"{number}").write_bytes(os.urandom(60_000))
    names = save(other, data, name="theirs").volumes
    monkeypatch.setattr("time.time", now)
    (tmp_path / "m2").mkdir(exist_ok=True)
    for name in names:
        shutil.copy(volume(other, name), tmp_path / "m2" / name)
    before = rows(config)
    result = scan(config, magazine="m2")
    assert result.exit_status is ExitStatus.FAILED and len(result.errors) == len(names) > 3
    assert all(f"of job {ours.job_id} ours; it is not entered" in error for error in result.errors)
    after = rows(config)
    assert (after["jobs"], after["files"]) == (before["jobs"], before["files"])
    with Catalog.of(config) as catalog:
        assert {catalog.media(name=name)[0].status for name in names} == {VolumeStatus.ERROR}
    back = bring_back(config, tmp_path / "out", latest="ours")
    assert back.exit_status is ExitStatus.DONE and back.files == ours.files == 2
    assert scan(config, magazine="m1").exit_status is ExitStatus.DONE and rows(config)["files"] == before["files"]


def test_what_cannot_be_scanned_is_said(tmp_path: Path, config: Config) -> None:
    with pytest.raises(UsageError):
        scanning.run(config, ScanRequest(), log=lambda text, fields: None)
    away = configuration(tmp_path, magazines="magazines:\n  - {name: m9, directory: m9, create: no}\n")
    with pytest.raises(AwayError):
        scan(away, magazine="m9")
    stray = tmp_path / "stray"
    save(configuration(tmp_path), rich_tree(tmp_path / "source"))
    shutil.copy(tmp_path / "m1" / "m1-0001", stray)
    assert "its label says m1-0001" in scan(config, stray).errors[0]
    (tmp_path / "no-volume").write_bytes(b"just bytes" * 100)
    assert scan(config, tmp_path / "no-volume").exit_status is ExitStatus.FAILED
    assert scan(config, Path("/dev/null")).exit_status is ExitStatus.FAILED
    (tmp_path / "without").mkdir()
    with pytest.raises(NotFoundError):
        scan(config, tmp_path / "without")


def test_two_catalogs_give_out_different_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the same second: what was written by the one is never taken for what the other wrote."""
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    found = set()
    for number in range(8):
        with Catalog(tmp_path / str(number)) as catalog:
            found |= {catalog.new_session(), catalog.new_session()}
    assert len(found) == 16
    assert all(0 < ids.session_id < 1 << 31 for ids in found)


def test_space_runs_out_over_two_magazines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 500kB")

    def free(path: Path | None) -> int:
        return 0 if path and path.name == "m1" and (path / "m1-0003").exists() else 10**9

    monkeypatch.setattr(source, "_free_bytes", free)
    tree = rich_tree(tmp_path / "source")
    saved = save(config, tree)
    assert {name[:2] for name in saved.volumes} == {"m1", "m2"}
    before = rows(config)
    lose(config)
    scan(config, magazine="m2")
    (job,) = scan(config, magazine="m1").jobs.values()
    assert job.status == "done"
    after = rows(config)
    for what in ("jobs", "places", "files", "media", "sessions"):
        assert after[what] == before[what]
    bring_back(config, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))


@pytest.mark.parametrize(("which", "name"), SAMPLES)
def test_samples_of_bacula_and_bareos(tmp_path: Path, which: str, name: str) -> None:
    """Rows as their own catalogs have them; and nothing of ours is ever written on their volumes."""
    volumes, manifest = sample(which, name)
    magazines = "magazines:\n  - {name: m1, directory: m1}\n"
    config = configuration(tmp_path, magazines=magazines)
    (tmp_path / "m1").mkdir()
    for path in volumes:
        (tmp_path / "m1" / path.name).symlink_to(path)
    result = scan(config, *(tmp_path / "m1" / path.name for path in volumes), keys=VolumeKeys([CORPUS / which / name]))
    labels_differ = "its label says" in " ".join(result.errors)
    if labels_differ:
        pytest.skip("a volume that was copied under another name")
    assert result.errors == []
    with Catalog(config.state_dir) as catalog:
        assert {media.status for media in catalog.media()} == {VolumeStatus.USED}
        for expected in manifest["jobs"]:
            found = [job for job in catalog.jobs() if job.session_id == expected["VolSessionId"]]
            (job,) = [job for job in found if job.session_time == expected["VolSessionTime"]]
            if name in CANCELLED:
                assert job.status is JobStatus.FAILED
                continue
            assert (job.name, job.level.value, job.type) == (expected["Name"], expected["Level"], expected["Type"])
            # Warnings of the client are not in the label.
            assert job.status.good is JobStatus(expected["JobStatus"]).good and job.files == expected["JobFiles"]
            if not any(word in name for word in ("sparse", "-xf-", "incr")):  # holes count here, deletions there
                assert job.bytes == expected["ReadBytes"]
            places = catalog.rows(PLACES.replace("WHERE", f"WHERE JobId={job.job_id} AND"))
            wanted = [(one["VolumeName"], one["FirstIndex"], one["LastIndex"]) for one in expected["jobmedia"]]
            wanted = [one for one in wanted if one[1]]
            assert [place[1:4] for place in places] == wanted
            files = {row[1]: row for row in catalog.rows(FILES) if row[0] == job.job_id}
            for one in expected["files"]:
                if one["file_index"] <= 0:
                    continue
                row = files[one["file_index"]]
                assert row[2] + row[3] == os.fsencode(one["path"])
                digest = one.get("digest_base64") or ""
                if one["type"] == "symlink":
                    digest = digests.link_digest(os.fsencode(one["target"]))
                raw = base64.b64decode(digest + "==")
                # Digests that the catalog has no name for are left out: of 16 bytes they would pass for MD5.
                assert row[6] == digest or (not row[6] and len(raw) in (8, 16))


@pytest.mark.parametrize(
    ("which", "name"),
    [
        ("bacula-9.6", "a-interleaved"),
        ("bacula-9.6", "a-span3"),
        ("bacula-9.6", "a-incr"),
        ("bareos-26", "a-interleaved"),
    ],
)
def test_jobs_of_others_are_restored(tmp_path: Path, which: str, name: str) -> None:
    """With their addresses, from interleaved sessions and over several volumes, alone and as a chain."""
    volumes, manifest = sample(which, name)
    config = configuration(tmp_path, magazines="magazines:\n  - {name: m1, directory: m1}\n")
    (tmp_path / "m1").mkdir()
    for path in volumes:
        shutil.copy(path, tmp_path / "m1" / path.name)
    assert scan(config, magazine="m1").errors == []
    with Catalog(config.state_dir) as catalog:
        jobs = {job.session_id: job for job in catalog.jobs()}
    for expected in manifest["jobs"]:
        job = jobs[expected["VolSessionId"]]
        back = bring_back(config, tmp_path / f"out{job.job_id}", job=job.job_id)
        assert back.errors == () and not [line for line in back.warnings if "damage" in line]
        for one in expected["files"]:
            if one["file_index"] > 0 and "sha256" in one:
                restored = tmp_path / f"out{job.job_id}" / one["path"].lstrip("/")
                assert hashlib.sha256(restored.read_bytes()).hexdigest() == one["sha256"]
        gone = [one["path"] if isinstance(one, dict) else one for one in expected.get("deleted", [])]
        assert not [path for path in gone if (tmp_path / f"out{job.job_id}" / path.lstrip("/")).exists()]
    # Nothing of ours goes onto their volumes.
    before = {path.name: path.read_bytes() for path in (tmp_path / "m1").iterdir() if path.is_file()}
    (tmp_path / "data").write_bytes(b"ours")
    assert save(config, tmp_path / "data").status is JobStatus.DONE
    assert {path: (tmp_path / "m1" / path).read_bytes() for path in before} == before


def test_the_command(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "data"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    save(config, tree)
    lose(config)
    shown = magbay(tmp_path, "volume", "scan", "--all", "--dry-run", json_output=True)
    assert shown.status == 0 and shown.document["jobs"][0]["new"] is True
    done = magbay(tmp_path, "volume", "scan", "--all", json_output=True)
    assert (done.status, done.document["errors"]) == (0, [])
    assert done.document["jobs"] == [
        {
            "job_id": 2,
            "name": "backup",
            "status": "done",
            "new": True,
            "files": 2,
            "volumes": ["m1-0001"],
            "missing": None,
        }
    ]
    assert magbay(tmp_path, "slots", json_output=True).document[0]["volume"] == "m1-0001"
    assert magbay(tmp_path, "restore", "--to", str(tmp_path / "out")).status == 0
    assert (below(tmp_path / "out", tree) / "file").read_bytes() == b"content"
    # On bare files, without a configuration.
    words = ["volume", "scan", str(tmp_path / "m1"), "--catalog", str(tmp_path / "elsewhere.db")]
    (tmp_path / "bare").mkdir()
    bare = magbay(tmp_path / "bare", *words)
    assert bare.status == 0 and "1 volumes with 1 jobs, 1 of them entered" in bare.stdout
    with Catalog(tmp_path, "elsewhere.db") as catalog:
        assert [job.name for job in catalog.jobs()] == ["backup"]


def test_a_file_that_is_no_catalog_stays_as_it_is(tmp_path: Path, config: Config) -> None:
    """Nor is anything made beside it."""
    (tmp_path / "file").write_bytes(b"content")
    save(config, tmp_path / "file")
    place = tmp_path / "place"
    place.mkdir()
    (place / "letter").write_text("Dear Sir or Madam\n" * 100)
    (place / "folder").mkdir()
    os.mkfifo(place / "pipe")
    (place / "damaged").write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    foreign = sqlite3.connect(place / "foreign.db")
    foreign.execute("CREATE TABLE Recipe(Name TEXT)")
    foreign.commit()
    foreign.close()
    # All of it is in the log still; somebody has it open.
    logged = sqlite3.connect(place / "logged.db", isolation_level=None)
    logged.execute("PRAGMA journal_mode=WAL")
    logged.execute("CREATE TABLE Recipe(Name TEXT)")

    def seen() -> dict[str, bytes | None]:
        return {path.name: path.read_bytes() if path.is_file() else None for path in place.iterdir()}

    before = seen()
    for name in [name for name in before if not name.endswith(("-wal", "-shm"))]:
        for words in (["volume", "scan", str(tmp_path / "m1"), "--catalog"], ["catalog", "copy"]):
            done = magbay(tmp_path, *words, str(place / name))
            assert (done.status, "is no catalog of magbay" in done.stderr) == (1, True), (name, done.stderr)
            assert seen() == before
    logged.close()
    # One of ours of which nothing is in the file yet, since the process that made it was killed, and an empty file.
    words = "import os, sys; from pathlib import Path; from appliance.storage.catalog import Catalog; "
    words += "Catalog(Path(sys.argv[1]), 'ours.db'); os._exit(0)"
    subprocess.run([sys.executable, "-c", words, str(place)], check=True)
    (place / "empty.db").touch()
    assert (place / "ours.db-wal").stat().st_size > (place / "ours.db").stat().st_size
    for name in ("ours.db", "empty.db"):
        assert magbay(tmp_path, "volume", "scan", str(tmp_path / "m1"), "--catalog", str(place / name)).status == 0
        with Catalog(place, name) as catalog:
            assert [job.name for job in catalog.jobs()] == ["backup"]


def test_hostile_labels_and_numbers(tmp_path: Path, config: Config) -> None:
    """What no honest volume says is bounded or left out; nothing but declared errors, and numbers go on."""
    (tmp_path / "m1").mkdir()
    most = 2**64 - 1
    for number, size in enumerate((0, 2**63, most)):
        job = Job(ids=SessionIds(2**32 - 1 - number, 7), job_id=(5, 2**31 - 1, 10**9 + 7)[number])
        job.label = replace(job.label, job_name="odd\udcff name", pool="p\udcfe", job_level="?", job_type="?")
        job.entry(FileType.REGULAR, b"/" + b"x" * 3000, mode=0o100644, size=size, data_stream=4, mtime=-1)
        job.entry(FileType.DELETED, b"/gone", mode=0)
        job.label = replace(job.label, job_files=2**32 - 1, job_errors=2**32 - 1, time=2**63 - 1, job_status="?")
        job.writer.job_bytes = most
        name = tmp_path / "m1" / f"hostile-{number}"
        name.write_bytes(label_of(name, ids=job.ids, when=9 * 10**12, program="evil") + b"".join(job.end()))
    result = scan(config, magazine="m1")
    assert [job.status for job in result.jobs.values()] == ["failed"] * 3
    (tmp_path / "data").write_bytes(b"ours")
    saved = save(config, tmp_path / "data")
    assert saved.status is JobStatus.DONE and saved.job_id < 2**31 and saved.volumes == ("m1-0001",)
    with Catalog(config.state_dir) as catalog:
        assert catalog.job(saved.job_id).session_id < 2**31
    for words in (["jobs"], ["browse", "/"], ["status"]):
        assert magbay(tmp_path, *words).status == 0
