"""What a job saves, on its way to the session: read by a second process where that is of use, else in this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from appliance.host import workers
from appliance.storage import READER
from appliance.storage.accurate import Before
from appliance.storage.gathering import Gathering
from appliance.storage.handing import Task

if TYPE_CHECKING:
    from appliance.storage.here import Here


def reading(task: Task, since: int | None, before: Callable[[], Before] | None) -> Gathering | Here:
    """Begin with *task*; of a job that builds on another one what changed *since* (Unix seconds), or differs from what
    was *before*. Close it."""
    if since is None and workers.worthwhile():
        return Gathering(task)
    workers.dismiss(READER)
    from appliance.storage.here import Here  # with all that reads files: a tenth of the time of starting

    # To be compared with the catalog, of which there is one connection; and little will be read.
    return Here(task, since, before)
