"""Which files are wanted, by the patterns that a person gives."""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence

from appliance.volumes.attributes import FileType
from appliance.volumes.blocks import SessionIds
from appliance.volumes.events import Event, FileEntry, FileStart

Key = tuple[SessionIds, int]
"""A file: its session and FileIndex."""


def pattern_of(glob: str) -> re.Pattern[str]:
    """What *glob* matches from its beginning to its end: its wild cards, and the name that is spelt exactly so.

    A name may have such characters itself (`minutes [2].odt`), and is then given as it was saved.
    """
    return re.compile(rf"{fnmatch.translate(glob)}|{re.escape(glob)}\Z")


def matcher(globs: Sequence[str]) -> Callable[[bytes], bool]:
    """A test of stored paths: does one of *globs* match the path or a directory above it?

    A pattern with a slash is compared with the whole path, one without with one component; `*` spans slashes. A name
    that is spelt exactly as the pattern matches, too.
    """
    if not globs:
        return lambda path: True
    whole = [pattern_of(glob.rstrip("/") or "/") for glob in globs if "/" in glob.rstrip("/")]
    last = [pattern_of(glob.rstrip("/")) for glob in globs if "/" not in glob.rstrip("/")]

    def one(path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(p.match(path) for p in whole) or any(p.match(name) for p in last)

    @functools.lru_cache(maxsize=4096)  # what is stored together lies together
    def above(folder: str) -> bool:
        if not folder:
            return "/" in globs
        return one(folder) or above(folder.rpartition("/")[0])

    def matches(stored: bytes) -> bool:
        path = os.fsdecode(stored).rstrip("/")
        return (one(path) if path else False) or above(path.rpartition("/")[0])

    return matches


def path_filter(globs: Sequence[str]) -> Callable[[FileEntry], bool]:
    """As `matcher`, for entries of volumes."""
    matches = matcher(globs)
    return lambda entry: matches(entry.attributes.name)


def link_aliases(events: Iterable[Event], select: Callable[[FileEntry], bool]) -> dict[Key, bytes]:
    """For hard links that *select* wants without the file that holds their data: that file -> name of the first link.

    Costs a reading of the volumes of its own; without a selection it is not needed.
    """
    selected: set[Key] = set()
    aliases: dict[Key, bytes] = {}
    for event in events:
        if isinstance(event, FileStart) and select(event.entry):
            saved = event.entry.attributes.stat
            if event.entry.attributes.ftype == FileType.HARD_LINK:
                aliases.setdefault((event.entry.ids, saved.link_fi), event.entry.attributes.name)
            elif saved.nlink > 1:
                selected.add((event.entry.ids, event.entry.file_index))
    return {key: name for key, name in aliases.items() if key not in selected}
