"""What scanned jobs build on. Labels do not say it: it is found by name, fileset, client and order (`order`)."""

from __future__ import annotations

import functools
import heapq
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from appliance.storage import order
from appliance.storage.database import Database
from appliance.storage.model import KNOWN_FILESET, JobStatus, Level

STATUS = {"T": JobStatus.DONE, "W": JobStatus.WARNINGS, "e": JobStatus.WARNINGS, "A": JobStatus.CANCELLED}
"""What end labels say (volume format, 4.3); all else is a failure."""
_ROWS = (
    "SELECT Started, Job.JobId, Level, JobStatus, coalesce(Ended, ''), Scanned.JobId IS NOT NULL, BaseJobId, Name, "
    "FileSetMD5, Client, VolSessionId, VolSessionTime, FileSet FROM Job LEFT JOIN Scanned ON Scanned.JobId=Job.JobId "
    "WHERE Type='B'"
)


class _Job(NamedTuple):
    """A row of the query."""

    started: int
    job_id: int
    level: str
    status: str
    ended: str  # as the end label says, nothing for a job that no scan entered
    scanned: bool
    base: int | None
    name: str
    fileset: str
    client: str
    session_id: int
    session_time: int
    fileset_text: str

    @property
    def known(self) -> bool:
        """Whether what it builds on need not be found: it was entered when it was made, or with its copy."""
        return not self.scanned or self.fileset_text.startswith(KNOWN_FILESET)


def find(db: Database, job_ids: Iterable[int]) -> None:
    """Inside a transaction: enter what the jobs, and all scanned ones like them, build on; a new one may stand between.

    The jobs are read once, however many of one name there are: a volume may hold thousands.
    """
    groups: dict[tuple[str, str, str], list[_Job]] = defaultdict(list)
    jobs = {}
    place: dict[int, int] = {}
    for job in order.oldest_first(_Job(*row) for row in db.execute(_ROWS)):
        place[job.job_id] = len(place)
        jobs[job.job_id] = job
        groups[job.name, job.fileset, job.client].append(job)
    # Jobs of no client count for each client: the job with the highest number has the last word on them.
    asked: dict[tuple[str, str, str], None] = {}
    for job_id in sorted(job_ids):
        name, fileset, client = db.execute(
            "SELECT Name, FileSetMD5, Client FROM Job WHERE JobId=?", (job_id,)
        ).fetchone()
        asked.pop((name, fileset, client), None)
        asked[name, fileset, client] = None
    found: dict[int, int | None] = {}
    for name, fileset, client in asked:
        of_nobody = groups.get((name, fileset, ""), []) if client else []
        of_it = groups.get((name, fileset, client), [])
        found |= _bases(heapq.merge(of_it, of_nobody, key=lambda job: place[job.job_id]))
    for job_id, base in found.items():
        if base != jobs[job_id].base:
            db.execute("UPDATE Job SET BaseJobId=? WHERE JobId=?", (base, job_id))


def _bases(jobs: Iterable[_Job]) -> dict[int, int | None]:
    """What each scanned one of these jobs, the oldest first, builds on."""
    bases = {}
    full: int | None = None
    newest: int | None = None
    for job in jobs:
        if not job.known:
            bases[job.job_id] = {Level.FULL.value: None, Level.DIFFERENTIAL.value: full}.get(job.level, newest)
        # By what its end says: of a full backup that is not whole, too, the rest is better than nothing.
        if _counts(job.status, job.ended):
            newest = job.job_id
            full = job.job_id if job.level == Level.FULL.value else full
    return bases


@functools.lru_cache
def _counts(status: str, ended: str) -> bool:
    if status == JobStatus.PURGED.value:
        return True  # only a good one is purged, and what came behind it was built on it, whatever is left of it
    return STATUS.get(ended, JobStatus(status)).good
