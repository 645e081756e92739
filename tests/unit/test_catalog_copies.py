"""Copies of the catalog on the magazines: total loss of the machine, one magazine alone, trouble that fails no job."""

from __future__ import annotations

import contextlib
import copy
import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.changer import inventory
from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError
from appliance.storage import copies, recovering
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus, Level, VolumeStatus
from appliance.storage.recovering import Recovered
from tests.unit.enginehelp import below, bring_back, configuration, magbay, save, volume
from tests.unit.test_pools import age
from tests.unit.test_scan import assert_restores, history, lose, rows

POOLS = "magazines:\n  - {name: m1, directory: m1}\n  - {name: m2, directory: m2}\ncatalog: {copies: yes}\n"


def recover(config: Config, *paths: Path, scan: bool = True) -> Recovered:
    """Bring the catalog back."""
    return recovering.run(config, paths, scan=scan, log=lambda text, fields: None)


def found(magazine: Path) -> list[Path]:
    """The copies on a magazine."""
    return copies.on_magazine(magazine)


def test_total_loss(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 3MB")
    states = history(tmp_path, config)
    before = rows(config)
    assert len(found(tmp_path / "m1")) == len(states) + 1
    lose(config)
    back = recover(config)
    assert (back.errors, back.left_out, back.known) == ([], [], [])
    assert back.scan is not None and back.scan.jobs == {} and back.scan.exit_status is ExitStatus.DONE
    assert rows(config) == before
    assert_restores(tmp_path, config, states)
    # Again: nothing to do. And the next job goes on.
    again = recover(config)
    assert again.jobs == [] and len(again.known) == len(before["jobs"]) and rows(config) == before
    after = save(config, tmp_path / "source", name="tree", level=Level.INCREMENTAL)
    assert after.level is Level.INCREMENTAL and after.job_id > max(job[0] for job in before["jobs"])


def test_what_is_newer_than_the_copies_is_scanned(tmp_path: Path, config: Config) -> None:
    states = history(tmp_path, config)
    before = rows(config)
    for path in found(tmp_path / "m1")[-2:]:
        path.unlink()
    lose(config)
    back = recover(config)
    assert back.scan is not None and len(back.scan.jobs) == 2 and back.scan.exit_status is ExitStatus.DONE
    assert rows(config) == before
    assert_restores(tmp_path, config, states)


def test_one_magazine_alone_restores_what_is_on_it(tmp_path: Path) -> None:
    magazines = "magazines:\n  - {name: m1, directory: m1, create: no}\n  - {name: m2, directory: m2, create: no}\n"
    config = configuration(tmp_path, "maximum_volume_bytes: 1GB", magazines)
    data = tmp_path / "data"
    for number, name in enumerate(("m1", "m2")):
        (tmp_path / name).mkdir()
        data.write_bytes(b"state %d" % number)
        os.utime(data, (number, number))
        save(config, data, level=Level.INCREMENTAL if number else Level.FULL)
        (tmp_path / name).rename(tmp_path / f"{name}-away")
    before = rows(config)
    lose(config)
    (tmp_path / "m2-away").rename(tmp_path / "m2")
    back = recover(config)
    (job_id,) = back.jobs
    restored = bring_back(config, tmp_path / "out", job=job_id)
    assert below(tmp_path / "out", data).read_bytes() == b"state 1"
    # What it builds on lies elsewhere, and that is said.
    assert restored.exit_status is ExitStatus.WARNINGS and "not whole in the catalog" in restored.warnings[0]
    (tmp_path / "m1-away").rename(tmp_path / "m1")
    assert len(recover(config).jobs) == 1
    assert rows(config)["jobs"] == before["jobs"] and rows(config)["files"] == before["files"]
    assert bring_back(config, tmp_path / "out2").exit_status is ExitStatus.DONE


def test_it_never_fails_the_job(tmp_path: Path, config: Config) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"content")
    (tmp_path / "m1").mkdir()
    (tmp_path / "m1" / copies.FOLDER).write_bytes(b"in the way")
    saved = save(config, data)
    assert (saved.status, saved.exit_status) == (JobStatus.DONE, ExitStatus.WARNINGS)
    assert "got no copy of the catalog" in saved.warnings[0]
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    (tmp_path / "m1" / copies.FOLDER).unlink()
    done = magbay(tmp_path, "catalog", "backup", json_output=True)
    assert done.status == 0 and done.document == {"jobs": [saved.job_id], "errors": []}
    assert magbay(tmp_path, "catalog", "backup", json_output=True).document["jobs"] == []


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    config = configuration(tmp_path, magazines=POOLS.replace("copies: yes", "copies: no"))
    (tmp_path / "data").write_bytes(b"content")
    save(config, tmp_path / "data")
    assert found(tmp_path / "m1") == [] and not (tmp_path / "m1" / copies.FOLDER).exists()


def test_no_copy_is_a_volume(tmp_path: Path, config: Config) -> None:
    (tmp_path / "data").write_bytes(b"content")
    save(config, tmp_path / "data")
    (path,) = found(tmp_path / "m1")
    assert path.parent.name.startswith(".") and path.stat().st_mode & 0o007 == 0
    assert inventory.scan(tmp_path / "m1", {}, (), unlabelled=True).volumes == ("m1-0001",)
    # A leftover of a write that was interrupted is none either.
    (path.parent / f".{path.name}.abc").write_bytes(b"half")
    assert found(tmp_path / "m1") == [path]


@pytest.mark.parametrize("how", ["cut", "flipped", "other"])
def test_a_damaged_copy_is_told_and_the_volumes_are_scanned(tmp_path: Path, config: Config, how: str) -> None:
    tree = tmp_path / "data"
    tree.mkdir()
    for number in range(200):
        (tree / f"file-{number}").write_bytes(os.urandom(100))
    save(config, tree)
    (path,) = found(tmp_path / "m1")
    before, content = rows(config), path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        "other": b"something else",
    }
    path.write_bytes(damaged[how])
    lose(config)
    back = recover(config)
    assert len(back.errors) == 1 and path.name in back.errors[0]
    assert rows(config) == before
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE


def test_copies_go_with_their_jobs(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 70000, maximum_volumes: 2, retention: 1d, keep_newest: no")
    data = tmp_path / "data"
    jobs = []
    for _ in range(2):
        data.write_bytes(os.urandom(60_000))
        jobs.append(save(config, data).job_id)
    old = {path: path.read_bytes() for path in found(tmp_path / "m1")}
    age(config, 2 * 86400, *jobs)
    save(config, data)
    assert len(found(tmp_path / "m1")) == 2
    # A copy whose volume was written anew is of no use, whatever the catalog knew.
    lose(config)
    for path, content in old.items():
        path.write_bytes(content)
    back = recover(config)
    assert len(back.jobs) == 2 and len(back.left_out) == 1 and "written anew" in back.left_out[0]


def test_volumes_found_elsewhere(tmp_path: Path, config: Config) -> None:
    """The disk of another machine: its magazine has another name here, and its JobIds are taken."""
    data = tmp_path / "data"
    data.write_bytes(b"here")
    save(config, data, name="here")
    (tmp_path / "elsewhere").mkdir()
    magazines = "magazines:\n  - {name: far, directory: far}\n"
    other = configuration(tmp_path / "elsewhere", magazines=magazines)
    data.write_bytes(b"there, before")
    for name in ("one", "two"):
        save(other, data, name=name)
    shutil.copytree(tmp_path / "elsewhere" / "far", tmp_path / "m2", dirs_exist_ok=True)
    (first,) = [path for path in found(tmp_path / "m2") if copies.read_head(path).job["name"] == "one"]
    first.unlink()  # its session may be that of job "here"
    back = recover(config, tmp_path / "m2", scan=False)
    (job_id,) = back.jobs
    with Catalog(config.state_dir) as catalog:
        (media,) = catalog.media(name="far-0001")
        assert (media.magazine, media.identity, media.status) == ("m2", "directory:m2", VolumeStatus.APPEND)
        assert catalog.job(job_id).name == "two"
    assert bring_back(config, tmp_path / "out", latest="two").exit_status is ExitStatus.DONE
    assert below(tmp_path / "out", data).read_bytes() == b"there, before"


def test_the_commands(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "data"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    save(config, tree)
    before = rows(config)
    # A catalog that is damaged: it is set aside, and a new one made.
    (tmp_path / "state" / "catalog.db").write_bytes(b"no database" * 100)
    for suffix in ("-wal", "-shm"):
        (tmp_path / "state" / f"catalog.db{suffix}").unlink(missing_ok=True)
    assert magbay(tmp_path, "jobs").status == 1
    done = magbay(tmp_path, "catalog", "restore", "--force", json_output=True)
    assert (done.status, done.document["jobs"], done.document["errors"]) == (0, [2], [])
    assert rows(config) == before
    assert len(list((tmp_path / "state").glob("catalog.db.before-*"))) == 1
    told = magbay(tmp_path, "catalog", "restore")
    assert told.status == 0 and "0 jobs from copies, 1 were known" in told.stdout
    assert magbay(tmp_path, "catalog", "restore", str(tmp_path / "nowhere")).status == 4
    assert volume(config, "m1-0001").exists()


def test_setting_a_catalog_aside(tmp_path: Path, config: Config) -> None:
    """Not while another process has it open, which would remove the next one's log; twice in a second are two names."""
    (tmp_path / "file").write_bytes(b"content")
    save(config, tmp_path / "file")
    words = "import sys; from pathlib import Path; from appliance.storage.catalog import Catalog; "
    words += "Catalog(Path(sys.argv[1])); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", words, str(config.state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin and other.stdout and other.stdout.readline()
        with pytest.raises(MagbayError, match="has the catalog open"):
            recovering.set_aside(config)
        assert (config.state_dir / "catalog.db").exists()
        other.stdin.write(b"\n")
        other.stdin.close()
        other.wait()
    left = config.state_dir / "catalog.db.before-20200101T000000-wal"  # power was cut before the file had its new name
    left.write_bytes(b"log")
    first = recovering.set_aside(config)
    assert first and not left.exists()
    Catalog.of(config).close()
    second = recovering.set_aside(config)
    assert second != first and recovering.set_aside(config) == ""
    with Catalog(config.state_dir, first) as catalog:
        assert [job.files for job in catalog.jobs()] == [1]
    with Catalog(config.state_dir, second) as catalog:
        assert not catalog.jobs()


ODD = (None, "x", -1, float("inf"), float("nan"), 2**70, [], {}, "\udcff", "a\0b", [[1, 2, 3, 4, 5]], 1.5)


def places(node: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a JSON document."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield (*here, key)
        yield from places(node[key], (*here, key))


def test_whatever_a_copy_claims_there_is_a_word_for_it(tmp_path: Path, config: Config) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"one")
    save(config, data)
    (path,) = found(tmp_path / "m1")
    first, _, rest = gzip.decompress(path.read_bytes()).partition(b"\n")
    head = json.loads(first)
    lines = [(b'{"kind":' + b"[" * 200_000, rest)]
    for place in places(head):
        for value in ODD:
            changed = copy.deepcopy(head)
            node = changed
            for key in place[:-1]:
                node = node[key]
            if value is None and isinstance(node, dict):
                del node[place[-1]]
            else:
                node[place[-1]] = value
            lines.append((json.dumps(changed).encode(), rest))
    fields = rest.split(b"\0")
    for at, value in itertools.product(range(5), (b"x", b"-1", b"9" * 30, b"9" * 5000, b"\xff", b"")):
        lines.append((first, b"\0".join([*fields[:at], value, *fields[at + 1 :]])))
    lines.append((first, b"a" * 50_000_000))
    tracemalloc.start()
    for number, (line, records) in enumerate(lines):
        path.write_bytes(gzip.compress(line + b"\n" + records, 1))
        with contextlib.suppress(MagbayError):  # and nothing else
            one = copies.read_head(path)
            list(copies.records(one, 1))
        if number % 20 == 0:  # a catalog takes its time
            lose(config)
            recover(config, scan=False)
    assert tracemalloc.get_traced_memory()[1] < 140 << 20  # the last one is made of 50 MB
    tracemalloc.stop()
