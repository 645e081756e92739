"""Restoring by bootstrap files of Bacula, Bareos and our own making; what a restore needs, before it is run."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.config.schema import Config
from appliance.errors import AwayError, ExitStatus, NotFoundError
from appliance.storage import bootstrap, restore
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus, Level, NewJob, Outcome, Stretch
from appliance.storage.outcome import Replace
from appliance.storage.saved_files import FileWriter
from appliance.volumes.blocks import SessionIds
from appliance.volumes.bsr import parse_bsr
from appliance.volumes.errors import VolumeError
from appliance.volumes.events import FileStart
from appliance.volumes.labels import SessionLabel
from appliance.volumes.reading import read_volumes
from tests.unit import stocktools
from tests.unit.enginehelp import assert_same, below, bring_back, configuration, facts, magbay, rich_tree, save, volume
from tests.unit.volume_builder import CORPUS, names_of, sample

# Those whose files do not come back whole, or that have no bootstrap file, are in test_extract.py.
_APART = {"a-pki", "a-xf-sparse"}
FILES = [
    (which, name, path.name)
    for which in ("bacula-9.6", "bacula-15.0", "bareos-26")
    for name in names_of(which)
    if name not in _APART
    for path in sorted((CORPUS / which / name).glob("*.bsr"))
]


def by_file(config: Config, to: Path, file: Path, **options: Any) -> restore.RestoreResult:
    """Restore by a bootstrap file."""
    return bootstrap.run(config, bootstrap.BootstrapRequest(to, file, **options), log=lambda text, fields: None)


def spread(config: Config, volumes: Sequence[Path]) -> None:
    """Put the volumes on the two magazines in turn."""
    for number, path in enumerate(volumes):
        place = config.magazines[number % 2].directory
        place.mkdir(exist_ok=True)
        (place / path.name).symlink_to(path)


def selected(volumes: Sequence[Path], file: Path) -> set[tuple[int, int]]:
    """(session, FileIndex) that the ranges in the text say, read without our parser."""
    found: set[tuple[int, int]] = set()
    session = 0
    for line in file.read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VolSessionId":
            session = int(value)
        elif key == "FileIndex":
            low, _, high = value.partition("-")
            found |= {(session, index) for index in range(int(low), int(high or low) + 1)}
    assert volumes and found
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")
@pytest.mark.parametrize(("which", "name", "file"), FILES or [("bacula-9.6", "(missing)", "")])
def test_files_by_bacula_and_bareos_restore_without_a_catalog(
    tmp_path: Path, config: Config, which: str, name: str, file: str
) -> None:
    volumes, manifest = sample(which, name)
    spread(config, volumes)
    path = CORPUS / which / name / file
    back = by_file(config, tmp_path / "out", path, keys=(volumes[0].parent,))
    assert back.errors == () and not (config.state_dir / "catalog.db").exists()
    wanted = selected(volumes, path)
    files = [
        row for job in manifest["jobs"] for row in job["files"] if (job["VolSessionId"], row["file_index"]) in wanted
    ]
    assert files and back.files == len(files)
    newest = {row["path"]: row for row in files}
    for row in newest.values():
        place = tmp_path / "out" / row["path"].lstrip("/")
        assert place.is_symlink() or place.exists(), place
        if "sha256" in row:
            assert hashlib.sha256(place.read_bytes()).hexdigest() == row["sha256"], place
        if "mode" in row and row["type"] != "symlink":
            assert oct(stat.S_IMODE(place.lstat().st_mode)) == row["mode"], place
    restored = {entry for entry in (tmp_path / "out").rglob("*") if not entry.is_dir() or entry.is_symlink()}
    assert len(restored) == len({path for path, row in newest.items() if not path.endswith("/")})


def bsr_of(config: Config, job_id: int, indexes: Sequence[int] = ()) -> str:
    """A bootstrap file for a job of the catalog, as a Director would write it."""
    lines: list[str] = []
    with Catalog(config.state_dir) as catalog:
        job = catalog.job(job_id)
        names = {media.media_id: media.name for media in catalog.media()}
        for part in catalog.stretches(job_id):
            wanted = [index for index in indexes if part.first_index <= index <= part.last_index]
            if indexes and not wanted:
                continue
            lines += [f'Volume="{names[part.media_id]}"', 'MediaType="File"', f"VolSessionId={job.session_id}"]
            lines += [f"VolSessionTime={job.session_time}", f"VolAddr={part.start}-{part.end}"]
            lines += [f"FileIndex={index}" for index in wanted] or [f"FileIndex={part.first_index}-{part.last_index}"]
            lines += [f"Count={len(wanted)}"] if wanted else []
    return "\n".join(lines) + "\n"


def test_a_chain_over_many_volumes_with_and_without_a_catalog(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 700000")
    tree = rich_tree(tmp_path / "source")
    saved = save(config, tree)
    assert len(saved.volumes) > 5
    (tree / "plain.txt").write_text("changed")
    more = save(config, tree, level=Level.INCREMENTAL)
    moved = [volume(config, name) for name in saved.volumes[1::2]]
    for path in moved:
        path.rename(config.magazines[1].directory / path.name)
        with Catalog(config.state_dir) as catalog:
            catalog.change("UPDATE Media SET Magazine='m2', Identity='directory:m2' WHERE VolumeName=?", (path.name,))
    file = tmp_path / "chain.bsr"
    file.write_text(bsr_of(config, saved.job_id) + "# the next job\n" + bsr_of(config, more.job_id))
    back = by_file(config, tmp_path / "with", file)
    assert (back.errors, back.warnings) == ((), ())
    assert_same(tree, below(tmp_path / "with", tree))
    (config.state_dir / "catalog.db").write_bytes(b"this is no catalog at all" * 100)
    assert by_file(config, tmp_path / "damaged", file).exit_status is ExitStatus.DONE
    shutil.rmtree(config.state_dir)
    done = magbay(tmp_path, "restore", "--bootstrap", str(file), "--to", str(tmp_path / "without"), json_output=True)
    assert (done.status, done.document["files"], done.document["errors"]) == (0, back.files, [])
    assert_same(tree, below(tmp_path / "without", tree))


@pytest.mark.parametrize("replace", list(Replace))
def test_of_a_chain_the_last_version_counts(tmp_path: Path, config: Config, replace: Replace) -> None:
    """Whatever is to become of files that are there: nothing was. What changed its type does so here, too."""
    tree = tmp_path / "source"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "file").write_text("old")
    for name in ("same", "single"):
        (tree / name).write_text("old")
    first = save(config, tree)
    shutil.rmtree(tree / "folder")
    (tree / "single").unlink()
    (tree / "folder").write_text("new")
    (tree / "single").mkdir()
    (tree / "single" / "file").write_text("new")
    (tree / "same").write_text("new")
    os.utime(tree / "same", (5, 5))
    second = save(config, tree, level=Level.INCREMENTAL)
    file = tmp_path / "chain.bsr"
    file.write_text(bsr_of(config, first.job_id) + bsr_of(config, second.job_id))
    back = by_file(config, tmp_path / "out", file, replace=replace)
    assert (back.errors, back.warnings, back.skipped) == ((), (), 0)
    assert_same(tree, below(tmp_path / "out", tree))


def test_a_file_of_every_other_number() -> None:
    """As a Director writes it, one line for each: with every line looked at for every file this would take hours."""
    entry = 'Volume="v"\nVolSessionId=1\nVolSessionTime=5\n'
    for text in (
        entry + "".join(f"FileIndex={index}\n" for index in range(400_001, 0, -2)),
        "".join(f"{entry}FileIndex={index}\n" for index in range(1, 400_002, 2)),
    ):
        parsed = parse_bsr(text, "x")
        assert parsed.wants_block("v", SessionIds(1, 5), 100)
        assert [index for index in range(400_010) if parsed.wants_record(None, index, 1)] == list(range(1, 400_002, 2))


def test_ranges_and_entries_that_overlap() -> None:
    entries = ["FileIndex=7-9,1-3\nFileIndex=2-5\nCount=2", "FileIndex=9-12,14\nCount=1", "FileIndex=20"]
    entries += ["VolSessionId=4\nFileIndex=30-31", "FileIndex=40\nFileRegex=x"]
    parsed = parse_bsr("".join(f'Volume="v"\n{entry}\n' for entry in entries), "x")

    def wanted(session: int) -> list[int]:
        parsed.wants_block("v", SessionIds(session, 5), 100)
        return [index for index in range(50) if parsed.wants_record(None, index, 1)]

    assert wanted(1) == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 14, 20, 40] and wanted(4) == sorted([*wanted(1), 30, 31])
    assert parsed.wants_record(None, 40, 1) and not parsed.wants_name("y") and parsed.wants_name("axb")


def test_the_same_files_as_bextract(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 900000", "magazines: [{name: m1, directory: m1}]\n")
    tree = tmp_path / "source"
    tree.mkdir()
    for number in range(40):
        (tree / f"{number}").write_bytes(os.urandom(100_000))
    saved = save(config, tree)
    file = tmp_path / "some.bsr"
    file.write_text(bsr_of(config, saved.job_id, [2, 3, 9, 17, 26, 40]))
    assert by_file(config, tmp_path / "ours", file).files == 6
    stocktools.bextract([volume(config, name) for name in saved.volumes], tmp_path / "theirs", bsr=file)
    ours, theirs = (facts(below(tmp_path / name, tree), times=False) for name in ("ours", "theirs"))
    assert len(ours) == 6 and {name: row[4] for name, row in ours.items()} == {n: row[4] for n, row in theirs.items()}


def test_patterns_and_a_hard_link_alone(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    saved = save(config, tree)
    file = tmp_path / "job.bsr"
    file.write_text(bsr_of(config, saved.job_id))
    back = by_file(config, tmp_path / "out", file, globs=("hard-2", "sparse"))
    assert back.errors == () and sorted(path.name for path in below(tmp_path / "out", tree).iterdir()) == [
        "hard-2",
        "sparse",
    ]
    assert (below(tmp_path / "out", tree) / "hard-2").read_text() == "hello\n"
    with pytest.raises(NotFoundError):
        by_file(config, tmp_path / "out", file, globs=("/nothing/like/this",))


def test_what_is_not_on_the_volumes_is_told(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 400000")
    tree = tmp_path / "source"
    tree.mkdir()
    for number in range(30):
        (tree / f"{number:02}").write_bytes(os.urandom(50_000))
    saved = save(config, tree)
    file = tmp_path / "job.bsr"
    text = bsr_of(config, saved.job_id)
    file.write_text(text.replace("FileIndex=1-", "FileIndex=1-", 1) + "FileIndex=5000-5000000000\n")
    back = by_file(config, tmp_path / "out", file)
    assert back.files == saved.files and back.exit_status is ExitStatus.FAILED
    assert any("files 5000 to 5000000000 of session" in line for line in back.errors)
    # One volume is a ruin: what lies on the others comes back, and what lies on it is told.
    file.write_text(text)
    volume(config, saved.volumes[1]).write_bytes(b"ruin" * 1000)
    back = by_file(config, tmp_path / "ruin", file)
    assert back.exit_status is ExitStatus.FAILED and any(saved.volumes[1] in line for line in back.errors)
    with Catalog(config.state_dir) as catalog:
        parts = catalog.stretches(saved.job_id)
    ruined = range(parts[1].first_index, parts[1].last_index + 1)
    told = {line.partition(":")[0] for line in back.errors}
    for path in below(tmp_path / "ruin", tree).iterdir():
        same = path.read_bytes() == (tree / path.name).read_bytes()
        assert same != (str(tree / path.name) in told), path
    lost = parts[2].first_index - parts[1].first_index - 1
    assert lost > 3 and back.files >= saved.files - len(ruined)
    low, high = parts[1].first_index + 1, parts[2].first_index - 1
    assert any(f"files {low} to {high} of" in line for line in back.errors)


def test_volumes_that_are_not_here(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 400000")
    tree = tmp_path / "source"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(900_000))
    saved = save(config, tree)
    file = tmp_path / "job.bsr"
    file.write_text(bsr_of(config, saved.job_id))
    (tmp_path / "m1").rename(tmp_path / "shelf")
    done = magbay(tmp_path, "restore", "--bootstrap", str(file), "--to", str(tmp_path / "out"))
    assert done.status == 75 and "m1" in done.stderr and not (tmp_path / "out").exists()
    done = magbay(tmp_path, "restore", "--bootstrap", str(file), "--dry-run", json_output=True)
    assert done.status == 75 and [one["magazine"] for one in done.document["magazines"]] == ["m1"]
    assert done.document["magazines"][0]["here"] is False
    shutil.rmtree(config.state_dir)
    with pytest.raises(AwayError, match=saved.volumes[0]):
        by_file(config, tmp_path / "out", file)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", ".."])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, config: Config, name: str) -> None:
    (tmp_path / "m1").mkdir()
    file = tmp_path / "evil.bsr"
    file.write_text(f'Volume="{name}"\nFileIndex=1\n')
    with pytest.raises(VolumeError):
        by_file(config, tmp_path / "out", file)


@pytest.mark.parametrize(
    ("content", "status"), [(None, 4), (b"\xff\xfe\x00nonsense", 1), (b"# nothing\n", 1), (b"Volume=x\n", 75)]
)
def test_files_that_select_nothing(tmp_path: Path, content: bytes | None, status: int) -> None:
    configuration(tmp_path)
    if content is not None:
        (tmp_path / "file.bsr").write_bytes(content)
    done = magbay(tmp_path, "restore", "--bootstrap", str(tmp_path / "file.bsr"), "--to", str(tmp_path / "out"))
    assert done.status == status and done.stderr


def test_the_order_of_the_volumes_is_that_of_the_file() -> None:
    names = parse_bsr("Volume=c|a\nFileIndex=1\nVolume=b\nVolume=a\n", "x").volumes
    assert names == ("c", "a", "b")


# -- before it is run ---------------------------------------------------------------------------------------------


def test_a_preview_names_files_volumes_and_magazines(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 700000")
    tree = rich_tree(tmp_path / "source")
    saved = save(config, tree)
    done = magbay(tmp_path, "restore", "--list", "--dry-run", json_output=True)
    assert done.status == 0 and not (tmp_path / "out").exists()
    found = done.document
    assert (found["status"], found["files"], found["jobs"]) == ("here", saved.files, [saved.job_id])
    names = {os.fsencode(name).rstrip(b"/") for name in found["paths"]}
    assert names == {os.path.join(os.fsencode(tree), name) for name in facts(tree)} | {os.fsencode(tree)}
    assert [one["volume"] for one in found["magazines"][0]["volumes"]] == list(saved.volumes)
    some = magbay(tmp_path, "restore", "--dry-run", "--file", f"{tree}/exact", json_output=True).document
    assert (some["files"], some["bytes"]) == (1, 1 << 20)
    assert 0 < len(some["magazines"][0]["volumes"]) < len(saved.volumes) and "paths" not in some
    told = magbay(tmp_path, "restore", "--list", "--file", "pas*").stdout
    assert f"{tree}/past\n" in told and "would restore 1 files, 3 B" in told and "m1" in told
    (tmp_path / "m1" / saved.volumes[1]).rename(tmp_path / "kept")
    done = magbay(tmp_path, "restore", "--dry-run")
    assert done.status == 1 and f"cannot be restored: {saved.volumes[1]}\n" in done.stderr
    assert f"volume {saved.volumes[1]} on magazine m1" in done.stdout and "its file is gone" in done.stdout
    found = magbay(tmp_path, "restore", "--dry-run", json_output=True).document
    assert found["status"] == "gone" and [one["gone"] for one in found["magazines"][0]["volumes"]].count(True) == 1
    (tmp_path / "m1").rename(tmp_path / "shelf")
    done = magbay(tmp_path, "restore", "--dry-run")
    assert done.status == 75 and "to plug in: m1" in done.stderr and "not here" in done.stdout


# -- enciphered volumes that the catalog knows --------------------------------------------------------------------


def catalogued(config: Config, which: str, name: str) -> tuple[int, dict[str, Any]]:
    """Enter a sample in the catalog as reading its volumes would; gives the job."""
    volumes, manifest = sample(which, name)
    (job,) = manifest["jobs"]
    spread(config, volumes)
    keys = bootstrap.VolumeKeys([volumes[0].parent])
    with Catalog(config.state_dir) as catalog:
        made = catalog.start_job(NewJob(name, Level.FULL, "Default", "[]", "x"))
        writer = FileWriter(catalog, made.job_id)
        for event in read_volumes(volumes, keys=keys):
            if isinstance(event, FileStart):
                entry = event.entry
                lstat = entry.attributes.stat.pack().decode()
                writer.add(entry.file_index, entry.attributes.ftype, entry.attributes.name, lstat, "")
        writer.flush()
        media = {path.name: catalog.add_media(path.name, "m1", "directory:m1", "Default", 1) for path in volumes}
        stretches = [
            Stretch(media[m["VolumeName"]].media_id, m["FirstIndex"], m["LastIndex"], m["StartBlock"], m["EndBlock"])
            for m in job["jobmedia"]
        ]
        outcome = Outcome(JobStatus.DONE, job["JobFiles"], job["ReadBytes"], job["JobBytes"], 0, 0)
        catalog.finish_job(made.job_id, outcome, stretches, list(media.values()))
        ids = SessionIds(job["VolSessionId"], job["VolSessionTime"])
        values = (ids.session_id, ids.session_time, made.job_id)
        catalog.change("UPDATE Job SET VolSessionId=?, VolSessionTime=? WHERE JobId=?", values)
    return made.job_id, job


@pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")
@pytest.mark.parametrize("name", ["a-encrypted", "a-encrypted-strong"])
def test_an_enciphered_volume_of_the_catalog(tmp_path: Path, config: Config, name: str) -> None:
    job_id, job = catalogued(config, "bacula-15.0", name)
    keys = (CORPUS / "bacula-15.0" / name,)
    back = bring_back(config, tmp_path / "out", keys=keys)
    assert (back.job_id, back.errors, back.files) == (job_id, (), job["JobFiles"])
    for row in job["files"]:
        if "sha256" in row:
            found = (tmp_path / "out" / row["path"].lstrip("/")).read_bytes()
            assert hashlib.sha256(found).hexdigest() == row["sha256"]
    done = magbay(tmp_path, "verify", "--job", str(job_id), "--volume-key", str(keys[0]), json_output=True)
    assert (done.status, done.document["files"], done.document["errors"]) == (0, job["JobFiles"], [])
    back = bring_back(config, tmp_path / "without")
    assert back.files == 0 and any("--volume-key" in line for line in back.errors)
    with pytest.raises(NotFoundError):
        bring_back(config, tmp_path / "wrong", keys=(tmp_path / "no-such-key",))


def test_jobs_and_clients_may_be_lists() -> None:
    label = SessionLabel(job_id=1, time=0, job="one.x", job_name="one", client="b")
    for line in ('Client="a","b"', "Client=a, b", 'Client="b"', "Client=a\nClient=b"):
        wanted = parse_bsr(f"Volume=v\n{line}\n", "x")
        assert wanted.wants_block("v", SessionIds(1, 1), 10) and wanted.wants_record(label, 1, 2), line
    refused = parse_bsr('Volume=v\nClient="a","c"\n', "x")
    assert refused.wants_block("v", SessionIds(1, 1), 10) and not refused.wants_record(label, 1, 2)
