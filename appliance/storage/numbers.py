"""The numbers of sessions and jobs: the next ones that a catalog gives out, and those that volumes and copies bring."""

from __future__ import annotations

import time
from collections.abc import Iterable

from appliance.storage.database import Database
from appliance.volumes.blocks import SessionIds
from appliance.volumes.streams import ATTRIBUTES, TYPE_MASK

_MOST = 10**9


def may_be_kept(number: int) -> bool:
    """Whether a number of a session or job from elsewhere is; one of a hostile volume must not use up what there is."""
    return 0 < number < _MOST


def new_session(db: Database) -> SessionIds:
    """A pair that no other session has or will have. Inside a transaction."""
    now = int(time.time())
    ids = SessionIds(_last(db, "Session", "VolSessionId") + 1, now)
    # Jobs that a scan entered may have ids of other machines.
    while db.execute("SELECT 1 FROM Job WHERE VolSessionId=? AND VolSessionTime=?", ids).fetchone():
        ids = SessionIds(ids.session_id + 1, now)
    db.execute("INSERT INTO Session(VolSessionId, VolSessionTime) VALUES(?, ?)", ids)
    db.execute("UPDATE Counter SET Last=? WHERE Name='Session'", (ids.session_id,))
    return ids


def enter_sessions(db: Database, sessions: Iterable[SessionIds]) -> None:
    """Sessions that this catalog gave out before it was lost: they are not given out again. Inside a transaction."""
    db.executemany(
        "INSERT INTO Session(VolSessionId, VolSessionTime) VALUES(?, ?) ON CONFLICT DO NOTHING",
        [ids for ids in sessions if may_be_kept(ids.session_id)],
    )


def next_job_id(db: Database) -> int:
    """The next JobId whose number is no attributes stream. Inside a transaction.

    A session label carries the JobId where other records have their stream, and stock `bls` lists the labels of
    such a job as files.
    """
    job_id = _last(db, "Job", "JobId") + 1
    while job_id & TYPE_MASK in ATTRIBUTES:
        job_id += 1
    db.execute("UPDATE Counter SET Last=? WHERE Name='Job'", (job_id,))
    return job_id


def _last(db: Database, table: str, column: str) -> int:
    """The highest number that was given out, or entered by a scan."""
    (given,) = db.execute("SELECT Last FROM Counter WHERE Name=?", (table,)).fetchone()
    (found,) = db.execute(f"SELECT coalesce(max({column}), 0) FROM {table}").fetchone()  # noqa: S608
    return max(int(given), int(found))
