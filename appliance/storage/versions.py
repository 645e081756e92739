"""The versions of files that an extraction of several jobs meets: which it made, and which of them is the newest.

Volumes of two magazines that were used in turn hold jobs in no order in which they could be read: the one has Monday's
and Wednesday's, the other Tuesday's. What a job has counts, wherever it comes, if no job that began later had it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import NamedTuple

from appliance.errors import MagbayError
from appliance.storage.targets import Parts
from appliance.volumes.blocks import SessionIds
from appliance.volumes.events import SessionStart

_Time = tuple[int, int]
"""When a job began: microseconds since 1970, as its label says; of two in one second (labels of ours have whole ones)
the one with the higher session number is the later one."""
_NEVER: _Time = (0, 0)


class _Made(NamedTuple):
    """The version that is at a path. *name*: hash of the name as it was saved."""

    began: _Time
    is_directory: bool
    name: int


class Versions:
    """Remembers what was made, of any number of files in little memory: hashes of 64 bits in SQLite's nameless file.

    Tell it of each volume, session and file, in the order in which they come. Raises `MagbayError` when there is no
    room for it.
    """

    def __init__(self) -> None:
        # An empty name: a database of its own, on the disk only as far as it does not fit in the cache.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(
            "CREATE TABLE made (path INTEGER PRIMARY KEY, began INTEGER, session INTEGER, directory INTEGER, "
            "name INTEGER)"
        )
        self._database.execute("BEGIN")
        self._began: dict[SessionIds, _Time] = {}
        self._least = _NEVER  # what stands behind something on one volume is not older, whatever the clock was
        self._newest = _NEVER

    def begin_volume(self) -> None:
        """What comes now is on another volume."""
        self._least = _NEVER

    def begin_job(self, event: SessionStart) -> None:
        """What comes of this session is of a job that began at the time in its label."""
        if event.label is None:  # on a volume that is not here
            self._began.setdefault(event.ids, self._newest)
            return
        self._began[event.ids] = self._least = max(self._least, (event.label.time, event.ids.session_id))
        self._newest = max(self._newest, self._least)

    def add(self, ids: SessionIds, parts: Parts, name: bytes, *, is_directory: bool) -> None:
        """The session's version of *name* (as it was saved) is to be at *parts*."""
        row = (hash(parts), *self._began.get(ids, self._newest), is_directory, hash(name.rstrip(b"/")))
        try:
            self._database.execute("INSERT OR REPLACE INTO made VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            hint = "Make room where temporary files are, or set SQLITE_TMPDIR."
            raise MagbayError(f"the list of what is restored cannot be written: {error}", hint=hint) from None

    def __contains__(self, parts: Parts) -> bool:
        return self._found(parts) is not None

    def has(self, parts: Parts, name: bytes) -> bool:
        """Whether what was made at *parts* is a version of *name*."""
        found = self._found(parts)
        return found is not None and found.name == hash(name.rstrip(b"/"))

    def _found(self, parts: Parts) -> _Made | None:
        query = "SELECT began, session, directory, name FROM made WHERE path=?"
        row = self._database.execute(query, (hash(parts),)).fetchone()
        return _Made((row[0], row[1]), bool(row[2]), row[3]) if row else None

    def outdated(self, ids: SessionIds, parts: Parts, is_there: Callable[[Parts], bool]) -> bool:
        """Whether a newer job's version of it, or of a file where a directory above it would be, *is_there*."""
        began = self._began.get(ids, self._newest)
        if began >= self._newest:
            return False
        for depth in range(len(parts), 0, -1):
            found = self._found(parts[:depth])
            if found is None or found.began <= began or (depth < len(parts) and found.is_directory):
                continue
            if is_there(parts[:depth]):
                return True
        return False

    def close(self) -> None:
        """Forget all."""
        self._database.close()
