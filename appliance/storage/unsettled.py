"""Jobs that a scan has entered from whole volumes and has not put together yet: a line in their log says so.

A scan that is ended before it does that, or whose process dies, leaves them to the next one, which need not read their
volumes again. While a volume is read its jobs have no such line: half of it is nothing to judge by.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from appliance.storage.catalog import Catalog
from appliance.storage.database import Database

# `settling` takes away every line that begins so, and writes what became of the job.
_TEXT = "entered by a scan of its volumes: not put together yet, scan again"


def add(db: Database, job_ids: Iterable[int]) -> None:
    """Inside a transaction, when a volume of the jobs was read to its end."""
    for job_id in job_ids:
        remove(db, job_id)
        line = (job_id, int(time.time()), "error", _TEXT)
        db.execute("INSERT INTO Log(JobId, Time, Kind, Text) VALUES(?, ?, ?, ?)", line)


def remove(db: Database, job_id: int) -> None:
    """Inside a transaction, when the job is met on a volume."""
    db.execute("DELETE FROM Log WHERE JobId=? AND Text=?", (job_id, _TEXT))


def jobs(catalog: Catalog) -> set[int]:
    """Their numbers."""
    query = "SELECT JobId FROM Scanned WHERE EXISTS (SELECT 1 FROM Log WHERE Log.JobId=Scanned.JobId AND Text=?)"
    return {job_id for (job_id,) in catalog.rows(query, (_TEXT,))}
