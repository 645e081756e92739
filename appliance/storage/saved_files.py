"""File rows of the catalog: written in batches while a job runs, read again for restore and verify."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Sequence

from appliance.storage import folders
from appliance.storage.catalog import Catalog
from appliance.storage.database import Database
from appliance.storage.digests import ALGORITHMS
from appliance.storage.model import SavedFile
from appliance.volumes.attributes import FileType
from appliance.volumes.stat64 import EncodedStat

# Rows of one transaction: large enough to cost nothing, small enough that other jobs hardly wait.
_BATCH = 2000
# Where a crash of the server may take away commits that were not waited for, every so many are.
_DURABLE = 16
# Directory ids kept at hand; walking stays in one neighbourhood, so a small memory does.
_PATHS = 10_000


_Row = tuple[int, int, bytes, str, str]


class FileWriter:
    """Takes the file rows of one job. Memory is bounded by the batch. *again*: rows that are there already stay.

    Where the database may go away in the middle of the job the last batches are kept until one is durable.
    """

    def __init__(self, catalog: Catalog, job_id: int, *, again: bool = False) -> None:
        self._catalog = catalog
        self._job_id = job_id
        self._waiting: list[_Row] = []
        self._paths: dict[bytes, int] = {}
        self._tidied = 0
        self._again = again
        self._unsure: list[list[_Row]] = []
        if catalog.may_break:
            catalog.renewed(self._repeat)

    def add(self, file_index: int, kind: int, path: bytes, lstat: str, digest: str) -> None:
        """Enter one saved thing. Raises `CatalogError`."""
        self._waiting.append((file_index, int(kind), path, lstat, digest))
        if len(self._waiting) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows (durable with the next durable commit)."""
        if not self._waiting:
            return
        may_break = self._catalog.may_break
        durable = may_break and len(self._unsure) + 1 >= _DURABLE
        self._catalog.attempt(lambda db: self._write(db, self._waiting, again=self._again), durable=durable)
        if may_break:
            self._unsure = [] if durable else [*self._unsure, self._waiting]
        self._waiting = []

    def _repeat(self, db: Database) -> None:
        """On a new connection: enter what a crash may have taken away. Ids of paths may be other ones now."""
        self._paths.clear()
        for rows in self._unsure:
            self._write(db, rows, again=True)

    def _write(self, db: Database, batch: list[_Row], *, again: bool) -> None:
        tidied = folders.tidied(db)
        if len(self._paths) > _PATHS or tidied != self._tidied:
            # Rows that were taken away since (`expiry.prune`) may have given their numbers to other directories.
            self._paths.clear()
            self._tidied = tidied
        cuts = [path.rfind(b"/") + 1 for _, _, path, _, _ in batch]
        self._learn(db, dict.fromkeys(row[2][:cut] for row, cut in zip(batch, cuts, strict=True)))
        rows = [
            (self._job_id, index, self._paths[path[:cut]], path[cut:], kind, lstat, digest)
            for (index, kind, path, lstat, digest), cut in zip(batch, cuts, strict=True)
        ]
        db.add_files(rows, again=again)

    def _learn(self, db: Database, wanted: Iterable[bytes]) -> None:
        """Have the ids of directories at hand; those that have no row yet get one."""
        unknown = [path for path in wanted if path not in self._paths]
        if unknown:
            self._paths |= db.path_ids(unknown)
        new = [path for path in unknown if path not in self._paths]
        if new:
            places = [folders.split(path) for path in new]
            rows = [(path, folder) for path, (folder, _) in zip(new, places, strict=True)]
            db.executemany("INSERT INTO Path(Path, Folder) VALUES(?, ?)", rows)
            self._paths |= db.path_ids(new)
            # Unless the row of the directory above follows; at the end of the job that is looked at.
            alone = [path for path, (_, above) in zip(new, places, strict=True) if above and above not in self._paths]
            db.executemany("INSERT INTO Alone VALUES(?)", [(self._paths[path],) for path in alone])


def of_job(catalog: Catalog, job_id: int) -> Generator[SavedFile, None, None]:
    """The files of one job, by FileIndex. Exhaust or close it before the catalog is closed."""
    query = (
        "SELECT FileIndex, Type, Path, Name, LStat, Digest FROM File JOIN Path USING(PathId) "
        "WHERE JobId=? ORDER BY FileIndex"
    )
    for index, kind, path, name, lstat, digest in catalog.rows(query, (job_id,), many=True):
        yield SavedFile(job_id, index, kind, path + name, lstat, digest)


def one(catalog: Catalog, job_id: int, file_index: int) -> SavedFile | None:
    """One file of a job, None when the catalog does not have it."""
    query = "SELECT Type, Path, Name, LStat, Digest FROM File JOIN Path USING(PathId) WHERE JobId=? AND FileIndex=?"
    for kind, path, name, lstat, digest in catalog.rows(query, (job_id, file_index)):
        return SavedFile(job_id, file_index, kind, path + name, lstat, digest)
    return None


def job_algorithm(catalog: Catalog, job_id: int) -> str | None:
    """The algorithm of the job's digests, None when it has none or several."""
    query = "SELECT DISTINCT length(Digest) FROM File WHERE JobId=? AND Digest<>'' AND Type<>?"
    lengths = [length for (length,) in catalog.rows(query, (job_id, int(FileType.SYMLINK)))]
    return ALGORITHMS.get(lengths[0]) if len(lengths) == 1 else None


def rank(chain: Sequence[int]) -> str:
    """An expression that grows from the oldest job of *chain* to the newest: JobIds, unless a scan gave them others."""
    if list(chain) == sorted(chain):
        return "f.JobId"
    cases = " ".join(f"WHEN {int(job_id)} THEN {place}" for place, job_id in enumerate(chain))
    return f"CASE f.JobId {cases} END"


_numbers = itertools.count(1)


def newest(catalog: Catalog, chain: Sequence[int]) -> Generator[SavedFile, None, None]:
    """Of every path in the jobs of *chain* the version of the newest job, by job and FileIndex.

    What newer jobs have is noted in a temporary table, so that the oldest, which is large, is just read along.
    """
    table = f"Newer{next(_numbers)}"  # of this call, whatever else is asked meanwhile
    catalog.temporary(
        f"CREATE TEMP TABLE {table}(PathId INTEGER NOT NULL, Name BLOB NOT NULL, Place INTEGER NOT NULL, "
        "PRIMARY KEY(PathId, Name)) WITHOUT ROWID"
    )
    try:
        for place, job_id in enumerate(chain[1:], 1):
            catalog.temporary(
                f"INSERT INTO {table} SELECT DISTINCT PathId, Name, CAST(? AS INTEGER) FROM File "  # noqa: S608
                "WHERE JobId=? ON CONFLICT(PathId, Name) DO UPDATE SET Place=excluded.Place",
                (place, job_id),
            )
        query = (
            "SELECT FileIndex, Type, Path, Name, LStat, Digest FROM File f JOIN Path USING(PathId) "  # noqa: S608
            f"WHERE JobId=? AND NOT EXISTS (SELECT 1 FROM {table} n WHERE n.PathId=f.PathId AND n.Name=f.Name "
            "AND n.Place>?) ORDER BY FileIndex"
        )
        for place, job_id in enumerate(chain):
            with contextlib.closing(catalog.rows(query, (job_id, place), many=True)) as rows:
                for index, kind, path, name, lstat, digest in rows:
                    yield SavedFile(job_id, index, kind, path + name, lstat, digest)
    finally:
        catalog.temporary(f"DROP TABLE {table}")


_NO_NUMBERS = EncodedStat(mode=stat.S_IFDIR).pack().decode("ascii")
# CROSS JOIN: SQLite keeps the order of the tables then, and finds the files of a directory by their index.
_NEWEST = (
    "SELECT JobId, FileIndex, Type, Path, Name, LStat, Digest FROM ("
    "SELECT f.JobId, f.FileIndex, f.Type, p.Path, f.Name, f.LStat, f.Digest, "
    "row_number() OVER (PARTITION BY f.PathId, f.Name ORDER BY {rank} DESC) AS Place "
    "FROM Path p CROSS JOIN File f WHERE f.PathId=p.PathId AND {where} AND f.JobId IN ({marks})) n WHERE Place=1"
)


def _newest_where(
    catalog: Catalog, chain: Sequence[int], where: str, values: Sequence[bytes], *, many: bool = False
) -> Iterator[SavedFile]:
    # One JobId alone would make SQLite read all files of that job rather than those of the directory.
    jobs = (*chain, chain[-1])
    query = _NEWEST.format(where=where, marks=", ".join("?" * len(jobs)), rank=rank(chain))
    for job_id, index, kind, path, name, lstat, digest in catalog.rows(query, (*values, *jobs), many=many):
        yield SavedFile(job_id, index, kind, path + name, lstat, digest)


def below(catalog: Catalog, chain: Sequence[int], path: bytes) -> Iterator[SavedFile]:
    """The newest versions in the jobs of *chain* of *path* (without a slash at its end) and of all that lies in it."""
    cut = path.rfind(b"/") + 1
    if path[cut:]:
        yield from _newest_where(catalog, chain, "p.Path=? AND f.Name=?", (path[:cut], path[cut:]))
    inside = path.rstrip(b"/") + b"/"
    # A slash is followed by "0" in ASCII: everything that begins with the directory's name and slash is in between.
    yield from _newest_where(catalog, chain, "p.Path>=? AND p.Path<?", (inside, inside[:-1] + b"0"), many=True)


def children(catalog: Catalog, chain: Sequence[int], directory: bytes) -> Iterator[SavedFile]:
    """The newest versions of what lies directly in *directory* (its name with a slash at its end).

    A directory that was not saved itself, but something in it, has no numbers and FileIndex 0.
    """
    yield from _newest_where(catalog, chain, "p.Path=? AND f.Name<>?", (directory, b""))
    inside = (directory, directory[:-1] + b"0")
    last = directory
    # From one subdirectory to the next, past everything that lies in it.
    while True:
        query = "SELECT Path FROM Path WHERE Path>? AND Path<? ORDER BY Path LIMIT 1"
        found = next(iter(catalog.rows(query, (last, inside[1]))), None)
        if found is None:
            return
        name = bytes(found[0])[len(directory) :].split(b"/", 1)[0]
        sub = directory + name + b"/"
        itself = list(_newest_where(catalog, chain, "p.Path=? AND f.Name=?", (sub, b"")))
        yield from itself or _on_the_way(catalog, chain, sub)
        last = directory + name + b"0"


def _on_the_way(catalog: Catalog, chain: Sequence[int], directory: bytes) -> Iterator[SavedFile]:
    inside = (directory, directory[:-1] + b"0")
    for saved in _newest_where(catalog, chain, "p.Path>=? AND p.Path<?", inside, many=True):
        if saved.type != FileType.DELETED:
            yield SavedFile(saved.job_id, 0, FileType.DIRECTORY, directory, _NO_NUMBERS, "")
            return


def versions(catalog: Catalog, path: bytes) -> Iterator[SavedFile]:
    """Every saved version of *path* (a directory's with a slash at its end), highest JobId first."""
    cut = path.rfind(b"/") + 1
    query = (
        "SELECT f.JobId, f.FileIndex, f.Type, f.LStat, f.Digest FROM Path p CROSS JOIN File f "
        "WHERE f.PathId=p.PathId AND p.Path=? AND f.Name=? ORDER BY f.JobId DESC"
    )
    for job_id, index, kind, lstat, digest in catalog.rows(query, (path[:cut], path[cut:])):
        yield SavedFile(job_id, index, kind, path, lstat, digest)


def text(path: bytes) -> str:
    """A stored path for messages and JSON (odd bytes become lone surrogates)."""
    return os.fsdecode(path)
