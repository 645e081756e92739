"""After a scan: jobs put together from what was found of them on all volumes, by this scan and by those before.

A job counts as good again when its beginning, its end and every file between were found, or when what is missing was
lost by damage that was told; until then it is a failed one, of which `restore --job` still gives what there is.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from appliance.storage import bases, folders
from appliance.storage.catalog import Catalog
from appliance.storage.database import Database
from appliance.storage.digests import link_digest
from appliance.storage.model import JobStatus, SavedFile, VolumeStatus
from appliance.storage.saved_files import FileWriter
from appliance.storage.scanned import record_digest
from appliance.volumes.attributes import FileType, parse_attributes
from appliance.volumes.errors import VolumeError
from appliance.volumes.streams import ATTRIBUTES, TYPE_MASK


@dataclass(frozen=True)
class _Place:
    """A stretch with what puts it in order."""

    row_id: int
    media_id: int
    first: int
    last: int
    start: int
    first_block: int
    last_block: int
    status: str  # of the volume
    written: int  # when the volume was first written on
    volume: str

    @property
    def by_number(self) -> tuple[int, int, int, int]:
        """Files ascend; within one file the block numbers do."""
        return self.first, self.last, self.first_block, self.row_id

    @property
    def by_time(self) -> tuple[int, int, int, str, int]:
        """Without block numbers, which rows that a backup entered do not have: in the order of the volumes."""
        return self.first, self.last, self.written, self.volume, self.start


@dataclass(frozen=True)
class Settled:
    """What became of a job: why it is not whole, or nothing; FileIndexes of files whose attributes were joined."""

    missing: str
    joined: frozenset[int]


@dataclass(frozen=True)
class _Verdict:
    """What a job's row will say, and in *why* what its log does if it is not whole."""

    status: JobStatus
    files: int
    errors: int
    why: str


def settle(
    catalog: Catalog, job_ids: Iterable[int], cancelled: Callable[[], bool] = lambda: False
) -> dict[int, Settled] | None:
    """Put the jobs together; None when *cancelled* said so before all were looked at. Raises `CatalogError`.

    What became of all of them is entered at once: none counts as good before it is known what it builds on.
    """
    told = {}
    verdicts = {}
    for job_id in sorted(job_ids):
        if cancelled():
            return None
        joined = _join_loose(catalog, job_id)
        with catalog.transaction(durable=False) as db:
            verdict = _looked_at(db, job_id)
        if verdict:
            verdicts[job_id] = verdict
            told[job_id] = Settled(verdict.why, joined)
    with catalog.transaction() as db:
        for job_id, verdict in verdicts.items():
            # One that was purged meanwhile, since its volume is written anew, must not become a good one again.
            if db.execute("SELECT 1 FROM Scanned WHERE JobId=?", (job_id,)).fetchone():
                _enter(db, job_id, verdict)
        folders.settle(db)
        bases.find(db, verdicts)
    return told


# -- records that a volume's end cuts ----------------------------------------------------------------------------


def _join_loose(catalog: Catalog, job_id: int) -> frozenset[int]:
    """Join the parts of records; enter the files (their FileIndexes are given) and digests that this completes."""
    query = "SELECT FileIndex, Stream, Missing, Data FROM Loose WHERE JobId=? ORDER BY FileIndex"
    whole: list[tuple[int, int, bytes]] = []
    tails: dict[tuple[int, int], bytes] = {}
    heads = []
    for index, stream, missing, data in catalog.rows(query, (job_id,)):
        if stream < 0:
            tails[index, -stream] = bytes(data)
        elif missing:
            heads.append((index, stream, missing, bytes(data)))
        else:
            whole.append((index, stream, bytes(data)))
    for index, stream, missing, data in heads:
        tail = tails.get((index, stream))
        if tail is not None and len(tail) == missing:
            whole.append((index, stream, data + tail))
    rows = FileWriter(catalog, job_id, again=True)
    joined = set()
    for saved in _files_of(job_id, whole):
        rows.add(saved.file_index, saved.type, saved.path, saved.lstat, saved.digest)
        joined.add(saved.file_index)
    rows.flush()
    with catalog.transaction(durable=False) as db:
        for index, stream, data in whole:
            digest = record_digest(stream & TYPE_MASK, data)
            if digest:
                values = (digest, job_id, index)
                db.execute("UPDATE File SET Digest=? WHERE JobId=? AND FileIndex=? AND Digest=''", values)
    return frozenset(joined)


def _files_of(job_id: int, records: Sequence[tuple[int, int, bytes]]) -> Iterable[SavedFile]:
    for index, stream, data in records:
        if stream & TYPE_MASK not in ATTRIBUTES:
            continue
        try:
            found = parse_attributes(data)
        except VolumeError:
            continue  # its file stays missing, and that is told
        digest = link_digest(found.link) if found.ftype == FileType.SYMLINK else ""
        yield SavedFile(job_id, index, found.ftype, found.name, found.stat.pack().decode("ascii"), digest)


# -- is it whole ---------------------------------------------------------------------------------------------------


def _looked_at(db: Database, job_id: int) -> _Verdict | None:
    """None when the job was purged since its volumes were read."""
    row = db.execute("SELECT Begun, Ended FROM Scanned WHERE JobId=?", (job_id,)).fetchone()
    if row is None:
        return None
    begun, ended = row
    query = "SELECT count(*), coalesce(max(FileIndex), 0) FROM File WHERE JobId=?"
    count, last = db.execute(query, (job_id,)).fetchone()
    (files,) = db.execute("SELECT JobFiles FROM Job WHERE JobId=?", (job_id,)).fetchone()
    if not ended:
        files = last
    places = _in_order(db, job_id)
    lost = max(0, files - count)
    status, why = _judged(begun=bool(begun), ended=ended, lost=lost, places=places)
    return _Verdict(status, files, lost + (0 if ended else 1), why)


def _enter(db: Database, job_id: int, verdict: _Verdict) -> None:
    why = verdict.why
    db.execute(
        "UPDATE Job SET JobStatus=?, JobFiles=?, JobErrors=?, ReadBytes="
        "(SELECT coalesce(sum(DataBytes), 0) FROM JobMedia WHERE JobId=?) WHERE JobId=?",
        (verdict.status.value, verdict.files, verdict.errors, job_id, job_id),
    )
    text = f"entered by a scan of its volumes{': ' if why else ''}{why}"
    db.execute("DELETE FROM Log WHERE JobId=? AND Text LIKE 'entered by a scan%'", (job_id,))
    db.execute(
        "INSERT INTO Log(JobId, Time, Kind, Text) VALUES(?, ?, ?, ?)",
        (job_id, int(time.time()), "error" if why else "info", text),
    )
    if not why:
        db.execute("DELETE FROM Loose WHERE JobId=?", (job_id,))


def _judged(*, begun: bool, ended: str, lost: int, places: Sequence[_Place]) -> tuple[JobStatus, str]:
    """The status that the job gets, and why it is not whole."""
    if not ended:
        where = "" if begun else ", nor its beginning"
        return JobStatus.FAILED, f"its end was not found{where}: it was cancelled or cut off, or a volume is missing"
    if not begun:
        return JobStatus.FAILED, "its beginning was not found: scan the volumes that it begins on, too"
    status = bases.STATUS.get(ended, JobStatus.FAILED)
    hole = _hole(places)
    if hole:
        return JobStatus.FAILED, "a part of it was not found: scan its other volumes, too"
    if lost:
        return JobStatus.WARNINGS if status.good else status, f"{lost} of its files are lost by damage of its volumes"
    return status, ""


def _hole(places: Sequence[_Place]) -> bool:
    """Whether a volume between two others is missing. Damage at a border, which was told, is no hole."""
    for before, behind in itertools.pairwise(places):
        if before.media_id == behind.media_id or VolumeStatus.ERROR.value in (before.status, behind.status):
            continue
        numbered = before.last_block and behind.first_block  # not by some writers, nor when a backup entered the row
        if numbered and behind.first_block != (before.last_block + 1) & 0xFFFFFFFF:
            return True
        if not numbered and behind.first > before.last + 1:
            return True
    return False


def _in_order(db: Database, job_id: int) -> list[_Place]:
    """The job's stretches in order of writing; from now on their rows are in that order, too."""
    query = (
        "SELECT JobMediaId, MediaId, FirstIndex, LastIndex, StartAddress, FirstBlock, LastBlock, VolStatus, "
        "FirstWritten, VolumeName FROM JobMedia JOIN Media USING(MediaId) WHERE JobId=? AND FirstIndex>0 "
        "ORDER BY JobMediaId"
    )
    found = [_Place(*row) for row in db.execute(query, (job_id,))]
    numbered = all(place.last_block for place in found)
    ordered = sorted(found, key=lambda place: place.by_number if numbered else place.by_time)
    if ordered == found:
        return found
    for place in ordered:
        columns = "JobId, MediaId, FirstIndex, LastIndex, StartAddress, EndAddress, FirstBlock, LastBlock, DataBytes"
        db.execute(
            f"INSERT INTO JobMedia({columns}) SELECT {columns} FROM JobMedia WHERE JobMediaId=?",  # noqa: S608
            (place.row_id,),
        )
        db.execute("DELETE FROM JobMedia WHERE JobMediaId=?", (place.row_id,))
    return ordered
