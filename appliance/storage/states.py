"""The state that several jobs together hold, for looking up many paths one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.storage.catalog import Catalog
from appliance.storage.model import SavedFile

# Directory ids kept at hand; walking stays in one neighbourhood.
_PATHS = 10_000


class State:
    """The newest version of each path in the jobs of *chain* (JobIds, oldest first). One at a time on a catalog.

    It is a temporary table of the database, with an index on directory and name, which the table of files has not:
    there a look-up reads the whole directory.
    """

    def __init__(self, catalog: Catalog, chain: Sequence[int]) -> None:
        self._catalog = catalog
        self._paths: dict[bytes, int | None] = {}
        with catalog.transaction(durable=False) as db:
            db.execute("DROP TABLE IF EXISTS Newest")
            db.declare(
                "CREATE TEMP TABLE Newest(PathId INTEGER NOT NULL, Name BLOB NOT NULL, JobId INTEGER NOT NULL, "
                "FileIndex INTEGER NOT NULL, UNIQUE(PathId, Name))"
            )
            for job_id in chain:
                db.execute(
                    "INSERT INTO Newest(PathId, Name, JobId, FileIndex) "
                    "SELECT PathId, Name, JobId, FileIndex FROM File WHERE JobId=? "
                    "ON CONFLICT(PathId, Name) DO UPDATE SET JobId=excluded.JobId, FileIndex=excluded.FileIndex",
                    (job_id,),
                )

    def find(self, path: bytes) -> SavedFile | None:
        """The newest version of *path* (a directory's with a slash at its end), which may be a deletion; or None."""
        cut = path.rfind(b"/") + 1
        query = (
            "SELECT f.JobId, f.FileIndex, f.Type, f.LStat, f.Digest FROM Newest n "
            "JOIN File f ON f.JobId=n.JobId AND f.FileIndex=n.FileIndex WHERE n.PathId=? AND n.Name=?"
        )
        for job_id, index, kind, lstat, digest in self._catalog.rows(query, (self._path_id(path[:cut]), path[cut:])):
            return SavedFile(job_id, index, kind, path, lstat, digest)
        return None

    def _path_id(self, path: bytes) -> int | None:
        if path not in self._paths:
            if len(self._paths) >= _PATHS:
                self._paths.clear()
            found = next(iter(self._catalog.rows("SELECT PathId FROM Path WHERE Path=?", (path,))), None)
            self._paths[path] = found[0] if found else None
        return self._paths[path]
