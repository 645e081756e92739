"""Finding files by patterns: what the database looks for itself is what comparing every name finds."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config.schema import Config
from appliance.errors import NotFoundError
from appliance.storage import plan, saved_files, searching
from appliance.storage.catalog import Catalog
from appliance.storage.model import Job, Level
from appliance.storage.selection import matcher
from appliance.volumes.attributes import FileType
from tests.unit.enginehelp import below, magbay, save

WORDS = (
    "report",
    "Report",
    "re",
    "port",
    "r[1]",
    "a",
    "ümlaut",
    "odd\udcff\udcfe",
    "x.odt",
    "report.odt",
    "]",
    "!a",
    "é*",
)
GLOBS = (
    "report", "re*", "*port", "*epo*", "r?port*", "*.odt", "rep*t.odt", "[r]eport", "re[!a]ort*", "r[[]1]", "[]]",
    "*[]]", "[!]]", "é[*]", "*\udcff*", "odd\udcff\udcfe", "?", "*", "??", "a", "!a", "ü*", "REPORT", "none",
    "*none*", "report/", "re*/", "[", "a]", "*ort*.*", "r[1]",
)  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path, config: Config) -> Config:
    """A tree of odd names, directories and files of the same ones, and two incremental jobs with changes and losses."""
    chance = random.Random(3)
    tree = tmp_path / "source"
    places = [tree]
    tree.mkdir()
    for _ in range(40):
        place = chance.choice(places) / chance.choice(WORDS)
        if not place.exists() and len(place.parts) < len(tree.parts) + 5:
            place.mkdir()
            places.append(place)
    for place in places:
        for word in chance.sample(WORDS, 5):
            if not (place / word).exists():
                (place / word).write_bytes(b"1")
    save(config, tree, name="tree")
    for number in (2, 3):
        for place in chance.sample(places, 10):
            for path in [path for path in place.iterdir() if path.is_file()][:2]:
                path.unlink() if chance.random() < 0.5 else path.write_bytes(b"%d" % number)
        save(config, tree, name="tree", level=Level.INCREMENTAL)
    return config


def chains(catalog: Catalog) -> Iterator[list[Job]]:
    for job in catalog.jobs():
        yield plan.chain_of(catalog, job)


def by_comparing(catalog: Catalog, chain: list[Job], *globs: str) -> list[tuple[int, int]]:
    matches = matcher(globs)
    every = saved_files.newest(catalog, [job.job_id for job in chain])
    return sorted((one.job_id, one.file_index) for one in every if one.type != FileType.DELETED and matches(one.path))


def by_searching(catalog: Catalog, chain: list[Job], *globs: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    try:
        wanted = searching.wanted_files(
            catalog, chain, globs, lambda saved: found.append((saved.job_id, saved.file_index))
        )
    except NotFoundError:
        return []
    assert sum(one.count for one in wanted) == len(found)
    return sorted(found)


def test_every_pattern_finds_the_same_as_comparing_all_names(saved: Config, tmp_path: Path) -> None:
    top = str(tmp_path / "source")
    more = (
        (f"{top}/report", "x.odt"),
        ("re*", "*.odt", f"{top}/*"),
        (f"{top}/r[1]",),
        ("report", "*"),
        ("port", f"{top}/a/*.odt", "port"),
    )
    hits = 0
    with Catalog.of(saved) as catalog:
        for chain in chains(catalog):
            for globs in (*((glob,) for glob in GLOBS), *more):
                expected = by_comparing(catalog, chain, *globs)
                assert by_searching(catalog, chain, *globs) == expected, globs
                hits += bool(expected)
    assert hits > 60


def test_a_name_is_found_as_it_was_saved(tmp_path: Path, config: Config) -> None:
    """Wild cards in it are characters then: as `browse` shows a path, `restore` takes it."""
    top = tmp_path / "source"
    for name in ("minutes [2].odt", "what?", "a*b/in", "[x"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    save(config, top)
    for name in ("minutes [2].odt", "what?", "a*b", "[x"):
        for glob in (name, f"{top}/{name}"):
            back = magbay(tmp_path, "restore", "--file", glob, "--to", f"{tmp_path}/out", json_output=True)
            assert back.status == 0 and back.document["files"] == (2 if name == "a*b" else 1), (glob, back.stderr)
        assert magbay(tmp_path, "browse", name).status == 0
    names = ("minutes [2].odt", "what?", "a*b/in", "[x")
    assert [(below(tmp_path / "out", top) / name).read_text() for name in names] == list(names)


def test_with_very_many_directories_of_the_name_everything_is_read(
    saved: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_MOST_FOLDERS", 2)
    with Catalog.of(saved) as catalog:
        for chain in chains(catalog):
            assert by_searching(catalog, chain, "re*") == by_comparing(catalog, chain, "re*")


def test_names_are_read_only_where_nothing_else_helps(saved: Config) -> None:
    with Catalog.of(saved) as catalog:
        (chain, *_) = chains(catalog)
        for glob, expected in (("report", 0), ("re*", 0), ("*.odt", 0), ("*", 1), ("[r]eport", 1), ("*/re*", 1)):
            told: list[str] = []
            searching.wanted_files(catalog, chain, [glob], told=told.append)
            assert len(told) == expected, glob
            assert not told or f"{sum(job.files for job in chain)} names are read" in told[0]


def test_browse_looks_for_names(saved: Config, tmp_path: Path) -> None:
    tree = tmp_path / "source"
    for pattern in ("report", "*.odt", "re*"):
        done = magbay(tmp_path, "browse", pattern, json_output=True)
        expected = {str(path) for path in tree.rglob(pattern)}
        assert {one["path"].rstrip("/") for one in done.document["entries"]} == expected and expected
        assert "names are read" not in done.stderr
    assert magbay(tmp_path, "browse", "nowhere").status == 4
    everything = magbay(tmp_path, "browse", "*")
    assert "names are read" in everything.stderr and os.fspath(tree / "a") in everything.stdout
