"""Session ids that two machines gave out: whether what a volume holds under them is the job that the catalog knows.

A session that begins on the volume says so in its label. One that only goes on there has none, and is judged by what
the catalog knows of the job: a job of which every file is known cannot have another file.
"""

from __future__ import annotations

from appliance.storage import saved_files
from appliance.storage.catalog import Catalog
from appliance.storage.model import UNKNOWN, Job
from appliance.volumes.events import FileEntry


def is_anothers(job: Job, name: str, client: str) -> bool:
    """Whether what says of itself that it is of the job *name* of *client* (empty: not told) is not of *job*."""
    return job.name != UNKNOWN and (job.name != name or len({job.client, client} - {""}) > 1)


def is_settled(catalog: Catalog, job: Job, media_id: int | None) -> bool:
    """Whether the catalog has every file of a good job, and nothing of it on this volume."""
    if not job.status.good or any(stretch.media_id == media_id for stretch in catalog.stretches(job.job_id)):
        return False
    ((count,),) = catalog.rows("SELECT count(*) FROM File WHERE JobId=?", (job.job_id,))
    return bool(0 < count == job.files)


def is_of(catalog: Catalog, job: Job, entry: FileEntry) -> bool:
    """Whether the file of the volume is that of the job which has its FileIndex."""
    row = saved_files.one(catalog, job.job_id, entry.file_index)
    return row is not None and row.path == entry.attributes.name


def is_between(catalog: Catalog, job: Job, first: int, last: int) -> bool:
    """Whether a stretch with these FileIndexes may be missing between those that the catalog has.

    Of a stretch in which no file begins that is all that can be told: it must be where a file goes on elsewhere.
    """
    stretches = catalog.stretches(job.job_id)
    before = any(one.last_index == first for one in stretches)
    behind = any(one.first_index == last for one in stretches)
    return before or behind or not any(one.first_index <= first and last <= one.last_index for one in stretches)
