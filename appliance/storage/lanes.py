"""Reading from several magazines at once: one lane for each, and never two readers on one.

A file belongs to the lane of the magazine on which it begins. A lane reads a file that goes on elsewhere to its end;
for that stretch it waits until the other lane does not read there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from appliance.config.schema import Config
from appliance.storage import kinds
from appliance.storage.catalog import Catalog
from appliance.storage.extract import Extractor
from appliance.storage.model import Media, Stretch
from appliance.storage.output import Cancelled
from appliance.storage.plan import JobReader, Part, Wanted, parts_for, require, runs_for
from appliance.storage.selection import Key
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.blocks import SessionIds
from appliance.volumes.events import Data, Event, FileEnd, FileEntry, FileStart, Partial
from appliance.volumes.reader import Damage

_MOST_AT_ONCE = 4
_MOST_KEPT = 1000


class Lane:
    """What is restored from one magazine: the wanted files of each job, and what to read for them."""

    def __init__(self, magazine: str) -> None:
        self.magazine = magazine
        self.work: list[tuple[Wanted, list[Part]]] = []
        self.damage: list[str] = []
        self._by_session: dict[SessionIds, Wanted] = {}

    def add(self, wanted: Wanted, parts: list[Part]) -> None:
        """Files of one more job."""
        self.work.append((wanted, parts))
        self._by_session[SessionIds(wanted.job.session_id, wanted.job.session_time)] = wanted

    def select(self, entry: FileEntry) -> bool:
        """Whether the file is one of this lane."""
        wanted = self._by_session.get(entry.ids)
        return wanted is not None and wanted.wants(entry.file_index)

    def aliases(self) -> dict[Key, bytes]:
        """As `Wanted.aliases`, of all jobs."""
        found = self._by_session.items()
        return {(ids, index): path for ids, wanted in found for index, path in wanted.aliases().items()}

    def events(
        self, reader: Callable[[Wanted], JobReader], cancelled: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        """What is read, damage left out: whether it matters shows when all wanted files are counted.

        Raises `Cancelled`.
        """
        for wanted, parts in self.work:
            for event in reader(wanted).events(parts):
                if isinstance(event, (Data, FileStart)):  # where the work is
                    if cancelled():
                        raise Cancelled
                elif isinstance(event, FileEnd):
                    wanted.done(event.entry.file_index)
                elif isinstance(event, Damage):
                    if len(self.damage) < _MOST_KEPT:
                        self.damage.append(str(event))
                    continue
                elif isinstance(event, Partial):
                    continue
                yield event


def lanes_for(catalog: Catalog, config: Config, wanted: Sequence[Wanted]) -> list[Lane]:
    """The lanes in the order in which they are first needed; one alone where the order of jobs counts. *wanted*: of the
    oldest job first. Raises `AwayError`.
    """
    media = {item.media_id: item for item in catalog.media()}
    require(config, [volume for item in wanted for volume, _ in runs_for(catalog, item.job, wanted=item)])
    found: dict[str, Lane] = {}
    for item in wanted:
        owners = _owners(catalog.stretches(item.job.job_id), media)
        pieces = item.split(owners) if len(owners) > 1 else dict.fromkeys(owners or [""], item)
        for magazine, piece in pieces.items():
            if piece.count:
                parts = parts_for(catalog, config, item.job, wanted=piece)
                found.setdefault(magazine, Lane(magazine)).add(piece, parts)
    if len(found) > 1 and kinds.changed(catalog, [item.job for item in wanted]):
        lane = Lane("")
        for item in wanted:
            lane.add(item, parts_for(catalog, config, item.job, wanted=item))
        return [lane]
    return list(found.values())


def _owners(stretches: Sequence[Stretch], media: dict[int, Media]) -> dict[str, list[tuple[int, int]]]:
    """Identity of each magazine to the FileIndex ranges of the files that begin on it."""
    owners: dict[str, list[tuple[int, int]]] = {}
    begun = 0
    for stretch in stretches:
        low = max(stretch.first_index, begun + 1)
        if low <= stretch.last_index:
            owners.setdefault(media[stretch.media_id].identity, []).append((low, stretch.last_index))
            begun = stretch.last_index
    return owners


class Readers:
    """Runs lanes into branches of an extractor. *progress* and *cancelled* are called by one thread at a time."""

    def __init__(
        self, lanes: Sequence[Lane], keys: VolumeKeys, progress: Callable[[int], None], cancelled: Callable[[], bool]
    ) -> None:
        self._lanes = lanes
        self._keys = keys
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._told, self._asked = progress, cancelled
        identities = {part.media.identity for lane in lanes for _, parts in lane.work for part in parts}
        self._doors = {identity: threading.Lock() for identity in identities}

    def run(self, extractor: Extractor) -> bool:
        """Read everything and write it; False when it was cancelled. Raises as `Extractor.run`."""
        if len(self._lanes) <= 1:
            ends = [self._run(lane, extractor) for lane in self._lanes]
        else:
            with ThreadPoolExecutor(_MOST_AT_ONCE, "restore") as pool:
                runs = [pool.submit(self._run, lane, extractor) for lane in self._lanes]
            ends = [run.result() for run in runs]
        return all(ends)

    def _run(self, lane: Lane, extractor: Extractor) -> bool:
        branch = extractor.branch(lane.select, lane.aliases())
        try:
            # Closed at once, whatever happens: another lane may wait at a door.
            with closing(lane.events(self._reader, self._cancelled)) as events:
                branch.take(events)
        except Cancelled:
            return False
        except BaseException:
            self._stop.set()
            raise
        finally:
            branch.close()
            with self._turn:
                extractor.absorb(branch)
        return True

    def _reader(self, wanted: Wanted) -> JobReader:
        return JobReader(wanted.job, self._progress, self._keys, lambda part: self._doors[part.media.identity])

    def _progress(self, count: int) -> None:
        with self._turn:
            self._told(count)

    def _cancelled(self) -> bool:
        if self._stop.is_set():
            return True
        with self._turn:
            return self._asked()
