"""Magazines and catalogs that do not belong together: another machine's, an older copy, a catalog of yesterday."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.storage import backup, labelling
from appliance.storage.catalog import Catalog
from appliance.storage.commit import Commit
from appliance.storage.model import JobStatus, Level, VolumeStatus
from tests.unit.enginehelp import below, bring_back, configuration, magbay, save, volume
from tests.unit.test_catalog_copies import recover
from tests.unit.test_pools import age, configured, media
from tests.unit.test_scan import rows, scan


def machine(folder: Path, *names: str) -> Config:
    """An installation of its own with the magazines *names*, of which the first is here."""
    folder.mkdir()
    (folder / names[0]).mkdir()
    lines = "".join(f"  - {{name: {name}, directory: {name}, create: no}}\n" for name in names)
    return configuration(folder, magazines=f"magazines:\n{lines}")


def set_clock(monkeypatch: pytest.MonkeyPatch, ahead: float) -> None:
    """This process's clock is so many seconds ahead."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead)


def test_copies_of_another_machine_whose_volume_has_a_name_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = machine(tmp_path / "a", "m1", "m2"), machine(tmp_path / "b", "m1")
    data = tmp_path / "data"
    data.write_bytes(b"ours")
    mine = save(ours, data)
    with monkeypatch.context() as patch:
        set_clock(patch, 60)  # another second, so other session ids
        data.write_bytes(b"theirs" * 100_000)
        save(theirs, data, name="other")
    assert volume(ours, "m1-0001").name == volume(theirs, "m1-0001").name
    before = rows(ours)
    # Their magazine, under another name, in our machine.
    (tmp_path / "b" / "m1").rename(tmp_path / "a" / "m2")
    back = recover(ours)
    assert len(back.errors) == 1 and "another volume m1-0001" in back.errors[0]
    assert rows(ours) == before
    data.write_bytes(b"ours again")
    again = save(ours, data, level=Level.INCREMENTAL)
    assert (again.volumes, again.status, again.warnings) == (mine.volumes, JobStatus.DONE, ())


def test_an_incremental_whose_base_is_lost_is_nothing_to_build_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = machine(tmp_path / "a", "m1", "m2")
    folder, tree = tmp_path / "a", tmp_path / "tree"
    tree.mkdir()
    (tree / "first").write_bytes(b"1")
    save(config, tree)
    (folder / "m1").rename(folder / "m1-away")
    (folder / "m2").mkdir()
    (tree / "second").write_bytes(b"2")
    save(config, tree)
    shutil.rmtree(folder / "m2")  # the magazine is lost, with this full backup
    (folder / "m1-away").rename(folder / "m1")
    set_clock(monkeypatch, 60)
    assert save(config, tree, level=Level.INCREMENTAL, accurate=False).level is Level.INCREMENTAL
    shutil.rmtree(config.state_dir)
    recover(config)
    (tree / "third").write_bytes(b"3")
    set_clock(monkeypatch, 60)
    # The newest good job builds on what nobody has: that is passed over, and the full one before it is there.
    after = save(config, tree, level=Level.INCREMENTAL, accurate=False)
    assert after.status is JobStatus.DONE
    back = bring_back(config, tmp_path / "out")
    assert (back.errors, back.warnings) == ((), ())
    assert {path.name for path in below(tmp_path / "out", tree).iterdir()} == {"first", "second", "third"}


def test_times_are_not_compared_with_a_job_of_a_clock_that_was_ahead(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"one")
    with monkeypatch.context() as patch:
        set_clock(patch, 86_400)
        save(config, data)
    data.write_bytes(b"two")
    after = save(config, data, level=Level.INCREMENTAL, accurate=False)
    bring_back(config, tmp_path / "out", job=after.job_id)
    assert below(tmp_path / "out", data).read_bytes() == b"two"
    accurate = save(config, data, level=Level.INCREMENTAL)
    assert accurate.level is Level.INCREMENTAL


def test_an_older_copy_of_a_volume_does_not_take_its_place(tmp_path: Path) -> None:
    config = machine(tmp_path / "a", "m1", "m2")
    folder = tmp_path / "a"
    data = tmp_path / "data"
    data.write_bytes(b"one")
    save(config, data)
    (folder / "m2").mkdir()
    shutil.copy(folder / "m1" / "m1-0001", folder / "m2" / "m1-0001")
    data.write_bytes(b"two")
    save(config, data)
    (folder / "m1").rename(folder / "m1-away")
    before = rows(config)
    result = scan(config)
    assert len(result.errors) == 1 and "is not volume m1-0001 as it was last" in result.errors[0]
    assert rows(config) == before


def test_a_scan_of_an_older_state_of_a_volume_tells_what_it_lacks(tmp_path: Path) -> None:
    config = machine(tmp_path / "a", "m1")
    folder = tmp_path / "a"
    data = tmp_path / "data"
    data.write_bytes(b"one")
    save(config, data)
    old = (folder / "m1" / "m1-0001").read_bytes()
    data.write_bytes(b"two")
    save(config, data)
    (folder / "m1" / "m1-0001").write_bytes(old)  # as when a clone of the disk, made in between, is plugged in
    result = scan(config)
    assert len(result.errors) == 1 and "its file ends before them" in result.errors[0]
    assert media(config)["m1-0001"].status is VolumeStatus.ERROR


def save_with_a_snapshot(config: Config, data: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> backup.JobResult:
    """Save, and then have the catalog as whoever saves the whole machine has it: with this job still running."""
    done = Commit.done

    def snapshot(self: Commit, *words: Any) -> Any:
        shutil.copytree(config.state_dir, kept)
        return done(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(Commit, "done", snapshot)
        saved = save(config, data)
    assert saved.status is JobStatus.DONE
    shutil.rmtree(config.state_dir)
    kept.rename(config.state_dir)
    return saved


def test_a_catalog_of_before_the_end_of_a_job_does_not_cut_it_off(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"one")
    save(config, data)
    data.write_bytes(b"two")
    two = save_with_a_snapshot(config, data, tmp_path / "kept", monkeypatch)
    before = volume(config, "m1-0001").read_bytes()
    data.write_bytes(b"three")
    three = save(config, data)
    assert volume(config, "m1-0001").read_bytes() == before and three.volumes != ("m1-0001",)
    assert recover(config).errors == []
    assert media(config)["m1-0001"].status is VolumeStatus.APPEND
    for job, content in ((two, b"two"), (three, b"three")):
        bring_back(config, tmp_path / "out", job=job.job_id)
        assert below(tmp_path / "out", data).read_bytes() == content


def test_a_catalog_of_before_the_end_of_a_job_does_not_have_it_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In such a catalog the job failed, and what failed is not needed."""
    config = configured(tmp_path, "  Default: {maximum_volume_bytes: 200000, maximum_volumes: 2, retention: 90d}\n")
    data = tmp_path / "data"
    data.write_bytes(os.urandom(300_000))
    content = data.read_bytes()
    one = save_with_a_snapshot(config, data, tmp_path / "kept", monkeypatch)
    before = volume(config, "m1-0001").read_bytes()
    two = save(config, data)
    assert two.status is JobStatus.FAILED and "magbay catalog restore" in " ".join(two.warnings)
    assert volume(config, "m1-0001").read_bytes() == before
    assert recover(config).errors == []
    bring_back(config, tmp_path / "out", job=one.job_id)
    assert below(tmp_path / "out", data).read_bytes() == content


def test_a_volume_that_was_written_anew_without_this_catalog(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"one")
    one = save(config, data)
    anew = machine(tmp_path / "b", "m1")
    data.write_bytes(b"two" * 100_000)
    with monkeypatch.context() as patch:
        set_clock(patch, 60)
        save(anew, data, name="other")
    shutil.copy(volume(anew, "m1-0001"), volume(config, "m1-0001"))
    result = scan(config)
    assert result.errors == [] and len(result.warnings) == 1 and f"job {one.job_id}," in result.warnings[0]
    assert [job.name for job in result.jobs.values()] == ["other"]


@pytest.mark.parametrize("words", ["restore --to out", "verify", "verify --magazine m1", "catalog restore --force"])
def test_a_pipe_in_the_place_of_a_volume_is_not_waited_for(tmp_path: Path, config: Config, words: str) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"one")
    save(config, data)
    volume(config, "m1-0001").unlink()
    os.mkfifo(tmp_path / "m1" / "m1-0001")
    done = magbay(tmp_path, *words.replace("out", str(tmp_path / "out")).split())  # which gives up after a minute
    assert done.status == (0 if "catalog" in words else 1)


def test_a_pipe_in_the_place_of_a_fresh_volume(tmp_path: Path, config: Config) -> None:
    (name,) = [item.name for item in labelling.create(config, magazine="m1", pool="Default", count=1)]
    volume(config, name).unlink()
    os.mkfifo(tmp_path / "m1" / name)
    data = tmp_path / "data"
    data.write_bytes(b"one")
    done = magbay(tmp_path, "backup", str(data))
    assert done.status == 3 and "it is not a regular file" in done.stderr


def test_a_catalog_of_before_a_volume_was_written_anew_does_not_cut_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end lay within a block of a job that had ended well; behind it no block began."""
    config = configured(tmp_path, "  Default: {maximum_volumes: 1, retention: 1d, keep_newest: no}\n")
    data = tmp_path / "data"
    data.write_bytes(b"one")
    save(config, data)

    def fails(*_words: Any) -> Any:
        raise MagbayError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Commit, "done", fails)
        bad = save(config, data, name="bad")  # so there may be a tail of it
    assert bad.status is JobStatus.FAILED
    shutil.copytree(config.state_dir, tmp_path / "kept")
    data.write_bytes(os.urandom(20_000))
    set_clock(monkeypatch, 3 * 86_400)
    age(config, 10 * 86_400)
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Media SET VolStatus='Full'")
    good = save(config, data, name="good")
    assert (good.status, good.volumes) == (JobStatus.DONE, ("m1-0001",))
    before = volume(config, "m1-0001").read_bytes()
    shutil.rmtree(config.state_dir)
    (tmp_path / "kept").rename(config.state_dir)
    set_clock(monkeypatch, 60)
    assert save(config, data).status is JobStatus.FAILED
    assert volume(config, "m1-0001").read_bytes() == before
    recover(config)
    assert bring_back(config, tmp_path / "out", latest="good").exit_status == 0
    assert below(tmp_path / "out", data).read_bytes() == data.read_bytes()
