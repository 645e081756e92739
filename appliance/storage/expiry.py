"""Which jobs are still needed, and forgetting those that are not."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

from appliance.config.schema import Config
from appliance.storage import bases, folders, order
from appliance.storage.catalog import Catalog
from appliance.storage.database import Database
from appliance.storage.model import Job, JobStatus, Level, Media


def needed(catalog: Catalog, config: Config) -> set[int]:
    """JobIds that must stay readable.

    Those that run, those whose pool keeps them still (`retention`; without it, or without the pool, for ever), the
    newest good one of each name and host unless the pool says otherwise, and whatever these build on or may build on.
    What failed or was cancelled is not: nothing of it counts as saved, and it would keep the room that the next attempt
    needs.
    """
    now = time.time()
    jobs = {job.job_id: job for job in catalog.jobs()}  # newest first
    began = order.times(jobs.values())
    open_ended = _open_ended(catalog)
    kept = {
        job_id
        for job_id, job in jobs.items()
        if _is_kept(config, job, began[job_id], now)
        and (not job.status.bad or job_id in open_ended or catalog.is_alive(job_id))
    }
    newest: set[tuple[str, str]] = set()
    for job in jobs.values():
        if job.status.good and (job.name, job.client) not in newest:
            newest.add((job.name, job.client))
            if config.pools[job.pool].keep_newest if job.pool in config.pools else True:
                kept.add(job.job_id)
    _add_bases(jobs, kept)
    return kept


def _add_bases(jobs: Mapping[int, Job], kept: set[int]) -> None:
    """Add what the jobs *kept* build on. *jobs*: all, newest first.

    Where a chain has a hole (its magazine was away when the catalog was put back), what is missing may build on any job
    from the full one before it on.
    """
    before: dict[tuple[str, str, str], list[Job]] = defaultdict(list)
    place = {}
    for job in jobs.values():
        like = before[job.name, job.fileset_md5, job.client]
        place[job.job_id] = len(like)
        like.append(job)
    left, seen = list(kept), set()
    while left:
        job = jobs[left.pop()]
        if job.job_id in seen:
            continue
        seen.add(job.job_id)
        kept.add(job.job_id)
        if job.base is not None and job.base in jobs:
            left.append(job.base)
        if _has_hole(jobs, job):
            older = before[job.name, job.fileset_md5, job.client]
            for at in range(place[job.job_id] + 1, len(older)):
                one = older[at]
                if not one.status.good:
                    continue
                left.append(one.job_id)
                # What it has a hole before is added for it as well, or was already.
                if one.level is Level.FULL or _has_hole(jobs, one):
                    break


def _has_hole(jobs: Mapping[int, Job], job: Job) -> bool:
    """Whether what the job builds on is not in the catalog, or was not whole."""
    base = jobs.get(job.base) if job.base is not None else None
    return job.level is not Level.FULL and (base is None or base.status.bad)


def _is_kept(config: Config, job: Job, began: int, now: float) -> bool:
    """*began*: not before any job before it, so that a clock that was behind does not make it older than it is."""
    if job.status is JobStatus.PURGED:
        return False
    if job.status is JobStatus.RUNNING:
        return True
    pool = config.pools.get(job.pool)
    finished = max(job.finished, began) if began > job.started else job.finished
    return pool is None or pool.retention is None or finished + pool.retention > now


def _open_ended(catalog: Catalog) -> set[int]:
    """JobIds of scanned jobs that may turn out to be good when their other volumes are scanned; failed until then."""
    ended = catalog.rows("SELECT JobId, Ended FROM Scanned")
    return {job_id for job_id, status in ended if not status or bases.STATUS.get(status, JobStatus.FAILED).good}


def jobs_on(catalog: Catalog, media: Media) -> set[int]:
    """JobIds of all that began to write on the volume."""
    query = "SELECT DISTINCT JobId FROM JobMedia WHERE MediaId=?"
    return {job_id for (job_id,) in catalog.rows(query, (media.media_id,))}


def prune(catalog: Catalog, config: Config, *, dry_run: bool = False) -> list[Job]:
    """Purge every good job that is not needed, though its volumes still hold it; gives them, newest first.

    Names of directories that nothing refers to go as well, unless a job runs.
    """
    with catalog.transaction() as db:
        kept = needed(catalog, config)
        gone = [job for job in catalog.jobs() if job.status.good and job.job_id not in kept]
        if dry_run:
            return gone
        for job in gone:
            _forget_files(db, job.job_id)
            db.execute("DELETE FROM JobMedia WHERE JobId=?", (job.job_id,))
            db.execute("UPDATE Job SET JobStatus=? WHERE JobId=?", (JobStatus.PURGED.value, job.job_id))
        if gone and not catalog.jobs(status=JobStatus.RUNNING):
            _tidy(db)
    return gone


def _forget_files(db: Database, job_id: int) -> None:
    """Also what scans have found of the job: the next one must not take a beginning for found that is not there."""
    for table in ("File", "Scanned", "Loose"):
        db.execute(f"DELETE FROM {table} WHERE JobId=?", (job_id,))  # noqa: S608


def _tidy(db: Database) -> None:
    """Inside a transaction, when no job runs: names of directories without any files go.

    A scan may be about to enter files all the same; whoever remembers numbers of directories looks whether that was
    done since (`saved_files`), for a number that is free again is given to another directory.
    """
    db.execute(
        "INSERT INTO Counter VALUES(?, 1) ON CONFLICT(Name) DO UPDATE SET Last=Counter.Last+1", (folders.TIDIED,)
    )
    db.execute("DELETE FROM Path WHERE NOT EXISTS (SELECT 1 FROM File WHERE File.PathId=Path.PathId)")
    folders.look_again(db)


def forget(db: Database, job_ids: set[int], media: Media) -> None:
    """Inside a transaction: the jobs are purged, since what they have on the volume goes.

    Of a failed job the traces on other volumes stay: they tell whose tail stands there.
    """
    for job_id in job_ids:
        (status,) = db.execute("SELECT JobStatus FROM Job WHERE JobId=?", (job_id,)).fetchone()
        _forget_files(db, job_id)
        if JobStatus(status).good or JobStatus(status) is JobStatus.PURGED:
            db.execute("DELETE FROM JobMedia WHERE JobId=?", (job_id,))
            db.execute("UPDATE Job SET JobStatus=? WHERE JobId=?", (JobStatus.PURGED.value, job_id))
        else:
            db.execute("DELETE FROM JobMedia WHERE JobId=? AND MediaId=?", (job_id, media.media_id))
