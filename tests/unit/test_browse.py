"""The catalog without magazines: browsing, versions, points in time, forgetting; and how quick a look-up is."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ExitStatus
from appliance.storage import expiry, saved_files
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus, Level, NewJob, Outcome
from tests.unit.enginehelp import MAGAZINES, PREFIX, assert_same, below, bring_back, magbay, rich_tree, save


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    for name in ("a/one", "a/two", "ab/three", "a/deep/er/four"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(name.encode())
    return top


def names(folder: Path, *words: str) -> list[str]:
    done = magbay(folder, "browse", *words, json_output=True)
    assert done.status == 0, done.stderr
    return [entry["path"] for entry in done.document["entries"]]


def test_browsing_shows_directories_as_they_were(tmp_path: Path, config: Config, tree: Path) -> None:
    first = save(config, tree)
    (tree / "a" / "one").unlink()
    (tree / "a" / "new").touch()
    save(config, tree, level=Level.INCREMENTAL)
    assert names(tmp_path, f"{tree}/a") == [f"{tree}/a/deep/", f"{tree}/a/new", f"{tree}/a/two"]
    assert names(tmp_path, f"{tree}/a", "--job", str(first.job_id)) == [
        f"{tree}/a/deep/", f"{tree}/a/one", f"{tree}/a/two"
    ]  # fmt: skip
    assert names(tmp_path, str(tree)) == [f"{tree}/a/", f"{tree}/ab/"]
    assert names(tmp_path, f"{tree}/a/two") == [f"{tree}/a/two"]
    assert names(tmp_path) == [f"/{tree.parts[1]}/"]
    [two] = magbay(tmp_path, "browse", f"{tree}/a/two", json_output=True).document["entries"]
    assert (two["type"], two["size"]) == ("file", 5)
    assert magbay(tmp_path, "browse", "/no/such").status == ExitStatus.NOT_FOUND
    assert magbay(tmp_path, "browse", f"{tree}/a/one").status == ExitStatus.NOT_FOUND
    told = magbay(tmp_path, "browse", "--versions", f"{tree}/a/one").stdout.splitlines()
    assert len(told) == 2 and told[0].startswith("deleted") and told[1].startswith("-rw")


def test_a_point_in_time(tmp_path: Path, config: Config, tree: Path) -> None:
    jobs = []
    for number in range(3):
        (tree / "a" / "two").write_bytes(b"%d" % number)
        jobs.append(save(config, tree, level=Level.INCREMENTAL if number else Level.FULL).job_id)
    now = int(time.time())
    with Catalog(config.state_dir) as catalog:
        for number, job in enumerate(jobs):
            catalog.change("UPDATE Job SET Started=? WHERE JobId=?", (now - (3 - number) * 86_400, job))
    for days, expected in ((2.5, b"0"), (1.5, b"1"), (0.5, b"2")):
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now - days * 86_400))
        done = magbay(tmp_path, "restore", "--at", at, "--latest", "backup", "--to", str(tmp_path / at))
        assert done.status == 0, done.stderr
        assert (below(tmp_path / at, tree) / "a" / "two").read_bytes() == expected
    early = magbay(tmp_path, "restore", "--at", "2001-01-01", "--to", str(tmp_path / "none"))
    assert early.status == ExitStatus.NOT_FOUND and "began by 2001-01-01 23:59:59" in early.stderr
    assert magbay(tmp_path, "browse", "--at", "yesterday").status == ExitStatus.USAGE


def test_paths_without_wild_cards_are_looked_up(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    (tree / "links" / "hard").unlink()
    (tree / "links" / "late").write_bytes(b"late")
    save(config, tree, level=Level.INCREMENTAL)
    globs = (f"{tree}/links/", f"{tree}/links/late", f"{tree}/big.bin")
    back = bring_back(config, tmp_path / "out", globs=globs)
    assert (back.exit_status, back.warnings) == (ExitStatus.DONE, ())
    for name in ("links", "big.bin"):
        assert (below(tmp_path / "out", tree) / name).exists()
    assert_same(tree / "links", below(tmp_path / "out", tree) / "links")
    assert sorted(os.listdir(below(tmp_path / "out", tree))) == ["big.bin", "links"]


def test_look_ups_use_the_index(config: Config, tree: Path) -> None:
    save(config, tree)
    with Catalog(config.state_dir) as catalog:
        chain = [job.job_id for job in catalog.jobs()]
        asked: list[str] = []
        rows = catalog.rows
        catalog.rows = lambda query, values=(), **how: asked.append(query) or rows(query, values)  # type: ignore
        assert list(saved_files.below(catalog, chain, os.fsencode(tree / "a")))
        assert list(saved_files.children(catalog, chain, os.fsencode(tree) + b"/"))
        assert list(saved_files.versions(catalog, os.fsencode(tree / "a" / "one")))
        for query in dict.fromkeys(asked):
            plan = list(rows("EXPLAIN QUERY PLAN " + query, [b""] * query.count("?")))
            # Of what was found the newest versions are picked; that is no look at a whole table, nor at a whole job.
            steps = [step for *_, step in plan if step != "SCAN n" and "(subquery" not in step]
            assert not [step for step in steps if step.startswith("SCAN")], (query, plan)
            assert not [step for step in steps if step.endswith("PRIMARY KEY (JobId=?)")], (query, plan)


def test_forgetting_leaves_volumes_alone(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "magbay.yaml").write_text(f"{PREFIX}{MAGAZINES}pools: {{Default: {{retention: 1d}}}}\n")
    config = load(tmp_path / "magbay.yaml")
    old = save(config, tree)
    (tree / "only-new").mkdir()
    new = save(config, tree)
    assert magbay(tmp_path, "catalog", "prune").stdout == "every job is still needed\n"
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Job SET Finished=Finished-90000")
    before = (tmp_path / "m1" / "m1-0001").read_bytes()
    dry = magbay(tmp_path, "catalog", "prune", "--dry-run", json_output=True)
    assert dry.document == {"pruned": [old.job_id], "dry_run": True}
    assert magbay(tmp_path, "catalog", "prune", json_output=True).document["pruned"] == [old.job_id]
    assert (tmp_path / "m1" / "m1-0001").read_bytes() == before
    with Catalog(config.state_dir) as catalog:
        assert {job.job_id: job.status for job in catalog.jobs()} == {
            old.job_id: JobStatus.PURGED, new.job_id: JobStatus.DONE
        }  # fmt: skip
        assert not list(saved_files.of_job(catalog, old.job_id)) and not expiry.prune(catalog, config)
    told = magbay(tmp_path, "restore", "--job", str(old.job_id), "--to", f"{tmp_path}/old")
    assert told.status == ExitStatus.NOT_FOUND and "its files are forgotten" in told.stderr
    assert "written anew" not in told.stderr and "'magbay volume scan' brings back" in told.stderr
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    assert_same(tree, below(tmp_path / "out", tree))


def test_directories_that_pruning_took_away_get_their_rows_again(tmp_path: Path, config: Config) -> None:
    """A scan, which is no job that runs, remembers numbers of directories, which may be those of others by now."""
    new = NewJob("job", Level.FULL, "Default", "[]", "md5")
    with Catalog.of(config) as catalog, Catalog.of(config) as other:
        old = catalog.start_job(new)
        catalog.finish_job(old.job_id, Outcome(JobStatus.DONE, 1, 2, 3, 0, 0), [], [])
        rows = saved_files.FileWriter(catalog, old.job_id, again=True)
        rows.add(1, 3, b"/srv/a/one", "A B", "")
        rows.flush()
        newer = catalog.start_job(new)
        catalog.finish_job(newer.job_id, Outcome(JobStatus.DONE, 0, 0, 0, 0, 0), [], [])
        pool = replace(config.pools["Default"], retention=1)
        catalog.change("UPDATE Job SET Finished=1 WHERE JobId=?", (old.job_id,))
        pruned = expiry.prune(other, replace(config, pools={new.pool: pool}))
        assert [job.job_id for job in pruned] == [old.job_id]
        taker = saved_files.FileWriter(other, newer.job_id)
        taker.add(1, 3, b"/etc/other", "A B", "")  # its directory gets the number that is free again
        taker.flush()
        rows.add(2, 3, b"/srv/a/two", "A B", "")
        rows.flush()
        assert [saved.path for saved in saved_files.of_job(catalog, old.job_id)] == [b"/srv/a/two"]
        assert not list(catalog.rows("SELECT 1 FROM File WHERE PathId NOT IN (SELECT PathId FROM Path)"))
