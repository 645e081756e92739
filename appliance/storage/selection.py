"""Which files of an event stream are wanted, by the patterns that a person gives."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence

from appliance.volumes.attributes import FileType
from appliance.volumes.blocks import SessionIds
from appliance.volumes.events import Event, FileEntry, FileStart

Key = tuple[SessionIds, int]
"""A file: its session and FileIndex."""


def path_filter(globs: Sequence[str]) -> Callable[[FileEntry], bool]:
    """Whether an entry matches one of *globs*, or lies below a directory that does.

    A pattern with a slash is compared with the whole path, one without with the last component; `*` spans slashes.
    """

    def matches(entry: FileEntry) -> bool:
        path = entry.path.rstrip("/")
        while path:
            for glob in globs:
                wanted = glob.rstrip("/")
                seen = path if "/" in wanted else path.rpartition("/")[2]
                if fnmatch.fnmatchcase(seen, wanted):
                    return True
            path = path.rpartition("/")[0]
        return False

    return matches


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
