"""Whether the catalog is older than a volume: one that was put back may call a job failed that had ended well since."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from appliance.config.schema import Config
from appliance.magazines import attached
from appliance.storage.catalog import Catalog
from appliance.storage.model import Media
from appliance.storage.tail import sessions_between
from appliance.volumes.blocks import SessionIds


def knows_the_end(catalog: Catalog, path: Path, media: Media) -> bool:
    """Whether what stands before the catalog's end in the volume's file *path* is what the catalog has there last.

    An older one may know nothing of how the volume was written anew, and its end may lie within a block of a job that
    had ended well. Raises `OSError`.
    """
    query = "SELECT coalesce(max(StartAddress), 0) FROM JobMedia WHERE MediaId=? AND FirstIndex>0"
    ((start,),) = catalog.rows(query, (media.media_id,))
    found = sessions_between(path, start, media.bytes)
    return found is not None and found <= catalog.sessions()


def ended_well(config: Config, sessions: Set[SessionIds]) -> bool:
    """Whether a magazine that is here has the copy of one's catalog, which only a job that was acknowledged has."""
    from appliance.storage import copies  # here for the time of starting: seldom needed

    places = [m.path for m in attached.attached(config) if m.path is not None]
    return any(copies.path_of(place, ids).exists() for place in places for ids in sessions)
