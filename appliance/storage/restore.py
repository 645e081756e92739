"""Restore: from jobs of the catalog back to files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.config.schema import Config
from appliance.errors import ExitStatus
from appliance.magazines.holders import announced_job
from appliance.storage import readers, saved_files
from appliance.storage.catalog import Catalog
from appliance.storage.extract import Extractor
from appliance.storage.joblog import LogCallback
from appliance.storage.lanes import Lane, Readers, lanes_for
from appliance.storage.model import Job
from appliance.storage.outcome import Replace, Summary
from appliance.storage.plan import chain_of, chosen_job, gaps
from appliance.storage.renaming import Renaming
from appliance.storage.saved_files import text
from appliance.storage.searching import wanted_files
from appliance.volumes.bb03 import VolumeKeys


@dataclass(frozen=True)
class RestoreRequest:
    """What to restore: of one job (default: the newest good one, of the name *latest*) what *globs* match, below *to*.

    *before* (Unix seconds): of the jobs that began by then. *to* "/" restores to where the files came from.
    *replace*: what happens to files that are there. *renaming*: other names below *to*. *keys*: places of the keys of
    enciphered volumes.
    """

    to: Path
    job: int | None = None
    latest: str | None = None
    globs: tuple[str, ...] = ()
    before: int | None = None
    replace: Replace = Replace.ALWAYS
    renaming: Renaming = Renaming()
    keys: tuple[Path, ...] = ()


@dataclass(frozen=True)
class RestoreResult:
    """What was restored. *bytes* of file data; *skipped*: files that were there and stay."""

    job_id: int
    to: Path
    files: int
    bytes: int
    volumes: tuple[str, ...]
    exit_status: ExitStatus
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    cancelled: bool = False
    skipped: int = 0

    @property
    def word(self) -> str:
        """The status in JSON."""
        words = {ExitStatus.DONE: "done", ExitStatus.WARNINGS: "warnings"}
        return "cancelled" if self.cancelled else words.get(self.exit_status, "failed")

    def document(self) -> dict[str, object]:
        """The JSON document of the command line."""
        return {
            "job_id": self.job_id,
            "status": self.word,
            "files": self.files,
            "bytes": self.bytes,
            "skipped": self.skipped,
            "volumes": list(self.volumes),
            "to": str(self.to),
            "warnings": list(self.warnings),
            "errors": list(self.errors),
        }


def run(
    config: Config,
    request: RestoreRequest,
    *,
    log: LogCallback,
    progress: Callable[[int], None] = lambda count: None,
    started: Callable[[int], None] = lambda total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> RestoreResult:
    """Restore in this process. *started* is told the bytes that will be read from volumes, *progress* those read.

    Of an incremental or differential job its full job and those between are read too; the newest version of each
    file wins, and what an accurate one noted as deleted stays away.
    Raises `NotFoundError` (job, or no file matches), `AwayError` before anything is written, `CatalogError`,
    `MagbayError` when the target fails. Damage does not end a restore; it is in the result.
    """
    with Catalog.of(config) as catalog:
        catalog.recover()
        job = chosen_job(catalog, request.job, request.latest, request.before)
        chain = chain_of(catalog, job)
        wanted = wanted_files(catalog, chain, request.globs, told=lambda text: log(text, {}))
        lanes = lanes_for(catalog, config, [item for item in wanted if item.count])
        parts = [part for lane in lanes for _, mine in lane.work for part in mine]
        started(sum(part.size for part in parts))
        for item in wanted:
            if item.count:
                names = ", ".join(_volumes(lanes, item.job))
                log(
                    f"restoring {item.count} files of job {item.job.job_id} from {names}", {"JOB": str(item.job.job_id)}
                )
        keys = VolumeKeys(request.keys)
        with readers.reading(part.path for part in parts), announced_job(config.run_dir, job.job_id, "restore"):
            for item in wanted:
                if item.count or item.job.status.good:
                    chosen_job(catalog, item.job.job_id, None)  # not purged since it was looked up
            result = _Restore(catalog, job, lanes, request).run(Readers(lanes, keys, progress, cancelled))
        missed = gaps(chain)
        if missed and result.exit_status is ExitStatus.DONE:
            result = replace(result, exit_status=ExitStatus.WARNINGS)
        return replace(result, warnings=(*missed, *result.warnings))


def _volumes(lanes: Sequence[Lane], job: Job | None = None) -> dict[str, None]:
    """Names of the volumes that are read, of one *job* or all."""
    work = [(wanted.job, parts) for lane in lanes for wanted, parts in lane.work]
    return dict.fromkeys(part.media.name for of, parts in work if job in (None, of) for part in parts)


class _Restore:
    """One running restore."""

    def __init__(self, catalog: Catalog, job: Job, lanes: Sequence[Lane], request: RestoreRequest) -> None:
        self._catalog = catalog
        self._job = job
        self._lanes = lanes
        self._request = request

    def run(self, reading: Readers) -> RestoreResult:
        extractor = Extractor(
            self._request.to,
            algorithm=self._algorithm(),
            replace=self._request.replace,
            renaming=self._request.renaming,
            in_turn=len(self._lanes) <= 1,
        )
        try:
            with extractor.writing_out():
                whole = reading.run(extractor)
            extractor.finish()
        finally:
            extractor.close()
        summary = extractor.summary
        if whole:
            self._name_missing(summary)
        return self._result(summary, not whole)

    def _algorithm(self) -> str | None:
        """The digest of all jobs, when they have the same."""
        jobs = {wanted.job.job_id for lane in self._lanes for wanted, _ in lane.work}
        found = {saved_files.job_algorithm(self._catalog, job_id) for job_id in jobs}
        return found.pop() if len(found) == 1 else None

    def _name_missing(self, summary: Summary) -> None:
        for wanted in (wanted for lane in self._lanes for wanted, _ in lane.work):
            for index in wanted.missing():
                saved = saved_files.one(self._catalog, wanted.job.job_id, index)
                name = text(saved.path) if saved else f"file {index} of job {wanted.job.job_id}"
                summary.fail(f"{name}: is not restored: it was not found on the volumes")

    def _result(self, summary: Summary, stopped: bool) -> RestoreResult:
        errors, warnings = list(summary.errors), list(summary.warnings)
        # Two lanes may meet the same damage.
        damage = dict.fromkeys(line for lane in self._lanes for line in lane.damage)
        (errors if summary.failed else warnings).extend(damage)
        if stopped:
            errors.append("the restore was cancelled: what is there is not all")
        if not self._job.status.good:
            told = f"job {self._job.job_id} had ended as {self._job.status.word}"
            warnings.append(f"{told}: it is not all that was to be saved")
        status = ExitStatus.FAILED if errors else ExitStatus.WARNINGS if warnings else ExitStatus.DONE
        return RestoreResult(
            job_id=self._job.job_id,
            to=self._request.to,
            files=summary.files,
            bytes=summary.bytes,
            volumes=tuple(_volumes(self._lanes)),
            exit_status=status,
            warnings=tuple(warnings),
            errors=tuple(errors),
            cancelled=stopped,
            skipped=summary.skipped,
        )
