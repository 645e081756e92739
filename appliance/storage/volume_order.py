"""In which order volumes must be read so that every job on them comes from its beginning to its end."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from appliance.storage.catalog import Catalog
from appliance.storage.model import Media


def in_order_of_jobs(catalog: Catalog, volumes: Sequence[Media]) -> list[Media]:
    """*volumes* such that none comes before one from which a job goes on to it; otherwise by first use, then name.

    First use alone misleads: a job may go on to a volume that an earlier one began, and the time is in whole seconds.
    """
    known = {media.media_id: media for media in volumes}
    follow: dict[int, set[int]] = {number: set() for number in known}
    before = dict.fromkeys(known, 0)
    last_job = last = 0
    for job, number in catalog.rows(
        "SELECT JobId, MediaId FROM JobMedia WHERE FirstIndex>0 ORDER BY JobId, JobMediaId"
    ):
        if job == last_job and last in known and number in known and number != last and number not in follow[last]:
            follow[last].add(number)
            before[number] += 1
        if job != last_job or number in known:
            last_job, last = job, number
    ready = [_place(media) for media in volumes if not before[media.media_id]]
    heapq.heapify(ready)
    found: list[Media] = []
    while ready:
        media = known[heapq.heappop(ready)[-1]]
        found.append(media)
        for number in follow[media.media_id]:
            before[number] -= 1
            if not before[number]:
                heapq.heappush(ready, _place(known[number]))
    # Jobs that went to and fro between volumes have no order; what is left keeps that of first use.
    left = {media.media_id for media in found}
    return found + sorted((media for media in volumes if media.media_id not in left), key=_place)


def _place(media: Media) -> tuple[int, str, int]:
    return media.first_written or 1 << 62, media.name, media.media_id
