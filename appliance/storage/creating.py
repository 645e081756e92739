"""What is in the way of a thing that comes from a volume, and making those that have no data."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from appliance.storage.opened import OpenFile
from appliance.storage.outcome import Replace
from appliance.storage.selection import Key
from appliance.storage.targets import Parts, Target
from appliance.volumes.attributes import FileType
from appliance.volumes.errors import VolumeError

_CLOCK_STEP = 10_000_000  # ns that the clock of file systems may be behind, at most


@dataclass(frozen=True)
class Rules:
    """*renames*: files get other names than they had, so two may get one. *began*: then this is since when (ns)."""

    replace: Replace
    renames: bool
    began: int = field(default_factory=lambda: time.time_ns() - _CLOCK_STEP)


class Creator:
    """*aliases*: files that are restored for a link to them alone. *warn* is told what is not made.

    Hard links are made only to what the same creator was told to `remember`.
    """

    def __init__(self, target: Target, rules: Rules, aliases: Container[Key], warn: Callable[[str], None]) -> None:
        self._target = target
        self._rules = rules
        self._aliases = aliases
        self._warn = warn
        self._links: dict[Key, Parts] = {}

    def is_in_the_way(self, one: OpenFile, kind: str) -> bool:
        """Whether what is there stays. Raises `OSError`, and `VolumeError` for what can have no place at all."""
        if not one.parts:
            if kind != "directory":
                raise VolumeError("its name has no component below the target")
            return False
        found = self._target.existing(one.parts)
        if one.entry.is_update:
            if found is None:
                raise VolumeError("only its attributes are saved here, and it is not in the target")
            return self._rules.replace is Replace.NEVER
        if found is None or (kind == "directory" and self._target.was_made_on_the_way(one.parts)):
            return False
        one.replaces = True
        if self._rules.renames and kind != "directory" and found.st_ctime_ns >= self._rules.began:
            raise VolumeError(f"another file was restored as {os.fsdecode(b'/'.join(one.parts))} just now")
        return self._rules.replace.keeps(one.entry.attributes.stat.mtime, int(found.st_mtime))

    def create(self, one: OpenFile, kind: str) -> None:
        """Make a thing without data. Raises `OSError`, `OverflowError`, `VolumeError`."""
        attributes = one.entry.attributes
        if kind == "directory":
            self._target.create_directory(one.parts)
        elif kind == "symlink":
            self._target.create_symlink(one.parts, attributes.link)
        elif kind == "hardlink":
            first = self.first(one)
            if first is None:
                raise VolumeError(f"it is a link to {one.entry.link!r}, whose data are not among the files extracted")
            self._target.create_link(one.parts, first)
        elif attributes.ftype == FileType.SPECIAL and kind != "other":
            self._create_node(one, kind)
        else:
            raise VolumeError(f"its type ({kind}, code {attributes.ftype}) cannot be restored")

    def _create_node(self, one: OpenFile, kind: str) -> None:
        try:
            self._target.create_node(one.parts, one.entry.attributes.stat)
        except PermissionError:
            one.failed = f"{kind} not made (only root may, and from trusted volumes only)"
            self._warn(f"{one.path}: {one.failed}")

    def first(self, one: OpenFile) -> Parts | None:
        """Where the file is that a hard link is to be another name of."""
        index = one.entry.attributes.stat.link_fi
        return self._links.get((one.entry.ids, index)) if index else None

    def remember(self, one: OpenFile, kind: str) -> None:
        """A link to it may come."""
        key = (one.entry.ids, one.entry.file_index)
        if (one.entry.attributes.stat.nlink > 1 and kind not in ("directory", "hardlink")) or key in self._aliases:
            self._links[key] = one.parts

    def forget(self, one: OpenFile) -> None:
        """It is not there."""
        self._links.pop((one.entry.ids, one.entry.file_index), None)
