"""Writing on a volume anew: only when none of its jobs is needed, and the catalog says so before the file changes.

1. The volume's file is locked, nobody reads it, and every block on it is of a session that this catalog has given out.
2. One durable catalog transaction: its jobs are purged, its status is `Recycle`, its length nothing.
3. Only then its file is cut off and gets a new label (by whoever takes it).

A crash between 2 and 3 leaves a volume that the next job takes; a crash before 2 leaves everything as it was.
"""

from __future__ import annotations

from dataclasses import replace

from appliance.config.schema import Config
from appliance.storage import expiry
from appliance.storage.catalog import Catalog, write_media
from appliance.storage.database import Database
from appliance.storage.device import FileVolume
from appliance.storage.model import Media, VolumeStatus
from appliance.storage.tail import sessions_between
from appliance.volumes.blocks import DEFAULT_BLOCK

_STATES = frozenset({VolumeStatus.APPEND, VolumeStatus.FULL, VolumeStatus.USED, VolumeStatus.RECYCLE})


def possible(catalog: Catalog, media: Media, needed: set[int]) -> bool:
    """Whether the volume was written and holds nothing that is *needed*."""
    if media.status not in _STATES or not (media.last_written or media.status is VolumeStatus.RECYCLE):
        return False
    return not expiry.jobs_on(catalog, media) & needed


def recycle(catalog: Catalog, config: Config, device: FileVolume, media: Media, pool: str) -> Media | None:
    """Steps 1 and 2 for a volume whose *device* is open; gives its new row.

    None: somebody reads it, it has jobs that are needed by now, or blocks that nobody here knows. Raises
    `CatalogError`, `OSError`.
    """
    if not device.keep_readers_out():
        return None
    sessions = sessions_between(device.path, 0, device.end) or None
    if sessions is None and not (media.status is VolumeStatus.RECYCLE and device.end <= DEFAULT_BLOCK):
        return None
    known = sessions or set()

    def forget(db: Database) -> Media | None:
        if not possible(catalog, media, expiry.needed(catalog, config)) or not known <= catalog.sessions():
            return None
        expiry.forget(db, expiry.jobs_on(catalog, media), media)
        clean = replace(media, pool=pool, bytes=0, status=VolumeStatus.RECYCLE, first_written=0, last_written=0)
        write_media(db, clean)
        db.execute(
            "UPDATE Media SET Pool=?, Recycled=Recycled+1 WHERE MediaId=? AND VolStatus=?",
            (pool, media.media_id, VolumeStatus.RECYCLE.value),
        )
        return clean

    return catalog.attempt(forget)
