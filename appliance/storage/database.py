"""The seam between the catalog and its database: what SQLite and PostgreSQL do differently, and nothing else.

Statements are written once, in words that both know, with question marks for values. Tables are declared in SQLite's
words (`tables.py`). Who changes something holds the database's one lock for writers, with both: a transaction sees
what it has read stay as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from appliance.errors import MagbayError
from appliance.host import files


class CatalogError(MagbayError):
    """The catalog cannot be read or written."""


# How long a process waits for another one's transaction, in seconds.
PATIENCE = 60
# An index by names is made of parts: of so many bits of a row's number are the rows of one part (`names.py`).
PART = 14
_FILE = "INSERT INTO File VALUES(?, ?, ?, ?, ?, ?, ?)"


class Rows(Protocol):
    """The answer to a statement."""

    def fetchone(self) -> Any:
        """The next row, None behind the last."""

    def __iter__(self) -> Iterator[Any]: ...


class Database(Protocol):
    """An open database. Errors are those of its library, see *errors*."""

    name: str
    """For messages."""
    errors: tuple[type[Exception], ...]
    remote: bool
    """Whether there is a connection that can break."""

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        """Run one statement."""

    def executemany(self, statement: str, rows: Sequence[Sequence[Any]]) -> object:
        """Run one statement for each of *rows*."""

    def stream(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Rows of a query that may be millions, in bounded memory."""

    def begin(self, *, durable: bool) -> None:
        """Begin a transaction that may change something; others that would wait. *durable*: on disk at its commit."""

    def commit(self) -> None:
        """End the transaction."""

    def rollback(self) -> None:
        """Give the transaction up; nothing when there is none."""

    def transaction(self) -> int:
        """The number of the one that was begun last, if they have numbers."""

    def has_kept(self, number: int) -> bool | None:
        """Whether that transaction was committed, and is still known after a crash; None while it goes on."""

    def is_lost(self, error: Exception) -> bool:
        """Whether *error* says that the connection is lost, or cannot be made just now."""

    def reconnect(self) -> None:
        """Make the connection again."""

    def version(self) -> int:
        """Of the tables, 0 when there are none."""

    def set_version(self, version: int) -> None:
        """Inside a transaction."""

    def declare(self, statement: str) -> None:
        """Run a statement of `tables.py`."""

    def add_files(self, rows: Sequence[Sequence[Any]], *, again: bool) -> None:
        """Insert rows of File, fast; with *again* those that are there stay."""

    def path_ids(self, paths: Sequence[bytes]) -> dict[bytes, int]:
        """The numbers of those directories that have a row in Path."""

    def numbers_follow(self, table: str, column: str) -> None:
        """Rows with numbers of their own were inserted: those that the database gives out go on behind them."""

    @staticmethod
    def advice(error: Exception) -> str:
        """What to do about an error."""

    def close(self) -> None:
        """Let it go."""


class SQLite:
    """The catalog in one file."""

    errors: tuple[type[Exception], ...] = (sqlite3.Error,)
    remote = False

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
        except sqlite3.Error:
            self._db.close()
            raise

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        """Run one statement."""
        return self._db.execute(statement, values)

    def executemany(self, statement: str, rows: Sequence[Sequence[Any]]) -> object:
        """Run it for each of *rows*."""
        return self._db.executemany(statement, rows)

    def stream(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """As they come."""
        return iter(self._db.execute(statement, values))

    def begin(self, *, durable: bool) -> None:
        """As the writer at once. The commit of a later durable one makes this one durable too: one WAL holds both."""
        self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """End the transaction."""
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Give the transaction up."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def transaction(self) -> int:
        """They have none."""
        return 0

    def has_kept(self, number: int) -> bool | None:
        """Nobody asks: a file does not go away and come back."""
        return False

    def is_lost(self, error: Exception) -> bool:
        """Never."""
        return False

    def reconnect(self) -> None:
        """Nothing to do."""

    def version(self) -> int:
        """The file's user version."""
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def set_version(self, version: int) -> None:
        """Set it; at the first time the file gets its mode and owner."""
        if self.version() == 0:
            self._path.chmod(0o640)
            files.adopt(self._path, self._path.parent)
        self._db.execute(f"PRAGMA user_version={version}")

    def declare(self, statement: str) -> None:
        """Run it as it is."""
        self._db.execute(statement)

    def add_files(self, rows: Sequence[Sequence[Any]], *, again: bool) -> None:
        """One by one; that is fast here."""
        self._db.executemany(_FILE + (" ON CONFLICT DO NOTHING" if again else ""), rows)

    def path_ids(self, paths: Sequence[bytes]) -> dict[bytes, int]:
        """One by one; that is fast here."""
        query = "SELECT PathId FROM Path WHERE Path=?"
        found = ((path, self._db.execute(query, (path,)).fetchone()) for path in paths)
        return {path: int(row[0]) for path, row in found if row}

    def numbers_follow(self, table: str, column: str) -> None:
        """They do so by themselves."""

    @staticmethod
    def advice(error: Exception) -> str:
        """By the error's name (sqlite.org/rescode.html)."""
        code = getattr(error, "sqlite_errorname", "")
        if code.startswith("SQLITE_FULL"):
            return "Free some space on the file system of state_dir and try again."
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return "Another magbay holds it for long; try again when that one is done."
        if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return "The catalog is damaged: 'magbay catalog restore --force' brings it back from the magazines."
        if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            return "Run as the user who owns state_dir."
        return "Look at the file system of state_dir: it may be full, or its disk may fail."

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def open_database(path: Path, address: str) -> Database:
    """The database at *address* (postgresql://…), or else in the file *path*.

    Raises `CatalogError`, also when its library is missing.
    """
    kind: type[SQLite] | type[PostgreSQL] = SQLite
    if address:
        try:
            from appliance.storage.postgresql import PostgreSQL
        except ImportError:
            hint = "Install the package python3-psycopg (or: pip install 'psycopg[binary]')."
            raise CatalogError("a catalog in PostgreSQL needs the Python library psycopg (3)", hint=hint) from None
        kind = PostgreSQL
    try:
        return PostgreSQL(address) if address else SQLite(path)
    except kind.errors as error:
        raise CatalogError(f"{address.partition('?')[0] or path}: {error}".strip(), hint=kind.advice(error)) from None


def declared(db: Database, error: Exception) -> CatalogError:
    """An error of *db*, as it is told."""
    return CatalogError(f"{db.name}: {error}".strip(), hint=db.advice(error))
