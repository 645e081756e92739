"""Saved files and directories found by their names alone, through indexes that cost a job little.

An index on names would be written in a random place for each file that is saved. Here it is made of parts: each has in
order the names of files whose FileIndexes are neighbours (16,384 of them, see `database.PART`). So a job that runs
writes in one small part only, pruning takes away whole parts, and a search looks into each part of its jobs: ten
million files are 611 looks of a few microseconds. Directories likewise, by their PathId.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from appliance.storage.catalog import Catalog
from appliance.storage.database import PART
from appliance.storage.model import SavedFile
from appliance.storage.saved_files import rank


@dataclass(frozen=True)
class Likeness:
    """What is known of a name: it is *whole*, or else it begins with *start* and has *within* in it."""

    whole: bytes | None = None
    start: bytes = b""
    within: bytes = b""

    @property
    def ordered(self) -> bool:
        """Whether the names lie together when they are in order."""
        return bool(self.whole or self.start)

    def condition(self, column: str) -> tuple[str, tuple[bytes, ...]]:
        """In SQL, with its values."""
        if self.whole is not None:
            return f"{column}=?", (self.whole,)
        words, values = [], []
        if self.start:
            words.append(f"{column}>=?")
            values.append(self.start)
            behind = self.start.rstrip(b"\xff")
            if behind:
                words.append(f"{column}<?")
                values.append(behind[:-1] + bytes([behind[-1] + 1]))
        if self.within and self.within != self.start:
            words.append(f"instr({column}, ?)>0")
            values.append(self.within)
        return " AND ".join(words), tuple(values)

    def holds(self, name: bytes) -> bool:
        """Whether *name* fulfils the condition."""
        return name == self.whole if self.whole is not None else name.startswith(self.start) and self.within in name


# The parts of the jobs, by their last FileIndexes. Both databases look into one part after the other, SQLite because of
# INDEXED BY and CROSS JOIN.
_PARTS = (
    "WITH RECURSIVE Part(JobId, Number, Last) AS ("
    "SELECT JobId, 0, (SELECT max(FileIndex) >> {bits} FROM File WHERE File.JobId=Job.JobId) FROM Job "
    "WHERE JobId IN ({marks}) UNION ALL SELECT JobId, Number + 1, Last FROM Part WHERE Number<Last) "
)
_IN_PARTS = (
    "Part CROSS JOIN File f INDEXED BY FileName "
    "WHERE f.JobId=Part.JobId AND (f.FileIndex >> {bits})=Part.Number AND {where}"
)
_IN_ALL = "File f WHERE f.JobId IN ({marks}) AND {where}"
_NEWEST = (
    "SELECT JobId, FileIndex, Type, Path, Name, LStat, Digest FROM ("
    "SELECT f.JobId, f.FileIndex, f.Type, f.PathId, f.Name, f.LStat, f.Digest, "
    "row_number() OVER (PARTITION BY f.PathId, f.Name ORDER BY {rank} DESC) AS Place "
    "FROM {source}) n JOIN Path USING(PathId) WHERE Place=1"
)
_FOLDERS = (
    "WITH RECURSIVE Part(Number, Last) AS (SELECT 0, max(PathId) >> {bits} FROM Path UNION ALL "
    "SELECT Number + 1, Last FROM Part WHERE Number<Last) "
    "SELECT p.Path FROM Part CROSS JOIN Path p INDEXED BY PathFolder "
    "WHERE (p.PathId >> {bits})=Part.Number AND {where}"
)
_BATCH = 500
_ALL_FOLDERS = "SELECT p.Path FROM Path p WHERE {where}"


def files(catalog: Catalog, chain: Sequence[int], like: Likeness) -> Iterator[SavedFile]:
    """The newest versions in the jobs of *chain* of what has such a name (directories have the empty one)."""
    marks = ", ".join("?" * len(chain))
    where, values = like.condition("f.Name")
    source = (_IN_PARTS if like.ordered else _IN_ALL).format(bits=PART, where=where, marks=marks)
    parts = _PARTS.format(bits=PART, marks=marks) if like.ordered else ""
    query = parts + _NEWEST.format(source=source, rank=rank(chain))
    for job_id, index, kind, path, name, lstat, digest in catalog.rows(query, (*chain, *values), many=True):
        yield SavedFile(job_id, index, kind, path + name, lstat, digest)


def folders(catalog: Catalog, like: Likeness) -> Iterator[bytes]:
    """Paths (with a slash at the end) of the directories that have such a name, of whatever job."""
    where, values = like.condition("p.Folder")
    query = (_FOLDERS if like.ordered else _ALL_FOLDERS).format(bits=PART, where=where)
    for (path,) in catalog.rows(query, values, many=True):
        yield bytes(path)


def alone(catalog: Catalog) -> Iterator[bytes]:
    """Paths of the directories above which there may be some that have no row of their own."""
    # Not as a join: either database may read all of Path for it.
    numbers = [number for (number,) in catalog.rows("SELECT PathId FROM Alone")]
    for at in range(0, len(numbers), _BATCH):
        batch = numbers[at : at + _BATCH]
        query = f"SELECT Path FROM Path WHERE PathId IN ({', '.join('?' * len(batch))})"  # noqa: S608
        for (path,) in catalog.rows(query, batch):
            yield bytes(path)
