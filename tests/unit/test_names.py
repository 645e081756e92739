"""Files and directories by their names: the indexes of parts, and directories that have no row of their own."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.config.schema import Config
from appliance.storage import expiry, names, searching, tables
from appliance.storage.catalog import FILE, Catalog
from appliance.storage.database import PART
from appliance.storage.model import Job, JobStatus, Level, Outcome
from appliance.storage.names import Likeness
from appliance.storage.saved_files import FileWriter
from tests.unit.enginehelp import save
from tests.unit.test_searching import by_comparing, by_searching
from tests.unit.test_storage_parts import NEW

PATTERNS = ("report", "re*", "r_port", "r%", "_", "%", "_*", "%*", "[[]r]*", "repo\udcff*", "nothing", "m*")
COMPONENTS = ("srv", "one", "deep", "er", "relative", "way", "c:", "win", "plain", "odd", "file", "s*", "d*")
LOOKS = (
    Likeness(whole=b"file-17"),
    Likeness(start=b"file-123", within=b"file-123"),
    Likeness(start=b"f", within=b"-99"),
)


def entered(catalog: Catalog, files: Iterable[tuple[int, bytes]], lstat: str = "A A A") -> Job:
    """A full job with these files (FileIndex, path)."""
    job = catalog.start_job(NEW)
    rows, count = FileWriter(catalog, job.job_id), 0
    for index, path in files:
        rows.add(index, 3, path, lstat, "")
        count += 1
    rows.flush()
    catalog.finish_job(job.job_id, Outcome(JobStatus.DONE, count, 1, 1, 0, 0), [], [])
    return catalog.job(job.job_id)


def asked(catalog: Catalog, chain: list[int], like: Likeness) -> list[str]:
    """The queries for files and directories of such names."""
    found: list[str] = []
    rows = catalog.rows
    catalog.rows = lambda query, values=(), **how: found.append(query) or rows(query, values, **how)  # type: ignore
    try:
        list(names.files(catalog, chain, like))
        list(names.folders(catalog, like))
    finally:
        catalog.rows = rows  # type: ignore[method-assign]
    assert len(found) == 2
    return found


def test_the_index_leads_there(config: Config) -> None:
    with Catalog.of(config) as catalog:
        job = entered(catalog, ((n, b"/d-%d/file-%d" % (n // 20, n)) for n in range(1, 3000)))
        for like in LOOKS:
            for query, index in zip(asked(catalog, [job.job_id], like), ("FileName", "PathFolder"), strict=True):
                plan = list(catalog.rows("EXPLAIN QUERY PLAN " + query, [b""] * query.count("?")))
                steps = [step for *_, step in plan]
                (look,) = [step for step in steps if f"INDEX {index} " in step]
                assert "<expr>=? AND " + ("Name" if index == "FileName" else "Folder") in look, steps
                # Besides: the list of parts, and what was found.
                rest = {step for step in steps if step.startswith("SCAN") and "(subquery" not in step}
                assert rest <= {"SCAN Part", "SCAN n"}, steps


def test_what_is_alone_is_found_by_its_number(config: Config) -> None:
    with Catalog.of(config) as catalog:
        entered(catalog, ((n, b"/%d/file" % n) for n in range(1, 2000)))
        found: list[str] = []
        rows = catalog.rows
        catalog.rows = lambda query, values=(), **how: found.append(query) or rows(query, values, **how)  # type: ignore
        assert len(list(names.alone(catalog))) == 1999
        for query in found[1:]:
            plan = list(rows("EXPLAIN QUERY PLAN " + query, [1] * query.count("?")))
            assert [step for *_, step in plan] == ["SEARCH Path USING INTEGER PRIMARY KEY (rowid=?)"]
        assert len(found) > 2


def test_jobs_of_many_parts_and_with_gaps(config: Config) -> None:
    """FileIndexes far apart, at the borders of parts, and more of them than one batch has."""
    dice = random.Random(7)
    borders = [number * (1 << PART) + off for number in (1, 2, 3, 9, 400, 100_000) for off in (-1, 0, 1)]
    indexes = sorted({*borders, *dice.sample(range(1, 60_000), 9000), (1 << 31) - 1})
    words = (b"report", b"re", b"repo\xff\xfe", b"_", b"%", b"r_port", b"r%", b"[r]eport", b"Report", b"report.odt")
    with Catalog.of(config) as catalog:
        first = entered(
            catalog, ((n, b"/data/%s/%d/%s" % (dice.choice(words), n, dice.choice(words))) for n in indexes)
        )
        second = entered(catalog, ((n, b"/data/more/%d/%s" % (n, dice.choice(words))) for n in indexes[:50]))
        for chain in ([first], [second], [first, second]):
            for glob in PATTERNS:
                assert by_searching(catalog, chain, glob) == by_comparing(catalog, chain, glob), glob


def folder_of(catalog: Catalog) -> dict[bytes, bytes]:
    return {bytes(path): bytes(folder) for path, folder in catalog.rows("SELECT Path, Folder FROM Path")}


def test_directories_without_a_row_of_their_own(config: Config) -> None:
    """Those above what was saved, and those that went with the jobs that had saved them."""
    pooled = replace(config, pools={name: replace(pool, retention=86400) for name, pool in config.pools.items()})
    with Catalog.of(config) as catalog:
        paths = [b"/srv/one/", b"/srv/one/deep/er/file", b"/srv/one/deep/er/", b"relative/way/file", b"c:/win/file"]
        paths += [b"plain", b"//odd//file", b"/"]
        first = entered(catalog, enumerate(paths, 1))
        names_of = folder_of(catalog)
        assert names_of[b"/srv/one/deep/er/"] == b"er" and names_of[b"c:/win/"] == b"win"
        assert names_of[b""] == names_of[b"/"] == names_of[b"//odd//"] == b""

        def look(job: Job) -> None:
            for glob in COMPONENTS:
                found = by_searching(catalog, [job], glob)
                assert found and found == by_comparing(catalog, [job], glob), glob

        look(first)
        second = entered(catalog, [*enumerate(paths[1:2] + paths[3:], 1), (99, b"/other/thing")])
        look(second)
        catalog.change("UPDATE Job SET Finished=Finished-200000 WHERE JobId=?", (first.job_id,))
        pruned = expiry.prune(catalog, pooled)
        assert [job.job_id for job in pruned] == [first.job_id]
        assert b"/srv/one/" not in folder_of(catalog)
        look(second)


def test_at_its_end_a_job_has_only_its_tops_alone(config: Config, tmp_path: Path) -> None:
    """A backup enters directories behind their contents."""
    tree = tmp_path / "tree"
    for number in range(30):
        (tree / f"a{number % 3}" / f"b{number % 7}" / f"c{number}").mkdir(parents=True)
        (tree / f"a{number % 3}" / f"b{number % 7}" / f"c{number}" / "file").write_bytes(b"x")
    save(config, tree, name="tree")
    (tree / "a0" / "new").mkdir()
    (tree / "a0" / "new" / "file").write_bytes(b"y")
    save(config, tree, name="tree", level=Level.INCREMENTAL)
    with Catalog.of(config) as catalog:
        assert list(names.alone(catalog)) == [os.fsencode(tree) + b"/"]


def back_to_five(path: Path) -> None:
    """What the version before made of the same."""
    db = sqlite3.connect(path)
    with db:
        for statement in ("DROP INDEX FileName", "DROP INDEX PathFolder", "DROP TABLE Alone"):
            db.execute(statement)
        db.execute("ALTER TABLE Path DROP COLUMN Folder")
        db.execute("PRAGMA user_version=5")
    db.close()


def test_a_catalog_of_version_5_is_brought_up(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def everything(catalog: Catalog) -> list[list[Any]]:
        queries = ("SELECT * FROM Path ORDER BY PathId", "SELECT * FROM Alone ORDER BY PathId")
        more = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
        return [list(catalog.rows(query)) for query in (*queries, more, "PRAGMA user_version")]

    with Catalog.of(config) as catalog:
        paths = [b"/top/%d/%d/x\xff%d" % (n % 50, n % 3000, n) for n in range(25_000)]
        job = entered(catalog, [*enumerate(paths, 1), (90_000, b"/top/7/")])
        before = everything(catalog)
        found = by_searching(catalog, [job], "7")
    assert found and len(before[0]) > searching._MOST_FOLDERS / 2
    path = config.state_dir / FILE
    back_to_five(path)
    shutil.copy(path, path.with_name("old.db"))
    capsys.readouterr()
    with Catalog.of(config) as catalog:
        after = everything(catalog)
        assert by_searching(catalog, [job], "7") == found
    assert after[:2] == before[:2] and after[3] == before[3]
    assert {row[:2] for row in after[2]} == {row[:2] for row in before[2]}
    assert capsys.readouterr().err == ""  # that is done at once
    monkeypatch.setattr(tables, "_MANY", 20_000)
    Catalog(config.state_dir, "old.db").close()
    told = capsys.readouterr().err
    assert "version 5" in told and "takes a while" in told and len(told.splitlines()) == 1
    Catalog(config.state_dir, "old.db").close()
    assert capsys.readouterr().err == ""


def test_an_upgrade_that_fails_changes_nothing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with Catalog.of(config) as catalog:
        entered(catalog, [(1, b"/a/b")])
    path = config.state_dir / FILE
    back_to_five(path)

    def no_room(db: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    steps = tables._STEPS[6]
    monkeypatch.setitem(tables._STEPS, 6, (*steps, no_room))
    with pytest.raises(Exception, match="full"):
        Catalog.of(config)
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (5,)
    assert not db.execute("SELECT 1 FROM sqlite_master WHERE name IN ('Alone', 'FileName', 'PathFolder')").fetchall()
    db.close()
    monkeypatch.setitem(tables._STEPS, 6, steps)
    with Catalog.of(config) as catalog:
        assert list(catalog.rows("SELECT Path, Folder FROM Path")) == [(b"/a/", b"a")]
