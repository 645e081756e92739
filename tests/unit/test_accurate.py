"""Accurate incrementals: a restored chain is the tree as it was, deletions and files with old times included."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ExitStatus, NotFoundError
from appliance.storage import accurate, backup, verify
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus, Level
from appliance.volumes.attributes import FileType
from appliance.volumes.events import FileStart
from appliance.volumes.reading import read_volumes
from tests.unit import stocktools
from tests.unit.enginehelp import assert_same, below, bring_back, facts, rich_tree, save, volume


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return rich_tree(tmp_path / "source")


def in_past(path: Path) -> None:
    """A time from before every backup; the ctime stays now, of the directory above it too."""
    os.utime(path, (1_000_000_000, 1_000_000_000))


def test_deleted_and_moved_things_are_as_they_were(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    shutil.rmtree(tree / "deep")
    (tree / "plain.txt").unlink()
    (tree / "past").rename(tree / "links" / "moved")
    (tree / "empty").unlink()
    (tree / "empty").mkdir()
    second = save(config, tree, level=Level.INCREMENTAL)
    assert (second.level, second.status, second.warnings) == (Level.INCREMENTAL, JobStatus.DONE, ())
    assert second.deleted == 30 + 1 + 1 + 1 + 1 + 1  # directories of deep, its file, deep, plain.txt, past, empty
    bring_back(config, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))
    (tree / "links" / "moved").unlink()
    third = save(config, tree, level=Level.INCREMENTAL)
    assert third.deleted == 1
    bring_back(config, tmp_path / "out3")
    assert_same(tree, below(tmp_path / "out3", tree))
    bring_back(config, tmp_path / "full", job=second.job_id - 1)
    assert b"past" in facts(below(tmp_path / "full", tree))
    checked = verify.run(config, verify.VerifyRequest(), log=lambda text, fields: None)
    assert (checked.exit_status, checked.errors) == (ExitStatus.DONE, [])


def test_a_file_whose_times_are_all_old_is_saved(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "source"
    for name in ("in/old", "other"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "in").rename(tmp_path / "in")
    save(config, tree)
    # What is below a directory that is moved in keeps its times, ctime too: as if the backup had been later.
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Job SET Started=Started+1000")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 2000)
    (tmp_path / "in").rename(tree / "in")
    loose = save(config, tree, level=Level.INCREMENTAL, accurate=False, name="backup")
    assert loose.files == 0
    with Catalog(config.state_dir) as catalog:
        catalog.change("DELETE FROM Job WHERE JobId=?", (loose.job_id,))
    assert save(config, tree, level=Level.INCREMENTAL).files >= 2
    bring_back(config, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))


def test_what_comes_back_after_a_deletion(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    (tree / "plain.txt").rename(tmp_path / "aside")
    save(config, tree, level=Level.INCREMENTAL)
    (tmp_path / "aside").rename(tree / "plain.txt")
    save(config, tree, level=Level.INCREMENTAL)
    bring_back(config, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))
    differential = save(config, tree, level=Level.DIFFERENTIAL)
    assert differential.deleted == 0


def test_deleted_entries_on_the_volume(config: Config, tree: Path) -> None:
    save(config, tree)
    (tree / "exact").unlink()
    shutil.rmtree(tree / "sticky")
    last = save(config, tree, level=Level.INCREMENTAL)
    path = volume(config, "m1-0001")
    entries = [e.entry.attributes for e in read_volumes([path]) if isinstance(e, FileStart)]
    gone = [entry for entry in entries if entry.ftype == FileType.DELETED]
    assert sorted(entry.name for entry in gone) == [os.fsencode(tree / "exact"), os.fsencode(tree / "sticky") + b"/"]
    assert entries[-2:] == gone and gone[1].file_index == last.files
    for entry in gone:
        stat = entry.stat
        assert (stat.mode, stat.size, stat.ino, stat.data_stream) == (0, 0, 0, 2) and stat.mtime > 0 < stat.ctime
    told = stocktools.bls(path)
    assert "*DELETED" in told and str(tree / "exact") in told


def test_what_cannot_be_looked_at_is_not_deleted(config: Config, tree: Path) -> None:
    save(config, tree)
    with Catalog(config.state_dir) as catalog:
        before = accurate.Before(catalog, [catalog.jobs()[0].job_id])
        before.trouble(os.fsencode(tree / "deep"), PermissionError(13, "Permission denied"))
        before.trouble(os.fsencode(tree / "links"), FileNotFoundError(2, "No such file or directory"))
        gone = {os.path.relpath(item.path, os.fsencode(tree)) for item in before.gone()}
    assert {name for name in gone if name.startswith(b"deep")} == set()
    assert {b"links", b"links/hard", b"plain.txt", b"."} <= gone


def test_many_random_changes(tmp_path: Path, config: Config) -> None:
    dice = random.Random(7)
    tree = tmp_path / "source"
    tree.mkdir()
    for round_number in range(6):
        for _ in range(25):
            _change(tree, dice)
        job = save(config, tree, level=dice.choice([Level.INCREMENTAL, Level.INCREMENTAL, Level.DIFFERENTIAL]))
        assert job.status is JobStatus.DONE
        bring_back(config, tmp_path / f"out{round_number}")
        assert_same(tree, below(tmp_path / f"out{round_number}", tree))


def _change(tree: Path, dice: random.Random) -> None:
    there = [path for path in tree.rglob("*") if not path.is_symlink()]
    folders = [tree, *(path for path in there if path.is_dir())]
    new = dice.choice(folders) / f"n{dice.randrange(12)}"
    kind = dice.randrange(5)
    old = dice.choice(there) if there else None
    if kind == 0 and old:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    elif kind == 1 and old and not os.path.lexists(new) and old not in (new, *new.parents):
        old.rename(new)
    elif os.path.lexists(new):
        return
    elif kind == 2:
        new.mkdir()
    elif kind == 3:
        new.symlink_to("target")
    else:
        new.write_bytes(dice.randbytes(100))
        in_past(new)


def test_a_path_that_is_not_there_keeps_the_others_of_a_job_and_what_was_saved(tmp_path: Path, config: Config) -> None:
    """As of a disk that is not mounted: a warning each time, the same fileset, and nothing counts as deleted."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    paths = f"{here}, {there}, {there}/file, {here}/never"
    with (tmp_path / "magbay.yaml").open("a") as file:
        file.write(f"jobs:\n  both: {{paths: [{paths}], pool: Default, level: incremental}}\n")
    config = load(tmp_path / "magbay.yaml")

    def run() -> backup.JobResult:
        return backup.run(config, backup.request_for(config, ["both"]), log=lambda text, fields: None)

    first = run()
    assert (first.level, first.files, first.warnings) == (Level.FULL, 4, ())
    there.rename(tmp_path / "aside")
    (here / "file").write_text("changed")
    second = run()
    warnings = [f"{there} is not saved: No such file or directory"]
    assert (second.level, second.deleted, list(second.warnings)) == (Level.INCREMENTAL, 0, warnings)
    assert second.exit_status is ExitStatus.WARNINGS
    bring_back(config, tmp_path / "out")
    assert (below(tmp_path / "out", there) / "file").read_text() == "there"
    assert (below(tmp_path / "out", here) / "file").read_text() == "changed"
    (tmp_path / "aside").rename(there)
    third = run()
    assert (third.level, third.deleted, third.warnings) == (Level.INCREMENTAL, 0, ())
    for folder in (here, there):
        shutil.rmtree(folder)
    with pytest.raises(NotFoundError, match="here cannot be saved"):
        run()
    with pytest.raises(NotFoundError):
        save(config, tmp_path / "out", there)  # somebody's words
