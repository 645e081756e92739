"""What is in the way of a thing that comes from a volume, and making those that have no data."""

from __future__ import annotations

import errno
import os
import stat as modes
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from appliance.storage.directories import Directories
from appliance.storage.opened import OpenFile
from appliance.storage.outcome import Replace
from appliance.storage.selection import Key
from appliance.storage.targets import Parts, Target
from appliance.storage.versions import Versions
from appliance.volumes.attributes import FileType
from appliance.volumes.errors import VolumeError

_CLOCK_STEP = 10_000_000  # ns that the clock of file systems may be behind, at most


@dataclass(frozen=True)
class Rules:
    """*renames*: files get other names than they had, so two may get one. *began*: then this is since when (ns).

    *made*: where there may be several versions of a file, those of this extraction, of which the newest one counts.
    *in_turn*: jobs come one after the other, the older one first, as far as *made* does not know better.
    """

    replace: Replace
    renames: bool
    began: int = field(default_factory=lambda: time.time_ns() - _CLOCK_STEP)
    made: Versions | None = None
    in_turn: bool = True

    def gives_way(self, parts: Parts, found: os.stat_result) -> bool:
        """Whether a file or link does where a directory must be; of two that get one name the first one stays.

        So does one of this restore that may be newer.
        """
        if (self.renames or not self.in_turn) and found.st_ctime_ns >= self.began:
            return False
        return self.replace is Replace.ALWAYS or (self.made is not None and parts in self.made)


class Creator:
    """*aliases*: files that are restored for a link to them alone. *warn* is told what is not made.

    Hard links are made only to what the same creator was told to `remember`.
    """

    def __init__(
        self,
        target: Target,
        rules: Rules,
        aliases: Container[Key],
        warn: Callable[[str], None],
        directories: Directories,
    ) -> None:
        self._target = target
        self._rules = rules
        self._directories = directories
        self._aliases = aliases
        self._warn = warn
        self._links: dict[Key, Parts] = {}
        self._kept: dict[Key, Parts] = {}  # files with other names that were there and stay

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
        if kind != "directory" and self._is_another(one, found):
            raise VolumeError(f"another file was restored as {os.fsdecode(b'/'.join(one.parts))} just now")
        if self._rules.made is not None and one.parts in self._rules.made:
            return False
        saved = one.entry.attributes.stat
        if not self._rules.replace.keeps(saved.mtime, int(found.st_mtime)):
            return False
        if saved.nlink > 1 and kind != "directory" and modes.S_IFMT(found.st_mode) == modes.S_IFMT(saved.mode):
            self._kept[one.entry.ids, one.entry.file_index] = one.parts
        return True

    def _is_another(self, one: OpenFile, found: os.stat_result) -> bool:
        """Whether what is there is another file of this restore, and not an older version of this one."""
        rules = self._rules
        if not rules.renames or found.st_ctime_ns < rules.began:
            return False
        return rules.made is None or not rules.made.has(one.parts, one.entry.attributes.name)

    def begin(self, one: OpenFile, kind: str) -> None:
        """Nothing is in its way."""
        if kind != "directory":
            self._target.note(one.parts)
        if self._rules.made is not None:
            name = one.entry.attributes.name
            self._rules.made.add(one.entry.ids, one.parts, name, is_directory=kind == "directory")

    def is_outdated(self, one: OpenFile) -> bool:
        """Whether a newer job's version of it was restored before. Raises `OSError`."""
        made = self._rules.made
        return made is not None and made.outdated(one.entry.ids, one.parts, self._is_there)

    def _is_there(self, parts: Parts) -> bool:
        return self._target.existing(parts) is not None

    def place(self, one: OpenFile, action: Callable[[], None]) -> None:
        """*action* puts something in the place of what is there. Raises as it does.

        A directory that this extraction made for another job gives way with all that is in it: that was older.
        """
        try:
            action()
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or not self._rules.in_turn:
                raise
            if not self._directories.remove(self._target, one.parts, one.entry.ids):
                raise
            action()

    def create(self, one: OpenFile, kind: str) -> None:
        """Make a thing without data. Raises `OSError`, `OverflowError`, `VolumeError`."""
        attributes = one.entry.attributes
        if kind == "directory":
            one.replaces = not self._target.create_directory(one.parts)
        elif kind == "symlink":
            self.place(one, lambda: self._target.create_symlink(one.parts, attributes.link))
        elif kind == "hardlink":
            first = self.first(one)
            if first is None:
                told = "which is not restored; by its own name alone it comes with its data"
                raise VolumeError(f"it is a link to {one.entry.link!r}, {told}")
            self.place(one, lambda: self._target.create_link(one.parts, first))
        elif attributes.ftype == FileType.SPECIAL and kind != "other":
            self._create_node(one, kind)
        else:
            raise VolumeError(f"its type ({kind}, code {attributes.ftype}) cannot be restored")

    def _create_node(self, one: OpenFile, kind: str) -> None:
        rights = self._target.rights
        try:
            self.place(one, lambda: self._target.create_node(one.parts, one.entry.attributes.stat))
        except PermissionError:
            if rights.user == 0 and rights.trusted:
                raise
            one.failed = f"{kind} not made (only root may, and from trusted volumes only)"
            self._warn(f"{one.path}: {one.failed}")

    def first(self, one: OpenFile) -> Parts | None:
        """Where the file is that a hard link is to be another name of; one that stays is, where nothing is replaced."""
        index = one.entry.attributes.stat.link_fi
        if not index:
            return None
        key = (one.entry.ids, index)
        return self._links.get(key) or (None if one.replaces else self._kept.get(key))

    def remember(self, one: OpenFile, kind: str) -> None:
        """A link to it may come."""
        key = (one.entry.ids, one.entry.file_index)
        if (one.entry.attributes.stat.nlink > 1 and kind not in ("directory", "hardlink")) or key in self._aliases:
            self._links[key] = one.parts

    def forget(self, one: OpenFile) -> None:
        """It is not there."""
        self._links.pop((one.entry.ids, one.entry.file_index), None)
