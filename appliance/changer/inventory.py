"""Which files in a magazine's directory are volumes."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

# Bacula's alphabet for volume names (reference changer.md, 1.4), without a leading dot.
_NAME = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,126}")
# Block header: checksum, size and number (4 bytes each), then the id (reference volume-format.md).
_HEAD_BYTES = 24
_ID_AT = slice(12, 16)
_BLOCK_IDS = frozenset({b"BB02", b"BB03"})
# An empty file is a volume that waits for its label, unless its name says that it is meant for people or programs.
_HELPERS = (".txt", ".yaml", ".yml", ".json", ".sha256", ".md")
_HELPER_NAMES = frozenset({"README"})

# Modification time (ns), size (bytes) and inode of a file, and whether it was found to be a volume.
Mark = tuple[int, int, int, bool]


@dataclass(frozen=True)
class Listing:
    """*volumes*: names in byte order; *marks*: what was seen of every file with a legal name."""

    volumes: tuple[str, ...]
    marks: Mapping[str, Mark]


def legal_name(name: str) -> bool:
    """Whether Bacula takes *name* as the name of a volume."""
    return _NAME.fullmatch(name) is not None


def scan(directory: Path, before: Mapping[str, Mark], known: Collection[str], *, unlabelled: bool = False) -> Listing:
    """The volumes in *directory*: regular files with a legal name that begin with a label block or are empty.

    With *unlabelled* those with other contents too, as vchanger takes them. What vchanger 0.8 keeps for itself is
    never one: `index`, `loadedN`, and `driveN` while `loadedN` says that it has another name.

    A file is opened only if it is not in *before* as it is now. One that cannot be opened or read is a volume if it is
    one of *known*. Raises `OSError` when the directory cannot be read.
    """
    marks: dict[str, Mark] = {}
    volumes = []
    with os.scandir(directory) as found_entries:
        entries = list(found_entries)
    ours_not = _of_vchanger({entry.name for entry in entries})
    for entry in entries:
        if not legal_name(entry.name) or entry.name in ours_not:
            continue
        try:
            found = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                continue
            now = (found.st_mtime_ns, found.st_size, found.st_ino)
            old = before.get(entry.name)
            is_volume = old[3] if old is not None and old[:3] == now else _looks_like_volume(entry, found.st_size)
            is_volume = is_volume or (unlabelled and not _is_helper(entry.name))
            marks[entry.name] = (*now, is_volume)
        except FileNotFoundError:
            continue  # removed since the directory was read
        except OSError:
            is_volume = entry.name in known  # one bad file must not take the other volumes away
        if is_volume:
            volumes.append(entry.name)
    return Listing(tuple(sorted(volumes)), marks)


def _of_vchanger(names: set[str]) -> set[str]:
    loaded = {name for name in names if name.startswith("loaded") and name[6:].isdigit()} if "index" in names else set()
    return loaded | {f"drive{name[6:]}" for name in loaded} | ({"index"} & names)


def _is_helper(name: str) -> bool:
    return name in _HELPER_NAMES or name.endswith(_HELPERS)


def _looks_like_volume(entry: os.DirEntry[str], size: int) -> bool:
    if size == 0:
        return not _is_helper(entry.name)
    # O_NONBLOCK: a fifo may have taken the file's place since it was looked at.
    fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, _HEAD_BYTES)[_ID_AT] in _BLOCK_IDS
    finally:
        os.close(fd)
