"""The files as they are now against the catalog: what is other than it was saved, new, or gone."""

from __future__ import annotations

import builtins
import json
import os
import stat as modes
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config.filesets import FilesetConfig
from appliance.config.schema import Config
from appliance.errors import ExitStatus
from appliance.magazines import attached
from appliance.storage import digests, saved_files, sparse_digests
from appliance.storage.catalog import Catalog
from appliance.storage.joblog import LogCallback
from appliance.storage.limits import Limits
from appliance.storage.model import Job, SavedFile
from appliance.storage.plan import Wanted, chain_of, chosen_job
from appliance.storage.reading import Reader
from appliance.storage.saved_files import text
from appliance.storage.searching import wanted_files
from appliance.storage.selection import matcher
from appliance.storage.states import State
from appliance.storage.unread import Unread
from appliance.storage.walk import GONE, Found, Walker, allow_depth
from appliance.volumes.attributes import FileType
from appliance.volumes.digests import new as new_hash
from appliance.volumes.stat64 import EncodedStat
from appliance.volumes.streams import Stream

_MOST_KEPT = 10_000
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOATIME
_WITH_HOLES = {Stream.SPARSE_DATA, Stream.SPARSE_GZIP_DATA, Stream.SPARSE_COMPRESSED_DATA}


@dataclass(frozen=True)
class LiveRequest:
    """Compare what a job (as in a restore) saved, of what *globs* match. *contents*: with the digests, too."""

    job: int | None = None
    latest: str | None = None
    before: int | None = None
    globs: tuple[str, ...] = ()
    contents: bool = True


@dataclass
class LiveResult:
    """What was compared. *changed*: path and what is other; the lists are cut, the counts are not."""

    job_id: int
    files: int = 0
    bytes: int = 0
    changed: list[tuple[str, str]] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"changed": 0, "new": 0, "missing": 0})
    warnings: list[str] = field(default_factory=list)
    cancelled: bool = False

    @property
    def exit_status(self) -> ExitStatus:
        """Failed with any difference."""
        if self.cancelled or any(self.counts.values()):
            return ExitStatus.FAILED
        return ExitStatus.WARNINGS if self.warnings else ExitStatus.DONE

    def document(self) -> dict[str, object]:
        """The JSON document of the command line."""
        words = {ExitStatus.DONE: "done", ExitStatus.WARNINGS: "warnings"}
        return {
            "status": "cancelled" if self.cancelled else words.get(self.exit_status, "failed"),
            "job_id": self.job_id,
            "files": self.files,
            "bytes": self.bytes,
            "counts": self.counts,
            "changed": [{"path": path, "what": what.split(", ")} for path, what in self.changed],
            "new": self.new,
            "missing": self.missing,
            "warnings": self.warnings,
        }

    def is_changed(self, path: builtins.bytes, what: Sequence[str]) -> None:
        """It is not as it was saved."""
        self.counts["changed"] += 1
        if len(self.changed) < _MOST_KEPT:
            self.changed.append((text(path), ", ".join(what)))

    def is_there(self, kind: str, path: builtins.bytes) -> None:
        """It is *new* or *missing*."""
        self.counts[kind] += 1
        kept: list[str] = getattr(self, kind)
        if len(kept) < _MOST_KEPT:
            kept.append(text(path))


def run(
    config: Config,
    request: LiveRequest,
    *,
    log: LogCallback,
    progress: Callable[[int], None] = lambda count: None,
    started: Callable[[int], None] = lambda total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> LiveResult:
    """Compare. *started* is told the bytes of the saved files, *progress* those compared.

    Raises `NotFoundError` (job, or no file matches), `CatalogError`.
    """
    allow_depth()
    with Catalog.of(config) as catalog:
        catalog.recover()
        job = chosen_job(catalog, request.job, request.latest, request.before)
        chain = chain_of(catalog, job)
        total = 0

        def seen(saved: SavedFile) -> None:
            nonlocal total
            if saved.type == FileType.REGULAR:
                total += max(0, EncodedStat.parse(saved.lstat.encode("ascii")).size)

        wanted = wanted_files(catalog, chain, request.globs, seen, lambda text: log(text, {}))
        started(total)
        log(f"comparing {sum(one.count for one in wanted)} files of job {job.job_id} with the disk", {})
        one = _Comparing(config, request, catalog, chain, wanted, progress)
        try:
            one.run(job, cancelled)
        finally:
            one.close()
        return one.result


def fileset_of(job: Job) -> FilesetConfig | None:
    """What the job walked, with absolute paths; None when that is not known (its row is of a scan)."""
    try:
        paths, exclude, *more = json.loads(job.fileset)
        given = more[0] if more else {}
        if not paths:
            return None
        return FilesetConfig(
            tuple(Path(path) for path in paths),
            tuple(exclude),
            include=tuple(given.get("include", ())),
            one_file_system=not given.get("cross", False),
            exclude_larger=given.get("larger"),
            exclude_older=given.get("older"),
            exclude_caches=bool(given.get("caches", False)),
            exclude_marked=tuple(given.get("marked", ())),
        )
    except (ValueError, TypeError, AttributeError, IndexError):
        return None


class _Comparing:
    """One running comparison."""

    def __init__(
        self,
        config: Config,
        request: LiveRequest,
        catalog: Catalog,
        chain: Sequence[Job],
        wanted: Sequence[Wanted],
        progress: Callable[[int], None],
    ) -> None:
        self.result = LiveResult(chain[-1].job_id)
        self._config = config
        self._catalog = catalog
        self._state = State(catalog, [job.job_id for job in chain])
        self._wanted = {one.job.job_id: one for one in wanted}
        self._matches = matcher(request.globs)
        self._contents = request.contents
        self._progress = progress
        self._reader = Reader()
        self._unread = Unread()

    def close(self) -> None:
        """End the threads."""
        self._reader.close()

    def run(self, job: Job, cancelled: Callable[[], bool]) -> None:
        fileset = fileset_of(job)
        if fileset is None:
            self.result.warnings.append(f"job {job.job_id}: which paths it saved is not known: new files are not found")
        for found in self._walk(fileset) if fileset else ():
            if cancelled():
                self.result.cancelled = True
                return
            self._found(found)
        for one in self._wanted.values():
            for index in list(one.missing()):
                if cancelled():
                    self.result.cancelled = True
                    return
                self._not_found(one.job.job_id, index)

    def _walk(self, fileset: FilesetConfig) -> Iterator[Found]:
        own = [self._config.state_dir, *(m.path for m in attached.known(self._config) if m.path is not None)]
        walker = Walker(Limits.of(own, fileset), self._trouble, lambda told: None)
        for path in fileset.paths:
            yield from walker.walk(os.fsencode(path))

    def _trouble(self, path: bytes, error: OSError) -> None:
        if error.errno not in GONE:
            self._unread.add(path)
            self.result.warnings.append(f"{text(path)} cannot be compared: {error.strerror or error}")

    def _found(self, found: Found) -> None:
        path = found.path
        if modes.S_ISDIR(found.stat.st_mode) and not path.endswith(b"/"):
            path += b"/"
        if modes.S_ISSOCK(found.stat.st_mode) or not self._matches(path):
            return
        saved = self._state.find(path)
        if saved is None or saved.type == FileType.DELETED:
            self.result.is_there("new", path)
            return
        self._wanted[saved.job_id].done(saved.file_index)
        self._compare(saved, found.stat, found.name, found.parent if found.parent >= 0 else None)

    def _not_found(self, job_id: int, index: int) -> None:
        """Not met on the walk: gone, or left out by what the fileset excludes now."""
        saved = saved_files.one(self._catalog, job_id, index)
        if saved is None or self._unread.covers(saved.path):
            return
        try:
            status = os.lstat(saved.path.rstrip(b"/") or b"/")
        except OSError as error:
            if error.errno in GONE:
                self.result.is_there("missing", saved.path)
            else:
                self._trouble(saved.path, error)
        else:
            self._compare(saved, status, saved.path, None)

    def _compare(self, saved: SavedFile, status: os.stat_result, name: bytes, parent: int | None) -> None:
        self.result.files += 1
        before = EncodedStat.parse(saved.lstat.encode("ascii"))
        what = list(_differences(before, status))
        if modes.S_ISLNK(status.st_mode) and "type" not in what and self._leads_elsewhere(saved, name, parent):
            what.append("link")
        if saved.type == FileType.HARD_LINK and "type" not in what and not self._is_linked(saved, before, status):
            what.append("link")
        if not what and modes.S_ISREG(status.st_mode) and self._contents and saved.digest:
            what = self._content(saved, before, name, parent)
        if modes.S_ISREG(status.st_mode):
            self._progress(max(0, before.size))
        if what:
            self.result.is_changed(saved.path, what)

    def _leads_elsewhere(self, saved: SavedFile, name: bytes, parent: int | None) -> bool:
        """Whether a symbolic link has another text; those of older jobs are not known."""
        if not saved.digest:
            return False
        try:
            return digests.link_digest(os.readlink(name, dir_fd=parent)) != saved.digest
        except OSError as error:
            self._trouble(saved.path, error)
            return False

    def _is_linked(self, saved: SavedFile, before: EncodedStat, status: os.stat_result) -> bool:
        """Whether a hard link still is another name of the file whose it was; that this one is gone is told of it."""
        first = saved_files.one(self._catalog, saved.job_id, before.link_fi)
        try:
            return first is None or os.path.samestat(os.lstat(first.path), status)
        except OSError as error:
            return error.errno in GONE

    def _content(self, saved: SavedFile, before: EncodedStat, name: bytes, parent: int | None) -> list[str]:
        algorithm = digests.algorithm_of(saved.digest)
        if algorithm is None:
            return []
        try:
            descriptor = _open(name, parent)
            try:
                values = self._digests(descriptor, before, algorithm)
                same = any(digests.digest_text(value) == saved.digest for value in values)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._trouble(saved.path, error)
            return []
        self.result.bytes += before.size
        return [] if same else ["content"]

    def _digests(self, descriptor: int, before: EncodedStat, algorithm: str) -> Iterable[builtins.bytes]:
        if before.data_stream in _WITH_HOLES:
            return sparse_digests.candidates(descriptor, before.size, algorithm)
        digest = new_hash(algorithm)
        for _ in self._reader.plain(descriptor, before.size, digest):
            pass
        return [digest.digest()]


def _open(name: bytes, parent: int | None) -> int:
    try:
        return os.open(name, _OPEN, dir_fd=parent)
    except PermissionError:
        return os.open(name, _OPEN & ~os.O_NOATIME, dir_fd=parent)


def _differences(before: EncodedStat, now: os.stat_result) -> Iterator[str]:
    """What differs, in words. The times of a directory follow from what is in it, its size and links too."""
    if modes.S_IFMT(before.mode) != modes.S_IFMT(now.st_mode):
        yield "type"
        return
    if modes.S_IMODE(before.mode) != modes.S_IMODE(now.st_mode):
        yield "mode"
    if (before.uid, before.gid) != (now.st_uid, now.st_gid):
        yield "owner"
    if modes.S_ISDIR(now.st_mode):
        return
    if modes.S_ISREG(now.st_mode) or modes.S_ISLNK(now.st_mode):
        if before.size != now.st_size:
            yield "size"
    elif before.rdev != now.st_rdev:
        yield "device"
    if before.mtime != now.st_mtime_ns // 1_000_000_000:
        yield "time"
