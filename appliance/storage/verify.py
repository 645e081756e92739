"""Verify: read back what jobs saved and compare block checksums, names, sizes and digests with the catalog."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config.schema import Config
from appliance.errors import AwayError, ExitStatus
from appliance.magazines import attached
from appliance.magazines.holders import announced_job
from appliance.storage import readers, saved_files
from appliance.storage.catalog import Catalog
from appliance.storage.checking import FileCheck, unread_lines
from appliance.storage.joblog import LogCallback
from appliance.storage.model import Job, JobStatus, SavedFile
from appliance.storage.plan import JobReader, Part, Wanted, parts_for
from appliance.storage.pools import reachable
from appliance.storage.readers import WrittenAnewError
from appliance.storage.saved_files import text
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.events import Data, Event, FileEnd, FileEntry, FileStart, FileState
from appliance.volumes.reader import Damage

_MOST_KEPT = 1000


@dataclass(frozen=True)
class VerifyRequest:
    """One job, or all good jobs on the magazines that are here."""

    job: int | None = None
    keys: tuple[Path, ...] = ()  # places of the keys of enciphered volumes


@dataclass
class VerifyResult:
    """What was compared and what was wrong. *files* is the number of files that were judged."""

    jobs: list[int] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error_count: int = 0
    cancelled: bool = False

    @property
    def exit_status(self) -> ExitStatus:
        """Failed with any error."""
        if self.error_count or self.cancelled:
            return ExitStatus.FAILED
        return ExitStatus.WARNINGS if self.warnings else ExitStatus.DONE

    def document(self) -> dict[str, object]:
        """The JSON document of the command line."""
        words = {ExitStatus.DONE: "done", ExitStatus.WARNINGS: "warnings"}
        return {
            "status": "cancelled" if self.cancelled else words.get(self.exit_status, "failed"),
            "jobs": self.jobs,
            "files": self.files,
            "bytes": self.bytes,
            "errors": self.errors,
            "warnings": self.warnings,
        }

    def error(self, line: str) -> None:
        """Something is not as it was saved."""
        self.error_count += 1
        if len(self.errors) < _MOST_KEPT:
            self.errors.append(line)

    def add(self, one: VerifyResult) -> None:
        """What was found of one more job."""
        self.jobs += one.jobs
        self.files += one.files
        self.bytes += one.bytes
        self.errors += one.errors[: _MOST_KEPT - len(self.errors)]
        self.warnings += one.warnings
        self.error_count += one.error_count
        self.cancelled = one.cancelled


def run(
    config: Config,
    request: VerifyRequest,
    *,
    log: LogCallback,
    progress: Callable[[int], None] = lambda count: None,
    started: Callable[[int], None] = lambda total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> VerifyResult:
    """Read and compare. *started* is told how many bytes there are to read, *progress* those read.

    Raises `NotFoundError` (job), `AwayError` (a magazine that is needed), `CatalogError`.
    """
    result = VerifyResult()
    keys = VolumeKeys(request.keys)
    with Catalog.of(config) as catalog:
        catalog.recover()
        work = _work(catalog, config, request, result)
        started(sum(part.size for _, parts in work for part in parts))
        for job, parts in work:
            if cancelled():
                result.cancelled = True
                break
            one = VerifyResult([job.job_id])
            try:
                with readers.reading(part.path for part in parts):
                    if catalog.job(job.job_id).status is JobStatus.PURGED:
                        continue  # since it was looked up
                    check = _Check(catalog, job, parts, one, keys)
                    with announced_job(config.run_dir, job.job_id, "verify"):
                        one.cancelled = not check.run(progress, cancelled)
            except WrittenAnewError as error:
                if catalog.job(job.job_id).status is not JobStatus.PURGED:
                    result.warnings.append(f"job {job.job_id} is not verified: {error.message}")
                continue
            if catalog.job(job.job_id).status is JobStatus.PURGED and job.status is not JobStatus.PURGED:
                told = f"job {job.job_id} ({job.name}) was purged meanwhile: it is beyond its retention"
                log(told, {"JOB": str(job.job_id)})
                result.warnings += [told] if request.job is not None else []
                continue  # what was compared with rows that went is no damage
            result.add(one)
            if result.cancelled:
                break
            told = "good" if not one.error_count else f"{one.error_count} errors"
            told += "" if check.whole else ", of what lies here"
            log(f"job {job.job_id} ({job.name}): {told}", {"JOB": str(job.job_id)})
    return result


def _work(
    catalog: Catalog, config: Config, request: VerifyRequest, result: VerifyResult
) -> list[tuple[Job, list[Part]]]:
    if request.job is not None:
        job = catalog.job(request.job)
        if not job.status.good:
            result.warnings.append(f"job {job.job_id} ended as {job.status.word}; what it left is read anyway")
        return [(job, parts_for(catalog, config, job))]
    known = attached.known(config)
    here = [magazine for magazine in known if reachable(magazine)]
    if not here:
        names = " or ".join(magazine.name for magazine in known) or "a magazine"
        raise AwayError(f"not here: {names}", hint=f"Plug in {names} and try again.")
    good = [job for job in reversed(catalog.jobs()) if job.status.good]
    # What of a job lies elsewhere is some other day's turn.
    identities = {magazine.identity for magazine in here}
    work = [(job, parts_for(catalog, config, job, only=identities)) for job in good]
    return [(job, parts) for job, parts in work if parts]


class _Check:
    """Compares one job's events with its catalog rows."""

    def __init__(self, catalog: Catalog, job: Job, parts: list[Part], result: VerifyResult, keys: VolumeKeys) -> None:
        self._catalog = catalog
        self._keys = keys
        self._job = job
        self._parts = parts
        self._result = result
        self.whole = True  # all of the job lies on the given parts
        self._expected = self._judged(catalog)
        self._rows = saved_files.of_job(catalog, job.job_id)
        self._row: SavedFile | None = None
        self._check: FileCheck | None = None
        self._unread: Counter[str] = Counter()

    def _judged(self, catalog: Catalog) -> Wanted:
        """The files that lie on the given parts only: what goes on elsewhere cannot be judged."""
        here = {part.media.media_id for part in self._parts}
        stretches = catalog.stretches(self._job.job_id)
        self.whole = all(stretch.media_id in here for stretch in stretches)
        expected = Wanted(self._job)
        elsewhere = [s for s in stretches if s.media_id not in here]
        for saved in saved_files.of_job(catalog, self._job.job_id):
            index = saved.file_index
            if self.whole or not any(s.first_index <= index <= s.last_index for s in elsewhere):
                expected.add(saved)
        return expected

    def run(self, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> bool:
        """False when it was cancelled before its end: nothing can be said of the job."""
        with contextlib.closing(self._rows):
            return self._run(progress, cancelled)

    def _run(self, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> bool:
        for event in JobReader(self._job, progress, self._keys, from_disk=True).events(self._parts):
            if cancelled():
                return False
            self._take(event)
        for index in self._expected.missing():
            self._error(f"{self._name(index)} is not on its volumes")
        self._result.warnings += unread_lines(self._unread)
        return True

    def _name(self, index: int) -> str:
        saved = saved_files.one(self._catalog, self._job.job_id, index)
        return text(saved.path) if saved else f"file {index}"

    def _take(self, event: Event) -> None:
        if isinstance(event, Data):
            if self._check:
                self._check.data(event)
        elif isinstance(event, FileStart):
            self._begin(event.entry)
        elif isinstance(event, FileEnd):
            self._end(event)
        elif isinstance(event, Damage):
            self._result.error(str(event))

    def _begin(self, entry: FileEntry) -> None:
        while self._row is None or self._row.file_index < entry.file_index:
            self._row = next(self._rows, None)
            if self._row is None:
                break
        if self._row is None or self._row.file_index != entry.file_index:
            self._check = None
            self._error(f"{entry.path} is on its volumes, but not in the catalog")
        else:
            self._check = FileCheck(entry, self._row)

    def _end(self, event: FileEnd) -> None:
        entry, check = event.entry, self._check
        if check:
            self._result.bytes += check.bytes
        if not self._expected.wants(entry.file_index):
            return
        self._expected.done(entry.file_index)
        self._result.files += 1
        if check and event.state is FileState.WHOLE:
            check.end(entry)
        if check and check.unread:
            self._unread[f"job {self._job.job_id}: {check.unread}"] += 1
        for line in check.trouble if check else ():
            self._error(line)
        if event.state is not FileState.WHOLE:
            self._error(f"{entry.path} is {event.state.value}")

    def _error(self, line: str) -> None:
        self._result.error(f"job {self._job.job_id}: {line}")
