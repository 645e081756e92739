"""The tables of the catalog, and how a catalog of an older version becomes one of this."""

from __future__ import annotations

import sqlite3

SCHEMA_VERSION = 4

_FIRST = (
    """CREATE TABLE Media(MediaId INTEGER PRIMARY KEY, VolumeName TEXT NOT NULL UNIQUE, Magazine TEXT NOT NULL,
       Identity TEXT NOT NULL, Pool TEXT NOT NULL, VolBytes INTEGER NOT NULL, VolStatus TEXT NOT NULL,
       FirstWritten INTEGER NOT NULL DEFAULT 0, LastWritten INTEGER NOT NULL DEFAULT 0)""",
    # AUTOINCREMENT: an id is not used again even when rows are deleted (reference volume-format.md, 4.4).
    """CREATE TABLE Session(VolSessionId INTEGER PRIMARY KEY AUTOINCREMENT, VolSessionTime INTEGER NOT NULL)""",
    """CREATE TABLE Job(JobId INTEGER PRIMARY KEY AUTOINCREMENT, Name TEXT NOT NULL, Level TEXT NOT NULL,
       JobStatus TEXT NOT NULL, Pool TEXT NOT NULL, FileSet TEXT NOT NULL, FileSetMD5 TEXT NOT NULL, BaseJobId INTEGER,
       VolSessionId INTEGER NOT NULL, VolSessionTime INTEGER NOT NULL, Started INTEGER NOT NULL,
       Finished INTEGER NOT NULL DEFAULT 0, JobFiles INTEGER NOT NULL DEFAULT 0,
       ReadBytes INTEGER NOT NULL DEFAULT 0, JobBytes INTEGER NOT NULL DEFAULT 0,
       JobErrors INTEGER NOT NULL DEFAULT 0, Warnings INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE JobMedia(JobMediaId INTEGER PRIMARY KEY, JobId INTEGER NOT NULL, MediaId INTEGER NOT NULL,
       FirstIndex INTEGER NOT NULL, LastIndex INTEGER NOT NULL, StartAddress INTEGER NOT NULL,
       EndAddress INTEGER NOT NULL)""",
    "CREATE INDEX JobMediaJob ON JobMedia(JobId)",
    "CREATE INDEX JobMediaMedia ON JobMedia(MediaId)",
    # Names are bytes, as the file system has them; a directory has the empty name in its own path, as in Bacula.
    "CREATE TABLE Path(PathId INTEGER PRIMARY KEY, Path BLOB NOT NULL UNIQUE)",
    """CREATE TABLE File(JobId INTEGER NOT NULL, FileIndex INTEGER NOT NULL, PathId INTEGER NOT NULL,
       Name BLOB NOT NULL, Type INTEGER NOT NULL, LStat TEXT NOT NULL, Digest TEXT NOT NULL,
       PRIMARY KEY(JobId, FileIndex)) WITHOUT ROWID""",
    """CREATE TABLE Log(LogId INTEGER PRIMARY KEY, JobId INTEGER NOT NULL, Time INTEGER NOT NULL,
       Kind TEXT NOT NULL, Text TEXT NOT NULL)""",
    "CREATE INDEX LogJob ON Log(JobId)",
)
# What leads from the version before to this one.
_STEPS: dict[int, tuple[str, ...]] = {
    1: _FIRST,
    2: (
        "ALTER TABLE Media ADD COLUMN Recycled INTEGER NOT NULL DEFAULT 0",  # how often it was written anew
        "ALTER TABLE Job ADD COLUMN Waiting TEXT NOT NULL DEFAULT ''",  # for which magazines it waits just now
    ),
    # One file or directory out of millions; the key of the table stands behind the two columns by itself.
    3: ("CREATE INDEX FilePath ON File(PathId, JobId)",),
    # What a scan of volumes has to keep: see scanned.py and settling.py.
    4: (
        "ALTER TABLE Job ADD COLUMN Client TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE Job ADD COLUMN Type TEXT NOT NULL DEFAULT 'B'",
        "CREATE INDEX JobSession ON Job(VolSessionId, VolSessionTime)",
        # Of stretches that a scan found: block numbers of the first and last block, bytes of file data.
        "ALTER TABLE JobMedia ADD COLUMN FirstBlock INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE JobMedia ADD COLUMN LastBlock INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE JobMedia ADD COLUMN DataBytes INTEGER NOT NULL DEFAULT 0",
        # Jobs that were entered by a scan: whether their beginning was found, and the status in their end label.
        """CREATE TABLE Scanned(JobId INTEGER PRIMARY KEY, Begun INTEGER NOT NULL DEFAULT 0,
           Ended TEXT NOT NULL DEFAULT '')""",
        # Records whose other part, or whose file, is on a volume that was not scanned yet.
        """CREATE TABLE Loose(JobId INTEGER NOT NULL, FileIndex INTEGER NOT NULL, Stream INTEGER NOT NULL,
           Missing INTEGER NOT NULL, Data BLOB NOT NULL, PRIMARY KEY(JobId, FileIndex, Stream, Missing))""",
    ),
}


def make(db: sqlite3.Connection, version: int) -> None:
    """Bring a catalog of *version* (0: an empty file) to this version, all or nothing. Raises `sqlite3.Error`."""
    db.execute("BEGIN IMMEDIATE")
    for step in range(version + 1, SCHEMA_VERSION + 1):
        for statement in _STEPS[step]:
            db.execute(statement)
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    db.execute("COMMIT")
