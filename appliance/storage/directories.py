"""The directories of an extraction, whose attributes are set when everything is in them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container

from appliance.storage.opened import OpenFile
from appliance.storage.targets import Parts, Target
from appliance.volumes.blocks import SessionIds


class Directories:
    """What the volumes say about directories. Branches of an extraction share it."""

    def __init__(self) -> None:
        self._found: dict[Parts, OpenFile] = {}

    def add(self, one: OpenFile) -> None:
        """Remember a directory; the last one of a name counts."""
        before = self._found.get(one.parts)
        if before is not None:
            one.replaces &= before.replaces  # what another job of this extraction made was not there before
        self._found[one.parts] = one

    def remove(self, target: Target, parts: Parts, ids: SessionIds) -> bool:
        """Take away a directory, with all that is in it, that this extraction made for other jobs than *ids*.

        False, and nothing is changed, when it did not make all directories there, or something is mounted on one. What
        was put into one that it made is of the extraction, too. Raises `OSError`.
        """
        device = os.fstat(target.parent(parts)).st_dev
        folders, left = [], [parts]
        while left:
            folder = left.pop()
            one = self._found.get(folder)
            if one is None or one.replaces or one.entry.ids == ids:
                return False
            if os.fstat(target.parent((*folder, b""))).st_dev != device:
                return False
            folders.append(folder)
            left += [(*folder, name) for name, is_folder in target.listed(folder) if is_folder]
        for folder in reversed(folders):
            for name, _ in target.listed(folder):
                os.unlink(name, dir_fd=target.parent((*folder, name)))
            target.remove_directory(folder)
            del self._found[folder]
        return True

    def finish(self, target: Target, warn: Callable[[str], None], failed: Callable[[OpenFile, OSError], None]) -> None:
        """Set everything, the deepest first, so that making files in them does not change their times.

        Raises `OSError`, and what *failed* does.
        """
        for parts in sorted(self._found, key=len, reverse=True):
            one = self._found[parts]
            try:
                found = target.existing(parts) if parts else None
                if found is not None and stat.S_ISDIR(found.st_mode):
                    saved = one.entry.attributes.stat
                    for text in target.apply(parts, saved, one.acls, one.xattrs, is_new=not one.replaces):
                        warn(f"{one.path}: {text}")
            except OSError as error:
                failed(one, error)
        known: Container[Parts] = self._found
        target.settle(known)
