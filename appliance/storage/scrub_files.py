"""What the blocks of a magazine say of the files of the catalog, volume by volume, for `scrub.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.storage import saved_files
from appliance.storage.catalog import Catalog
from appliance.storage.checking import FileCheck
from appliance.storage.model import Job, Media
from appliance.storage.saved_files import text
from appliance.storage.scrubs import Damaged, Round
from appliance.volumes.blocks import SessionIds
from appliance.volumes.events import Data, Event, FileEnd, FileEntry, FileStart, FileState, SessionEnd
from appliance.volumes.reader import Block, Damage
from appliance.volumes.sessions import SessionReader
from appliance.volumes.verify import ContentCheck

_FAR = 1 << 30  # bytes behind which a file is not begun again after an interruption
_MOST_NAMED = 1000  # lost files that are named one by one


@dataclass
class _OnVolume:
    """A job on the volume: the files that begin there (lowest and highest FileIndex), the next one that must come.

    *ends*: whether it goes on nowhere else.
    """

    job: Job
    low: int
    high: int
    next: int
    ends: bool


class Files:
    """Takes blocks and damage in order and notes errors in *one*. *identity*: of the magazine."""

    def __init__(self, catalog: Catalog, one: Round, identity: str) -> None:
        self._catalog = catalog
        self._round = one
        self._identity = identity
        self._reader = SessionReader()
        self._content = ContentCheck()
        self._jobs: dict[SessionIds, _OnVolume] = {}
        self._known: dict[SessionIds, Job | None] = {}
        self._looked: set[SessionIds] = set()  # whose job was looked up since the present volume began
        self._checks: dict[SessionIds, FileCheck] = {}
        self._begun: dict[SessionIds, tuple[str, int]] = {}  # open files: volume and address of the block
        self._over: set[SessionIds] = set()
        self._seen: dict[SessionIds, tuple[str, int]] = {}  # of each session's last block: volume and number
        self._volume = ""
        self._ruined: set[str] = set()  # volumes with bytes that are lost
        self._before = ""  # the volume before
        self._told = 0  # of the content check's mismatches
        self._named: set[tuple[SessionIds, int]] = set()  # files that were told as damaged before their end came

    def begin_volume(self, media: Media, name: str) -> int:
        """The blocks that follow are of this volume; *name*: as it stands in messages.

        Gives up to which address it is to be read. What jobs write behind that from now on is not expected.
        """
        self._before, self._volume = self._volume, media.name
        self._reader.begin_volume(name)
        self._jobs = {}
        self._looked.clear()
        size = media.bytes
        for ids, job, low, high, ends, end in self._expected(media):
            judged = self._round.judged.get(str(ids), 0)
            self._jobs[ids] = _OnVolume(job, low, high, max(low, judged + 1), ends)
            size = max(size, end + 1)  # it may have ended just now
            if job.job_id not in self._round.jobs:
                self._round.jobs.append(job.job_id)
        return size

    def _expected(self, media: Media) -> list[tuple[SessionIds, Job, int, int, bool, int]]:
        found = []
        query = "SELECT DISTINCT JobId FROM JobMedia WHERE MediaId=? AND FirstIndex>0"
        for job in [self._catalog.job(row[0]) for row in self._catalog.rows(query, (media.media_id,))]:
            stretches = self._catalog.stretches(job.job_id)
            mine = [number for number, one in enumerate(stretches) if one.media_id == media.media_id]
            if not job.status.good or not mine:
                continue
            first, last = stretches[mine[0]], stretches[mine[-1]]
            before = stretches[mine[0] - 1].last_index if mine[0] else 0
            low = first.first_index + (first.first_index == before)
            ids = SessionIds(job.session_id, job.session_time)
            found.append((ids, job, low, last.last_index, mine[-1] == len(stretches) - 1, last.end))
        return found

    def block(self, block: Block) -> None:
        """Look at one block."""
        goes_on = self._goes_on(block)
        if not goes_on:
            self._reader.skip(block.ids)
        for event in self._reader.block(block):
            if goes_on or not self._leave_out(event):
                self._take(event, block.address)

    def _goes_on(self, block: Block) -> bool:
        """Whether nothing of the session lies between its block before and this one.

        What lies there may be on a magazine that is away, or was written over when its job was not needed any more:
        that is no damage. What of a good job must be on the volumes here, the catalog tells.
        """
        if not block.address:
            return True  # the volume's label, whose session need not have anything else here
        volume, number = self._seen.get(block.ids, (self._volume, 0))
        self._seen[block.ids] = (self._volume, block.number)
        return volume == self._volume or block.number == number + 1 or bool(self._ruined & {volume, self._volume})

    def _leave_out(self, event: Event) -> bool:
        """An event that only says that something is missing in between."""
        if isinstance(event, FileEnd) and event.state is not FileState.WHOLE:
            ids = event.entry.ids
            self._begun.pop(ids, None)
            if self._checks.pop(ids, None):
                self._round.judged[str(ids)] = event.entry.file_index
            else:
                self._content.take(event)
            return True
        return isinstance(event, Damage)

    def damage(self, damage: Damage) -> None:
        """Bytes of the present volume are lost."""
        self._ruined.add(self._volume)
        self._damaged(self._volume)
        for event in self._reader.damage(damage):
            self._take(event, damage.address)

    def unreadable(self, media: Media) -> None:
        """The whole volume, or what is left of it, cannot be read."""
        if self._volume != media.name:
            self.begin_volume(media, media.name)
            for ids, index in self._running_in(media):
                self._run_over(ids, index)
        self._ruined.add(self._volume)
        self._damaged(self._volume)

    def _running_in(self, media: Media) -> Iterator[tuple[SessionIds, int]]:
        """The files that begin before the volume and of which a part is on it."""
        for ids, one in list(self._jobs.items()):
            first, before = 0, 0
            for stretch in self._catalog.stretches(one.job.job_id):
                if stretch.media_id == media.media_id:
                    first = stretch.first_index
                    break
                before = stretch.last_index
            if first and first == before:
                yield ids, first

    def _run_over(self, ids: SessionIds, index: int) -> None:
        """A part of the file is lost with the present volume, whatever of the others is here."""
        job = self._jobs[ids].job
        if not self._is_needed(job):
            return
        row = saved_files.one(self._catalog, job.job_id, index)
        name = text(row.path) if row else f"file {index}"
        self._damaged(self._volume).add(job.job_id, name)
        if (ids, index) not in self._named:
            self._named.add((ids, index))
            self._round.error(f"job {job.job_id} ({job.name}): {name} is {FileState.DAMAGED.value}")

    def leave(self) -> None:
        """Nothing is known of the present volume."""
        self._jobs = {}

    def resume_at(self, address: int) -> int:
        """Where reading must go on after an interruption, when everything before *address* has been read."""
        here = [begin for volume, begin in self._begun.values() if volume == self._volume]
        begin = min(here, default=address)
        return begin if address - begin <= _FAR else address

    def end_volume(self, media: Media) -> None:
        """All of it is read: what of the catalog's files did not come is lost."""
        for one in list(self._jobs.values()):
            self._lost(one, one.next, one.high)
        for line in self._content.mismatches[self._told :]:
            self._round.error(f"volume {media.name}: {line}")
            self._damaged(self._volume).add(0, line.partition(": ")[0])
        self._told = len(self._content.mismatches)
        for line in self._content.unreadable:
            self._round.is_unread(f"a job that the catalog does not know: {line.rpartition(': ')[2]}")
        self._content.unreadable.clear()
        self._round.judged = {name: index for name, index in self._round.judged.items() if not self._is_over(name)}
        self._over.clear()

    def _is_over(self, name: str) -> bool:
        return name in {str(ids) for ids in self._over}

    def finish(self) -> None:
        """No more volumes. What goes on elsewhere is not judged."""
        for event in self._reader.finish():
            if isinstance(event, FileEnd) and event.state is FileState.CUT:
                one = self._jobs.get(event.entry.ids)
                if one is None or not one.ends:
                    continue
            self._take(event, 0)
        self._content.close()

    def _damaged(self, volume: str) -> Damaged:
        return self._round.damaged.setdefault(volume, Damaged())

    # Events

    def _job(self, ids: SessionIds) -> Job | None:
        if ids not in self._known:
            job = self._catalog.job_of(ids)
            self._known[ids] = job if job and job.status.good else None
        return self._known[ids]

    def _look_again(self, event: Event) -> None:
        """Since the volume before, the job of a file that begins may have ended, or been purged."""
        if isinstance(event, FileStart) and event.entry.ids not in self._looked:
            self._looked.add(event.entry.ids)
            self._known.pop(event.entry.ids, None)

    def _is_needed(self, job: Job) -> bool:
        """Whether the job is still a good one: jobs may be purged, and their volumes written anew, at any time."""
        if self._catalog.job(job.job_id).status.good:
            return True
        ids = SessionIds(job.session_id, job.session_time)
        self._known[ids] = None
        self._jobs.pop(ids, None)
        return False

    def _take(self, event: Event, address: int) -> None:
        self._look_again(event)
        if isinstance(event, Damage):
            self._round.error(str(event))
            # What a damaged volume leaves without its end or beginning on the next one is not that one's fault.
            if not self._ruined & {self._volume, self._before}:
                self._damaged(self._volume)
        elif isinstance(event, FileStart | Data | FileEnd):
            job = self._job(event.entry.ids)
            if job is None:
                self._content.take(event)
            elif isinstance(event, FileStart):
                self._start(job, event.entry, address)
            elif isinstance(event, Data):
                if event.entry.ids in self._checks:
                    self._checks[event.entry.ids].data(event)
            else:
                self._end(job, event)
        elif isinstance(event, SessionEnd):
            self._seen.pop(event.ids, None)
            self._content.take(event)
            self._over.add(event.ids)
        else:
            entry = getattr(event, "entry", None)
            if entry is not None and self._job(entry.ids) is None:
                self._content.take(event)

    def _start(self, job: Job, entry: FileEntry, address: int) -> None:
        ids = entry.ids
        on = self._jobs.get(ids)
        if on:
            self._lost(on, on.next, min(entry.file_index - 1, on.high))
            on.next = max(on.next, entry.file_index + 1)
        self._begun[ids] = (self._volume, address)
        self._checks.pop(ids, None)
        if entry.file_index <= self._round.judged.get(str(ids), 0):
            return  # judged before the interruption
        row = saved_files.one(self._catalog, job.job_id, entry.file_index)
        if row is None and not self._is_needed(job):
            return
        if row is None:
            self._round.error(f"job {job.job_id}: {entry.path} is on its volumes, but not in the catalog")
        else:
            self._checks[ids] = FileCheck(entry, row)

    def _end(self, job: Job, event: FileEnd) -> None:
        entry = event.entry
        self._begun.pop(entry.ids, None)
        check = self._checks.pop(entry.ids, None)
        key = str(entry.ids)
        if check is None or entry.file_index <= self._round.judged.get(key, 0):
            return
        if event.state is not FileState.WHOLE and not self._is_needed(job):
            return
        self._round.judged[key] = entry.file_index
        self._round.files += 1
        self._round.bytes += check.bytes
        if event.state is FileState.WHOLE:
            check.end(entry)
        if check.unread:
            self._round.is_unread(f"job {job.job_id} ({job.name}): {check.unread}")
        for line in check.trouble:
            self._round.error(f"job {job.job_id} ({job.name}): {line}")
        named = (entry.ids, entry.file_index) in self._named
        if event.state is not FileState.WHOLE and not named:
            self._round.error(f"job {job.job_id} ({job.name}): {entry.path} is {event.state.value}")
        if check.content or event.state is not FileState.WHOLE:
            # As far as that is known, the volume where its bytes were lost.
            volumes = {Path(damage.volume).name for damage in event.damage} or {self._volume}
            # Where its bytes were on a volume that is gone, the one behind shows the gap, and is as it was written.
            for volume in volumes & self._ruined if named else volumes:
                self._damaged(volume).add(job.job_id, entry.path)

    def _lost(self, on: _OnVolume, low: int, high: int) -> None:
        if high < low or not self._is_needed(on.job):
            return
        ids = SessionIds(on.job.session_id, on.job.session_time)
        for index in range(low, min(high, low + _MOST_NAMED - 1) + 1):
            row = saved_files.one(self._catalog, on.job.job_id, index)
            name = text(row.path) if row else f"file {index}"
            self._named.add((ids, index))
            self._round.error(f"job {on.job.job_id} ({on.job.name}): {name} is lost")
            self._damaged(self._volume).add(on.job.job_id, name)
        if high - low >= _MOST_NAMED:
            count = high - low + 1 - _MOST_NAMED
            self._round.error(f"job {on.job.job_id} ({on.job.name}): {count} more files are lost")
        on.next = max(on.next, high + 1)
