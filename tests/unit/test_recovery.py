"""docs/recovery.md as it stands: its shell and its forty lines of Python bring back what was saved."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from appliance.storage.model import Level
from appliance.volumes.attributes import FileType
from tests.unit import recoverypage, stocktools
from tests.unit.enginehelp import below, configuration, facts, rich_tree, save
from tests.unit.volume_builder import Job, names_of, one_job, sample


def rescue(place: Path, *volumes: Path) -> subprocess.CompletedProcess[str]:
    """Run the program of the page."""
    command = [sys.executable, recoverypage.program(place / "work"), place / "out", *volumes]
    return subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", timeout=60)


def special(top: Path, name: bytes) -> bool:
    """Whether it is a FIFO or a device, which the program leaves out."""
    mode = os.lstat(os.fsencode(top) + b"/" + name).st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def plain(top: Path) -> dict[bytes, tuple[object, ...]]:
    """What the program promises: type, mode without special bits, time of files and directories, content, links."""
    found = {}
    for name, (mode, _uid, _gid, when, content, _xattrs, same) in facts(top).items():
        assert isinstance(mode, int)
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            found[name] = (stat.S_IFMT(mode) | (mode & 0o777), when, content, same)
        elif stat.S_ISLNK(mode):
            found[name] = (stat.S_IFMT(mode), content)
    return found


def test_the_program_has_forty_lines_and_only_the_standard_library() -> None:
    (text,) = recoverypage.blocks("python")
    assert len(text.splitlines()) <= 40 and max(map(len, text.splitlines())) <= 150
    assert text.splitlines()[0].startswith("import mmap, os, struct, sys, zlib") and text.count("import") == 1


@pytest.mark.parametrize("pool", ["maximum_volume_bytes: 10GB", "maximum_volume_bytes: 600000"])
def test_python_alone_brings_a_tree_back(tmp_path: Path, pool: str) -> None:
    config = configuration(tmp_path, pool, "magazines: [{name: m1, directory: m1}]\n")
    tree = rich_tree(tmp_path / "source")
    saved = save(config, tree)
    done = rescue(tmp_path, *(tmp_path / "m1" / name for name in saved.volumes))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert plain(below(tmp_path / "out", tree)) == plain(tree)


def test_the_shell_of_the_page_on_our_volumes(tmp_path: Path) -> None:
    """All of it in one go: volumes found with dd, bls, bextract for all and for the first job, the program."""
    stocktools.find("bls")
    config = configuration(tmp_path, "maximum_volume_bytes: 200000", "magazines: [{name: m1, directory: m1}]\n")
    tree = rich_tree(tmp_path / "source")
    first = save(config, tree)
    (tree / "plain.txt").write_text("the second version")
    (tree / "new").write_text("new")
    more = save(config, tree, level=Level.INCREMENTAL)
    told = recoverypage.run(tmp_path / "m1", tmp_path)
    assert set(told.splitlines()) >= {*first.volumes, *more.volumes} and "End Job Session Record" in told
    content = {name: row[4] for name, row in facts(tree).items()}
    for name in ("bextract", "python"):
        back = below(tmp_path / "out" / name, tree)
        found = {key: row[4] for key, row in facts(back).items()}
        assert found == {key: value for key, value in content.items() if name == "bextract" or not special(tree, key)}
        assert (back / "new").read_text() == "new" and (back / "plain.txt").read_text() == "the second version"
    assert len(first.volumes) > 15  # more than the tools take behind -V
    alone = below(tmp_path / "out" / "first", tree)
    assert (alone / "plain.txt").read_text() == "hello\n" and not (alone / "new").exists()


# Compressed by what the standard library does not have, damaged by Bareos itself, or encrypted by the client.
_APART = {"lzo", "lz4", "lzfast", "pki", "sparse-inflate", "xf-sparse", "canceled"}
SAMPLES = [
    (which, name)
    for which in ("bacula-9.6", "bareos-26")
    for name in names_of(which)
    if not any(word in name for word in _APART)
]


@pytest.mark.parametrize(("which", "name"), SAMPLES)
def test_python_alone_reads_real_volumes(tmp_path: Path, which: str, name: str) -> None:
    volumes, manifest = sample(which, name)
    done = rescue(tmp_path, *volumes)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    files = {row["path"]: row for job in manifest["jobs"] for row in job["files"] if (row["file_index"] or 0) > 0}
    judged = 0
    for row in files.values():
        place = tmp_path / "out" / row["path"].lstrip("/")
        if "sha256" in row:
            judged += 1
            assert hashlib.sha256(place.read_bytes()).hexdigest() == row["sha256"], place
            assert "mtime" not in row or int(place.stat().st_mtime) == row["mtime"]
        if "target" in row:
            assert os.readlink(place) == row["target"]
        if "mode" in row and row["type"] in ("dir", "file"):
            assert oct(place.lstat().st_mode & 0o777) == oct(int(row["mode"], 8) & 0o777)
    assert judged > 0


def test_other_compression_is_told(tmp_path: Path) -> None:
    volumes, manifest = sample("bacula-9.6", "a-lzo-sha1")
    done = rescue(tmp_path, *volumes)
    assert done.returncode == 0 and "not whole" in done.stdout and manifest


def test_damage_costs_what_it_touches(tmp_path: Path) -> None:
    volumes, manifest = sample("bacula-9.6", "a-plain-md5")
    data = bytearray(volumes[0].read_bytes())
    data[230 + 64512 * 3 + 500] ^= 1
    data += bytes(100_000)  # as dd leaves the end
    damaged = tmp_path / volumes[0].name
    damaged.write_bytes(data)
    done = rescue(tmp_path, damaged)
    assert done.returncode == 0 and f"damage in {damaged} at {230 + 64512 * 3}" in done.stdout
    right = wrong = 0
    for row in manifest["jobs"][0]["files"]:
        place = tmp_path / "out" / row["path"].lstrip("/")
        if "sha256" in row:
            same = place.exists() and hashlib.sha256(place.read_bytes()).hexdigest() == row["sha256"]
            right, wrong = right + same, wrong + (not same)
    assert right >= 10 and 1 <= wrong <= 3


def test_nothing_leads_out_of_the_target(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")

    def fill(job: Job) -> None:
        job.symlink(b"/trap", os.fsencode(outside))
        job.file(b"/trap/file", b"evil")
        job.file(b"/../../outside/file", b"evil")
        job.entry(1, b"/hard", link=os.fsencode(outside / "file"), mode=0o100644)  # type: ignore[arg-type]

    done = rescue(tmp_path, one_job(tmp_path / "volume", fill))
    assert done.returncode == 0 and (outside / "file").read_text() == "untouched"
    assert (tmp_path / "out/outside/file").read_bytes() == b"evil"
    assert not (tmp_path / "out/trap").is_symlink() and not (tmp_path / "out/hard").exists()
    again = rescue(tmp_path, tmp_path / "volume")
    assert again.returncode == 1 and "File exists" in again.stderr  # never into a directory that is there


def test_what_no_volume_can_hold_costs_nothing_else(tmp_path: Path) -> None:
    """Absurd sizes and times, attributes cut short, a bomb, an empty file: the last mode is set all the same."""

    def fill(job: Job) -> None:
        job.file(b"/first", b"good", mode=0o640)
        for number, size in enumerate((1 << 62, 1 << 70, -5)):
            job.entry(FileType.REGULAR, b"/%d" % number, mode=0o100600, size=size, mtime=1 << 80, data_stream=6)
            job.record(6, bytes(8) + b"x")
        job.entry(FileType.REGULAR, b"/bomb", mode=0o100600, size=5)
        job.record(4, zlib.compress(bytes(200 << 20)))
        for words in (
            b"3 /short\0A B IGk\0\0\0",
            b"3 /old\0A A IGk A A A A D A A D D A\0\0",
            b"",
            b"3",
            b"3 /odd\0!\0\0",
        ):
            job.index += 1
            job.record(1, b"%d " % job.index + words)
            job.record(2, b"x")
        job.file(b"/last", b"good", mode=0o640)

    (tmp_path / "empty").touch()
    done = rescue(tmp_path, tmp_path / "empty", one_job(tmp_path / "volume", fill))
    assert done.returncode == 0 and not done.stderr
    for name in ("first", "last"):
        place = tmp_path / "out" / name
        assert place.read_bytes() == b"good" and place.stat().st_mode & 0o777 == 0o640
    assert (
        tmp_path / "out/old"
    ).stat().st_mtime == 3 and f"not whole: {os.fsencode(tmp_path / 'out/old')}" in done.stdout
    assert (tmp_path / "out/bomb").stat().st_size <= 32 << 20


def test_the_volumes_are_found_among_other_files(tmp_path: Path) -> None:
    stocktools.find("bls")
    volumes, _ = sample("bacula-9.6", "a-span3")
    place = tmp_path / "magazine"
    place.mkdir()
    for path in volumes:
        shutil.copy(path, place)
    (place / "README.txt").write_text("not a volume, but BB02 is in it: BB02")
    (place / "folder").mkdir()
    told = recoverypage.run(place, tmp_path)
    assert told.split()[:3] == [path.name for path in volumes]
