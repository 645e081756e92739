"""Finding saved files by patterns, reading as little of the catalog as each pattern allows.

* A pattern that begins with a slash names the directory that its matches lie in: an index leads there.
* Of a bare name, or a pattern of one that begins with literal letters, an index knows where it is (`names.py`); one
  that has such letters later on is looked for by the database itself in all names of the jobs. What it finds, and what
  lies in directories of such names, is then compared with the whole pattern here.
* For anything else all names of the jobs are read here, and that is said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from appliance.errors import NotFoundError
from appliance.storage import names as by_name
from appliance.storage import saved_files
from appliance.storage.catalog import Catalog
from appliance.storage.folders import split
from appliance.storage.model import Job, SavedFile
from appliance.storage.names import Likeness
from appliance.storage.plan import Wanted
from appliance.storage.selection import matcher, pattern_of
from appliance.volumes.attributes import FileType

# With more directories of such names reading everything is quicker.
_MOST_FOLDERS = 5000
_TELL = 1_000_000  # names


def wanted_files(
    catalog: Catalog,
    chain: Sequence[Job],
    globs: Sequence[str],
    seen: Callable[[SavedFile], None] = lambda saved: None,
    told: Callable[[str], None] = lambda text: None,
) -> list[Wanted]:
    """For each job of the chain what it has the newest version of, and what *globs* (if any) match.

    *seen* is told each; *told* what takes long. Raises `NotFoundError` when that is nothing.
    """
    wanted = {job.job_id: Wanted(job) for job in chain}
    matches = matcher(globs)
    for saved in found(catalog, chain, globs, told):
        if saved.type != FileType.DELETED and matches(saved.path):
            wanted[saved.job_id].add(saved)
            seen(saved)
    if globs and not any(item.count for item in wanted.values()):
        raise NotFoundError(
            f"job {chain[-1].job_id} has no file that matches {' or '.join(globs)}",
            hint="Give paths as they were saved, for example '/etc/*.conf'.",
        )
    return list(wanted.values())


def found(
    catalog: Catalog, chain: Sequence[Job], globs: Sequence[str], told: Callable[[str], None] = lambda text: None
) -> Iterator[SavedFile]:
    """The newest versions in the jobs of *chain* of what *globs* match, and of some more; each once."""
    jobs = [job.job_id for job in chain]
    roots = [os.fsencode(root) for glob in globs if (root := _root(glob))]
    names = [name for glob in globs if (name := _Name.of(glob))]
    if globs and len(roots) + len(names) == len(globs):  # no pattern has both
        folders = _folders(catalog, names)
        if folders is not None:
            yield from _looked_up(catalog, jobs, folders.union(roots), names)
            return
    yield from _all(catalog, chain, globs, told)


def _all(
    catalog: Catalog, chain: Sequence[Job], globs: Sequence[str], told: Callable[[str], None]
) -> Iterator[SavedFile]:
    """The newest versions of everything."""
    jobs = [job.job_id for job in chain]
    everything = saved_files.of_job(catalog, jobs[0]) if len(jobs) == 1 else saved_files.newest(catalog, jobs)
    if not globs:
        yield from everything
        return
    total = sum(job.files for job in chain)
    told(f"{' or '.join(globs)} may match any name: {total} names are read")
    for count, saved in enumerate(everything, 1):
        if count % _TELL == 0:
            told(f"{count} of {total} names are read")
        yield saved


def _looked_up(
    catalog: Catalog, jobs: Sequence[int], roots: Iterable[bytes], names: Sequence[_Name]
) -> Iterator[SavedFile]:
    kept: set[bytes] = set()
    last = b""
    # With the slash everything in a directory follows it without a gap.
    for root in sorted(root.rstrip(b"/") + b"/" for root in roots):
        if not last or not root.startswith(last):
            last = root
            kept.add(root[:-1])
            yield from saved_files.below(catalog, jobs, root[:-1])
    for number, name in enumerate(names):
        for saved in by_name.files(catalog, jobs, name.like):
            last_part = saved.path.rpartition(b"/")[2]
            if not _is_in(saved.path, kept) and not any(one.like.holds(last_part) for one in names[:number]):
                yield saved


def _is_in(path: bytes, roots: set[bytes]) -> bool:
    place = path.rstrip(b"/")
    while place:
        if place in roots:
            return True
        place = place.rpartition(b"/")[0]
    return False


def _root(glob: str) -> str:
    """The directory or file that all matches lie in, so that not the whole catalog need be read; or nothing."""
    if not glob.startswith("/"):
        return ""
    plain = re.split(r"[*?[]", glob, maxsplit=1)[0]
    return (glob if plain == glob else plain.rpartition("/")[0]).rstrip("/")


@dataclass(frozen=True)
class _Name:
    """A pattern for one component, and what is known of all names that it matches."""

    pattern: re.Pattern[str]
    like: Likeness

    @classmethod
    def of(cls, glob: str) -> _Name | None:
        """Of a pattern without a slash and with a literal letter; None of others."""
        glob = glob.rstrip("/")
        if "/" in glob:
            return None
        text = os.fsencode(glob)
        # Where a set ends is not easily said: what follows one is left to the comparison.
        pieces = re.split(rb"[*?]", text.partition(b"[")[0])
        start, longest = pieces[0], max(pieces, key=len)
        if not longest:
            return None
        like = Likeness(whole=text) if start == text else Likeness(start=start, within=longest)
        return cls(pattern_of(glob), like)

    def match(self, component: bytes) -> bool:
        """Whether it is this one."""
        return self.pattern.match(os.fsdecode(component)) is not None


def _folders(catalog: Catalog, names: Sequence[_Name]) -> set[bytes] | None:
    """Directories of such names, the topmost at least; None when they are too many."""
    found: set[bytes] = set()
    for folder in _candidates(catalog, names):
        found.add(folder)
        if len(found) > _MOST_FOLDERS:
            return None
    return found


def _candidates(catalog: Catalog, names: Sequence[_Name]) -> Iterator[bytes]:
    for name in names:
        for path in by_name.folders(catalog, name.like):
            if name.match(split(path)[0]):
                yield path[:-1]
    for path in by_name.alone(catalog) if names else ():
        parts = path.split(b"/")
        for depth, part in enumerate(parts):
            if part and any(name.match(part) for name in names):
                yield b"/".join(parts[: depth + 1])
                break
