"""What to read for a restore or a verification: jobs, wanted files, and the stretches of volumes that hold them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.config.schema import Config
from appliance.errors import AwayError, MagbayError, NotFoundError
from appliance.magazines import attached
from appliance.spelling import near
from appliance.storage import order
from appliance.storage.catalog import Catalog
from appliance.storage.model import Job, JobStatus, Level, Media, SavedFile, Stretch
from appliance.storage.pools import reachable
from appliance.volumes.attributes import FileType
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.blocks import SessionIds
from appliance.volumes.errors import VolumeError
from appliance.volumes.events import Event, FileEnd, FileState, SessionEnd
from appliance.volumes.reader import Block, Damage, VolumeReader
from appliance.volumes.sessions import SessionReader
from appliance.volumes.stat64 import EncodedStat

_BACK = "'magbay volume scan' brings back what was not written over"
_NO, _WANTED, _NEEDED, _DONE = 0, 1, 2, 3


class Wanted:
    """The files of one job that are wanted: one byte for each FileIndex."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.count = 0
        self._marks = bytearray(job.files + 1)
        self._links: dict[int, bytes] = {}
        self._firsts: dict[int, int] = {}  # of hard links: the file with their data

    def add(self, saved: SavedFile) -> None:
        """Want a file; for a hard link the file with its data must be read too."""
        self._mark(saved.file_index, _WANTED)
        self.count += 1
        if saved.type == FileType.HARD_LINK:
            first = EncodedStat.parse(saved.lstat.encode("ascii")).link_fi
            if first > 0:
                self._mark(first, _NEEDED)
                self._links.setdefault(first, saved.path)
                self._firsts[saved.file_index] = first

    def aliases(self) -> dict[int, bytes]:
        """FileIndex of each file that is needed only for the data of a wanted hard link, and that link's path."""
        return {index: path for index, path in self._links.items() if not self.wants(index)}

    def _mark(self, index: int, mark: int) -> None:
        if index >= len(self._marks):
            self._marks.extend(bytes(index + 1 - len(self._marks)))
        if self._marks[index] in (_NO, _NEEDED):
            self._marks[index] = mark

    def wants(self, index: int) -> bool:
        """Whether the file is wanted (or was and is done)."""
        return 0 < index < len(self._marks) and self._marks[index] in (_WANTED, _DONE)

    def done(self, index: int) -> None:
        """The file came off the volumes."""
        if self.wants(index):
            self._marks[index] = _DONE

    def missing(self) -> Iterator[int]:
        """FileIndex of each wanted file that did not come."""
        at = self._marks.find(_WANTED)
        while at >= 0:
            yield at
            at = self._marks.find(_WANTED, at + 1)

    def split(self, owners: Mapping[str, Sequence[tuple[int, int]]]) -> dict[str, Wanted]:
        """The same files divided by the FileIndex ranges of *owners*; hard links go with what has their data."""
        parts = {}
        for name, ranges in owners.items():
            part = parts[name] = Wanted(self.job)
            part._marks = bytearray(len(self._marks))
            for low, high in ranges:
                part._marks[low : high + 1] = self._marks[low : high + 1]
        for index, first in self._firsts.items():
            home = next((part for part in parts.values() if first < len(part._marks) and part._marks[first]), None)
            if home is not None:
                for part in parts.values():
                    part._marks[index] = _NO
                home._marks[index] = self._marks[index]
                home._firsts[index] = first
                if first in self._links:
                    home._links[first] = self._links[first]
        for part in parts.values():
            part.count = part._marks.count(_WANTED)
        return parts

    def any_in(self, stretch: Stretch) -> bool:
        """Whether a file that must be read has records in the stretch."""
        part = self._marks[stretch.first_index : stretch.last_index + 1]
        return part.count(_NO) < len(part)


@dataclass(frozen=True)
class Run:
    """Addresses of the first and last byte to read; *gap*: the stretch of the job before it is not read.

    *continued*: FileIndex of the file that goes on in the stretch behind, 0 when the last one is complete.
    """

    start: int
    end: int
    gap: bool
    continued: int


@dataclass(frozen=True)
class Part:
    """What to read of one volume."""

    media: Media
    path: Path
    runs: tuple[Run, ...]

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(run.end - run.start + 1 for run in self.runs)


def chosen_job(catalog: Catalog, job_id: int | None, latest: str | None, before: int | None = None) -> Job:
    """The job named by id, else the newest good one (of the name *latest*) that began at *before* (Unix seconds) or
    earlier, by its clock and in truth (`order`). Raises `NotFoundError`.
    """
    if job_id is not None:
        job = catalog.job(job_id)
        if job.status is JobStatus.PURGED:
            raise NotFoundError(
                f"job {job_id} is beyond its retention: its files are forgotten",
                hint=f"{_BACK}; 'magbay jobs' lists what there is.",
            )
        if job.status.bad and job.files and not _has_files(catalog, job):
            raise NotFoundError(
                f"job {job_id} had ended as {job.status.word}, and what it left was written over",
                hint="'magbay jobs' lists what there is.",
            )
        return job
    jobs = catalog.jobs()
    began = order.times(jobs)
    for job in jobs:
        in_time = before is None or max(job.started, began[job.job_id]) <= before
        if job.status.good and latest in (None, job.name) and in_time:
            return job
    name = f" called {latest}" if latest else ""
    if before is not None:
        name += f" that began by {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(before))}"
    hint = "'magbay jobs' lists the jobs; 'magbay volume extract' reads volumes without a catalog."
    raise NotFoundError(
        f"the catalog has no finished job{name}",
        hint=near(latest, {job.name for job in jobs if job.name != latest}, hint) if latest else hint,
    )


def _has_files(catalog: Catalog, job: Job) -> bool:
    return bool(list(catalog.rows("SELECT 1 FROM File WHERE JobId=? LIMIT 1", (job.job_id,))))


def chain_of(catalog: Catalog, job: Job) -> list[Job]:
    """The jobs that together hold the state that *job* saved, oldest (the full one) first."""
    return [*catalog.chain(job)][::-1]


def gaps(chain: Sequence[Job]) -> list[str]:
    """What of the jobs of a chain the catalog does not have: a state restored from them is not all."""
    hint = "plug in its magazine and run 'magbay catalog restore' or 'magbay volume scan'"
    purged = f"is beyond its retention, and its files are forgotten: {_BACK}"
    told = [
        f"job {job.job_id}, that it builds on, "
        + (purged if job.status is JobStatus.PURGED else f"is not whole in the catalog: {hint}")
        for job in chain[:-1]
        if not job.status.good
    ]
    if chain[0].level is not Level.FULL:
        told.append(f"what job {chain[0].job_id} builds on is not in the catalog: {hint}")
    return told


def parts_for(
    catalog: Catalog, config: Config, job: Job, *, wanted: Wanted | None = None, only: Set[str] | None = None
) -> list[Part]:
    """The volumes to read for a job, in order of writing: where *wanted* files are, *only* on these magazines.

    *only*: identities of magazines. Raises `AwayError` naming magazines and volumes when one is not here.
    """
    found = runs_for(catalog, job, wanted=wanted, only=only)
    places = require(config, [media for media, _ in found])
    return [Part(media, places[media.media_id], runs) for media, runs in found]


def runs_for(
    catalog: Catalog, job: Job, *, wanted: Wanted | None = None, only: Set[str] | None = None
) -> list[tuple[Media, tuple[Run, ...]]]:
    """As `parts_for`, wherever the volumes are."""
    media = {item.media_id: item for item in catalog.media()}
    runs: dict[int, list[Run]] = {}
    gap = False
    stretches = catalog.stretches(job.job_id)
    for stretch, behind in zip(stretches, [*stretches, None][1:], strict=True):
        if (wanted and not wanted.any_in(stretch)) or (
            only is not None and media[stretch.media_id].identity not in only
        ):
            gap = True
            continue
        mine = runs.setdefault(stretch.media_id, [])
        continued = stretch.last_index if behind and behind.first_index == stretch.last_index else 0
        if mine and not gap:
            mine[-1] = replace(mine[-1], end=stretch.end, continued=continued)
        else:
            mine.append(Run(stretch.start, stretch.end, gap, continued))
        gap = False
    return [(media[media_id], tuple(mine)) for media_id, mine in runs.items()]


def require(config: Config, media: Iterable[Media]) -> dict[int, Path]:
    """The file of each volume by MediaId. Raises `AwayError` naming all magazines and volumes that are not here."""
    known = {m.identity: m for m in attached.known(config)}
    here = {identity: m.path for identity, m in known.items() if reachable(m)}
    places, away = {}, {}
    for item in media:
        directory = here.get(item.identity)
        if directory is None:
            away[item.name] = item.magazine
        else:
            places[item.media_id] = directory / item.name
    if away:
        raise away_error((magazine, name) for name, magazine in away.items())
    return places


def away_error(away: Iterable[tuple[str, str]]) -> AwayError:
    """Which magazines must be plugged in for which volumes: pairs of both."""
    volumes: dict[str, list[str]] = {}
    for magazine, volume in away:
        volumes.setdefault(magazine, []).append(volume)
    told = "; ".join(f"magazine {name} (volumes {', '.join(names)})" for name, names in volumes.items())
    return AwayError(f"not here: {told}", hint=f"Plug in {' and '.join(volumes)} and try again.")


class JobReader:
    """Reads the stretches of one job. *advance* is told the bytes read. *keys*: of enciphered volumes.

    *door*: held while a part is read. *from_disk*: as for `VolumeReader`.
    """

    def __init__(
        self,
        job: Job,
        advance: Callable[[int], None],
        keys: VolumeKeys | None = None,
        door: Callable[[Part], AbstractContextManager[object]] = lambda part: nullcontext(),
        *,
        from_disk: bool = False,
    ) -> None:
        self._keys = keys
        self._from_disk = from_disk
        self._door = door
        self._ids = SessionIds(job.session_id, job.session_time)
        self._advance = advance
        self._sessions = SessionReader()
        self._good = job.status.good
        self._continued = 0

    def events(self, parts: Sequence[Part]) -> Iterator[Event]:
        """The job's events. A volume that is missing, cut short or not readable is `Damage`, and reading goes on."""
        for part in parts:
            self._sessions.begin_volume(str(part.path))
            try:
                with self._door(part):
                    yield from self._read(part)
            except MagbayError as error:
                told = error.message.removeprefix(f"{part.path}: ")
                yield from self._sessions.damage(Damage(str(part.path), 0, part.size, told))
        yield from self._finish()

    def _finish(self) -> Iterator[Event]:
        """End what is open. Where reading stops on purpose behind a file, that file is not cut."""
        for event in self._sessions.finish():
            if isinstance(event, FileEnd) and event.state is FileState.CUT and self._ends_here(event):
                event = event._replace(state=FileState.WHOLE)
            yield event

    def _ends_here(self, event: FileEnd) -> bool:
        return self._good and event.entry.file_index != self._continued

    def _read(self, part: Part) -> Iterator[Event]:
        with VolumeReader(part.path, self._keys, from_disk=self._from_disk) as volume:
            label = volume.label()
            if label is None:
                # It touches no file: what is read here is found by the catalog's addresses.
                yield Damage(volume.name, 0, 0, "the volume's label is damaged")
            elif label.name != part.media.name:
                raise VolumeError(f"its label says {label.name}")
            for run in part.runs:
                if run.gap:
                    yield from self._jump(part)
                self._continued = run.continued
                yield from self._read_run(volume, run)

    def _jump(self, part: Part) -> Iterator[Event]:
        """Stretches in between are not read: what was begun before, or goes on behind, is no damage."""
        for event in self._finish():
            if not isinstance(event, SessionEnd):
                yield event
        self._sessions = SessionReader()
        self._sessions.begin_volume(str(part.path))

    def _read_run(self, volume: VolumeReader, run: Run) -> Iterator[Event]:
        for item in volume.blocks(run.start):
            if item.address > run.end:
                break
            if not isinstance(item, Block):
                yield from self._sessions.damage(item)
            elif item.ids == self._ids:
                yield from self._sessions.block(item)
            self._advance(len(item.data) if isinstance(item, Block) else item.length)
        if volume.size <= run.end:
            lost = run.end + 1 - volume.size
            yield from self._sessions.damage(Damage(volume.name, volume.size, lost, "the volume is cut short"))
