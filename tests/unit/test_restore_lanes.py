"""Restoring from several magazines at once, and past damage: what is touched is named, all the rest is as it was."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.config.schema import Config
from appliance.errors import AwayError, ExitStatus, MagbayError
from appliance.storage import kinds, lanes, restore
from appliance.storage.catalog import Catalog
from appliance.storage.model import Level
from appliance.storage.outcome import Replace
from appliance.storage.plan import JobReader, Part
from appliance.storage.saved_files import of_job
from appliance.volumes.blocks import BLOCK_HEADER
from appliance.volumes.reader import Block, VolumeReader
from tests.unit.enginehelp import assert_same, below, bring_back, configuration, rich_tree, save, volume

THREE = "magazines:\n" + "".join(f"  - {{name: m{n}, directory: m{n}}}\n" for n in (1, 2, 3))


def spread(config: Config, *names: str) -> None:
    """Put the volumes on all magazines in turn."""
    with Catalog(config.state_dir) as catalog:
        for number, name in enumerate(names):
            magazine = config.magazines[number % len(config.magazines)]
            magazine.directory.mkdir(exist_ok=True)
            volume(config, name).rename(magazine.directory / name)
            values = (magazine.name, f"directory:{magazine.name}", name)
            catalog.change("UPDATE Media SET Magazine=?, Identity=? WHERE VolumeName=?", values)


@pytest.fixture
def three(tmp_path: Path) -> Config:
    """Small volumes, three magazines."""
    return configuration(tmp_path, "maximum_volume_bytes: 500000", THREE)


@pytest.fixture
def tree(tmp_path: Path, three: Config) -> Path:
    """A rich tree with many small files and links far from their files, on all three magazines, in two jobs."""
    tree = rich_tree(tmp_path / "source")
    chance = random.Random(3)
    for number in range(120):
        folder = tree / f"folder-{number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}").write_bytes(chance.randbytes(chance.randrange(60_000)))
    for number in range(0, 120, 11):
        os.link(tree / f"folder-{number % 7}" / f"{number}", tree / "links" / f"to-{number}")
    for number in range(7):
        (tree / f"folder-{number}").chmod(0o711 + number)
        os.utime(tree / f"folder-{number}", (10**9, 10**9 + number))
    saved = save(three, tree)
    (tree / "folder-3" / "3").write_text("changed")
    os.utime(tree / "folder-3", (10**9, 10**9 + 3))
    more = save(three, tree, level=Level.INCREMENTAL)
    spread(three, *dict.fromkeys([*saved.volumes, *more.volumes]))
    return tree


def test_the_tree_comes_back_from_three_magazines(tmp_path: Path, three: Config, tree: Path) -> None:
    for policy in (Replace.ALWAYS, Replace.NEVER):
        back = bring_back(three, tmp_path / policy.value, replace=policy)
        assert (back.errors, back.warnings) == ((), ())
        assert_same(tree, below(tmp_path / policy.value, tree))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("accurate", [False, True])
def test_what_became_something_else_on_another_magazine(tmp_path: Path, accurate: bool, turned: bool) -> None:
    """Jobs that are not accurate have both, and read at once the older one kept its place, or the newer one failed."""
    config = configuration(tmp_path, "maximum_jobs: 1")
    tree = tmp_path / "source"

    def fill(name: str, is_directory: bool) -> None:
        path = tree / name
        if is_directory:
            path.mkdir(parents=True)
            (path / "in").write_text(name)
        else:
            path.write_text(name)

    for number in range(20):
        fill(f"a{number}", True)
        fill(f"b{number}", False)
    first = save(config, tree)
    for number in range(20):
        shutil.rmtree(tree / f"a{number}")
        fill(f"a{number}", False)
        (tree / f"b{number}").unlink()
        fill(f"b{number}", True)
    second = save(config, tree, level=Level.INCREMENTAL, accurate=accurate)
    names = [*first.volumes, *second.volumes]
    spread(config, *(names[::-1] if turned else names))
    back = bring_back(config, tmp_path / "out")
    assert (back.errors, back.warnings) == ((), ())
    assert_same(tree, below(tmp_path / "out", tree))


@pytest.mark.parametrize("path", ["d", "d/file", "d/file/in", "other"])
def test_which_changes_have_an_order(tmp_path: Path, path: str) -> None:
    config = configuration(tmp_path)
    tree = tmp_path / "source"
    (tree / "d").mkdir(parents=True)
    (tree / "d/file").write_text("x")
    (tree / "d/link").symlink_to("x")
    first = save(config, tree)
    if path == "d":
        shutil.rmtree(tree / "d")
        (tree / "d").write_text("x")
    elif path == "d/file/in":
        (tree / "d/file").unlink()
        (tree / "d/file").mkdir()
        (tree / "d/file/in").write_text("x")
    else:
        (tree / path).write_text("changed")
    second = save(config, tree, level=Level.INCREMENTAL, accurate=False)
    with Catalog(config.state_dir) as catalog:
        chain = [catalog.job(first.job_id), catalog.job(second.job_id)]
        assert kinds.changed(catalog, chain) is (path in ("d", "d/file/in"))
        assert not kinds.changed(catalog, chain[:1])


def test_a_reader_for_each_magazine_and_never_two(
    tmp_path: Path, three: Config, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, together = threading.Lock(), threading.Event()
    active: Counter[str] = Counter()
    most: Counter[str] = Counter()
    plain = JobReader._read

    def watched(self: JobReader, part: Part) -> Iterator[Any]:
        name = part.media.magazine
        with lock:
            active[name] += 1
            most[name] = max(most[name], active[name])
            if sum(active.values()) == 3:
                together.set()
        assert together.wait(30), "the three are never read at once"
        try:
            yield from plain(self, part)
        finally:
            with lock:
                active[name] -= 1

    monkeypatch.setattr(JobReader, "_read", watched)
    back = bring_back(three, tmp_path / "out")
    assert back.exit_status is ExitStatus.DONE and most == {"m1": 1, "m2": 1, "m3": 1}
    assert_same(tree, below(tmp_path / "out", tree))


def test_hard_links_alone_and_some_files(tmp_path: Path, three: Config, tree: Path) -> None:
    back = bring_back(three, tmp_path / "out", globs=(f"{tree}/links", "folder-2"))
    assert (back.errors, back.warnings) == ((), ())
    for path in below(tmp_path / "out", tree).rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert path.read_bytes() == (tree / path.relative_to(below(tmp_path / "out", tree))).read_bytes()
    names = {path.name for path in below(tmp_path / "out", tree).iterdir()}
    assert names == {"links", "folder-2"} and len(list((below(tmp_path / "out", tree) / "links").iterdir())) == 14


def test_all_magazines_that_are_away_are_named_at_once(tmp_path: Path, three: Config, tree: Path) -> None:
    for name in ("m1", "m3"):
        (tmp_path / name).rename(tmp_path / f"shelf-{name}")
    with pytest.raises(AwayError, match=r"m1.*m3|m3.*m1"):
        bring_back(three, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cancelling_ends_all_readers(tmp_path: Path, three: Config, tree: Path) -> None:
    read: list[int] = []
    request = restore.RestoreRequest(tmp_path / "out")
    back = restore.run(
        three, request, log=lambda text, fields: None, progress=read.append, cancelled=lambda: len(read) > 10
    )
    assert back.cancelled and back.exit_status is ExitStatus.FAILED
    assert not [one.name for one in threading.enumerate() if one.name.startswith("restore")]


def test_a_full_target_ends_all_readers(
    tmp_path: Path, three: Config, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second reader that writes gets ENOSPC."""
    plain, first = os.pwrite, list[int]()

    def pwrite(fd: int, data: Any, at: int) -> int:
        first.append(threading.get_ident())
        if threading.get_ident() != first[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(MagbayError, match="No space"):
        bring_back(three, tmp_path / "out")
    assert not [one.name for one in threading.enumerate() if one.name.startswith("restore")]


def test_no_thread_for_one_magazine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "ThreadPoolExecutor", None)
    config = configuration(tmp_path)
    (tmp_path / "data").write_text("x")
    save(config, tmp_path / "data")
    assert bring_back(config, tmp_path / "out").files == 1


# -- damage -------------------------------------------------------------------------------------------------------


def _touched_by(config: Config, job_id: int, ruined: set[tuple[str, int]]) -> set[int]:
    """FileIndexes that have a byte in the blocks (volume, address) of *ruined*, found by walking the records."""
    found: set[int] = set()
    for name, address in ruined:
        with VolumeReader(volume(config, name)) as reader:
            for block in reader.blocks():
                if isinstance(block, Block) and block.address == address:
                    at = block.begin
                    while len(block.data) - at >= 12:
                        index = int.from_bytes(block.data[at : at + 4], "big", signed=True)
                        at += 12 + int.from_bytes(block.data[at + 8 : at + 12], "big")
                        if index > 0:
                            found.add(index)
    assert job_id and found
    return found


@pytest.mark.parametrize("magazines", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_several_damaged_blocks_touch_what_is_named_and_nothing_else(tmp_path: Path, seed: int, magazines: int) -> None:
    """Blocks in the middle, the first behind a label, the last of a volume (a file goes on behind it), neighbours."""
    config = configuration(tmp_path, "maximum_volume_bytes: 800000", THREE)
    chance = random.Random(seed)
    tree = tmp_path / "source"
    tree.mkdir()
    for number in range(150):
        (tree / f"{number:03}").write_bytes(chance.randbytes(chance.choice((10, 3000, 40_000, 150_000))))
    saved = save(config, tree)
    assert len(saved.volumes) > 4
    blocks: list[tuple[str, int]] = []
    for name in saved.volumes:
        with VolumeReader(volume(config, name)) as reader:
            blocks += [(name, block.address) for block in reader.blocks() if isinstance(block, Block)][1:]
    last = [pair for pair, behind in itertools.pairwise(blocks) if pair[0] != behind[0]]
    first = [behind for pair, behind in itertools.pairwise(blocks) if pair[0] != behind[0]]
    middle = chance.randrange(5, len(blocks) - 5)
    ruined = {
        chance.choice(last),
        chance.choice(first),
        blocks[middle],
        blocks[middle + 1],
        chance.choice(blocks[3:-3]),
    }
    touched = _touched_by(config, saved.job_id, ruined)
    with Catalog(config.state_dir) as catalog:
        names = {os.fsdecode(row.path): row.file_index for row in of_job(catalog, saved.job_id)}
    for name, address in ruined:
        path = volume(config, name)
        data = bytearray(path.read_bytes())
        data[address + chance.randrange(BLOCK_HEADER.size, 1000)] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    if magazines > 1:
        spread(config, *saved.volumes)
    back = bring_back(config, tmp_path / "out")
    assert back.exit_status is ExitStatus.FAILED
    told = {path for path in names if any(line.startswith(f"{path}: ") for line in back.errors)}
    assert {names[path] for path in told} == touched
    for number in range(150):
        path = tree / f"{number:03}"
        if str(path) not in told:
            assert (below(tmp_path / "out", tree) / path.name).read_bytes() == path.read_bytes(), path
