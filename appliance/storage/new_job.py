"""The job that a backup enters: its fileset as the catalog has it, its level, and what it builds on."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import time
from typing import TYPE_CHECKING

from appliance.config.filesets import FilesetConfig
from appliance.storage.catalog import Catalog
from appliance.storage.model import Job, Level, NewJob

if TYPE_CHECKING:
    from appliance.storage.backup import BackupRequest


def of(catalog: Catalog, request: BackupRequest, names: list[bytes]) -> tuple[NewJob, int | None]:
    """The job to enter, and since when (Unix seconds) a file must have changed to be saved; None: all are."""
    # Absolute names: the same words in another working directory are other files.
    fileset = json.dumps([[os.fsdecode(name) for name in names], *_selection(request.rules)], ensure_ascii=True)
    digest = hashlib.md5(fileset.encode(), usedforsecurity=False).digest()
    md5 = base64.b64encode(digest).decode("ascii").rstrip("=")
    client = socket.gethostname()[:100]
    base = _base(catalog, request, md5, client)
    level = request.level if base else Level.FULL
    new = NewJob(request.name, level, request.pool, fileset, md5, base.job_id if base else None, client)
    # The clock that stamps files runs milliseconds behind: a change after the start may bear the second before it.
    return new, base.started - 1 if base else None


def _selection(rules: FilesetConfig) -> list[object]:
    """What decides which files are saved: another one needs a full backup first."""
    more = {
        "include": list(rules.include),
        "cross": not rules.one_file_system,
        "larger": rules.exclude_larger,
        "older": rules.exclude_older,
        "caches": rules.exclude_caches,
        "marked": list(rules.exclude_marked),
    }
    given = {key: value for key, value in more.items() if value}
    return [list(rules.exclude), given] if given else [list(rules.exclude)]


def _base(catalog: Catalog, request: BackupRequest, fileset_md5: str, client: str) -> Job | None:
    """The job that this one builds on: the last good full one, for an incremental the last good one of any level.

    One of another host, whose volumes were scanned here, saved other files under the same names. One that builds itself
    on what the catalog lacks is passed over, or the hole would be in all that follow. So is, where only times are
    compared, one that began when the clock was ahead: what changed since bears earlier times.
    """
    if request.level is Level.FULL:
        return None
    good = [
        job
        for job in catalog.jobs(name=request.name, fileset_md5=fileset_md5)
        if job.status.good and job.client in ("", client)
    ]
    if not request.accurate:
        now = time.time()
        good = [job for job in good if job.started <= now]
    if request.level is Level.DIFFERENTIAL:
        good = [job for job in good if job.level is Level.FULL]
    from appliance.storage import plan

    return next((job for job in good if not plan.gaps(plan.chain_of(catalog, job))), None)
