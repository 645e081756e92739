"""The catalog brought back from the copies on magazines, and from the volumes that are newer than these."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.config.schema import Config
from appliance.errors import MagbayError, UsageError
from appliance.host import files
from appliance.magazines import attached
from appliance.magazines.attached import Magazine
from appliance.storage import bases, clashing, copies, folders, numbers, scanning
from appliance.storage.catalog import FILE, Catalog, CatalogError, write_stretches
from appliance.storage.copies import Copy
from appliance.storage.database import Database
from appliance.storage.joblog import LogCallback
from appliance.storage.model import UNKNOWN, Job, JobStatus, Level, Media, Stretch
from appliance.storage.pools import reachable
from appliance.storage.saved_files import FileWriter
from appliance.storage.scanning import ScanRequest, ScanResult
from appliance.storage.tail import headers_at
from appliance.volumes.blocks import SessionIds


@dataclass
class Recovered:
    """What was brought back: JobIds; *known* were there already; *left_out*: copies that were not used, and why."""

    jobs: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    scan: ScanResult | None = None


def run(
    config: Config,
    paths: Sequence[Path],
    *,
    scan: bool,
    log: LogCallback,
    progress: Callable[[int], None] = lambda count: None,
    started: Callable[[int], None] = lambda total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Recovered:
    """Enter the jobs of the copies in *paths* (default: on all magazines here) that the catalog does not have whole.

    Nothing that it has is overwritten. With *scan* what volumes hold behind the end that is then known is scanned.
    Raises `NotFoundError`, `CatalogError`.
    """
    result = Recovered()
    attached.create_directories(config)
    with Catalog.of(config) as catalog:
        catalog.recover()
        found = _heads(copies.sources(config, paths), result)
        here = {m.identity: m for m in attached.attached(config) if reachable(m)}
        for copy, magazine in found:
            if cancelled():
                break
            try:
                _enter(catalog, copy, magazine, here, result)
            except CatalogError:
                raise
            except MagbayError as error:
                result.errors.append(error.message)
        with catalog.transaction() as db:
            bases.find(db, result.jobs)  # what was scanned before may build on them
        if scan and here and not cancelled():
            request = ScanRequest(everything=True, newer=True)
            result.scan = scanning.scan(
                catalog,
                config,
                request,
                list(here.values()),
                log=log,
                progress=progress,
                started=started,
                cancelled=cancelled,
            )
    return result


def set_aside(config: Config) -> str:
    """Rename the present catalog, so that the next one to open it begins a new one; gives its new name, or nothing.

    Returns when that is on the disk. Raises `MagbayError` while a job runs or somebody has it open, `UsageError` for
    one in PostgreSQL, `OSError`.
    """
    if config.catalog.database:
        hint = "Let the configuration name an empty database or schema instead."
        raise UsageError("a catalog in PostgreSQL is not set aside", hint=hint)
    state_dir = config.state_dir
    path = state_dir / FILE
    if not path.exists():
        return ""
    with files.locked(state_dir / "catalog.lock"):
        for running in (state_dir / "running").glob("[0-9]*"):
            if _is_held(running):
                hint = "Wait for it, or end it with 'magbay cancel'."
                raise MagbayError(f"job {running.name} runs: its catalog cannot be set aside", hint=hint)
        if _is_open(path):
            raise MagbayError("another magbay has the catalog open: it cannot be set aside", hint="Wait for that one.")
        for log in state_dir.glob(f"{FILE}.before-*-wal"):
            if not log.with_name(log.name.removesuffix("-wal")).exists():
                log.unlink()  # here the power was cut the last time
        new = path.with_name(path.name + time.strftime(".before-%Y%m%dT%H%M%S"))
        while new.exists():
            new = new.with_name(new.name + "x")
        _rename(path, new)
    return new.name


def _rename(old: Path, new: Path) -> None:
    """Rename a catalog with what SQLite keeps beside it. Wherever the power is cut, *old* or *new* has all of it.

    Its write-ahead log (`-wal`) may hold transactions that the file does not. So it gets its second name first, and
    loses the first one only when that of the file leads nowhere any more: of a log without a file SQLite takes nothing.
    """
    beside = [old.with_name(old.name + part) for part in ("-wal", "-shm")]
    log = new.with_name(new.name + "-wal")
    log.unlink(missing_ok=True)
    if beside[0].exists():
        log.hardlink_to(beside[0])
        files.sync_directory(old.parent)
    old.rename(new)
    files.sync_directory(old.parent)
    for path in beside:
        path.unlink(missing_ok=True)
    files.sync_directory(old.parent)


# Where SQLite locks a database: whoever has one with a write-ahead log open keeps one of these bytes (os_unix.c).
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510


def _is_open(path: Path) -> bool:
    """Whether another process has the catalog open: when it closes it, it removes the log of that name."""
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
        except (BlockingIOError, PermissionError):
            return True
    return False


def _is_held(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _heads(sources: Sequence[tuple[Path, Magazine | None]], result: Recovered) -> list[tuple[Copy, Magazine | None]]:
    """The copies that can be read, each session once, in the order in which the jobs began."""
    found: dict[SessionIds, tuple[Copy, Magazine | None]] = {}
    for path, magazine in sources:
        try:
            copy = copies.read_head(path)
        except MagbayError as error:
            result.errors.append(error.message)
            continue
        found.setdefault(copy.ids, (copy, magazine))
    return sorted(found.values(), key=lambda pair: (pair[0].job["started"], pair[0].job["job_id"]))


def _enter(
    catalog: Catalog, copy: Copy, magazine: Magazine | None, here: dict[str, Magazine], result: Recovered
) -> None:
    job = catalog.job_of(copy.ids)
    _refuse_anothers(copy, job)
    if job and (job.status.good or job.status in (JobStatus.RUNNING, JobStatus.PURGED)):
        if job.status.good and not job.knows_fileset:
            with catalog.transaction() as db:
                _complete(db, copy, job.job_id)
        result.known.append(job.job_id)
        return
    media = _placed(copy, magazine)
    if _overwritten(copy, media, here):
        result.left_out.append(
            f"job {copy.job['job_id']} {copy.job['name']}: its volumes are gone, or were written anew since"
        )
        return
    for item in media:
        _refuse_namesake(catalog, copy, item)
    with catalog.transaction(durable=False) as db:
        job_id = _enter_job(db, copy, job.job_id if job else None)
    # The files first: until the last transaction the job is a failed one.
    rows = FileWriter(catalog, job_id, again=True)
    for saved in copies.records(copy, job_id):
        rows.add(saved.file_index, saved.type, saved.path, saved.lstat, saved.digest)
    rows.flush()
    with catalog.transaction() as db:
        _enter_places(db, copy, media, job_id)
        folders.settle(db)
        db.execute("UPDATE Job SET JobStatus=? WHERE JobId=?", (JobStatus(copy.job["status"]).value, job_id))
    result.jobs.append(job_id)


def _refuse_anothers(copy: Copy, job: Job | None) -> None:
    """Raises `MagbayError` when the catalog has another machine's *job* under the session ids of the copy."""
    if job and clashing.is_anothers(job, copy.job["name"], copy.job["client"]):
        raise MagbayError(
            f"{copy.path}: has the session ids {copy.ids} of job {job.job_id} {job.name}; it is not entered",
            hint="It is a copy of another machine's catalog: restore from it there.",
        )


def _refuse_namesake(catalog: Catalog, copy: Copy, item: Media) -> None:
    """Raises `MagbayError` when the catalog has another volume of the name, as two machines give the same names.

    One that only lies elsewhere now has a session of those that the copy saw on its volumes.
    """
    known = catalog.media(name=item.name)
    if not known or known[0].identity == item.identity:
        return
    query = "SELECT DISTINCT VolSessionId, VolSessionTime FROM Job JOIN JobMedia USING(JobId) WHERE MediaId=?"
    if not {SessionIds(*row) for row in catalog.rows(query, (known[0].media_id,))} & set(copy.sessions):
        raise MagbayError(
            f"{copy.path}: the catalog has another volume {item.name}, on magazine {known[0].magazine}; "
            f"job {copy.job['name']} is not entered",
            hint="Of two volumes of one name a catalog knows only one.",
        )


def _placed(copy: Copy, magazine: Magazine | None) -> list[Media]:
    """The volumes of the copy; those beside it are on its magazine, whatever that was called."""
    placed = []
    for item in copy.media:
        beside = magazine is not None and magazine.path is not None and (magazine.path / item.name).exists()
        placed.append(_moved(item, magazine) if beside and magazine else item)
    return placed


def _moved(media: Media, magazine: Magazine) -> Media:
    return replace(media, magazine=magazine.name, identity=magazine.identity)


def _overwritten(copy: Copy, media: Sequence[Media], here: dict[str, Magazine]) -> bool:
    """Whether on a volume that is here another session's block stands where the job has its first."""
    places = {item.name: here.get(item.identity) for item in media}
    for name, _, _, start, _ in copy.stretches:
        magazine = places.get(name)
        if magazine is None or magazine.path is None:
            continue
        try:
            (header,) = headers_at(magazine.path / name, (start,))
        except (OSError, OverflowError, ValueError):  # a copy may claim any name and address
            return True
        if header is None or header.ids != copy.ids:
            return True
    return False


def _enter_job(db: Database, copy: Copy, known: int | None) -> int:
    """The job's row, as a failed one for now; what was known of it in part is forgotten."""
    job = copy.job
    if known is not None:
        for table in ("File", "JobMedia", "Log", "Loose", "Scanned", "Job"):
            db.execute(f"DELETE FROM {table} WHERE JobId=?", (known,))  # noqa: S608
    job_id = _number(db, known or int(job["job_id"]))
    columns = (
        "JobId, Name, Level, JobStatus, Pool, FileSet, FileSetMD5, VolSessionId, VolSessionTime, Started, Finished, "
        "JobFiles, ReadBytes, JobBytes, JobErrors, Warnings, Client, Type"
    )
    keys = (
        "pool", "fileset", "fileset_md5", "session_id", "session_time", "started", "finished", "files", "bytes",
        "job_bytes", "errors", "warnings", "client", "type",
    )  # fmt: skip
    level = Level(job["level"]).value
    db.execute(
        f"INSERT INTO Job({columns}) VALUES({', '.join('?' * 18)})",
        (job_id, job["name"], level, JobStatus.FAILED.value, *(job[key] for key in keys)),
    )
    # Behind the row, whose number may be the one that the base had in the catalog of the copy.
    db.execute("UPDATE Job SET BaseJobId=? WHERE JobId=?", (_base(db, copy), job_id))
    db.executemany(
        "INSERT INTO Log(JobId, Time, Kind, Text) VALUES(?, ?, ?, ?)", [(job_id, *line) for line in copy.log]
    )
    return job_id


def _complete(db: Database, copy: Copy, job_id: int) -> None:
    """What labels did not tell of a job that a scan has entered: its fileset, and what it builds on."""
    db.execute("UPDATE Job SET FileSet=?, BaseJobId=? WHERE JobId=?", (copy.job["fileset"], _base(db, copy), job_id))


def _number(db: Database, wanted: int) -> int:
    """The JobId *wanted*, or the next one when another job has it."""
    taken = db.execute("SELECT 1 FROM Job WHERE JobId=?", (wanted,)).fetchone()
    return wanted if not taken and numbers.may_be_kept(wanted) else numbers.next_job_id(db)


def _base(db: Database, copy: Copy) -> int | None:
    """The JobId of what the job builds on. One that is not known yet gets a row, so that it is missed and not lost."""
    if copy.base is None:
        return None
    ids, wanted, name = copy.base
    pair = (ids.session_id, ids.session_time)
    found = db.execute("SELECT JobId FROM Job WHERE VolSessionId=? AND VolSessionTime=?", pair).fetchone()
    if found:
        return int(found[0])
    job_id = _number(db, wanted)
    db.execute(
        "INSERT INTO Job(JobId, Name, Level, JobStatus, Pool, FileSet, FileSetMD5, VolSessionId, VolSessionTime, "
        "Started, Finished) VALUES(?, ?, 'F', ?, '', '', '', ?, ?, ?, ?)",
        (job_id, UNKNOWN, JobStatus.FAILED.value, *pair, ids.session_time, int(time.time())),
    )
    db.execute("INSERT INTO Scanned(JobId) VALUES(?)", (job_id,))
    text = f"job {name} is known only because a later one builds on it: plug in its magazine and restore or scan it"
    db.execute("INSERT INTO Log(JobId, Time, Kind, Text) VALUES(?, ?, 'error', ?)", (job_id, int(time.time()), text))
    return job_id


def _enter_places(db: Database, copy: Copy, media: Sequence[Media], job_id: int) -> None:
    media_ids = {item.name: _enter_media(db, item) for item in media}
    write_stretches(db, job_id, [Stretch(media_ids[name], *rest) for name, *rest in copy.stretches])
    numbers.enter_sessions(db, copy.sessions)


def _enter_media(db: Database, item: Media) -> int:
    """The volume's row as the newest of the copies has it."""
    found = db.execute("SELECT MediaId, VolBytes FROM Media WHERE VolumeName=?", (item.name,)).fetchone()
    values = (item.bytes, item.status.value, item.first_written, item.last_written)
    if found is None:
        db.execute(
            "INSERT INTO Media(VolBytes, VolStatus, FirstWritten, LastWritten, VolumeName, Magazine, Identity, Pool) "
            "VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, item.name, item.magazine, item.identity, item.pool),
        )
        found = db.execute("SELECT MediaId, VolBytes FROM Media WHERE VolumeName=?", (item.name,)).fetchone()
    elif found[1] < item.bytes:
        db.execute(
            "UPDATE Media SET VolBytes=?, VolStatus=?, FirstWritten=?, LastWritten=? WHERE MediaId=?",
            (*values, found[0]),
        )
    return int(found[0])
