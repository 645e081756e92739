"""Accurate backups: the tree compared with the state that the jobs before have saved.

The state is a temporary table of the catalog's database, which lies on disk when it is large; in memory there is one
bit a file.
"""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from appliance.storage.catalog import Catalog
from appliance.storage.database import Database
from appliance.storage.unread import Unread
from appliance.storage.walk import GONE, Found
from appliance.volumes.attributes import FileType
from appliance.volumes.stat64 import decode_number, encode_number

# Directory ids kept at hand; walking stays in one neighbourhood.
_PATHS = 10_000
_BATCH = 1000
# Positions in an encoded stat (volume format, 6.3).
_MODE, _SIZE, _MTIME, _CTIME = 2, 7, 11, 12


@dataclass(frozen=True)
class Gone:
    """Something that was saved and is not there any more; times in Unix seconds, as last known."""

    path: bytes
    mtime: int
    ctime: int


class Before:
    """What the jobs of *chain* (JobIds, oldest first) together hold. One at a time on a catalog."""

    def __init__(self, catalog: Catalog, chain: Sequence[int]) -> None:
        self._catalog = catalog
        self._chain = tuple(chain)
        self._paths: dict[bytes, int | None] = {}
        self._unread = Unread()
        self._seen = bytearray()
        catalog.renewed(self._make)

    def _make(self, db: Database) -> None:
        """Fill the table. The numbers are the same each time, as the rows come in the same order."""
        self._paths.clear()
        db.execute("DROP TABLE IF EXISTS Known")
        db.declare(
            "CREATE TEMP TABLE Known(Number INTEGER PRIMARY KEY, PathId INTEGER NOT NULL, Name BLOB NOT NULL, "
            "Type INTEGER NOT NULL, LStat TEXT NOT NULL, UNIQUE(PathId, Name))"
        )
        for job_id in self._chain:
            db.execute(
                "INSERT INTO Known(PathId, Name, Type, LStat) "
                "SELECT PathId, Name, Type, LStat FROM File WHERE JobId=? ORDER BY FileIndex "
                "ON CONFLICT(PathId, Name) DO UPDATE SET Type=excluded.Type, LStat=excluded.LStat",
                (job_id,),
            )
        db.execute("DELETE FROM Known WHERE Type=?", (FileType.DELETED,))
        (last,) = db.execute("SELECT coalesce(max(Number), 0) FROM Known").fetchone()
        self._seen = self._seen or bytearray(last // 8 + 1)

    def differs(self, found: Found) -> bool:
        """Whether the thing is new or other than it was saved; from now on it is known to be there."""
        path = found.path
        if modes.S_ISDIR(found.stat.st_mode) and not path.endswith(b"/"):
            path += b"/"
        cut = path.rfind(b"/") + 1
        path_id = self._path_id(path[:cut])
        query = "SELECT Number, LStat FROM Known WHERE PathId=? AND Name=?"
        for number, lstat in self._catalog.rows(query, (path_id, path[cut:])):
            self._seen[number >> 3] |= 1 << (number & 7)
            fields = lstat.encode("ascii").split(b" ")
            return (fields[_MODE], fields[_SIZE], fields[_MTIME], fields[_CTIME]) != _numbers(found.stat)
        return True

    def trouble(self, path: bytes, error: OSError, *, named: bool = False) -> None:
        """*path* could not be looked at: unless it is gone, what was saved of it and in it counts as there.

        Of what was *named* to be saved also then: it is more likely not mounted than deleted.
        """
        if named or error.errno not in GONE:
            self._unread.add(path)

    def gone(self) -> Iterator[Gone]:
        """What the walk did not find again."""
        query = (
            "SELECT Number, Path, Name, LStat FROM Known JOIN Path USING(PathId) WHERE Number>? ORDER BY Number LIMIT ?"
        )
        last = 0
        # In batches: a query that stays open would hold the catalog as it was, and the caller writes to it.
        while rows := list(self._catalog.rows(query, (last, _BATCH))):
            for number, path, name, lstat in rows:
                if not self._seen[number >> 3] & 1 << (number & 7) and not self._unread.covers(path + name):
                    fields = lstat.encode("ascii").split(b" ")
                    yield Gone(path + name, decode_number(fields[_MTIME]), decode_number(fields[_CTIME]))
            last = rows[-1][0]

    def _path_id(self, path: bytes) -> int | None:
        if path not in self._paths:
            if len(self._paths) >= _PATHS:
                self._paths.clear()
            found = next(iter(self._catalog.rows("SELECT PathId FROM Path WHERE Path=?", (path,))), None)
            self._paths[path] = found[0] if found else None
        return self._paths[path]


def _numbers(status: os.stat_result) -> tuple[bytes, bytes, bytes, bytes]:
    mtime, ctime = status.st_mtime_ns // 1_000_000_000, status.st_ctime_ns // 1_000_000_000
    mode, size = encode_number(status.st_mode), encode_number(status.st_size)
    return mode, size, encode_number(mtime), encode_number(ctime)
