"""Filesets: patterns, what is left out, options for single paths, and the configuration of them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from appliance.config.filesets import FilesetConfig
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ConfigError, ExitStatus
from appliance.storage import backup, verify
from appliance.storage.model import Level
from appliance.storage.patterns import Patterns
from tests.unit.enginehelp import MAGAZINES, PREFIX, assert_same, below, bring_back, facts, rich_tree, volume


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("*.tmp", ["/a.tmp", "/x/y/.tmp", "/x/a b.tmp"], ["/a.tmp/x", "/a.tmpx", "/atmp"]),
        ("/a/*.tmp", ["/a/b.tmp"], ["/a/b/c.tmp", "/x/a/b.tmp", "/a/b.tmp/c"]),
        ("/a/**/c", ["/a/c", "/a/b/c", "/a/b/b/c"], ["/a/bc", "/ac", "/a/c/d"]),
        ("/a/**", ["/a/b", "/a/b/c"], ["/a", "/ab"]),
        ("b/c", ["/b/c", "/a/b/c"], ["/a/xb/c", "/b/c/d", "/b/x/c"]),
        ("**/c", ["/c", "/a/c", "/a/b/c"], ["/xc"]),
        ("a?c", ["/abc", "/aüc"], ["/a/c", "/ac", "/abbc"]),
        ("[a-c]x", ["/ax", "/cx"], ["/dx", "/-x", "/x"]),
        ("[!a-c]x", ["/dx"], ["/ax", "/a/x", "/x"]),
        ("a[!b]c", ["/axc"], ["/a/c", "/abc"]),
        ("[]]", ["/]"], ["/a"]),
        ("[x", ["/[x"], ["/x"]),
        ("[z-a]x", [], ["/zx", "/ax"]),
        (r"\*", ["/*"], ["/a"]),
        ("a.c+(d)|e", ["/a.c+(d)|e"], ["/abc+(d)|e", "/e"]),
        ("new*", ["/new\nline"], []),
        ("*\udcff", ["/odd\udcff"], ["/odd"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], other: list[str]) -> None:
    patterns = Patterns.of([pattern])
    for directory in (False, True):
        assert [path for path in matching if not patterns.match(path, directory=directory)] == []
        assert [path for path in other if patterns.match(path, directory=directory)] == []


def test_patterns_for_directories_and_for_contents() -> None:
    only = Patterns.of(["cache/"])
    assert only.match("/a/cache", directory=True) and not only.match("/a/cache", directory=False)
    inside = Patterns.of(["cache/", "/etc", "*.pdf"], with_contents=True)
    assert inside.match("/a/cache/x/y", directory=False) and inside.match("/etc/passwd", directory=False)
    assert inside.match("/etc", directory=True) and not inside.match("/etcetera", directory=False)
    assert not inside.match("/a/cache", directory=False)


def saved(config: Config, tree: Path, **rules: object) -> set[str]:
    """Names below *tree* that come back of a backup with these rules."""
    fileset = FilesetConfig((tree,), **rules)  # type: ignore[arg-type]
    request = backup.BackupRequest(fileset.paths, fileset=fileset)
    done = backup.run(config, request, log=lambda text, fields: None)
    assert done.exit_status is ExitStatus.DONE, (done.warnings, done.errors)
    out = config.state_dir / f"out-{done.job_id}"
    assert bring_back(config, out, job=done.job_id).exit_status is ExitStatus.DONE
    return {os.fsdecode(name) for name in facts(below(out, tree))}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    for name in ("docs/a.pdf", "docs/b.txt", "music/c.ogg", "music/d.pdf", "empty/", "work/cache/x", "work/keep"):
        path = top / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"12345")
    return top


def test_include_saves_what_matches_and_the_way_to_it(config: Config, tree: Path) -> None:
    assert saved(config, tree, include=("*.pdf",)) == {"docs", "docs/a.pdf", "music", "music/d.pdf"}
    assert saved(config, tree, include=(f"{tree}/work", "empty/")) == {
        "empty", "work", "work/cache", "work/cache/x", "work/keep"
    }  # fmt: skip
    assert saved(config, tree, include=(f"{tree}/work",), exclude=("cache/",)) == {"work", "work/keep"}


def test_size_age_and_marks(config: Config, tree: Path) -> None:
    (tree / "docs" / "large").write_bytes(bytes(6))
    old = time.time() - 90_000
    os.utime(tree / "music" / "c.ogg", (old, old))
    os.utime(tree / "music", (old, old))
    found = saved(config, tree, exclude_larger=5, exclude_older=86_400)
    assert found == set(map(os.fsdecode, facts(tree))) - {"docs/large", "music/c.ogg"}
    (tree / "work" / ".nobackup").touch()
    (tree / "docs" / "CACHEDIR.TAG").write_bytes(b"Signature: 8a477f597d28d172789f06886806bc55\n# x\n")
    (tree / "music" / "CACHEDIR.TAG").write_bytes(b"no signature")
    found = saved(config, tree, exclude_marked=(".nobackup",), exclude_caches=True)
    assert {name for name in found if name.startswith(("work", "docs"))} == {
        "work", "work/.nobackup", "docs", "docs/CACHEDIR.TAG"
    }  # fmt: skip
    assert "music/d.pdf" in found


def test_other_file_systems_when_wanted(config: Config, tree: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tree / "empty")]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by root")
    try:
        (tree / "empty" / "inside").touch()
        (tree / "empty" / "proc").mkdir()
        subprocess.run(["mount", "-t", "proc", "none", str(tree / "empty" / "proc")], check=True)
        assert "empty/inside" not in saved(config, tree)
        found = saved(config, tree, one_file_system=False)
        assert {"empty/inside", "empty/proc"} <= found and "empty/proc/self" not in found
        both = FilesetConfig((tree, tree / "empty"), one_file_system=False)
        assert backup.BackupRequest((), fileset=both).tops() == [os.fsencode(tree)]
    finally:
        subprocess.run(["umount", "-R", str(tree / "empty")], check=True)


def test_options_for_single_paths(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    (tree / "text").write_bytes(b"the same line again\n" * 50_000)
    (tree / "text.raw").write_bytes(b"and the same line again\n" * 50_000)
    (config.state_dir.parent / "magbay.yaml").write_text(
        f"{PREFIX}{MAGAZINES}filesets:\n  all:\n    paths: [source]\n    compression: gzip1\n    signature: SHA256\n"
        "    options:\n      - {match: ['*.raw', links/], compression: none, signature: none}\n"
        "      - {match: [sparse], sparse: no, noatime: no}\n"
        "jobs: {all: {fileset: all}}\n"
    )
    config = load(config.state_dir.parent / "magbay.yaml")
    done = backup.run(config, backup.request_for(config, ["all"]), log=lambda text, fields: None)
    assert (done.name, done.exit_status, done.warnings) == ("all", ExitStatus.DONE, ())
    data = volume(config, "m1-0001").read_bytes()
    assert data.count(b"and the same line again\n") > 49_000 and data.count(b"the same line again\n" * 2) < 10
    back = bring_back(config, tmp_path / "out")
    assert (back.exit_status, back.warnings) == (ExitStatus.DONE, ())
    assert_same(tree, below(tmp_path / "out", tree))
    restored = below(tmp_path / "out", tree)
    assert (restored / "sparse-end").stat().st_blocks < 1000
    checked = verify.run(config, verify.VerifyRequest(), log=lambda text, fields: None)
    assert (checked.exit_status, checked.errors) == (ExitStatus.DONE, [])


def test_a_compressed_file_that_shrinks_is_filled_up(tmp_path: Path, config: Config) -> None:
    (tmp_path / "shrinks").write_bytes(os.urandom(8 << 20))
    fileset = FilesetConfig((tmp_path / "shrinks",), compression=load_compression("gzip1"))

    def disturb(_count: int) -> None:
        os.truncate(tmp_path / "shrinks", 100_000)

    request = backup.BackupRequest((), fileset=fileset)
    done = backup.run(config, request, log=lambda text, fields: None, progress=disturb)
    assert done.exit_status is ExitStatus.WARNINGS
    assert bring_back(config, tmp_path / "out").errors == ()
    assert below(tmp_path / "out", tmp_path / "shrinks").stat().st_size == 8 << 20


def load_compression(word: str) -> object:
    from appliance.config.filesets import Compression

    return Compression(word)


def test_another_selection_needs_a_full_one_but_another_compression_does_not(config: Config, tree: Path) -> None:
    def run(**rules: object) -> Level:
        fileset = FilesetConfig((tree,), **rules)  # type: ignore[arg-type]
        request = backup.BackupRequest((), level=Level.INCREMENTAL, fileset=fileset)
        return backup.run(config, request, log=lambda text, fields: None).level

    assert run() is Level.FULL and run() is Level.INCREMENTAL
    assert run(compression=load_compression("gzip9")) is Level.INCREMENTAL
    assert run(exclude_larger=3) is Level.FULL and run(exclude_larger=3) is Level.INCREMENTAL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("filesets: {a: {exclude: [x]}}", "paths: is missing"),
        ("filesets: {a: {paths: [x], exclude_older: 3}}", "a duration"),
        ("filesets: {a: {paths: [x], compression: zip}}", "one of none, gzip1"),
        ("filesets: {a: {paths: [x], options: [{compression: none}]}}", "match: is missing"),
        ("filesets: {a: {paths: [x], options: [{match: []}]}}", "at least one"),
        ("filesets: {a: {paths: [x], exclude_marked: [a/b]}}", "no name of a file"),
        ("filesets: {a: {paths: [x]}}\njobs: {j: {fileset: b}}", "names the fileset b"),
        ("filesets: {a: {paths: [x]}}\njobs: {j: {fileset: a, paths: [x]}}", "either a fileset"),
        ("filesets: {a: {paths: [x]}}\njobs: {j: {fileset: a, exclude: [x]}}", "belongs into the fileset"),
    ],
)
def test_errors_of_the_configuration(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "magbay.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "magbay.yaml")
    assert words in caught.value.message
