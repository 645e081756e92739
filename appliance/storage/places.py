"""The directories that a restore writes in: what dead restores left there goes, and their file systems are flushed."""

from __future__ import annotations

import os
from collections.abc import Sequence

from appliance.host import files, unfinished
from appliance.storage.pathset import PathSet

_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Directories (with those above them) that are remembered; one that is forgotten is looked at once more.
_MOST_KEPT = 100_000


class Places:
    """The directories that a restore came to, and the file systems that they are on. Threads may share it."""

    def __init__(self) -> None:
        self._seen = PathSet()
        self._made = PathSet()  # of these
        self._flushed: dict[int, int] = {}  # device number -> open directory
        self._hidden: set[int] = set()  # of file systems on which no directory could be opened

    def made(self, parts: Sequence[bytes]) -> None:
        """This restore made the directory: nothing of an older one can be in it."""
        self._remember(parts)
        self._made.add(parts)

    def was_made(self, parts: Sequence[bytes]) -> bool:
        """Whether this restore made the directory; False when that is forgotten."""
        return parts in self._made

    def came_to(self, parts: Sequence[bytes], directory: int) -> None:
        """The directory *parts*, open as *directory*, will be written in. What dead restores left in it goes."""
        if parts in self._seen:
            return
        self._remember(parts)
        unfinished.remove_dead(directory)
        self.note(directory)

    def note(self, directory: int) -> None:
        """Something is changed on the file system of *directory*. Raises `OSError`."""
        device = os.fstat(directory).st_dev
        if device in self._flushed:
            return
        try:
            mine = os.open(b".", _LIST, dir_fd=directory)
        except PermissionError:
            self._hidden.add(device)
            return
        if self._flushed.setdefault(device, mine) != mine:
            os.close(mine)

    def _remember(self, parts: Sequence[bytes]) -> None:
        if self._seen.components >= _MOST_KEPT:
            self._seen.clear()
            self._made.clear()
        self._seen.add(parts)

    def flush(self) -> None:
        """Return when all that was written there is on the disk. Raises `OSError`, also for what failed before."""
        for descriptor in list(self._flushed.values()):
            files.sync_file_system(descriptor)
        if self._hidden - self._flushed.keys():
            os.sync()

    def close(self) -> None:
        """Close the descriptors."""
        while self._flushed:
            os.close(self._flushed.popitem()[1])
