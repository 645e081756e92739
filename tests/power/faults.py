"""The n-th call of an operation fails, for every n: `python -m tests.power.faults OPERATION PLACE FOLDER`.

Prints how often it did, and what was not as it must be: an operation ends well, or with a declared error; what it says
is done is whole, on the disk too; jobs before it stay whole; the next job works.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import ExitStatus, MagbayError
from appliance.host import workers
from appliance.storage import backup, device, labelling, restore, verify
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus
from tests.power.disk import Disk, Kind, State, calls
from tests.power.jobs import Layer, configure, save
from tests.power.recording import empty

OPEN, WRITE, LENGTH, SYNC, NAME, READ = 1, 2, 4, 8, 16, 32
CHANGE = OPEN | WRITE | LENGTH | SYNC | NAME
HALF, STALL = -1, -2
ONCE = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.ENODEV, errno.EINTR, HALF, STALL)
# From the n-th call on for good: a disk that is pulled, full, or was made read-only by the kernel.
FOR_GOOD = (errno.ENODEV, errno.ENOSPC, errno.EROFS)
READING = (errno.EIO, errno.EINTR, HALF)


@dataclass
class Report:
    """What is printed, as JSON."""

    runs: int = 0
    good: int = 0
    declared: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Labelled:
    """A volume was labelled."""

    name: str
    exit_status: ExitStatus = ExitStatus.DONE


class Bench:
    """One operation, and the disk on which it is tried again and again."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.layer = Layer()
        self.disk = folder / "disk"
        self.out = self.disk / "out"
        self.report = Report()
        workers.worthwhile = lambda: False  # thousands of jobs; the process that reads writes nothing
        self.config = configure(folder, f"faults-{name}")
        save(self.config, self.layer, "small", name="before")
        if name == "recycle":
            for one in ("old", "older"):
                save(self.config, self.layer, "more", name=one)
            with contextlib.closing(sqlite3.connect(self.config.state_dir / "catalog.db")) as db, db:
                db.execute("UPDATE Job SET Started=1000, Finished=1000 WHERE Name LIKE 'old%'")
        device.WRITEOUT_BYTES, device.SYNC_SECONDS = 20_000, 0.0  # the thread that flushes has something to do, too
        self._kept = _contents(self.disk)
        real = time.monotonic
        time.monotonic = lambda: real() + self.layer.stalled

    def attempts(self, kinds: int, place: str, actions: tuple[int, ...], *, stays: bool = False) -> None:
        """The operation with each of *actions* at each call of *kinds* below *place*."""
        for action in actions:
            n = 1
            while self._attempt(kinds, self.disk / place, n, action, stays):
                n += 1

    def _attempt(self, kinds: int, place: Path, n: int, action: int, stays: bool) -> bool:
        self._again()
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        disk = Disk(self.disk)
        self.layer.watch(self.disk, log)
        self.layer.arm(kinds, place, n, action, stays=stays)
        told: Any
        try:
            told = OPERATIONS[self.name](self)
        except MagbayError as error:
            told = error
        except Exception:
            told = traceback.format_exc()
        hit = self.layer.hits > 0
        self.layer.arm(0, place, 0, 0)
        self.layer.watch(Path("/nowhere"))
        if not hit:
            return False
        self.report.runs += 1
        try:
            if self.name == "restore":
                self._look_at_restored(told)
            self._judge(told, disk, log)
        except Exception as error:
            word = {HALF: "half", STALL: "stall"}.get(action) or errno.errorcode[action]
            where = f"{self.name}: {word} at call {n} ({kinds}) of {place.name}{' for good' if stays else ''}"
            last = traceback.extract_tb(error.__traceback__)[-1].line
            self.report.wrong.append(f"{where}: {error or last} (told: {told})")
        return True

    def _again(self) -> None:
        empty(self.disk)
        for path, content in self._kept.items():
            if content is None:
                (self.disk / path).mkdir()
            else:
                (self.disk / path).write_bytes(content)

    def _judge(self, told: Any, disk: Disk, log: Path) -> None:
        assert not isinstance(told, str), told
        if isinstance(told, MagbayError):
            assert told.message
            self.report.declared += 1
        elif told.exit_status not in (ExitStatus.DONE, ExitStatus.WARNINGS):
            assert told.errors
            self.report.declared += 1
        else:
            self.report.good += 1
        if isinstance(told, backup.JobResult) and told.status.good:
            self.check_jobs(told)
        shutil.rmtree(self.out, ignore_errors=True)
        # Of the few volumes that may be recycled all may be in use.
        pool = "Spare" if self.name == "recycle" else "Default"
        after = save(self.config, self.layer, "small", name="after", pool=pool)
        assert after.status.good, after.errors
        self.check_jobs(after)
        if isinstance(told, backup.JobResult) and told.status.good:
            self._put(_durable(disk, log))
            self.check_jobs(told)

    def _look_at_restored(self, told: object) -> None:
        """What was restored is right, or named."""
        ended = told.message if isinstance(told, MagbayError) else ""
        named = [*told.errors, *told.warnings] if isinstance(told, restore.RestoreResult) else [ended]
        for path in (self.folder / "source" / "small").iterdir():
            back = self.out / path.relative_to("/")
            if not back.exists():
                assert named, f"{path.name} is not there, and nothing is said"
            elif back.read_bytes() != path.read_bytes():
                assert any(str(path) in line for line in named), f"{path.name} is not right and not named: {named}"

    def check_jobs(self, told: object) -> None:
        """What is said to be good is whole; the job before is good."""
        with Catalog(self.config.state_dir) as catalog:
            catalog.recover()
            jobs = {job.job_id: job.status for job in catalog.jobs()}
        good = sorted(job for job, status in jobs.items() if status.good)
        assert jobs[min(jobs)] is JobStatus.DONE and JobStatus.RUNNING not in jobs.values()
        if isinstance(told, backup.JobResult):
            assert not told.status.good or told.job_id in good
        found = verify.run(self.config, verify.VerifyRequest(), log=_silent)
        assert found.exit_status is ExitStatus.DONE and sorted(found.jobs) == good, found.errors

    def _put(self, state: State) -> None:
        empty(self.disk)
        for path, content in state.items():
            if content is None:
                (self.disk / path).mkdir()
            else:
                (self.disk / path).write_bytes(content)


def _silent(text: str, fields: dict[str, str]) -> None:
    """Log lines are left out."""


def _contents(top: Path) -> State:
    found = {str(path.relative_to(top)): None if path.is_dir() else path.read_bytes() for path in top.rglob("*")}
    return dict(sorted(found.items()))


def _durable(disk: Disk, log: Path) -> State:
    """What the disk holds for certain when the job is acknowledged."""
    for call in calls(log):
        if call.kind is Kind.MARK:
            break
        disk.do(call)
    return disk.state([], {})


def _backup(bench: Bench) -> backup.JobResult:
    return save(bench.config, bench.layer, "more", name="tried")


def _label(bench: Bench) -> Labelled:
    return Labelled(labelling.create(bench.config, magazine="m1", pool="Default", count=1)[0].name)


def _verify(bench: Bench) -> verify.VerifyResult:
    return verify.run(bench.config, verify.VerifyRequest(), log=_silent)


def _restore(bench: Bench) -> restore.RestoreResult:
    return restore.run(bench.config, restore.RestoreRequest(bench.out), log=_silent)


OPERATIONS: dict[str, Callable[[Bench], object]] = {
    "backup": _backup, "recycle": _backup, "label": _label, "verify": _verify, "restore": _restore,
}  # fmt: skip


# What is tried: kinds of calls, where, what happens once, and what from then on for good.
Tried = tuple[int, str, tuple[int, ...], tuple[int, ...]]
TRIED: dict[tuple[str, str], Tried] = {
    ("backup", "m1"): (CHANGE | READ, "m1", ONCE, FOR_GOOD),
    ("backup", "state"): (CHANGE, "state", ONCE, FOR_GOOD),
    ("recycle", "m1"): (CHANGE | READ, "m1", ONCE, FOR_GOOD),
    ("label", "m1"): (CHANGE | READ, "m1", ONCE, FOR_GOOD),
    ("label", "state"): (CHANGE, "state", ONCE, FOR_GOOD),
    ("verify", "m1"): (READ | OPEN, "m1", READING, ()),
    ("verify", "state"): (READ | OPEN, "state", READING, ()),
    ("restore", "m1"): (READ | OPEN, "m1", READING, ()),
    ("restore", "out"): (CHANGE, "out", ONCE, FOR_GOOD),
}


def main() -> None:
    """Print the report."""
    operation, place, folder = sys.argv[1:]
    bench = Bench(Path(folder), operation)
    kinds, where, once, for_good = TRIED[operation, place]
    bench.attempts(kinds, where, once)
    bench.attempts(kinds, where, for_good, stays=True)
    print(json.dumps(vars(bench.report)))


if __name__ == "__main__":
    main()
