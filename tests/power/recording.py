"""Recording a run of the engine, and looking at what the disk holds after a power cut."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.config.loader import load
from appliance.errors import ExitStatus
from appliance.host import files
from appliance.storage import backup, copies, labelling, saved_files, verify
from appliance.storage.catalog import Catalog
from appliance.storage.model import Job, JobStatus, Media, VolumeStatus
from appliance.storage.tail import labelled_by
from appliance.volumes.blocks import SessionIds
from appliance.volumes.events import FileEnd, FileState, SessionEnd
from appliance.volumes.reader import Damage
from appliance.volumes.reading import read_volumes
from tests.power.disk import Call, Cuts, Disk, Kind, State, calls, key

ROOT = Path(__file__).parents[2]


def empty(folder: Path) -> None:
    """Remove all that is in *folder*, which stays the same directory."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def library(folder: Path) -> Path:
    """`layer.c`, compiled."""
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler (Debian package gcc)")
    made = folder / "layer.so"
    options = ["-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *options, "-o", made, Path(__file__).with_name("layer.c"), "-ldl"], check=True)
    return made


def run_below(folder: Path, module: str, *words: str) -> str:
    """Run a module with the layer below it; gives what it prints."""
    environment = os.environ | {"LD_PRELOAD": str(library(folder)), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Cut:
    """What the disk holds, cut behind the call number *at*; *marks* were made before: what was acknowledged."""

    at: int
    state: State
    key: int
    marks: tuple[str, ...]

    @property
    def jobs(self) -> list[int]:
        """JobIds."""
        return [int(mark.removeprefix("job ")) for mark in self.marks if mark.startswith("job ")]

    @property
    def volumes(self) -> list[str]:
        """Volumes that were labelled."""
        return [mark.removeprefix("volume ") for mark in self.marks if mark.startswith("volume ")]


class Recording:
    """The run *name* of `jobs.py`, or of another *module* of this kind, in *folder*."""

    def __init__(self, folder: Path, name: str, module: str = "tests.power.jobs") -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.disk.mkdir(parents=True)
        self._start = Disk(self.disk)
        run_below(folder, module, name, str(folder))
        self.calls: list[Call] = list(calls(folder / "log"))
        self._check_the_model()

    def _check_the_model(self) -> None:
        """With nothing lost the model holds what the file system holds: no call was overlooked."""
        for call in self.calls:
            self._start.do(call)
        found: State = {}
        for path in self.disk.rglob("*"):
            if not path.name.endswith("-shm"):
                found[str(path.relative_to(self.disk))] = None if path.is_dir() else path.read_bytes()
        assert self._start.finished() == found
        self._kept = found

    def cuts(self, each: int, seed: int, *, telling: bool) -> Iterator[Cut]:
        """Behind every call the *telling* states and *each* at random; none twice."""
        empty(self.disk)
        disk, chance = Disk(self.disk), random.Random(seed)
        seen: set[int] = set()
        marks: list[str] = []
        for at, call in enumerate(self.calls):
            if call.kind is Kind.MARK:
                marks.append(call.path)
                seen.clear()  # the same disk promises more now
            disk.do(call)
            cuts = Cuts(disk, chance)
            for state in itertools.chain(cuts.telling() if telling else (), cuts.any(each)):
                known = key(state)
                if known not in seen:
                    seen.add(known)
                    yield Cut(at, state, known, tuple(marks))


class Machine:
    """The machine after the power came back: *folder* with the disk in a certain state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = load(folder / "magbay.yaml")
        self._disk = folder / "disk"

    def put(self, state: State) -> None:
        """Make the disk hold *state*."""
        empty(self._disk)
        for path, content in state.items():
            if content is None:
                (self._disk / path).mkdir()
            else:
                (self._disk / path).write_bytes(content)

    def check(self, cut: Cut, expected: dict[str, str]) -> list[Job]:
        """Every acknowledged job is good, and every good job (they are returned) whole and right.

        *expected*: path to digest; see `sums`.
        """
        with Catalog(self.config.state_dir) as catalog:
            catalog.recover()
            jobs = {job.job_id: job for job in catalog.jobs()}
            good = [job for job in jobs.values() if job.status.good]
            for job_id in cut.jobs:
                assert job_id in jobs, f"job {job_id} was acknowledged and is not in the catalog"
                status = jobs[job_id].status
                assert status.good or status is JobStatus.PURGED, f"job {job_id} was acknowledged and is {status.word}"
            assert not [job for job in jobs.values() if job.status is JobStatus.RUNNING]
            for job in good:
                for saved in saved_files.of_job(catalog, job.job_id):
                    name = os.fsdecode(saved.path)
                    assert saved.digest == expected.get(name, ""), f"job {job.job_id}: {name} has another digest"
            media = {item.name for item in catalog.media()}
            assert media >= set(cut.volumes)
            for path in self._volumes(but=media):
                assert labelled_by(path, path.name) in catalog.sessions(), f"{path.name} is there without its label"
        for name in cut.volumes:  # its label may be torn: then it is written anew, see `append`
            assert (self._disk / "m1" / name).exists(), f"volume {name} was acknowledged and is gone"
        self.verify(good)
        self._look_for_copies(cut, good)
        return good

    def _look_for_copies(self, cut: Cut, good: list[Job]) -> None:
        """The magazines can give back what the catalog knows of each acknowledged job."""
        for job in good:
            if job.job_id in cut.jobs:
                paths = [copies.path_of(self._disk / name, _ids(job)) for name in ("m1", "m2")]
                found = [copies.read_head(path).files for path in paths if path.exists()]
                assert found and set(found) == {job.files}, f"job {job.job_id} has no copy of its catalog"

    def verify(self, jobs: list[Job]) -> None:
        """The jobs, all good ones, are whole on their volumes."""
        if not jobs:
            return
        found = verify.run(self.config, verify.VerifyRequest(), log=lambda text, fields: None)
        assert found.exit_status is ExitStatus.DONE, [*found.errors, *found.warnings]
        assert sorted(found.jobs) == sorted(job.job_id for job in jobs)
        assert found.files == sum(job.files for job in jobs)

    def append(self) -> backup.JobResult:
        """The next job: it is good, what torn tails there were are cut off, and no volume is given up."""
        # After the power cut it is another process: the number of a directory of an earlier state may come again.
        files._looked_at.clear()
        lines: list[str] = []
        tails = self._tails()
        request = backup.BackupRequest((self.folder / "source" / "more",), name="next")
        done = backup.run(self.config, request, log=lambda text, fields: lines.append(text))
        assert done.status is JobStatus.DONE, [*done.errors, *done.warnings]
        with Catalog(self.config.state_dir) as catalog:
            given_up = [media.name for media in catalog.media() if media.status is VolumeStatus.ERROR]
            jobs = [job for job in catalog.jobs() if job.status.good]
        assert not given_up, lines
        for name in tails & set(done.volumes):
            assert any(f"volume {name}: " in line and "were cut off" in line for line in lines), lines
        self.verify(jobs)
        self._label()
        return done

    def _label(self) -> None:
        """What cut off labellings left is used or taken away by the next ones."""
        for name in ("m1", "m2"):
            labelling.create(self.config, magazine=name, pool="Spare", count=2)
        with Catalog(self.config.state_dir) as catalog:
            assert not self._volumes(but={media.name for media in catalog.media()})
        assert not list(self._disk.rglob(".magbay-unfinished-*"))

    def _volumes(self, but: Set[str]) -> list[Path]:
        """Files on the magazines that are called like volumes."""
        found = [path for name in ("m1", "m2") for path in (self._disk / name).glob("[!.]*")]
        return [path for path in found if path.name not in but]

    def _tails(self) -> set[str]:
        """Volumes that were written and are longer than the catalog says."""
        with Catalog(self.config.state_dir) as catalog:
            written = [media for media in catalog.media() if media.last_written]
            return {media.name for media in written if self._place(media).stat().st_size > media.bytes}

    def _place(self, media: Media) -> Path:
        return next(m.directory / media.name for m in self.config.magazines if m.name == media.magazine)

    def read_without_catalog(self, good: list[Job]) -> int:
        """The bare volumes give every job, and damage only behind what the catalog knows; gives how much of it."""
        found = 0
        with Catalog(self.config.state_dir) as catalog:
            known = {media.media_id: media for media in catalog.media()}
            for job in good:
                media = list(dict.fromkeys(known[stretch.media_id] for stretch in catalog.stretches(job.job_id)))
                ends = {str(self._place(item)): item.bytes for item in media}
                events = list(read_volumes([Path(path) for path in ends]))
                mine = [event for event in events if isinstance(event, FileEnd) and event.entry.ids == _ids(job)]
                assert len(mine) == job.files and all(event.state is FileState.WHOLE for event in mine)
                sessions = [event for event in events if isinstance(event, SessionEnd) and event.ids == _ids(job)]
                assert [event.end.job_status for event in sessions if event.end] == ["T"]
                damage = [event for event in events if isinstance(event, Damage)]
                assert all(event.address >= ends[event.volume] for event in damage), damage
                found += len(damage)
        return found


def _ids(job: Job) -> SessionIds:
    return SessionIds(job.session_id, job.session_time)


def sums(source: Path) -> dict[str, str]:
    """The digests of the files that are saved, as the catalog has them, by path."""
    found: dict[str, str] = {}
    for path in source.rglob("*"):
        if path.is_file():
            value = hashlib.md5(path.read_bytes(), usedforsecurity=False).digest()
            found[str(path)] = base64.b64encode(value).rstrip(b"=").decode()
    return found
