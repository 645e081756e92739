"""Directories in the catalog: what their rows say of their names, so that they are found by them.

A row of Path has the last component of its directory in the column Folder. A directory that was not saved itself, but
something in it, has no row of its own; which rows have none above them is kept in the table Alone, and of these every
component is looked at. A backup enters directories behind their contents, so whether they are alone shows at its end.
"""

from __future__ import annotations

from appliance.storage.database import Database

# The row of the directory above; the shortest names have none.
_ABOVE = (
    "(length(Path.Path)<length(Path.Folder)+2 OR EXISTS (SELECT 1 FROM Path above WHERE above.Path="
    "substr(Path.Path, 1, CASE WHEN length(Path.Path)<length(Path.Folder)+2 THEN 0 "
    "ELSE length(Path.Path)-length(Path.Folder)-1 END)))"
)
_BATCH = 10_000
TIDIED = "Tidied"
"""The row of Counter that says how often rows of Path were taken away."""


def split(path: bytes) -> tuple[bytes, bytes]:
    """The last component of a directory's *path* (with a slash at its end), and the path of the directory above."""
    folder = path[path.rfind(b"/", 0, -1) + 1 : -1]
    return folder, path[: len(path) - len(folder) - 1]


def fill(db: Database) -> None:
    """Inside a transaction: enter the components of rows that were made before there were any, and which are alone."""
    last = 0
    while True:
        query = "SELECT PathId, Path FROM Path WHERE PathId>? ORDER BY PathId LIMIT ?"
        rows = [(split(bytes(path))[0], path_id) for path_id, path in db.execute(query, (last, _BATCH))]
        if not rows:
            break
        last = rows[-1][1]
        db.executemany("UPDATE Path SET Folder=? WHERE PathId=?", rows)
    look_again(db)


def tidied(db: Database) -> int:
    """How often rows of Path were taken away; inside a transaction that holds until its end."""
    found = db.execute("SELECT Last FROM Counter WHERE Name=?", (TIDIED,)).fetchone()
    return int(found[0]) if found else 0


def look_again(db: Database) -> None:
    """Inside a transaction: note anew which rows are alone, since some of those above may be gone."""
    db.execute("DELETE FROM Alone")
    db.execute(f"INSERT INTO Alone SELECT PathId FROM Path WHERE NOT {_ABOVE}")  # noqa: S608


def settle(db: Database) -> None:
    """Inside a transaction, at the end of a job: what has a row above it by now is not alone."""
    db.execute(f"DELETE FROM Alone WHERE EXISTS (SELECT 1 FROM Path WHERE Path.PathId=Alone.PathId AND {_ABOVE})")  # noqa: S608
