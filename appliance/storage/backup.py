"""Backup: from paths to a finished session on volumes and rows in the catalog."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.config.filesets import FilesetConfig, Signature
from appliance.config.jobs import JobConfig
from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError, UsageError
from appliance.magazines import attached
from appliance.magazines.holders import announced_job
from appliance.storage import new_job
from appliance.storage.accurate import Before
from appliance.storage.catalog import Catalog
from appliance.storage.commit import Commit
from appliance.storage.contents import reading
from appliance.storage.device import MagazineLostError, VolumeFullError
from appliance.storage.direct import Direct
from appliance.storage.gathering import Gathering
from appliance.storage.handing import Task
from appliance.storage.joblog import JobLog, LogCallback
from appliance.storage.limits import Limits
from appliance.storage.model import DEFAULT_NAME, Job, JobStatus, Level
from appliance.storage.output import Cancelled, Tally
from appliance.storage.pools import dialect, pool_config
from appliance.storage.saved_files import FileWriter
from appliance.storage.saving_options import SavingOptions
from appliance.storage.sink import SpanningSink
from appliance.storage.source import VolumeSource
from appliance.storage.waiting import Patience, Waiting, outage
from appliance.storage.walk import allow_depth, tops
from appliance.storage.words import check_paths
from appliance.volumes.blocks import SessionIds
from appliance.volumes.labels import LabelKind, SessionLabel
from appliance.volumes.writer import SessionWriter

if TYPE_CHECKING:
    from appliance.storage.here import Here

_NAME = re.compile(r"[A-Za-z0-9:._-]{1,60}")
_LEVELS = {level.word: level for level in Level}
# How long a job of the configuration waits for its next magazine when nothing else is said, in seconds.
_NEXT_MAGAZINE = 2 * 3600
Advance = Callable[[int], None]


@dataclass(frozen=True)
class BackupRequest:
    """What to save: *fileset* or else *paths* without what the patterns *exclude* match, to *pool*, as job *name*.

    *accurate*: what an incremental or differential builds on is compared file by file, and deletions are noted.
    *job*: the job of the configuration that this is. *avoid*: names of magazines to begin on only if no other has room.
    """

    paths: tuple[Path, ...]
    name: str = DEFAULT_NAME
    pool: str = "Default"
    level: Level = Level.FULL
    exclude: tuple[str, ...] = ()
    fileset: FilesetConfig | None = None
    accurate: bool = True
    waiting: Waiting = Waiting()
    job: JobConfig | None = None
    avoid: frozenset[str] = frozenset()

    @property
    def rules(self) -> FilesetConfig:
        """What is saved and how."""
        return self.fileset or FilesetConfig(self.paths, self.exclude)

    def tops(self) -> list[bytes]:
        """The absolute names to walk. Raises `NotFoundError`: for somebody's words one that is missing is enough, a
        job of the configuration saves the others."""
        return tops(self.rules.paths, one_file_system=self.rules.one_file_system, all_there=self.job is None)


@dataclass(frozen=True)
class JobResult:
    """How a job ended. *files* with the *deleted* ones that were noted; *bytes* of file data.

    *volumes* in order of writing; times in Unix seconds. *lost*: the magazine that could not be written any more.
    """

    job_id: int
    name: str
    level: Level
    status: JobStatus
    files: int
    bytes: int
    volumes: tuple[str, ...]
    started: int
    finished: int
    exit_status: ExitStatus
    deleted: int = 0
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    hint: str = ""
    lost: str = ""

    def document(self) -> dict[str, object]:
        """The JSON document of the command line."""
        return {
            "job_id": self.job_id,
            "status": self.status.word,
            "files": self.files,
            "bytes": self.bytes,
            "deleted": self.deleted,
            "volumes": list(self.volumes),
            "name": self.name,
            "level": self.level.word,
            "started": self.started,
            "finished": self.finished,
            "warnings": list(self.warnings),
            "errors": list(self.errors),
            "hint": self.hint,
        }


def request_for(
    config: Config,
    words: list[str],
    *,
    pool: str | None = None,
    level: Level | None = None,
    name: str | None = None,
    accurate: bool | None = None,
) -> BackupRequest:
    """The request that the words of a command line mean: one word that names a job (or JOB@LEVEL), or paths.

    Raises `UsageError`, `NotFoundError` (a job, or a level of it, that is not there, and no path either).
    """
    if not all(words) or not words:
        raise UsageError("nothing to save", hint="Name a job of the configuration, or paths.")
    word, _, at = words[0].partition("@") if len(words) == 1 and "/" not in words[0] else ("", "", "")
    job = config.jobs.get(word)
    if job and (not at or at in _LEVELS):
        level = level or _LEVELS[at or job.level.value]
        fileset = config.filesets[job.fileset] if job.fileset else FilesetConfig(job.paths, job.exclude)
        asked = job.wait_for_magazine
        request = BackupRequest(
            fileset.paths,
            word,
            job.pool,
            level,
            fileset=fileset,
            accurate=job.accurate,
            job=job,
            waiting=Waiting(next=_NEXT_MAGAZINE) if asked is None else Waiting(asked, asked),
        )
    else:
        check_paths(config, words)
        request = BackupRequest(tuple(Path(word) for word in words), level=level or Level.FULL)
    wanted = request.accurate if accurate is None else accurate
    return replace(request, pool=pool or request.pool, name=name or request.name, accurate=wanted)


def limits(config: Config, request: BackupRequest) -> Limits:
    """What the request leaves out; always magbay's own directories, since a volume cannot hold itself."""
    own = [config.state_dir, *(m.path for m in attached.known(config) if m.path is not None)]
    return Limits.of(own, request.rules)


def run(
    config: Config,
    request: BackupRequest,
    *,
    log: LogCallback,
    progress: Advance = lambda count: None,
    cancelled: Callable[[], bool] = lambda: False,
    status: Callable[[str], None] = lambda text: None,
    pause: Callable[[float], None] = time.sleep,
) -> JobResult:
    """Run one backup in this process.

    *log* takes the job's lines with their journal fields, *progress* the number of bytes read each time,
    *cancelled* is asked often, *status* told what a job waits for, *pause* waits (seconds). Before a job exists trouble
    is raised (`NotFoundError` for a path or pool, `UsageError`, `CatalogError`); afterwards it is in the result.
    """
    if not _NAME.fullmatch(request.name):
        raise UsageError(f"{request.name!r} is no name for a job", hint="Use letters, digits and : . _ -")
    SavingOptions(request.rules, pool_config(config, request.pool).signature)  # that a library is missing shows now
    names = request.tops()
    allow_depth()
    attached.create_directories(config)
    with Catalog.of(config) as catalog:
        for lost in catalog.recover():
            log(f"job {lost.job_id} ({lost.name}) had ended in the middle; it is entered as failed", {})
        new, since = new_job.of(catalog, request, names)
        job = catalog.start_job(new)
        job_log = JobLog(catalog, job.job_id, log)
        catalog.outlast(outage(config.catalog.wait_for_database, job_log, cancelled, status, pause))
        patience = Patience(catalog, config, job_log, request.waiting, cancelled, status, pause)
        one = _Run(config, request, catalog, job, job_log, patience)
        with announced_job(config.run_dir, job.job_id, request.name):
            result = one.run(names, since, progress, cancelled)
            with contextlib.suppress(MagbayError):
                job_log.settle()
            return _with_copies(catalog, config, result, job_log)


def _with_copies(catalog: Catalog, config: Config, result: JobResult, log: JobLog) -> JobResult:
    """The job is done and stays so; its magazines get a copy of what the catalog knows of it."""
    if not config.catalog.copies or not result.status.good:
        return result
    try:
        from appliance.storage import copies  # here, as below, for the time of starting

        troubles, done = copies.write(catalog, config, result.job_id)
    except MagbayError as error:
        troubles, done = [error.message], 0
    for text in troubles:
        # A magazine that is full by what was saved is as it should be, while another one has the copy.
        (log.info if done else log.warning)(text)
    if done or not troubles:
        return result
    status = ExitStatus.WARNINGS if result.exit_status is ExitStatus.DONE else result.exit_status
    return replace(result, exit_status=status, warnings=(*result.warnings, *troubles))


@dataclass
class _Run:
    """One running backup."""

    config: Config
    request: BackupRequest
    catalog: Catalog
    job: Job
    log: JobLog
    patience: Patience
    hint: str = ""
    lost: str = ""
    exit_status: ExitStatus = ExitStatus.FAILED
    volumes: list[str] = field(default_factory=list)
    deleted: int = 0

    def run(self, names: list[bytes], since: int | None, progress: Advance, cancelled: Callable[[], bool]) -> JobResult:
        if self.job.level is not self.request.level:
            self.log.info(f"there is no full backup {self.job.name} of these paths to build on: a full one is made")
        ids = SessionIds(self.job.session_id, self.job.session_time)
        source = VolumeSource(
            self.catalog, self.config, self.request.pool, ids, self.log, self.patience, self.request.avoid
        )
        sink = SpanningSink(self.catalog, source, self.job.job_id, self.log)
        rows = FileWriter(self.catalog, self.job.job_id)
        label = self._label(source)
        commit = Commit(self.catalog, self.job, self.log, sink, rows, label)
        writer: SessionWriter | None = None
        contents: Gathering | Here | None = None
        try:
            contents = self._contents(names, since, source.pool.signature)
            size = source.pool.maximum_block_size
            writer = SessionWriter(sink, ids, max_block=size, first_number=1 if sink.begin() else 0)
            writer.write_label(LabelKind.SOS_LABEL, self.job.job_id, label.pack(LabelKind.SOS_LABEL))
            contents.into(Direct(writer, rows, self.log, progress, cancelled))
            self._end(commit.done(writer, contents), contents, ExitStatus.DONE)
        except Cancelled:
            self._cancelled(commit, writer, contents)
        except (MagbayError, OSError) as error:
            self._failed(error, commit, writer, contents)
        finally:
            sink.close()
            self.volumes = list(dict.fromkeys(sink.volumes))
            if contents:
                contents.close()
        return self._result()

    def _contents(self, names: list[bytes], since: int | None, signature: Signature) -> Gathering | Here:
        task = Task(names, limits(self.config, self.request), self.request.rules, signature)
        accurate = self.request.accurate and self.job.base is not None
        return reading(task, since, self._before if accurate else None)

    def _before(self) -> Before:
        assert self.job.base is not None
        from appliance.storage import plan

        chain = plan.chain_of(self.catalog, self.catalog.job(self.job.base))
        return Before(self.catalog, [job.job_id for job in chain])

    def _label(self, source: VolumeSource) -> SessionLabel:
        started = time.strftime("%Y-%m-%d_%H.%M.%S", time.localtime(self.job.started))
        return SessionLabel(
            job_id=self.job.job_id,
            time=self.job.started * 1_000_000,  # a scan of the volume enters the same time as the catalog has
            job=f"{self.job.name}.{started}_{self.job.job_id:02d}",
            job_name=self.job.name,
            client=self.job.client,
            fileset=self.job.name,
            fileset_md5=self.job.fileset_md5,
            pool=self.job.pool,
            job_level=self.job.level.value,
            dialect=dialect(source.pool),
        )

    def _cancelled(self, commit: Commit, writer: SessionWriter | None, tally: Tally | None) -> None:
        status = JobStatus.CANCELLED
        try:
            self.log.error("the job was cancelled: nothing of it counts as saved")
            commit.cancelled(writer, tally)
        except MagbayError as error:  # as below
            self.log.errors.append(error.message)
            self.hint, status = error.hint, JobStatus.FAILED
        self._end(status, tally, ExitStatus.FAILED)

    def _failed(
        self, error: MagbayError | OSError, commit: Commit, writer: SessionWriter | None, tally: Tally | None
    ) -> None:
        if not isinstance(error, MagbayError):
            error = MagbayError(f"{error.filename or 'magbay'}: {error.strerror or error}")
        self.hint, self.exit_status = error.hint, error.status
        if isinstance(error, MagazineLostError | VolumeFullError):
            self.lost = error.magazine
        try:
            self.log.error(error.message)
            commit.failed(writer, tally, JobStatus.FAILED)
        except MagbayError as another:
            # The catalog itself fails: the job stays entered as running, and `recover` will see that it is not.
            self.log.errors.append(another.message)
        self._end(JobStatus.FAILED, tally, error.status)

    def _end(self, status: JobStatus, tally: Tally | None, exit_status: ExitStatus) -> None:
        self.exit_status = ExitStatus.WARNINGS if status is JobStatus.WARNINGS else exit_status
        count = tally.files if tally else 0
        size = tally.bytes if tally else 0
        self.deleted = tally.deleted if tally else 0
        self.job = replace(self.job, status=status, files=count, bytes=size, finished=int(time.time()))

    def _result(self) -> JobResult:
        job = self.job
        return JobResult(
            job_id=job.job_id,
            name=job.name,
            level=job.level,
            status=job.status,
            files=job.files,
            bytes=job.bytes,
            volumes=tuple(self.volumes),
            started=job.started,
            finished=job.finished,
            exit_status=self.exit_status,
            deleted=self.deleted,
            warnings=tuple(self.log.warnings),
            errors=tuple(self.log.errors),
            hint=self.hint,
            lost=self.lost,
        )
