"""What a job saves, read in this process: by the walker from the disk, by the saver to an output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from appliance.storage.handing import Task
from appliance.storage.output import Output
from appliance.storage.saver import Saver
from appliance.storage.saving_options import SavingOptions
from appliance.storage.walk import Found, Walker

if TYPE_CHECKING:  # it comes with the catalog, of which the process that only reads knows nothing
    from appliance.storage.accurate import Before


class Here:
    """A `Tally` that grows while this process reads. Close it."""

    def __init__(self, task: Task, since: int | None = None, before: Callable[[], Before] | None = None) -> None:
        """As `contents.reading`."""
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

    def into(self, output: Output) -> None:
        """Save everything. Raises what the output raises."""
        saver = self._saver = Saver(output, SavingOptions(self._task.rules, self._task.signature))
        before = self._before() if self._before else None

        def trouble(path: bytes, error: OSError) -> None:
            saver.trouble(path, error)
            if before:
                before.trouble(path, error, named=path in self._task.names)

        walker = Walker(self._task.limits, trouble, output.info, look=self._since is not None or before is not None)
        for name in self._task.names:
            for found in walker.walk(name):
                differs = before is not None and before.differs(found)
                if self._since is None or differs or _changed(found, self._since):
                    saver.save(found)
        for gone in before.gone() if before else ():
            saver.gone(gone.path, gone.mtime, gone.ctime)


def _changed(found: Found, since: int) -> bool:
    return found.stat.st_mtime >= since or found.stat.st_ctime >= since
