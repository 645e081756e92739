"""Restoring to where something is already, under other names, and as an ordinary user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from appliance.config.schema import Config
from appliance.errors import ExitStatus, UsageError
from appliance.storage.outcome import Replace
from appliance.storage.renaming import Renaming, expressions
from tests.unit.enginehelp import ROOT, assert_same, below, bring_back, facts, magbay, rich_tree, save


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three files of the same age in a directory of its own mode."""
    top = tmp_path / "source"
    (top / "sub").mkdir(parents=True)
    for name in ("one", "sub/two", "sub/three"):
        (top / name).write_text("saved")
        os.utime(top / name, (1000, 1000))
    (top / "sub").chmod(0o750)
    return top


@pytest.mark.parametrize(
    ("policy", "older", "same", "newer"),
    [
        (Replace.ALWAYS, "saved", "saved", "saved"),
        (Replace.IF_NEWER, "saved", "there", "there"),
        (Replace.IF_OLDER, "there", "there", "saved"),
        (Replace.NEVER, "there", "there", "there"),
    ],
)
def test_what_is_there(
    tmp_path: Path, config: Config, tree: Path, policy: Replace, older: str, same: str, newer: str
) -> None:
    save(config, tree)
    place = below(tmp_path / "out", tree)
    (place / "sub").mkdir(parents=True)
    for name, when in (("one", 999), ("sub/two", 1000), ("sub/three", 1001)):
        (place / name).write_text("there")
        os.utime(place / name, (when, when))
    back = bring_back(config, tmp_path / "out", replace=policy)
    assert [(place / name).read_text() for name in ("one", "sub/two", "sub/three")] == [older, same, newer]
    assert back.exit_status is ExitStatus.DONE
    files = [older, same, newer].count("there")
    assert back.skipped >= files and back.skipped + back.files == 5


@pytest.mark.parametrize("policy", list(Replace))
def test_an_empty_target_is_filled_whatever_the_policy(tmp_path: Path, config: Config, policy: Replace) -> None:
    """Directories, too, which are made before their own entry comes."""
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    bring_back(config, tmp_path / "out", replace=policy)
    assert_same(tree, below(tmp_path / "out", tree))


@pytest.mark.parametrize("policy", list(Replace))
def test_a_file_where_a_directory_was(tmp_path: Path, config: Config, tree: Path, policy: Replace) -> None:
    """Replaced, it must not cost what was in the directory; kept, it is said what has no place. So is a link."""
    rich_tree(tree / "sub" / "rich")
    save(config, tree)
    place = below(tmp_path / "out", tree)
    place.mkdir(parents=True)
    (place / "sub").write_text("a file by now")
    time.sleep(0.02)  # what is newer than the clock's step before the restore may be of the restore itself
    back = bring_back(config, tmp_path / "out", replace=policy)
    if policy is Replace.ALWAYS:
        assert (back.exit_status, back.errors) == (ExitStatus.DONE, ())
        assert_same(tree, place)
        shutil.rmtree(place / "sub")
        (tmp_path / "moved").mkdir()
        (tmp_path / "moved" / "two").write_text("not ours")
        (place / "sub").symlink_to(tmp_path / "moved")
        time.sleep(0.02)
        back = bring_back(config, tmp_path / "out")
        assert (back.exit_status, back.errors) == (ExitStatus.DONE, ())
        assert_same(tree, place)
        assert [file.read_text() for file in (tmp_path / "moved").iterdir()] == ["not ours"]
    else:
        assert back.exit_status is ExitStatus.FAILED and f"{tree}/sub/two: " in "".join(back.errors)


def test_never_keeps_the_mode_of_a_directory_that_is_there(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    place = below(tmp_path / "out", tree) / "sub"
    place.mkdir(parents=True, mode=0o711)
    bring_back(config, tmp_path / "out", replace=Replace.NEVER)
    assert place.stat().st_mode & 0o777 == 0o711 and (place / "two").read_text() == "saved"


@pytest.mark.parametrize("word", ["ifnewer", "if-newer"])
def test_policies_have_baculas_words(word: str) -> None:
    assert Replace.parse(word) is Replace.IF_NEWER


@pytest.mark.parametrize(
    ("renaming", "stored", "expected"),
    [
        (Renaming(), b"/a//b", b"/a//b"),
        (Renaming(strip=1), b"/a/b/c", b"b/c"),
        (Renaming(strip=2), b"/a/b/", b""),
        (Renaming(strip=1), b"/a/b/", b"b/"),
        (Renaming(strip=9), b"/a", b""),
        (Renaming(strip_prefix="/home"), b"/home/me/x", b"/me/x"),
        (Renaming(strip_prefix="/home/"), b"/homes/x", b"/homes/x"),
        (Renaming(strip_prefix="/home", add_prefix="/srv/old"), b"/home/\xff/", b"/srv/old/\xff/"),
        (Renaming(strip=1, add_prefix="new"), b"/a/b", b"new/b"),
        (Renaming(expressions=expressions("!^/home!/srv!")), b"/home/home", b"/srv/home"),
        (Renaming(expressions=expressions("!o!0!g,/HOME/x/i")), b"/home/zoo", b"/h0me/z00"),
        (Renaming(expressions=expressions(r"#/(\d+)/(.*)$#/$2.\1#")), b"/12/name", b"/name.12"),
        (Renaming(expressions=expressions(r"!a\!b!\$1!")), b"/a!b", b"/$1"),
        (Renaming(expressions=expressions("!(x)?y!<$1>!")), b"/y", b"/<>"),
        (Renaming(expressions=expressions("!.*!!")), b"/y/", b""),
    ],
)
def test_names(renaming: Renaming, stored: bytes, expected: bytes) -> None:
    assert renaming(stored) == expected


@pytest.mark.parametrize("text", ["x", "abc", "!a!", "!a", "!(!b!", "!a!$1!", "!a!b!z", "!a!b!,", "!a!b!,x"])
def test_expressions_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as told:
        expressions(text)
    assert told.value.hint


def test_restoring_under_other_names(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    depth = len(tree.parts) - 1
    bring_back(config, tmp_path / "stripped", renaming=Renaming(strip=depth))
    assert_same(tree, tmp_path / "stripped")
    out = str(tmp_path / "moved")
    done = magbay(tmp_path, "restore", "--to", out, "--strip-prefix", str(tree), "--add-prefix", "/was/here")
    assert done.status == 0, done.stderr
    assert_same(tree, tmp_path / "moved/was/here")
    done = magbay(tmp_path, "restore", "--to", out, "--regex-where", f"!^{tree}!/again!", "--file", "*.txt")
    assert done.status == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "moved/again").rglob("*")) == ["plain.txt"]
    done = magbay(tmp_path, "restore", "--to", out, "--regex-where", "nonsense")
    assert done.status == 2 and "!what!instead!" in done.stderr


def test_two_files_with_one_new_name_are_told(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    for name in ("a", "b"):
        (tree / name).mkdir(parents=True)
        (tree / name / "same").write_text(name)
    save(config, tree)
    back = bring_back(config, tmp_path / "out", renaming=Renaming(strip=len(tree.parts)))
    assert back.exit_status is ExitStatus.FAILED and "another file was restored as same" in back.errors[0]
    refused = "a" if back.errors[0].startswith(f"{tree}/a/same:") else "b"
    assert {refused, (tmp_path / "out/same").read_text()} == {"a", "b"}


def test_what_is_left_without_a_name_is_told(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    back = bring_back(config, tmp_path / "out", renaming=Renaming(strip=len(tree.parts)))
    assert back.exit_status is ExitStatus.WARNINGS and f"{tree}/one: is left out" in back.warnings[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["three", "two"]


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's files need root")
def test_an_ordinary_user_is_told_once_of_owners() -> None:
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        place.chmod(0o755)
        shutil.copytree(ROOT / "appliance", place / "program/appliance", ignore=shutil.ignore_patterns("__pycache__"))
        for path in (place / "program").rglob("*"):
            path.chmod(0o755)
        (place / "source").mkdir()
        for name in ("one", "two", "three"):
            (place / "source" / name).write_text(name)
        os.chown(place / "source" / "three", 65534, 65534)
        (place / "magbay.yaml").write_text(
            "state_dir: state\nrun_dir: run\nchanger: {name: c0, drives: 1}\nmagazines: [{name: m1, directory: m1}]\n"
            "pools: {Default: {maximum_volume_bytes: 1GB}}\n"
        )
        assert magbay(place, "backup", str(place / "source")).status == 0
        for path in (place, *place.rglob("*")):
            if "source" not in path.parts:
                os.chown(path, 65534, 65534)
        words = ["-m", "appliance", "--config", str(place / "magbay.yaml"), "restore", "--to", str(place / "out")]
        done = subprocess.run(
            [sys.executable, *words], cwd=place / "program", capture_output=True, text=True, user=65534, group=65534,
            extra_groups=[],
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        assert done.stderr.count("only root") == 1 and "3 of the restored files" in done.stderr
        back = facts(below(place / "out", place / "source"))
        assert {key: row[1:3] for key, row in back.items()} == dict.fromkeys(back, (65534, 65534))
        assert back[b"one"][4] == facts(place / "source")[b"one"][4]
