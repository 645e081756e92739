"""Whether something was a directory in one job of a chain and something else in another one.

Jobs that are not accurate do not note what went, so a restore meets both, and only their order says which one counts.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Sequence

from appliance.storage.catalog import Catalog
from appliance.storage.folders import split
from appliance.storage.model import Job
from appliance.volumes.attributes import FileType

_AT_ONCE = 500  # names


def changed(catalog: Catalog, chain: Sequence[Job]) -> bool:
    """Whether that may be so (of accurate jobs, too). *chain*: the oldest first, which is not read through."""
    query = "SELECT Path, Name FROM File JOIN Path USING(PathId) WHERE JobId=? AND Type<>?"
    for place, job in enumerate(chain[1:], 1):
        # One JobId alone would make SQLite read all files of that job rather than those of the directory.
        older = [one.job_id for one in (*chain[:place], chain[0])]
        with contextlib.closing(catalog.rows(query, (job.job_id, int(FileType.DELETED)), many=True)) as rows:
            while some := [(bytes(path), bytes(name)) for path, name in itertools.islice(rows, _AT_ONCE)]:
                if _were_directories(catalog, older, some) or _were_none(catalog, older, some):
                    return True
    return False


def _were_directories(catalog: Catalog, older: Sequence[int], some: Sequence[tuple[bytes, bytes]]) -> bool:
    paths = [path + name + b"/" for path, name in some if name]
    query = (
        f"SELECT 1 FROM Path p CROSS JOIN File f WHERE f.PathId=p.PathId AND p.Path IN ({_marks(paths)}) "  # noqa: S608
        f"AND f.JobId IN ({_marks(older)}) AND f.Type<>? LIMIT 1"
    )
    return bool(paths) and any(True for _ in catalog.rows(query, (*paths, *older, int(FileType.DELETED))))


def _were_none(catalog: Catalog, older: Sequence[int], some: Sequence[tuple[bytes, bytes]]) -> bool:
    folders = defaultdict(list)
    for path, name in some:
        if not name and path != b"/":
            folder, above = split(path)
            folders[above].append(folder)
    return any(_has_one(catalog, older, above, names) for above, names in folders.items())


def _has_one(catalog: Catalog, older: Sequence[int], above: bytes, names: Sequence[bytes]) -> bool:
    query = (
        f"SELECT 1 FROM Path p CROSS JOIN File f WHERE f.PathId=p.PathId AND p.Path=? "  # noqa: S608
        f"AND f.JobId IN ({_marks(older)}) AND f.Name IN ({_marks(names)}) AND f.Type<>? LIMIT 1"
    )
    return any(True for _ in catalog.rows(query, (above, *older, *names, int(FileType.DELETED))))


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
