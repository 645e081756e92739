"""Backup and restore on directory magazines: everything comes back as it was, over one volume and over many."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from appliance.config.schema import Config
from appliance.errors import ExitStatus, NotFoundError, UsageError
from appliance.storage import backup, restore, sink, verify
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus, Level, VolumeStatus
from tests.unit import stocktools
from tests.unit.enginehelp import (
    assert_same,
    below,
    bring_back,
    configuration,
    facts,
    rich_tree,
    save,
    volume,
)


def test_a_rich_tree_comes_back_as_it_was(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    saved = save(config, tree)
    assert (saved.status, saved.warnings, saved.volumes) == (JobStatus.DONE, (), ("m1-0001",))
    assert saved.files == len(facts(tree)) + 1  # and the top
    back = bring_back(config, tmp_path / "out")
    assert (back.errors, back.exit_status) == ((), ExitStatus.DONE)
    assert back.files == saved.files
    assert_same(tree, below(tmp_path / "out", tree))


def test_holes_come_back_as_holes(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    assert volume(config, "m1-0001").stat().st_size < 5_500_000
    bring_back(config, tmp_path / "out", globs=("sparse", "all-hole"))
    for name in ("sparse", "all-hole"):
        found = (below(tmp_path / "out", tree) / name).stat()
        assert found.st_blocks * 512 < found.st_size // 2


@pytest.mark.parametrize("signature", ["SHA1", "SHA256", "SHA512", "none"])
def test_signatures(tmp_path: Path, signature: str) -> None:
    config = configuration(tmp_path, f"signature: {signature}")
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE
    assert_same(tree, below(tmp_path / "out", tree))
    checked = verify.run(config, verify.VerifyRequest(), log=lambda text, fields: None)
    assert checked.exit_status is ExitStatus.DONE and checked.files > 50


def test_many_small_volumes(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 65536")
    tree = rich_tree(tmp_path / "source")
    saved = save(config, tree)
    assert saved.status is JobStatus.DONE
    assert len(saved.volumes) > 60
    for name in saved.volumes:
        assert volume(config, name).stat().st_size <= 65536
    back = bring_back(config, tmp_path / "out")
    assert (back.errors, back.warnings) == ((), ())
    assert_same(tree, below(tmp_path / "out", tree))


def test_the_next_volume_only_where_a_block_does_not_fit(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 430000")
    (tmp_path / "data").write_bytes(os.urandom(1_000_000))
    saved = save(config, tmp_path / "data")
    assert saved.volumes == ("m1-0001", "m1-0002", "m1-0003")
    with Catalog(config.state_dir) as catalog:
        media = {m.name: m for m in catalog.media()}
        stretches = catalog.stretches(saved.job_id)
    first = media["m1-0001"]
    assert first.status is VolumeStatus.FULL and media["m1-0003"].status is VolumeStatus.APPEND
    assert first.bytes == volume(config, "m1-0001").stat().st_size
    label = stretches[0].start
    assert first.bytes == label + 6 * 64512  # the most below the maximum
    assert [(s.first_index, s.last_index) for s in stretches] == [(1, 1)] * 3
    assert stretches[0].end == first.bytes - 1


def test_jobs_are_appended_to_the_same_volume(tmp_path: Path, config: Config) -> None:
    jobs = []
    for number in range(3):
        (tmp_path / "file").write_bytes(b"%d" % number)
        jobs.append(save(config, tmp_path / "file"))
    assert {job.volumes for job in jobs} == {("m1-0001",)}
    for number, job in enumerate(jobs):
        bring_back(config, tmp_path / f"out{number}", job=job.job_id)
        assert below(tmp_path / f"out{number}", tmp_path / "file").read_bytes() == b"%d" % number


def test_only_what_is_asked_for_is_restored(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    back = bring_back(config, tmp_path / "out", globs=(f"{tree}/links", "future"))
    found = facts(below(tmp_path / "out", tree))
    assert set(found) == {b"links", b"links/relative", b"links/dangling", b"links/hard", b"future"}
    assert back.files == 5 and back.exit_status is ExitStatus.DONE
    with pytest.raises(NotFoundError):
        bring_back(config, tmp_path / "out2", globs=("/no/such/thing",))


def test_a_hard_link_alone_has_its_content(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    (tree / "a").write_bytes(b"shared")
    os.link(tree / "a", tree / "b")
    save(config, tree)
    for name in ("a", "b"):
        assert bring_back(config, tmp_path / name, globs=(f"{tree}/{name}",)).exit_status is ExitStatus.DONE
        assert [p.name for p in below(tmp_path / name, tree).iterdir()] == [name]
        assert (below(tmp_path / name, tree) / name).read_bytes() == b"shared"


@pytest.mark.parametrize("signature", ["MD5", "none"])
@pytest.mark.parametrize("pool", ["10GB", "1MB"])
def test_only_the_stretches_with_wanted_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str, signature: str
) -> None:
    monkeypatch.setattr(sink, "STRETCH_BYTES", 150_000)
    config = configuration(tmp_path, f"maximum_volume_bytes: {pool}, signature: {signature}")
    tree = tmp_path / "source"
    tree.mkdir()
    for number in range(60):
        (tree / f"{number}").write_bytes(os.urandom(10_000 if number % 3 else 100_000))
    os.link(tree / "0", tree / "zz-link")
    saved = save(config, tree)
    with Catalog(config.state_dir) as catalog:
        stretches = catalog.stretches(saved.job_id)
    assert len(stretches) > 12
    whole = sum(s.end - s.start + 1 for s in stretches)
    for name in (*(str(number) for number in range(60)), "zz-link"):
        total: list[int] = []
        request = restore.RestoreRequest(tmp_path / name, globs=(f"{tree}/{name}",))
        back = restore.run(config, request, log=lambda text, fields: None, started=total.append)
        assert (back.errors, back.warnings, back.files) == ((), (), 1), name
        assert (below(tmp_path / name, tree) / name).read_bytes() == (tree / name).read_bytes()
        assert total[0] < whole / 2
    several = tuple(f"{tree}/{number}" for number in range(0, 60, 7))
    back = bring_back(config, tmp_path / "several", globs=several)
    assert (back.errors, back.warnings, back.files) == ((), (), len(several))
    bring_back(config, tmp_path / "all")
    assert_same(tree, below(tmp_path / "all", tree))


def test_incremental_and_differential(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    for name in ("same", "changed", "twice"):
        (tree / name).write_text("full")
    old = time.time() - 1000
    for name in ("same", "changed", "twice"):
        os.utime(tree / name, (old, old))
    full = save(config, tree, level=Level.INCREMENTAL)
    assert full.level is Level.FULL  # there was none to build on
    _long_ago(config, full.job_id)
    _unchanged_since(tree / "same")
    (tree / "changed").write_text("first")
    (tree / "twice").write_text("first")
    first = save(config, tree, level=Level.INCREMENTAL)
    (tree / "twice").write_text("second")
    (tree / "new").write_text("second")
    second = save(config, tree, level=Level.INCREMENTAL)
    differential = save(config, tree, level=Level.DIFFERENTIAL)
    assert [first.level, second.level, differential.level] == [Level.INCREMENTAL, Level.INCREMENTAL, Level.DIFFERENTIAL]
    with Catalog(config.state_dir) as catalog:
        bases = [catalog.job(job.job_id).base for job in (full, first, second, differential)]
    assert bases == [None, full.job_id, first.job_id, full.job_id]
    bring_back(config, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))
    bring_back(config, tmp_path / "first", job=first.job_id)
    texts = {p.name: p.read_text() for p in below(tmp_path / "first", tree).iterdir()}
    assert texts == {"same": "full", "changed": "first", "twice": "first"}


def _long_ago(config: Config, job_id: int) -> None:
    """Let the job have started at a time that is after the files' mtime, and before what the test writes next."""
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Job SET Started=? WHERE JobId=?", (int(time.time()) - 100, job_id))


def _unchanged_since(path: Path) -> None:
    assert path.stat().st_mtime < time.time() - 900


def test_an_incremental_leaves_out_what_did_not_change(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    (tree / "same").write_text("x" * 1000)
    full = save(config, tree)
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Job SET Started=? WHERE JobId=?", (int(time.time()) + 100, full.job_id))
    nothing = save(config, tree, level=Level.INCREMENTAL)
    assert (nothing.files, nothing.status, nothing.level) == (0, JobStatus.DONE, Level.INCREMENTAL)
    bring_back(config, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))


def test_a_job_that_saved_nothing_can_be_verified_and_restored(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    save(config, tree, exclude=("*",))
    first = save(config, tree)
    with Catalog(config.state_dir) as catalog:  # as if the full one had been made later than the last change
        catalog.change("UPDATE Job SET Started=Started+100 WHERE JobId=?", (first.job_id,))
    saved = save(config, tree, level=Level.INCREMENTAL)
    assert (saved.level, saved.files) == (Level.INCREMENTAL, 0)
    for job in (None, saved.job_id):
        checked = verify.run(config, verify.VerifyRequest(job), log=lambda text, fields: None)
        assert (checked.exit_status, checked.errors) == (ExitStatus.DONE, [])
    assert bring_back(config, tmp_path / "out").files == 1


def test_other_paths_under_the_same_name_need_a_full_one(tmp_path: Path, config: Config) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    save(config, tmp_path / "a")
    assert save(config, tmp_path / "b", level=Level.INCREMENTAL).level is Level.FULL


def test_the_same_words_in_another_directory_are_other_paths(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "data").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        assert save(config, Path("data"), level=Level.INCREMENTAL).level is Level.FULL


def test_a_path_that_is_a_link_or_belongs_to_magbay_is_told(tmp_path: Path, config: Config) -> None:
    (tmp_path / "link").symlink_to("/etc")
    lines: list[str] = []
    backup.run(config, backup.BackupRequest((tmp_path / "link",)), log=lambda text, fields: lines.append(text))
    assert any("is a symbolic link" in line for line in lines)
    result = save(config, config.magazines[0].directory)
    assert result.exit_status is ExitStatus.WARNINGS and "belongs to magbay" in result.warnings[0]
    result = save(config, rich_tree(tmp_path / "tree") / "socket")
    assert result.exit_status is ExitStatus.WARNINGS and "is a socket" in result.warnings[0]


def test_magbay_does_not_save_itself(tmp_path: Path, config: Config) -> None:
    lines: list[str] = []
    (tmp_path / "file").write_text("x")
    request = backup.BackupRequest((tmp_path,))
    backup.run(config, request, log=lambda text, fields: lines.append(text))
    bring_back(config, tmp_path / "out")
    names = {path.name for path in below(tmp_path / "out", tmp_path).iterdir()}
    assert names == {"file", "magbay.yaml"}
    assert sum("belongs to magbay" in line for line in lines) == 3


def test_patterns_leave_out(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    (tree / "cache").mkdir(parents=True)
    for name in ("keep", "drop.tmp", "cache/x"):
        (tree / name).touch()
    save(config, tree, exclude=("*.tmp", "*/cache"))
    bring_back(config, tmp_path / "out")
    assert set(facts(below(tmp_path / "out", tree))) == {b"keep"}


def test_a_file_that_shrinks_or_grows_while_it_is_read(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    (tree / "shrinks").write_bytes(os.urandom(8 << 20))
    (tree / "grows").write_bytes(os.urandom(8 << 20))
    done: set[str] = set()

    def disturb(_count: int) -> None:
        for name, size in (("shrinks", 5 << 20), ("grows", 9 << 20)):
            if name not in done:
                done.add(name)
                os.truncate(tree / name, size)

    result = backup.run(config, backup.BackupRequest((tree,)), log=lambda text, fields: None, progress=disturb)
    assert result.exit_status is ExitStatus.WARNINGS
    assert all(any(name in line for line in result.warnings) for name in ("shrinks", "grows")) or len(done) == 2
    back = bring_back(config, tmp_path / "out")
    assert back.errors == ()


def test_labels_for_bareos(tmp_path: Path) -> None:
    config = configuration(tmp_path, "label_dialect: bareos")
    save(config, tmp_path / "magbay.yaml")
    data = volume(config, "m1-0001").read_bytes()
    assert data.count(b"Bareos 2.0 immortal\n") == 3 and b"Bacula" not in data
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.DONE


def test_paths_that_do_not_exist(tmp_path: Path, config: Config) -> None:
    with pytest.raises(NotFoundError, match="no-such"):
        save(config, tmp_path / "no-such")
    with pytest.raises(UsageError):
        save(config, tmp_path, name="bad name")
    with pytest.raises(NotFoundError, match="pool Other"):
        save(config, tmp_path, pool="Other")
    with Catalog(config.state_dir) as catalog:
        assert catalog.jobs() == []


def test_stock_tools_read_our_volumes(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 500000")
    tree = tmp_path / "source"
    tree.mkdir()
    (tree / "big").write_bytes(os.urandom(2_500_000))
    (tree / "small").write_text("small")
    (tree / "empty").touch()
    os.link(tree / "small", tree / "link")
    (tree / "symlink").symlink_to("small")
    os.mkfifo(tree / "fifo")
    saved = save(config, tree)
    assert len(saved.volumes) == 6
    volumes = [volume(config, name) for name in saved.volumes]
    listing = stocktools.bls(volumes)
    assert f"{saved.files} files found" in listing
    for name in ("big", "small", "empty", "link", "symlink", "fifo"):
        assert f"{tree}/{name}" in listing
    assert "checksum" not in stocktools.bls_blocks(volumes)
    jobs = stocktools.bls_jobs(volumes)
    assert "Begin Job Session" in jobs and "End Job Session" in jobs
    stocktools.bextract(volumes, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))


def test_stock_tools_read_sparse_files_and_appended_jobs(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    save(config, tmp_path / "magbay.yaml")
    save(config, tree)
    stocktools.bextract(volume(config, "m1-0001"), tmp_path / "out", strict=False)
    wanted, got = facts(tree), facts(below(tmp_path / "out", tree))
    assert got.keys() == wanted.keys()
    contents = {name: value[4] for name, value in wanted.items()}
    assert {name: value[4] for name, value in got.items()} == contents
