"""The directories of an extraction, whose attributes are set when everything is in them."""

from __future__ import annotations

import stat
from collections.abc import Callable, Container

from appliance.storage.opened import OpenFile
from appliance.storage.targets import Parts, Target


class Directories:
    """What the volumes say about directories. Branches of an extraction share it."""

    def __init__(self) -> None:
        self._found: dict[Parts, OpenFile] = {}

    def add(self, one: OpenFile) -> None:
        """Remember a directory; the last one of a name counts."""
        self._found[one.parts] = one

    def finish(self, target: Target, warn: Callable[[str], None], failed: Callable[[OpenFile, OSError], None]) -> None:
        """Set everything, the deepest first, so that making files in them does not change their times.

        Raises `OSError`, and what *failed* does.
        """
        for parts in sorted(self._found, key=len, reverse=True):
            one = self._found[parts]
            try:
                found = target.existing(parts) if parts else None
                if found is not None and stat.S_ISDIR(found.st_mode):
                    for text in target.apply(parts, one.entry.attributes.stat, one.acls, one.xattrs):
                        warn(f"{one.path}: {text}")
            except OSError as error:
                failed(one, error)
        known: Container[Parts] = self._found
        target.settle(known)
