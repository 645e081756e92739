"""What a job saves, on its way to the session: read by a second process where that is of use, else in this one."""

from __future__ import annotations

from collections.abc import Callable

from appliance.host import workers
from appliance.storage.accurate import Before
from appliance.storage.direct import Direct
from appliance.storage.gathering import READER, Gathering
from appliance.storage.handing import Task
from appliance.storage.saver import Saver
from appliance.storage.saving_options import SavingOptions
from appliance.storage.walk import Found, Walker


def reading(task: Task, since: int | None, before: Callable[[], Before] | None) -> Gathering | Here:
    """Begin with *task*; of a job that builds on another one what changed *since* (Unix seconds), or differs from what
    was *before*. Close it."""
    if since is None and workers.worthwhile():
        return Gathering(task)
    workers.dismiss(READER)
    # To be compared with the catalog, of which there is one connection; and little will be read.
    return Here(task, since, before)


class Here:
    """A `Tally` that grows while this process reads. Close it."""

    def __init__(self, task: Task, since: int | None, before: Callable[[], Before] | None) -> None:
        self._task = task
        self._since = since
        self._before = before
        self._saver: Saver | None = None

    @property
    def files(self) -> int:
        """The last FileIndex."""
        return self._saver.files if self._saver else 0

    @property
    def bytes(self) -> int:
        """Of file data."""
        return self._saver.bytes if self._saver else 0

    @property
    def deleted(self) -> int:
        """How many were noted as gone."""
        return self._saver.deleted if self._saver else 0

    def close(self) -> None:
        """End the threads."""
        if self._saver:
            self._saver.close()

    def into(self, output: Direct) -> None:
        """Save everything. Raises what the output raises."""
        saver = self._saver = Saver(output, SavingOptions(self._task.rules, self._task.signature))
        before = self._before() if self._before else None

        def trouble(path: bytes, error: OSError) -> None:
            saver.trouble(path, error)
            if before:
                before.trouble(path, error)

        walker = Walker(self._task.limits, trouble, output.info)
        for name in self._task.names:
            for found in walker.walk(name):
                differs = before is not None and before.differs(found)
                if self._since is None or differs or _changed(found, self._since):
                    saver.save(found)
        for gone in before.gone() if before else ():
            saver.gone(gone.path, gone.mtime, gone.ctime)


def _changed(found: Found, since: int) -> bool:
    return found.stat.st_mtime >= since or found.stat.st_ctime >= since
