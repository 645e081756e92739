"""A whole catalog from one database into another: from SQLite to PostgreSQL, or back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from appliance.errors import MagbayError
from appliance.storage.catalog import Catalog
from appliance.storage.database import Database
from appliance.storage.model import JobStatus

# In both databases the columns stand in the order in which `tables.py` declares them.
_TABLES = ("Media", "Session", "Job", "JobMedia", "Path", "Alone", "File", "Log", "Scanned", "Loose", "Counter")
# Columns whose numbers the database gives out itself.
_NUMBERED = (("Media", "MediaId"), ("JobMedia", "JobMediaId"), ("Path", "PathId"), ("Log", "LogId"))
_BATCH = 2000


def copy(source: Catalog, target: Catalog, told: Callable[[str], None] = lambda text: None) -> int:
    """Enter all rows of *source* in the empty catalog *target*, all or nothing; gives how many files that were.

    *told* hears of each table. Raises `MagbayError` when a job runs or *target* is not empty, `CatalogError`.
    """
    source.recover()
    if running := source.jobs(status=JobStatus.RUNNING):
        hint = "Wait for it, or end it with 'magbay cancel'."
        raise MagbayError(f"job {running[0].job_id} runs: the catalog changes", hint=hint)
    if target.jobs() or target.media():
        raise MagbayError("the catalog to copy to is not empty", hint="Name an empty database, schema or a new file.")
    files = 0
    with target.transaction() as db:
        db.execute("DELETE FROM Counter")
        for table in _TABLES:
            count = _copy_table(source, db, table)
            told(f"{table}: {count} rows")
            files = count if table == "File" else files
        for table, column in _NUMBERED:
            db.numbers_follow(table, column)
    return files


def _copy_table(source: Catalog, db: Database, table: str) -> int:
    count = 0
    waiting: list[Sequence[Any]] = []
    for row in source.rows(f"SELECT * FROM {table}", many=True):  # noqa: S608
        waiting.append(row)
        if len(waiting) >= _BATCH:
            count += _insert(db, table, waiting)
            waiting = []
    return count + _insert(db, table, waiting)


def _insert(db: Database, table: str, rows: Sequence[Sequence[Any]]) -> int:
    if not rows:
        return 0
    if table == "File":
        db.add_files(rows, again=False)
    else:
        db.executemany(f"INSERT INTO {table} VALUES({', '.join('?' * len(rows[0]))})", rows)
    return len(rows)
