"""Scan: the catalog rebuilt, or completed, from volumes alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.changer import inventory
from appliance.config.schema import Config
from appliance.errors import AwayError, ExitStatus, MagbayError, NotFoundError, UsageError
from appliance.host import files
from appliance.magazines import attached
from appliance.magazines.attached import Magazine
from appliance.storage import unsettled, volume_rows
from appliance.storage.catalog import Catalog, CatalogError
from appliance.storage.joblog import LogCallback
from appliance.storage.model import JobStatus, Media, VolumeStatus
from appliance.storage.pools import reachable
from appliance.storage.scanned import Known, Session, VolumeBook, known_of, text_of
from appliance.storage.settling import Settled, settle
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.blocks import SessionIds
from appliance.volumes.errors import VolumeError
from appliance.volumes.events import Event
from appliance.volumes.labels import VolumeLabel
from appliance.volumes.reader import Block, Damage, VolumeReader
from appliance.volumes.sessions import SessionReader

_ELSEWHERE = "Copy it onto a magazine, or name its directory under 'magazines' in the configuration."
_INSIDE = "Name the volumes, or the directory that they are in; directories below it are not searched."
_LEFT = "the jobs that were found are not put together yet: the next scan does that, whatever it reads"
_MOST_DAMAGE = 10_000  # damaged places of a volume that are kept


@dataclass(frozen=True)
class ScanRequest:
    """Which volumes: files or directories *paths*, those of the magazine *magazine*, or (*everything*) of all here.

    *newer*: only what is behind the end that the catalog knows of a volume. *dry_run*: nothing is written.
    """

    paths: tuple[Path, ...] = ()
    magazine: str | None = None
    everything: bool = False
    newer: bool = False
    dry_run: bool = False
    keys: VolumeKeys | None = None


@dataclass
class ScannedJob:
    """What was found of a job. *new*: the catalog did not have all of that. *missing* says why it is not whole now."""

    job_id: int
    name: str
    new: bool
    files: int = 0
    volumes: list[str] = field(default_factory=list)
    status: str = ""
    missing: str = ""


@dataclass
class ScanResult:
    """What was found; *errors* are damage and volumes that could not be entered."""

    volumes: list[str] = field(default_factory=list)
    jobs: dict[SessionIds, ScannedJob] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    cancelled: bool = False

    @property
    def exit_status(self) -> ExitStatus:
        """Failed with any damage."""
        if self.errors or self.cancelled:
            return ExitStatus.FAILED
        return ExitStatus.WARNINGS if self.warnings else ExitStatus.DONE


def run(
    config: Config,
    request: ScanRequest,
    *,
    log: LogCallback,
    progress: Callable[[int], None] = lambda count: None,
    started: Callable[[int], None] = lambda total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> ScanResult:
    """Scan in this process. *started* is told how many bytes there are to read, *progress* those read.

    Raises `UsageError`, `NotFoundError` (path, magazine), `AwayError`, `CatalogError`; what is wrong with one volume is
     in the result.
    """
    attached.create_directories(config)
    known = [magazine for magazine in attached.known(config) if reachable(magazine)]
    with Catalog.of(config) as catalog:
        catalog.recover()
        return scan(catalog, config, request, known, log=log, progress=progress, started=started, cancelled=cancelled)


def scan(
    catalog: Catalog,
    config: Config | None,
    request: ScanRequest,
    known: Sequence[Magazine],
    *,
    log: LogCallback,
    progress: Callable[[int], None] = lambda count: None,
    started: Callable[[int], None] = lambda total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> ScanResult:
    """As `run`, into an open catalog; *known*: magazines that are here. Without *config* volumes may lie anywhere."""
    result = ScanResult()
    found = _ordered(_chosen(config, request, known), request.keys, result)
    started(sum(path.stat().st_size for path, _ in found))
    one = _Scan(catalog, config, request, known, result, log, progress, cancelled)
    for path, label in found:
        if cancelled():
            result.cancelled = True
            break
        try:
            one.volume(path, label)
        except CatalogError:
            raise
        except (MagbayError, OSError) as error:
            text = error.message if isinstance(error, MagbayError) else f"{path}: {error.strerror}"
            result.errors.append(text)
    one.settle()
    return result


def _chosen(config: Config | None, request: ScanRequest, known: Sequence[Magazine]) -> list[Path]:
    if not (request.paths or request.magazine or request.everything):
        hint = "Name volumes, directories of volumes, --magazine NAME, or --all."
        raise UsageError("it is not said what to scan", hint=hint)
    places = [magazine for magazine in known if request.everything or magazine.name == request.magazine]
    if request.magazine and not places:
        if config is None or request.magazine not in {m.name for m in attached.known(config)}:
            hint = "'magbay magazine list' shows the known ones."
            raise NotFoundError(f"no magazine is called {request.magazine}", hint=hint)
        raise AwayError(f"not here: {request.magazine}", hint=f"Plug in {request.magazine} and try again.")
    if request.everything and not places:
        raise AwayError("no magazine is here", hint="Plug one in and try again.")
    folders = [magazine.path for magazine in places if magazine.path]
    paths = []
    for path in (*request.paths, *folders):
        if path.is_dir():
            found = [path / name for name in inventory.scan(path, {}, ()).volumes]
            if not found and path in request.paths:
                raise NotFoundError(f"no volume is in the directory {path}", hint=_INSIDE)
            paths += found
        else:
            paths.append(path)
    return list(dict.fromkeys(path.absolute() for path in paths))


def _ordered(
    paths: Sequence[Path], keys: VolumeKeys | None, result: ScanResult
) -> list[tuple[Path, VolumeLabel | None]]:
    """The volumes by the time at which they were labelled, so that jobs get their numbers in order."""
    found = []
    for path in paths:
        try:
            if path.is_file() and path.stat().st_size == 0:
                continue  # waits for its label
            with VolumeReader(path, keys) as reader:
                found.append((path, reader.label()))
        except NotFoundError:
            raise
        except MagbayError as error:
            result.errors.append(error.message)
    return sorted(found, key=lambda pair: pair[1].write_time if pair[1] else 0)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Keep jobs from writing on the volume; False when one does just now.

    What is read meanwhile comes from the disk: memory may have what a failed job could not write, and the catalog
    must not take that for saved. Raises `OSError`, also when there is such a thing.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            files.forget_cached(descriptor)
            yield True
    finally:
        os.close(descriptor)


class _Scan:
    """One running scan."""

    def __init__(
        self,
        catalog: Catalog,
        config: Config | None,
        request: ScanRequest,
        known: Sequence[Magazine],
        result: ScanResult,
        log: LogCallback,
        progress: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._catalog = catalog
        self._config = config
        self._request = request
        self._magazines = {magazine.path.resolve(): magazine for magazine in known if magazine.path}
        self._result = result
        self._log = log
        self._progress = progress
        self._cancelled = cancelled
        # Of jobs that the catalog did not have whole: what it had when the scan began.
        self._touched: dict[SessionIds, Known | None] = {}
        self._not_kept = 0
        # Files whose attributes are cut by the end of a volume: first parts, last parts.
        self._cut: dict[SessionIds, tuple[set[int], set[int]]] = {}
        self._foreign: set[SessionIds] = set()

    def volume(self, path: Path, label: VolumeLabel | None) -> None:
        """Enter one volume. Raises `MagbayError`, `OSError`."""
        if label and label.name != path.name:
            hint = "A volume's file must be called like its label."
            raise VolumeError(f"{path}: its label says {label.name}; it is not entered", hint=hint)
        if not inventory.legal_name(path.name):
            raise VolumeError(f"{path.name!r}: no volume is called so; it is not entered")
        magazine = self._magazine_of(path)
        with _held(path) as free:
            if not free:
                text = f"volume {path.name} of magazine {magazine.name} is in use by a job: scan it again later"
                self._result.warnings.append(text)
                return
            size = path.stat().st_size
            media = self._media(path, label, magazine)
            start = volume_rows.covered(self._catalog, path, media, self._request.keys) if self._request.newer else 0
            if media and start and start == size:
                self._progress(size)
                return
            self._result.volumes.append(path.name)
            self._log(f"scanning volume {path.name} of magazine {magazine.name}", {"VOLUME": path.name})
            self._read(path, label, media, start)

    def _magazine_of(self, path: Path) -> Magazine:
        magazine = self._magazines.get(path.parent.resolve())
        if magazine:
            return magazine
        if self._config is not None:
            raise UsageError(f"{path}: is on no magazine; it is not entered", hint=_ELSEWHERE)
        name = path.parent.resolve().name or "volumes"
        return Magazine(name, f"directory:{name}", path.parent)

    def _media(self, path: Path, label: VolumeLabel | None, magazine: Magazine) -> Media | None:
        """The volume's row, made or moved to this magazine; None in a dry run when there is none."""
        found = self._catalog.media(name=path.name)
        if not found:
            if self._request.dry_run:
                return None
            pool = text_of(label.pool) if label else ""
            media = self._catalog.add_media(path.name, magazine.name, magazine.identity, pool, 0)
            # Until all of it was read nothing may be appended.
            media = replace(media, status=VolumeStatus.ERROR)
            self._catalog.update_media(media)
            return media
        media = found[0]
        if (media.identity, media.magazine) != (magazine.identity, magazine.name):
            self._check_moved(path, media, magazine)
            if not self._request.dry_run:
                self._catalog.change(
                    "UPDATE Media SET Magazine=?, Identity=? WHERE MediaId=?",
                    (magazine.name, magazine.identity, media.media_id),
                )
            media = replace(media, magazine=magazine.name, identity=magazine.identity)
        return media

    def _check_moved(self, path: Path, media: Media, magazine: Magazine) -> None:
        """Whether it is the catalog's volume, which has left its magazine. Raises `MagbayError` when it is another."""
        for other in self._magazines.values():
            there = other.path / media.name if other.path and other.identity == media.identity else None
            if there and there.exists() and not there.samefile(path):
                raise MagbayError(
                    f"{path}: another volume {media.name} is on magazine {media.magazine}; this one is not entered",
                    hint="Of two volumes of one name a catalog knows only one: take one of them away.",
                )
        sessions = self._catalog.rows(
            "SELECT DISTINCT VolSessionId, VolSessionTime FROM Job JOIN JobMedia USING(JobId) WHERE MediaId=?",
            (media.media_id,),
        )
        expected = {SessionIds(*row) for row in sessions}
        with VolumeReader(path, self._request.keys) as reader:
            behind = [
                block.ids for block, _ in zip(reader.blocks(), range(2), strict=False) if isinstance(block, Block)
            ]
        if expected and not expected & set(behind[1:]):
            raise MagbayError(
                f"{path}: the catalog has another volume {media.name}, on magazine {media.magazine}; "
                "this one is not entered",
                hint="Of two volumes of one name a catalog knows only one.",
            )
        lacking = volume_rows.lacking(self._catalog, media, path)
        if lacking.jobs:
            raise MagbayError(f"{path}: is not volume {media.name} as it was last: {lacking}; it is not entered")
        self._log(f"volume {media.name} lies on magazine {magazine.name} now", {"VOLUME": media.name})

    def _read(self, path: Path, label: VolumeLabel | None, media: Media | None, start: int) -> None:
        ours = label is not None and label.program == volume_rows.PROGRAM
        dry = self._request.dry_run
        with VolumeReader(path, self._request.keys) as volume:
            if start and not volume.is_block(start):
                start = 0
            self._progress(start)
            book = VolumeBook(self._catalog, media, start, self._foreign, ours=ours, dry=dry)
            damages = self._events(volume, book, start)
            size = volume.size
        if damages is None:
            self._result.cancelled = True
            return
        book.close()
        for session in book.sessions.values():
            self._tell(session, path.name)
        self._result.errors += [f"{path}: {clash}" for clash in book.clashes]
        self._result.errors += [str(damage) for damage in damages]
        if self._not_kept:
            self._result.errors.append(f"{path}: {self._not_kept} more damaged places, which are not listed")
        lacking = volume_rows.lacking(self._catalog, media, path) if media else volume_rows.Lacking()
        if lacking.jobs:
            (self._result.errors if lacking.short else self._result.warnings).append(f"{path}: {lacking}")
        if media and not dry:
            found = volume_rows.Found(label, book, damages, size, short=lacking.short)
            volume_rows.finish(self._catalog, self._config, media, found)

    def _events(self, volume: VolumeReader, book: VolumeBook, start: int) -> list[Damage] | None:
        """Read it; gives its damage (the rest is counted), None when the scan was cancelled."""
        sessions = SessionReader(loose=True)
        sessions.begin_volume(volume.name)
        damages: list[Damage] = []
        self._not_kept = 0
        for item in volume.blocks(start):
            if self._cancelled():
                return None
            if isinstance(item, Block):
                book.block(item)
                events = sessions.block(item)
            else:
                events = sessions.damage(item)
            for event in events:
                self._keep(event, damages)
                book.take(event)
            self._progress(len(item.data) if isinstance(item, Block) else item.length)
        for event in sessions.finish():
            book.take(event)
            self._keep(event, damages)
        return damages

    def _keep(self, event: Event, damages: list[Damage]) -> None:
        if not isinstance(event, Damage):
            return
        if len(damages) < _MOST_DAMAGE:
            damages.append(event)
        else:
            self._not_kept += 1

    def _tell(self, session: Session, volume: str) -> None:
        ids = session.ids
        job = self._result.jobs.get(ids)
        if job is None:
            job = self._result.jobs[ids] = ScannedJob(session.job_id, session.name, not session.whole)
        label = session.label
        job.job_id = session.job_id or (label.job_id if label else job.job_id)
        job.name = session.name
        job.new = job.new or not session.whole
        job.files += session.files
        job.volumes.append(volume)
        if not session.whole:
            self._touched.setdefault(ids, session.known)
        heads, tails = self._cut.setdefault(ids, (set(), set()))
        heads |= session.cut_heads
        tails |= session.cut_tails

    def settle(self) -> None:
        """Put the jobs together."""
        settled = {} if self._request.dry_run else self._settled()
        for ids, job in self._result.jobs.items():
            heads, tails = self._cut[ids]
            if ids in settled:
                job.missing = settled[ids].missing
                job.files += len(settled[ids].joined & (heads | tails))
            else:
                job.files += len(heads & tails)
            found = self._catalog.job_of(ids)
            before = self._touched.get(ids)
            if self._request.dry_run:
                job.status = found.status.word if found else "new"
                job.new = ids in self._touched and (before is None or before.files < job.files)
            elif found:
                job.job_id, job.name, job.status = found.job_id, found.name, found.status.word
                job.new = ids in self._touched and before != known_of(self._catalog, found)

    def _settled(self) -> dict[SessionIds, Settled]:
        """Also of jobs that a scan before this one has left so."""
        numbers = {}
        for ids in self._touched:
            found = self._catalog.job_of(ids)
            if found and found.status is not JobStatus.RUNNING:
                numbers[found.job_id] = ids
        told = settle(self._catalog, unsettled.jobs(self._catalog) | numbers.keys(), self._cancelled)
        if told is None:
            self._result.cancelled = True
            self._result.warnings.append(_LEFT)
        return {numbers[job_id]: one for job_id, one in (told or {}).items() if job_id in numbers}
