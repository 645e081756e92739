"""What jobs build on, when the catalog comes back from copies and volumes in any order."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.config.schema import Config
from appliance.errors import ExitStatus
from appliance.storage import copies, expiry
from appliance.storage.catalog import Catalog
from appliance.storage.model import Level
from tests.unit.enginehelp import below, bring_back, configuration, save
from tests.unit.test_catalog_copies import recover
from tests.unit.test_scan import lose, scan

MAGAZINES = "magazines:\n" + "".join(f"  - {{name: m{n}, directory: m{n}, create: no}}\n" for n in (1, 2, 3))


def only(folder: Path, *here: str) -> None:
    """These magazines are here, others are on the shelf."""
    for name in ("m1", "m2", "m3"):
        place, shelf = folder / name, folder / f"shelf-{name}"
        if name in here and shelf.exists():
            shelf.rename(place)
        elif name in here:
            place.mkdir(exist_ok=True)
        elif place.exists():
            place.rename(shelf)


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Config, list[int]]:
    """A full and two incremental backups, each on a magazine of its own; the catalog is lost."""
    config = configuration(tmp_path, "maximum_volume_bytes: 1GB", MAGAZINES)
    tree = tmp_path / "tree"
    tree.mkdir()
    jobs = []
    for number, level in enumerate((Level.FULL, Level.INCREMENTAL, Level.INCREMENTAL), 1):
        only(tmp_path, f"m{number}")
        (tree / f"file-{number}").write_bytes(b"x")
        for old in tree.glob(f"file-{number - 1}"):
            old.rename(tree / f"{old.name}-renamed-before-{number}")  # so that each job is missed
        jobs.append(save(config, tree, level=level).job_id)
    lose(config)
    return config, jobs


def bases_of(config: Config) -> dict[int, int | None]:
    with Catalog(config.state_dir) as catalog:
        return {job.job_id: job.base for job in catalog.jobs()}


def assert_whole(config: Config, folder: Path, job: int) -> None:
    back = bring_back(config, folder / "out", job=job)
    assert (back.errors, back.warnings) == ((), ())
    saved = {path.name for path in below(folder / "out", folder / "tree").iterdir()}
    assert saved == {path.name for path in (folder / "tree").iterdir()}


def test_a_job_that_comes_with_its_copy_finds_those_that_were_scanned_before(
    tmp_path: Path, chain: tuple[Config, list[int]]
) -> None:
    """What was scanned kept the base that it had without the job between: a restore lacked files, and said nothing."""
    config, (full, middle, last) = chain
    only(tmp_path, "m1", "m3")
    for name in ("m1", "m3"):
        for path in copies.on_magazine(tmp_path / name):
            path.unlink()
    scan(config)
    only(tmp_path, "m2")
    recover(config, scan=False)
    assert bases_of(config) == {full: None, middle: full, last: middle}
    only(tmp_path, "m1", "m2", "m3")
    assert_whole(config, tmp_path, last)


def test_a_copy_tells_on_what_a_scanned_job_builds(tmp_path: Path, chain: tuple[Config, list[int]]) -> None:
    config, (full, middle, last) = chain
    only(tmp_path, "m1", "m3")
    scan(config)
    assert bases_of(config) == {full: None, last: full}  # by all that volumes tell
    recover(config, scan=False)
    assert bases_of(config) == {full: None, middle: None, last: middle}
    back = bring_back(config, tmp_path / "some", job=last)
    assert back.exit_status is ExitStatus.WARNINGS and f"job {middle}, that it builds on" in back.warnings[0]
    scan(config)  # does not know better
    assert bases_of(config) == {full: None, middle: None, last: middle}
    only(tmp_path, "m2")
    scan(config)
    assert bases_of(config) == {full: None, middle: full, last: middle}
    only(tmp_path, "m1", "m2", "m3")
    assert_whole(config, tmp_path, last)


def test_a_scan_of_what_was_pruned_keeps_what_was_known(tmp_path: Path) -> None:
    """Two at once build on the same job; by the rule for volumes the second would build on the first."""
    config = configuration(tmp_path, "maximum_volume_bytes: 1GB, retention: 1d, keep_newest: no")
    (tmp_path / "data").write_bytes(b"x")
    full, first, second = [
        save(config, tmp_path / "data", level=level).job_id for level in (Level.FULL, *[Level.INCREMENTAL] * 2)
    ]
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Job SET Finished=1")
        catalog.change("UPDATE Job SET BaseJobId=? WHERE JobId=?", (full, second))
        assert len(expiry.prune(catalog, config)) == 3
    assert scan(config).exit_status is ExitStatus.DONE
    assert bases_of(config) == {full: None, first: full, second: full}


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Another head for a copy."""
    line, _, records = gzip.decompress(path.read_bytes()).partition(b"\n")
    head = json.loads(line)
    change(head)
    path.write_bytes(gzip.compress(json.dumps(head).encode() + b"\n" + records, 1))


def test_a_base_that_had_the_number_of_the_job(tmp_path: Path, chain: tuple[Config, list[int]]) -> None:
    """Numbers of other catalogs may be the same; all of 'catalog restore' ended with that."""
    config, (_, _, last) = chain
    only(tmp_path, "m3")
    (path,) = copies.on_magazine(tmp_path / "m3")

    def same(head: dict[str, Any]) -> None:
        head["base"][2] = head["job"]["job_id"]

    edited(path, same)
    assert recover(config).jobs == [last]
    assert bases_of(config).keys() > {last}


def test_copies_that_build_on_each_other(tmp_path: Path, chain: tuple[Config, list[int]]) -> None:
    config, (full, middle, last) = chain
    only(tmp_path, "m1", "m2", "m3")
    (first,), (third,) = (copies.on_magazine(tmp_path / name) for name in ("m1", "m3"))
    (job,) = (json.loads(gzip.decompress(third.read_bytes()).partition(b"\n")[0])["job"],)

    def ring(head: dict[str, Any]) -> None:
        head["base"] = [job["session_id"], job["session_time"], job["job_id"], job["name"]]
        head["job"]["level"] = "I"

    edited(first, ring)
    recover(config)
    assert bases_of(config) == {full: last, middle: full, last: middle}
    back = bring_back(config, tmp_path / "out", job=last)
    assert back.exit_status is ExitStatus.WARNINGS and f"what job {full} builds on" in back.warnings[0]
    with Catalog(config.state_dir) as catalog:
        assert expiry.needed(catalog, config) == {full, middle, last}
