"""Power cuts: the engine's own calls are recorded, and behind each of them the disk may hold many things.

There are ten thousand different ones, or as many as `MAGBAY_POWER_STATES` says. In some of them the next job is
appended, and stock `bls` and `bextract` read what was acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.changer import slotmap
from appliance.magazines.attached import read_enrolments
from appliance.magazines.enrolment import keep_named
from appliance.storage import saved_files
from appliance.storage.catalog import Catalog
from appliance.storage.model import Job
from tests.power import settings
from tests.power.jobs import RUNS
from tests.power.recording import Cut, Machine, Recording, sums
from tests.unit import stocktools

# Different states of each of the runs.
LEAST = int(os.environ.get("MAGBAY_POWER_STATES", "10080")) // len(RUNS)
# In how many of them the others read and write.
APPENDED, STOCK = 90, 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory in memory, where there is one: the states are many, and none has to outlive the test."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(RUNS))
def test_power_cut(folder: Path, name: str) -> None:
    recording = Recording(folder, name)
    machine, expected = Machine(folder), sums(folder / "source")
    known: set[int] = set()
    damage = 0
    for number, cut in enumerate(different(recording, known)):
        machine.put(cut.state)
        with told(f"{name}: cut behind call {cut.at} ({recording.calls[cut.at].kind.name}), state {number}"):
            good = machine.check(cut, expected)
            if number % (LEAST // STOCK) == 0:
                stock_tools_read(machine, good)
            if number % (LEAST // APPENDED) == 0:
                damage += machine.read_without_catalog(good)
                machine.append()
    assert len(known) >= LEAST
    assert damage or name != "failed"  # torn tails are told


def test_power_cut_while_small_files_change(folder: Path) -> None:
    """Enrolments, slot map, key file: the old one or the new one, whole, and what was acknowledged is the new one."""
    recording = Recording(folder, "files", "tests.power.settings")
    machine, state_dir = Machine(folder), folder / "disk" / "state"
    count = 0
    for cut in recording.cuts(40, seed=3, telling=True):
        count += 1
        machine.put(cut.state)
        done = [mark.split() for mark in cut.marks]
        with told(f"cut behind call {cut.at} ({recording.calls[cut.at].kind.name})"):
            found, damaged = read_enrolments(machine.config)
            there = {item.filesystem_uuid for item in found}
            gone = {what for how, what in done if how == "forgotten"}
            assert damaged == () and not gone & there
            enrolled = {what for how, what in done if how == "enrolled"}
            lost = enrolled - there
            first, second, _third, anew = settings.UUIDS
            # The first one that is prepared anew has one of its two enrolments, and the second is forgotten.
            assert (first in enrolled) <= (len({first, anew} & there) == 1) and lost <= {first, second}
            assert not lost or len(enrolled) == 3
            if ("replaced", first) in map(tuple, done):
                assert anew in there and (machine.config.enrolment_dir / f"{anew}.yaml").exists()
            keep_named(machine.config, found)
            assert all((machine.config.enrolment_dir / f"{uuid}.yaml").exists() for uuid in there)
            slots = len(slotmap.read(state_dir / slotmap.SLOT_MAP).slots)
            assert slots in (0, 1, 30, 200) and slots >= max([int(what) for how, what in done if how == "slots"] or [0])
            keys = [int(what) for how, what in done if how == "key"]
            if keys or (state_dir / "key").exists():
                assert settings.KEYS.index((state_dir / "key").read_bytes()) >= max(keys or [0])
    assert count > 60


def test_power_cut_while_a_catalog_is_set_aside(folder: Path) -> None:
    """All of it is under its old name or under its new one, and a new one takes nothing of it."""
    recording = Recording(folder, "aside", "tests.power.asides")
    machine, state_dir = Machine(folder), folder / "disk" / "state"
    count = moved = 0
    for cut in recording.cuts(40, seed=5, telling=True):
        count += 1
        machine.put(cut.state)
        acknowledged = {mark.removeprefix("row ") for mark in cut.marks if mark.startswith("row ")}
        old, new = acknowledged - {"new-1"}, acknowledged & {"new-1"}
        with told(f"cut behind call {cut.at} ({recording.calls[cut.at].kind.name})"):
            aside = [path for path in state_dir.glob("catalog.db.before-*") if not path.name.endswith("-wal")]
            kept = {name for path in aside for name in volumes_in(state_dir, path.name)}
            present = volumes_in(state_dir, "catalog.db")
            moved += bool(aside)
            if aside:
                assert old <= kept and present <= {"new-1"} and new <= present
            else:
                assert "aside" not in cut.marks and old <= present <= {"old-1", "old-2"}
    assert count > 100 and moved > 20


def volumes_in(state_dir: Path, name: str) -> set[str]:
    """Names of the volumes in a catalog."""
    with Catalog(state_dir, name) as catalog:
        return {media.name for media in catalog.media()}


def different(recording: Recording, known: set[int]) -> Iterator[Cut]:
    """Cuts behind every call, and again until there are enough."""
    for cut in recording.cuts(1, 0, telling=True):
        known.add(cut.key)  # the same disk twice may have more to promise
        yield cut
    each = 2 * (LEAST - len(known)) // len(recording.calls)  # not all are different
    for seed in range(1, 1000):
        for cut in recording.cuts(max(1, each), seed, telling=False):
            if len(known) >= LEAST:
                return
            if cut.key not in known:
                known.add(cut.key)
                yield cut


@contextlib.contextmanager
def told(where: str) -> Iterator[None]:
    """Say which state it was."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{where}: {error}") from error


def stock_tools_read(machine: Machine, good: list[Job]) -> None:
    """`bls` lists the files of all jobs, whatever else stands on their volumes; `bextract` extracts the newest one."""
    places = {magazine.name: magazine.directory for magazine in machine.config.magazines}
    files: dict[Path, set[str]] = {}
    used: list[Path] = []
    with Catalog(machine.config.state_dir) as catalog:
        media = {item.media_id: item for item in catalog.media()}
        for job in sorted(good, key=lambda job: job.job_id):
            on = [media[stretch.media_id] for stretch in catalog.stretches(job.job_id)]
            used = list(dict.fromkeys(places[item.magazine] / item.name for item in on))
            for volume in used:
                files.setdefault(volume, set())
            files[used[0]] |= {os.fsdecode(saved.path) for saved in saved_files.of_job(catalog, job.job_id)}
    for folder in {volume.parent for volume in files}:
        mine = [volume for volume in files if volume.parent == folder]
        listed = stocktools.bls(mine, strict=False)
        assert all(name in listed for volume in mine for name in files[volume])
    if good:
        extracted(machine, job, used)


def extracted(machine: Machine, job: Job, volumes: list[Path]) -> None:
    """What `bextract` makes of the job is what was saved."""
    session = f"VolSessionId={job.session_id}\nVolSessionTime={job.session_time}\n"
    bsr = machine.folder / "job.bsr"
    bsr.write_text("".join(f'Volume="{volume.name}"\n{session}' for volume in volumes))
    with tempfile.TemporaryDirectory(dir=machine.folder) as out:
        stocktools.bextract(volumes, Path(out), bsr=bsr, strict=False)
        found = {Path("/", path.relative_to(out)): path for path in Path(out).rglob("*") if path.is_file()}
        with Catalog(machine.config.state_dir) as catalog:
            saved = {Path(os.fsdecode(item.path)) for item in saved_files.of_job(catalog, job.job_id) if item.digest}
        assert found.keys() >= saved
        assert all(path.read_bytes() == place.read_bytes() for path, place in found.items())
