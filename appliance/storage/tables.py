"""The tables of the catalog, in SQLite's words, and how a catalog of an older version becomes one of this."""

from __future__ import annotations

import secrets
import shutil
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from appliance.storage import folders
from appliance.storage.database import PART, CatalogError, Database, declared, open_database

SCHEMA_VERSION = 6
_MANY = 500_000  # files, of which bringing up a catalog takes more than a few seconds
# Below this number the sessions of a new catalog begin. Bacula's catalogs have 31 bits for it, a scan believes what is
# below a thousand millions.
SESSIONS = 500_000_000

_FIRST = (
    """CREATE TABLE Media(MediaId INTEGER PRIMARY KEY, VolumeName TEXT NOT NULL UNIQUE, Magazine TEXT NOT NULL,
       Identity TEXT NOT NULL, Pool TEXT NOT NULL, VolBytes INTEGER NOT NULL, VolStatus TEXT NOT NULL,
       FirstWritten INTEGER NOT NULL DEFAULT 0, LastWritten INTEGER NOT NULL DEFAULT 0)""",
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
_STEPS: dict[int, tuple[str | Callable[[Database], None], ...]] = {
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
    # The last numbers given out: none comes again even when rows are deleted (reference volume-format.md, 4.4).
    5: (
        "CREATE TABLE Counter(Name TEXT PRIMARY KEY, Last INTEGER NOT NULL)",
        "INSERT INTO Counter SELECT 'Session', coalesce(max(VolSessionId), 0) FROM Session",
        "INSERT INTO Counter SELECT 'Job', coalesce(max(JobId), 0) FROM Job",
    ),
    # Files and directories by their names, see names.py and folders.py.
    6: (
        "ALTER TABLE Path ADD COLUMN Folder BLOB",
        "CREATE TABLE Alone(PathId INTEGER PRIMARY KEY)",
        folders.fill,
        f"CREATE INDEX PathFolder ON Path((PathId >> {PART}), Folder)",
        f"CREATE INDEX FileName ON File(JobId, (FileIndex >> {PART}), Name)",
    ),
}


def make(db: Database) -> None:
    """Bring an empty or older catalog to this version, all or nothing. Raises the database's errors."""
    db.begin(durable=True)
    try:
        before = db.version()
        if before:
            _tell(db, before)
        for step in range(before + 1, SCHEMA_VERSION + 1):
            for statement in _STEPS[step]:
                if isinstance(statement, str):
                    db.declare(statement)
                else:
                    statement(db)
        if not before:
            # Two machines, and bscan, may begin in the same second: the other half of a session's name differs then.
            db.execute("UPDATE Counter SET Last=? WHERE Name='Session'", (secrets.randbelow(SESSIONS),))
        db.set_version(SCHEMA_VERSION)
        db.commit()
    except BaseException:
        db.rollback()
        raise


def _tell(db: Database, version: int) -> None:
    """Whoever opens a large catalog first has to wait."""
    (count,) = db.execute("SELECT coalesce(sum(JobFiles), 0) FROM Job").fetchone()
    if count >= _MANY:
        text = f"{db.name}: brought from version {version} to {SCHEMA_VERSION}; with {count} files this takes a while"
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def opened(path: Path, address: str) -> Database:
    """The database with tables of this version. Raises `CatalogError`, `OSError`."""
    db = open_database(path, address)
    try:
        version = db.version()
        if version < SCHEMA_VERSION:
            make(db)
        elif version > SCHEMA_VERSION:
            raise CatalogError(
                f"{db.name}: catalog of version {version}, this magbay knows version {SCHEMA_VERSION}",
                hint="Use the magbay that wrote it, or a newer one.",
            )
    except BaseException as error:
        db.close()
        if isinstance(error, db.errors):
            raise declared(db, error) from None
        raise
    return db


_MAGIC = b"SQLite format 3\0"  # sqlite.org/fileformat.html, 1.3
_OURS = {"Media", "Job", "JobMedia", "File", "Path"}


def check_file(path: Path) -> None:
    """Before anything is made beside it: is *path* a catalog, or may it become one (missing, or without content)?

    Raises `CatalogError`, `OSError`. Nothing is touched.
    """
    refused = CatalogError(f"{path}: is no catalog of magbay", hint="Name another file, or one that is not there yet.")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise refused
    except FileNotFoundError:
        return
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
    if not head:
        return
    log = path.with_name(path.name + "-wal")
    try:
        if head != _MAGIC:
            raise refused
        found = _tables_in(path)
        if not found and log.exists():  # a process was killed before any of it came into the file
            with tempfile.TemporaryDirectory(prefix="magbay-") as folder:
                copy = shutil.copyfile(path, Path(folder) / "copy")
                shutil.copyfile(log, copy.with_name("copy-wal"))
                found = _tables_in(copy, with_log=True)
    except sqlite3.Error:
        raise refused from None
    if found and not found >= _OURS:
        raise refused


def _tables_in(path: Path, *, with_log: bool = False) -> set[str]:
    address = path.absolute().as_uri() + ("" if with_log else "?mode=ro&immutable=1")
    with closing(sqlite3.connect(address, uri=True)) as db:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
