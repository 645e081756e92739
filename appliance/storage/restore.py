"""Restore: from jobs of the catalog back to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.config.schema import Config
from appliance.errors import ExitStatus
from appliance.magazines.holders import announced_job
from appliance.storage import readers, saved_files
from appliance.storage.catalog import Catalog
from appliance.storage.extract import Extractor
from appliance.storage.joblog import LogCallback
from appliance.storage.model import Job
from appliance.storage.outcome import Replace, Summary
from appliance.storage.plan import JobReader, Part, Wanted, chain_of, chosen_job, parts_for, wanted_files
from appliance.storage.renaming import Renaming
from appliance.storage.saved_files import text
from appliance.storage.saver import Cancelled
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.blocks import SessionIds
from appliance.volumes.events import Event, FileEnd, FileEntry, Partial
from appliance.volumes.reader import Damage

_MOST_KEPT = 1000


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
    with Catalog(config.state_dir) as catalog:
        catalog.recover()
        job = chosen_job(catalog, request.job, request.latest, request.before)
        wanted = wanted_files(catalog, chain_of(catalog, job), request.globs)
        work = [(item, parts_for(catalog, config, item.job, wanted=item)) for item in wanted if item.count]
        started(sum(part.size for _, parts in work for part in parts))
        for item, parts in work:
            names = ", ".join(part.media.name for part in parts)
            log(f"restoring {item.count} files of job {item.job.job_id} from {names}", {"JOB": str(item.job.job_id)})
        paths = [part.path for _, parts in work for part in parts]
        with readers.reading(paths), announced_job(config.run_dir, job.job_id, "restore"):
            for item, _ in work:
                chosen_job(catalog, item.job.job_id, None)  # not purged since it was looked up
            return _Restore(catalog, job, work, request).run(progress, cancelled)


class _Restore:
    """One running restore."""

    def __init__(
        self, catalog: Catalog, job: Job, work: Sequence[tuple[Wanted, list[Part]]], request: RestoreRequest
    ) -> None:
        self._catalog = catalog
        self._job = job
        self._work = work
        self._request = request
        self._keys = VolumeKeys(request.keys)
        self._damage: list[str] = []
        self._by_session = {SessionIds(w.job.session_id, w.job.session_time): w for w, _ in work}

    def run(self, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> RestoreResult:
        aliases = {
            (ids, index): path for ids, wanted in self._by_session.items() for index, path in wanted.aliases().items()
        }
        extractor = Extractor(
            self._request.to,
            select=self._select,
            aliases=aliases,
            algorithm=self._algorithm(),
            replace=self._request.replace,
            renaming=self._request.renaming,
        )
        stopped = False
        try:
            extractor.run(self._events(progress, cancelled))
        except Cancelled:
            stopped = True
        summary = extractor.summary
        if not stopped:
            self._name_missing(summary)
        return self._result(summary, stopped)

    def _select(self, entry: FileEntry) -> bool:
        wanted = self._by_session.get(entry.ids)
        return wanted is not None and wanted.wants(entry.file_index)

    def _algorithm(self) -> str | None:
        """The digest of all jobs, when they have the same."""
        found = {saved_files.job_algorithm(self._catalog, wanted.job.job_id) for wanted, _ in self._work}
        return found.pop() if len(found) == 1 else None

    def _events(self, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> Iterator[Event]:
        for wanted, parts in self._work:
            for event in JobReader(wanted.job, progress, self._keys).events(parts):
                if cancelled():
                    raise Cancelled
                if isinstance(event, Damage):
                    # Whether it matters shows when all wanted files are counted.
                    if len(self._damage) < _MOST_KEPT:
                        self._damage.append(str(event))
                    continue
                if isinstance(event, FileEnd):
                    wanted.done(event.entry.file_index)
                if not isinstance(event, Partial):
                    yield event

    def _name_missing(self, summary: Summary) -> None:
        for wanted, _ in self._work:
            for index in wanted.missing():
                saved = saved_files.one(self._catalog, wanted.job.job_id, index)
                name = text(saved.path) if saved else f"file {index} of job {wanted.job.job_id}"
                summary.fail(f"{name}: is not restored: it was not found on the volumes")

    def _result(self, summary: Summary, stopped: bool) -> RestoreResult:
        errors, warnings = list(summary.errors), list(summary.warnings)
        if summary.failed:
            errors += self._damage
        else:
            warnings += self._damage
        if stopped:
            errors.append("the restore was cancelled: what is there is not all")
        if not self._job.status.good:
            told = f"job {self._job.job_id} had ended as {self._job.status.word}"
            warnings.append(f"{told}: it is not all that was to be saved")
        status = ExitStatus.FAILED if errors else ExitStatus.WARNINGS if warnings else ExitStatus.DONE
        volumes = dict.fromkeys(part.media.name for _, parts in self._work for part in parts)
        return RestoreResult(
            job_id=self._job.job_id,
            to=self._request.to,
            files=summary.files,
            bytes=summary.bytes,
            volumes=tuple(volumes),
            exit_status=status,
            warnings=tuple(warnings),
            errors=tuple(errors),
            cancelled=stopped,
            skipped=summary.skipped,
        )
