"""The catalog's row of a volume that was scanned: how far it is known, its end, its times, its status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.config.schema import Config
from appliance.storage.catalog import Catalog, write_media
from appliance.storage.model import JobStatus, Media, VolumeStatus
from appliance.storage.scanned import VolumeBook, text_of
from appliance.storage.tail import headers_at
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.blocks import SessionIds
from appliance.volumes.labels import VolumeLabel
from appliance.volumes.reader import Block, Damage, VolumeReader

PROGRAM = "magbay"  # in the labels of our volumes
_GOOD = tuple(status.value for status in JobStatus if status.good)


@dataclass(frozen=True)
class Found:
    """What a volume turned out to be. *size* of its file in bytes; *short*: the catalog has jobs behind its end."""

    label: VolumeLabel | None
    book: VolumeBook
    damages: Sequence[Damage]
    size: int
    short: bool = False

    @property
    def torn(self) -> bool:
        """Whether the only damage is a tail that a job left that never ended: the next job cuts it off."""
        end = self.book.end
        tail = [one for one in self.damages if one.address >= end and one.address + one.length == self.size]
        return len(tail) == len(self.damages) and any(not session.ended for session in self.book.sessions.values())


@dataclass(frozen=True)
class Lacking:
    """The good *jobs* that the catalog has on a volume, and that are not there; *short*: they lay behind its end."""

    jobs: tuple[int, ...] = ()
    short: bool = False

    def __str__(self) -> str:
        why = "its file ends before them, as that of an older copy does" if self.short else "it was written anew since"
        return f"job {', '.join(map(str, self.jobs))}, by the catalog on this volume, is not there: {why}"


def lacking(catalog: Catalog, media: Media, path: Path) -> Lacking:
    """Looks at the header of the first block of each stretch. Raises `OSError`."""
    query = (
        "SELECT JobId, VolSessionId, VolSessionTime, StartAddress, EndAddress FROM JobMedia JOIN Job USING(JobId) "
        "WHERE MediaId=? AND FirstIndex>0 AND JobStatus IN (?, ?) ORDER BY JobId"
    )
    gone: dict[int, None] = {}
    short, anew = False, False
    size = path.stat().st_size
    found = list(catalog.rows(query, (media.media_id, *_GOOD)))
    headers = headers_at(path, (row[3] for row in found))
    for (job_id, number, when, _, end), header in zip(found, headers, strict=True):
        # A header that is damaged is told as damage.
        other = header is not None and header.possible and header.ids != SessionIds(number, when)
        if other or end >= size:
            gone[job_id] = None
            short, anew = short or end >= size, anew or other
    return Lacking(tuple(gone), short and not anew)


def covered(catalog: Catalog, path: Path, media: Media | None, keys: VolumeKeys | None) -> int:
    """Up to which address the catalog knows what is on the volume: the end of its label, or of a stretch."""
    if media is None:
        return 0
    with VolumeReader(path, keys) as reader:
        first = next(reader.blocks(), None)
        at = len(first.data) if isinstance(first, Block) else 0
    query = "SELECT StartAddress, EndAddress FROM JobMedia WHERE MediaId=? AND FirstIndex>0 ORDER BY StartAddress"
    for start, end in list(catalog.rows(query, (media.media_id,))):
        if start > at:
            break
        at = max(at, end + 1)
    return at


def finish(catalog: Catalog, config: Config | None, media: Media, found: Found) -> None:
    """Enter the volume's end, times and status, as far as they can be told from itself."""
    sessions = found.book.sessions.values()
    begun = [session.begun for session in sessions if session.begun]
    ended = [session.label.time // 1_000_000 for session in sessions if session.label and session.ended]
    # The first job on a volume renews its label.
    labelled = found.label.write_time // 1_000_000 if found.label else 0
    first = media.first_written or (max(1, labelled or min(begun, default=0)) if sessions else 0)
    last = max([first, *begun, *ended, media.last_written], default=0)
    end = found.book.end or media.bytes
    status = media.status
    if found.book.clashes or found.short or (found.damages and not found.torn):
        # What is not entered is nobody's to expire: on such a volume nothing is written anew either.
        status = VolumeStatus.ERROR
    elif not media.bytes or status is VolumeStatus.ERROR:
        status = _usable(config, found.label, end)
    now = replace(media, bytes=end, status=status, first_written=first, last_written=last)
    with catalog.transaction() as db:
        write_media(db, now)
        if found.label and not media.pool:
            db.execute("UPDATE Media SET Pool=? WHERE MediaId=?", (text_of(found.label.pool), media.media_id))


def _usable(config: Config | None, label: VolumeLabel | None, end: int) -> VolumeStatus:
    """Whether jobs go on writing there: only on our own volumes, with room by their pool."""
    pool = config.pools.get(label.pool) if label and config else None
    if label is None or label.program != PROGRAM or pool is None:
        return VolumeStatus.USED
    return VolumeStatus.FULL if end + pool.maximum_block_size >= pool.maximum_volume_bytes else VolumeStatus.APPEND
