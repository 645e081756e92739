"""The catalog: volumes, jobs and files in SQLite (`state_dir/catalog.db`) or PostgreSQL.

Several processes may use it at once: every change is one short transaction, and one at a time changes something.
Batches of file rows of a running job are not synced one by one; every other commit is, and the commit that ends a job
makes the batches before it durable too, since one write-ahead log holds both in order.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from appliance.config.schema import Config
from appliance.errors import NotFoundError, PermissionDeniedError
from appliance.host import files
from appliance.storage import folders, numbers, order, tables
from appliance.storage.alive import Alive
from appliance.storage.database import CatalogError as CatalogError
from appliance.storage.database import Database, declared
from appliance.storage.lasting import Lasting, Outage, T
from appliance.storage.model import (
    Job,
    JobStatus,
    Level,
    Media,
    NewJob,
    Outcome,
    Stretch,
    VolumeStatus,
)
from appliance.volumes.blocks import SessionIds

_MEDIA = "MediaId, VolumeName, Magazine, Identity, Pool, VolBytes, VolStatus, FirstWritten, LastWritten"
_JOB = (
    "JobId, Name, Level, JobStatus, Pool, FileSet, FileSetMD5, BaseJobId, VolSessionId, VolSessionTime, Started, "
    "Finished, JobFiles, ReadBytes, JobBytes, JobErrors, Warnings, Waiting, Client, Type"
)


FILE = "catalog.db"  # in state_dir
_FAILING = "Look at its file system. 'magbay volume extract' restores without a catalog, and writes nothing there."


class Catalog:
    """An open catalog; one thread uses it. Every method raises `CatalogError` when its database cannot go on.

    Opening it raises `PermissionDeniedError` for a user who may not write in *state_dir*.
    """

    def __init__(self, state_dir: Path, name: str = FILE, *, database: str = "") -> None:
        """*database*: address of one in PostgreSQL, which this *state_dir* alone uses; without it the file *name*."""
        try:
            self._alive = Alive(state_dir)
            # Only one process at a time turns on WAL and makes the tables.
            with files.locked(state_dir / "catalog.lock"):
                files.adopt(state_dir / "catalog.lock", state_dir)
                self._db = tables.opened(state_dir / name, database)
                self._lasting = Lasting(self._db)
        except OSError as error:
            text = f"{state_dir}: the catalog cannot be opened: {error.strerror}"
            if isinstance(error, PermissionError):
                raise PermissionDeniedError(text, hint="Run as the user who owns state_dir.") from None
            failing = error.errno in (errno.EIO, errno.EROFS, errno.ENOSPC)
            raise CatalogError(text, hint=_FAILING if failing else "Look at the setting state_dir.") from None

    @classmethod
    def of(cls, config: Config) -> Catalog:
        """The catalog of a configuration. Raises as opening does."""
        return cls(config.state_dir, database=config.catalog.database)

    @classmethod
    def in_file(cls, path: Path) -> Catalog:
        """The catalog in the file *path*, made when it is missing. Raises as opening does, before anything is made.

        `CatalogError` also for a file that is something else.
        """
        try:
            tables.check_file(path)
        except OSError as error:
            text = f"{path}: cannot be read: {error.strerror}"
            if isinstance(error, PermissionError):
                raise PermissionDeniedError(text, hint="Run as a user who may.") from None
            raise CatalogError(text, hint="Name another file.") from None
        return cls(path.parent, path.name)

    @staticmethod
    def exists(config: Config) -> bool:
        """Whether there is one already: a look must not create it."""
        return bool(config.catalog.database) or (config.state_dir / FILE).exists()

    def close(self) -> None:
        """Close the connection; locks of jobs that never ended are freed."""
        self._alive.close()
        self._db.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def outlast(self, outage: Outage) -> None:
        """From now on a server that goes away is waited for, and what was being done is done once (`lasting`)."""
        self._lasting.outlast(outage)

    @property
    def may_break(self) -> bool:
        """Whether what this connection alone has, or commits that were not durable, can be lost while it goes on."""
        return self._lasting.may_break

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Database]:
        """One change, all or nothing; *durable*: on the disk when the block is left."""
        with self._declared():
            self._lasting.begin(durable=durable)
            try:
                yield self._db
                self._lasting.end(self._db.commit)
            except BaseException:
                with contextlib.suppress(*self._db.errors):
                    self._lasting.end(self._db.rollback)
                raise

    def attempt(self, action: Callable[[Database], T], *, durable: bool = True) -> T:
        """As `transaction`, for what *action* does with the database; also when that goes away in the middle."""
        with self._declared():
            return self._lasting.attempt(action, durable=durable)

    def renewed(self, action: Callable[[Database], None]) -> None:
        """Do *action* in a transaction of its own; where the connection may break, on each new one again."""
        with self._declared():
            self._lasting.renewed(action)

    def temporary(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Make, fill or drop a temporary table, which only this connection has: nobody need wait for that."""
        with self._declared():
            if values:
                self._db.execute(statement, values)
            else:
                self._db.declare(statement)

    def rows(self, query: str, values: Sequence[Any] = (), *, many: bool = False) -> Generator[Any, None, None]:
        """The rows of a query, one by one; with *many* of them memory is bounded."""
        ask = self._db.stream if many else self._db.execute
        with self._declared(), contextlib.suppress(OverflowError, UnicodeEncodeError):
            # A number or text that the database cannot hold stands in no row.
            yield from self._lasting.ask(lambda: iter(ask(query, values)))

    def change(self, statement: str, values: Sequence[Any] = (), *, durable: bool = True) -> None:
        """One statement as a transaction of its own."""
        self.attempt(lambda db: db.execute(statement, values), durable=durable)

    @contextlib.contextmanager
    def _declared(self) -> Iterator[None]:
        """Turn errors of the database into `CatalogError`; inside of a transaction whoever began it does so."""
        try:
            yield
        except self._db.errors as error:
            if self._lasting.inside:
                raise
            raise declared(self._db, error) from None

    # -- sessions and jobs ------------------------------------------------------------------------------------

    def new_session(self) -> SessionIds:
        """A pair (VolSessionId, VolSessionTime) that no other session has or will have."""
        with self.transaction() as db:
            return numbers.new_session(db)

    def sessions(self) -> set[SessionIds]:
        """Every pair that was ever given out here."""
        return {SessionIds(*row) for row in self.rows("SELECT VolSessionId, VolSessionTime FROM Session")}

    def start_job(self, new: NewJob) -> Job:
        """Enter a running job. It counts as alive until this process ends or calls `finish_job`."""
        with self.transaction() as db:
            self._check_chain(new)
            ids = numbers.new_session(db)
            values = (new.name, new.level.value, JobStatus.RUNNING.value, new.pool, new.fileset, new.fileset_md5)
            job_id = numbers.next_job_id(db)
            db.execute(
                "INSERT INTO Job(JobId, Name, Level, JobStatus, Pool, FileSet, FileSetMD5, BaseJobId, VolSessionId, "
                "VolSessionTime, Started, Client) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (job_id, *values, new.base, ids.session_id, ids.session_time, int(time.time()), new.client),
            )
            # Inside the transaction, so that `recover` of another process never sees the row without the lock.
            self._alive.begin(job_id)
        return self.job(job_id)

    def _check_chain(self, new: NewJob) -> None:
        """Whether all that the job builds on is still there: it was looked at before, and may be purged since."""
        for job in self.chain(self.job(new.base)) if new.base is not None else ():
            if not job.status.good:
                text = f"job {job.job_id} was just purged: {new.name} cannot build on it"
                raise CatalogError(text, hint="Try again.")

    def finish_job(self, job_id: int, outcome: Outcome, stretches: Sequence[Stretch], media: Sequence[Media]) -> None:
        """In one durable transaction: where the job is, how far its volumes go, and how it ended."""

        def finish(db: Database) -> None:
            write_stretches(db, job_id, stretches)
            for volume in media:
                write_media(db, volume)
            if outcome.status.good:
                # Of a job that failed they stay: the evidence of who wrote what is behind the end of a volume.
                db.execute("DELETE FROM JobMedia WHERE JobId=? AND FirstIndex=0", (job_id,))
            db.execute(
                "UPDATE Job SET JobStatus=?, Finished=?, JobFiles=?, ReadBytes=?, JobBytes=?, JobErrors=?, Warnings=?, "
                "Waiting='' WHERE JobId=?",
                (
                    outcome.status.value, int(time.time()), outcome.files, outcome.bytes, outcome.job_bytes,
                    outcome.errors, outcome.warnings, job_id,
                ),
            )  # fmt: skip

        self.attempt(folders.settle, durable=False)
        self.attempt(finish)
        self._alive.end(job_id)

    def is_alive(self, job_id: int) -> bool:
        """Whether a process, maybe this one, runs the job, whatever its row says."""
        try:
            return self._alive.is_alive(job_id)
        except OSError as error:
            hint = "Look at the file system of state_dir."
            raise CatalogError(f"job {job_id}: its lock cannot be read: {error.strerror}", hint=hint) from None

    def recover(self) -> list[Job]:
        """Jobs that were running in a process that is gone are entered as failed; gives them."""
        lost = []
        with self.transaction() as db:
            for job in self.jobs(status=JobStatus.RUNNING):
                if not self._alive.is_alive(job.job_id):
                    lost.append(job)
            for job in lost:
                text = "The process of this job ended before the job did: nothing of it counts as saved."
                db.execute(
                    "UPDATE Job SET JobStatus=?, Finished=?, JobErrors=1, Waiting='' WHERE JobId=?",
                    (JobStatus.FAILED.value, int(time.time()), job.job_id),
                )
                db.execute(
                    "INSERT INTO Log(JobId, Time, Kind, Text) VALUES(?, ?, 'error', ?)",
                    (job.job_id, int(time.time()), text),
                )
        for job in lost:
            self._alive.end(job.job_id)
        return lost

    def job(self, job_id: int) -> Job:
        """The job. Raises `NotFoundError`."""
        for row in self.rows(f"SELECT {_JOB} FROM Job WHERE JobId=?", (job_id,)):  # noqa: S608
            return _job(row)
        raise NotFoundError(f"there is no job {job_id}", hint="'magbay jobs' lists them.")

    def job_of(self, ids: SessionIds) -> Job | None:
        """The job of a session, None when the catalog has none."""
        query = f"SELECT {_JOB} FROM Job WHERE VolSessionId=? AND VolSessionTime=?"  # noqa: S608
        return next((_job(row) for row in self.rows(query, ids)), None)

    def chain(self, job: Job) -> Iterator[Job]:
        """The job, the one that it builds on, and so on.

        Copies of anybody's magazine may claim a ring: it is cut where it would begin again.
        """
        seen = set[int]()
        while job.job_id not in seen:
            seen.add(job.job_id)
            yield job
            if job.base is None:
                return
            job = self.job(job.base)

    def jobs(
        self, *, name: str | None = None, status: JobStatus | None = None, fileset_md5: str | None = None
    ) -> list[Job]:
        """Jobs, newest first (`order`): numbers mislead when jobs of another catalog were entered later."""
        where, values = _where(Name=name, JobStatus=status.value if status else None, FileSetMD5=fileset_md5)
        query = f"SELECT {_JOB} FROM Job {where}"  # noqa: S608
        return order.oldest_first(_job(row) for row in self.rows(query, values))[::-1]

    def log(self, job_id: int, kind: str, text: str) -> None:
        """Keep a line of the job's log; *kind*: info, warning, error."""
        line = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\0", "\\0")
        self.change(
            "INSERT INTO Log(JobId, Time, Kind, Text) VALUES(?, ?, ?, ?)",
            (job_id, int(time.time()), kind, line),
            durable=False,
        )

    def log_lines(self, job_id: int) -> list[tuple[int, str, str]]:
        """The job's log: time (Unix seconds), kind, text."""
        return list(self.rows("SELECT Time, Kind, Text FROM Log WHERE JobId=? ORDER BY LogId", (job_id,)))

    # -- volumes ----------------------------------------------------------------------------------------------

    def add_media(self, name: str, magazine: str, identity: str, pool: str, size: int) -> Media:
        """Enter a freshly labelled volume."""
        self.change(
            "INSERT INTO Media(VolumeName, Magazine, Identity, Pool, VolBytes, VolStatus) VALUES(?, ?, ?, ?, ?, ?)",
            (name, magazine, identity, pool, size, VolumeStatus.APPEND.value),
        )
        return self.media(name=name)[0]

    def media(self, *, name: str | None = None, pool: str | None = None, media_id: int | None = None) -> list[Media]:
        """Volumes, by name."""
        where, values = _where(VolumeName=name, Pool=pool, MediaId=media_id)
        query = f"SELECT {_MEDIA} FROM Media {where} ORDER BY VolumeName"  # noqa: S608
        return [_media(row) for row in self.rows(query, values)]

    def update_media(self, media: Media) -> None:
        """Store the volume's size, status and times."""
        self.attempt(lambda db: write_media(db, media))

    def mark_media(self, media: Media, status: VolumeStatus) -> None:
        """Store a status alone, unless the volume was written anew, or got another one, since *media* was read.

        For who does not have the volume locked: a job that writes on it may just have entered where it ends.
        """
        self.change(
            "UPDATE Media SET VolStatus=? WHERE MediaId=? AND VolStatus=? AND FirstWritten=?",
            (status.value, media.media_id, media.status.value, media.first_written),
        )

    def touch_media(self, job_id: int, media: Media) -> None:
        """Note that the job begins to write on the volume: the evidence for later of what is its tail."""
        self.change(
            "INSERT INTO JobMedia(JobId, MediaId, FirstIndex, LastIndex, StartAddress, EndAddress) "
            "VALUES(?, ?, 0, 0, 0, 0)",
            (job_id, media.media_id),
        )

    def leave_media(self, job_id: int, media: Media, stretches: Sequence[Stretch]) -> None:
        """The job goes on with another volume: keep what is on this one."""

        def leave(db: Database) -> None:
            write_stretches(db, job_id, stretches)
            write_media(db, media)

        self.attempt(leave)

    def stretches(self, job_id: int) -> list[Stretch]:
        """Where the job is, in order of writing."""
        query = (
            "SELECT MediaId, FirstIndex, LastIndex, StartAddress, EndAddress FROM JobMedia "
            "WHERE JobId=? AND FirstIndex>0 ORDER BY JobMediaId"
        )
        return [Stretch(*row) for row in self.rows(query, (job_id,))]

    def busy_magazines(self, but: int) -> set[str]:
        """Identities of the magazines that running jobs, *but* that one, have written on."""
        query = (
            "SELECT DISTINCT Identity FROM Job JOIN JobMedia USING(JobId) JOIN Media USING(MediaId) "
            "WHERE JobStatus=? AND JobId<>?"
        )
        return {identity for (identity,) in self.rows(query, (JobStatus.RUNNING.value, but))}

    def failed_sessions(self, media: Media) -> set[SessionIds]:
        """Sessions of jobs that began to write on the volume and did not end well."""
        query = (
            "SELECT DISTINCT VolSessionId, VolSessionTime FROM Job JOIN JobMedia USING(JobId) "
            "WHERE MediaId=? AND JobStatus IN (?, ?)"
        )
        bad = (JobStatus.FAILED.value, JobStatus.CANCELLED.value)
        return {SessionIds(row[0], row[1]) for row in self.rows(query, (media.media_id, *bad))}


def write_stretches(db: Database, job_id: int, stretches: Sequence[Stretch]) -> None:
    """Insert JobMedia rows, inside a transaction."""
    db.executemany(
        "INSERT INTO JobMedia(JobId, MediaId, FirstIndex, LastIndex, StartAddress, EndAddress) "
        "VALUES(?, ?, ?, ?, ?, ?)",
        [(job_id, s.media_id, s.first_index, s.last_index, s.start, s.end) for s in stretches],
    )


def write_media(db: Database, media: Media) -> None:
    """Update a Media row, inside a transaction."""
    db.execute(
        "UPDATE Media SET VolBytes=?, VolStatus=?, FirstWritten=?, LastWritten=? WHERE MediaId=?",
        (media.bytes, media.status.value, media.first_written, media.last_written, media.media_id),
    )


def _where(**values: object) -> tuple[str, list[object]]:
    """A condition for the values that are given."""
    given = {column: value for column, value in values.items() if value is not None}
    words = " AND ".join(f"{column}=?" for column in given)
    return (f"WHERE {words}" if words else ""), list(given.values())


def _media(row: Sequence[Any]) -> Media:
    media_id, name, magazine, identity, pool, size, status, first_written, last_written = row
    return Media(media_id, name, magazine, identity, pool, size, VolumeStatus(status), first_written, last_written)


def _job(row: Sequence[Any]) -> Job:
    return Job(row[0], row[1], Level(row[2]), JobStatus(row[3]), *row[4:])
