"""Which magazines there are and where their volumes can be reached now.

Directory magazines come from the configuration; disks from the enrolments and from what the media agent
publishes in `run_dir/media.json`. Readers need no agent: without one only directory magazines are attached.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.config.loader import load_enrolment
from appliance.config.schema import Config, Enrolment, MagazineConfig
from appliance.errors import AwayError, ConfigError, MagbayError, NotFoundError
from appliance.host import files
from appliance.magazines import elsewhere
from appliance.magazines.states import State

MEDIA_ANSWER = "media.json"
_ANSWER_KEYS = frozenset(
    {"magazine", "filesystem_uuid", "state", "reason", "hint", "node", "serial", "size", "read_only"}
)
# States of a disk in which its volumes can be reached: mounted, or mounted by autofs at the next access.
REACHABLE = frozenset({State.MOUNTED.value, State.IDLE.value})


@dataclass(frozen=True)
class Magazine:
    """A magazine that is known. *path* is its directory of volumes, None while it is away."""

    name: str
    identity: str  # file-system UUID, or "directory:<name>"
    path: Path | None
    writable: bool = True
    reason: str = ""  # why it is not writable (as far as the media agent knows), or why its directory cannot be read

    @property
    def attached(self) -> bool:
        """Whether its volumes can be reached now."""
        return self.path is not None


def read_enrolments(config: Config) -> tuple[tuple[Enrolment, ...], tuple[ConfigError, ...]]:
    """All enrolled disks by name, and what is wrong with the files that cannot be read: one damaged file must not
    take the other magazines away."""
    found, damaged = [], []
    for path in sorted(config.enrolment_dir.glob("*.yaml")):
        try:
            status = path.stat()
            found.append(_enrolment(path, status.st_ino, status.st_mtime_ns, status.st_size))
        except FileNotFoundError:
            continue  # forgotten while we looked
        except ConfigError as error:
            damaged.append(error)
    return tuple(sorted(found, key=lambda enrolment: enrolment.name)), tuple(damaged)


@functools.lru_cache(maxsize=1024)
def _enrolment(path: Path, _inode: int, _changed: int, _size: int) -> Enrolment:
    """The enrolment in a file that was not changed since it was read; the agents look every second."""
    return load_enrolment(path)


def enrolments(config: Config) -> tuple[Enrolment, ...]:
    """All enrolled disks whose files can be read, by name."""
    return read_enrolments(config)[0]


def known(config: Config) -> tuple[Magazine, ...]:
    """Every magazine of the configuration and the enrolments, attached or away, directories first."""
    directories = [_directory(magazine) for magazine in config.magazines]
    reachable = _reachable(config)
    disks = []
    for enrolment in enrolments(config):
        uuid = enrolment.filesystem_uuid
        disk = reachable.get(uuid)
        path = config.mount_dir / uuid if disk else None
        writable = disk is not None and not disk["read_only"]
        disks.append(Magazine(enrolment.name, uuid, path, writable, disk["reason"] if disk and not writable else ""))
    return (*directories, *disks)


def attached(config: Config) -> tuple[Magazine, ...]:
    """The magazines whose volumes can be reached now."""
    return tuple(magazine for magazine in known(config) if magazine.attached)


def find(config: Config, name: str) -> Magazine:
    """The attached magazine *name*. Raises `NotFoundError`, or `AwayError` when it is not in a bay."""
    for magazine in known(config):
        if magazine.name == name:
            if magazine.path is None:
                told = f"magazine {name} is not here{': ' if magazine.reason else ''}{magazine.reason}"
                raise AwayError(told, hint="Plug its disk in and try again.")
            return magazine
    raise NotFoundError(f"no magazine is called {name}", hint="'magbay magazine list' shows the known ones.")


def create_directories(config: Config) -> None:
    """Create the directory of each directory magazine that was never used before.

    A magazine that was used and whose directory is missing is away (its disk is not mounted), and creating
    it would fill the system disk instead; a marker below `state_dir/magazines` remembers the first use.
    Raises `MagbayError` when something else stands there, `OSError`.
    """
    for magazine in config.magazines:
        if not magazine.create:
            continue
        marker = config.enrolment_dir / f"{magazine.name}.directory"
        if marker.exists():
            continue
        try:
            files.make_directory(magazine.directory)
        except (FileExistsError, NotADirectoryError):
            raise MagbayError(
                f"magazine {magazine.name}: {magazine.directory} cannot be made, something else is in its place",
                hint="Move that away, or give the magazine another directory.",
            ) from None
        files.make_directory(config.enrolment_dir)
        marker.touch()  # only now: with the marker alone the magazine would be away for ever
        files.sync_directory(config.enrolment_dir)


def _directory(magazine: MagazineConfig) -> Magazine:
    identity = f"directory:{magazine.name}"
    try:
        if magazine.filesystem_uuid:
            path = elsewhere.directory_of(magazine.filesystem_uuid, magazine.directory)
        else:
            path = magazine.directory if magazine.directory.is_dir() else None
    except OSError as error:  # XFS after an error of its disk, say: the other magazines are there nevertheless
        return Magazine(magazine.name, identity, None, False, f"{magazine.directory} cannot be read: {error.strerror}")
    return Magazine(magazine.name, identity, path, path is not None and os.access(path, os.W_OK))


def published(config: Config) -> list[dict[str, Any]] | None:
    """What the media agent published of each disk; None when no agent has run since the machine started.

    Raises `MagbayError` when the file is not what an agent writes.
    """
    path = config.run_dir / MEDIA_ANSWER
    try:
        found: list[dict[str, Any]] = json.loads(path.read_bytes())["disks"]
        good = all(disk.keys() >= _ANSWER_KEYS for disk in found)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise MagbayError(f"{path} is damaged", hint="Remove it and restart magbay-media: it writes it anew.")
    return found


class Presence:
    """Whether the magazine *identity*, which is in use, is still in its bay, by what the media agent publishes."""

    def __init__(self, config: Config, identity: str) -> None:
        self._config, self._identity = config, identity
        self._seen: tuple[int, int] | None = None
        self._gone = False

    def gone(self) -> bool:
        """Whether it was pulled. Costs one stat(2) while nothing changes, so it may be asked often."""
        try:
            status = (self._config.run_dir / MEDIA_ANSWER).stat()
            now = (status.st_ino, status.st_mtime_ns)
            if now != self._seen:
                disks = published(self._config) or []
                states = [disk["state"] for disk in disks if disk["filesystem_uuid"] == self._identity]
                self._gone = states == [State.GONE.value]
                self._seen = now
        except (OSError, MagbayError):
            return False  # no word from the agent says nothing
        return self._gone


def _reachable(config: Config) -> dict[str, dict[str, Any]]:
    """File-system UUID to what is published, of the disks that the media agent says can be reached."""
    return {
        disk["filesystem_uuid"]: disk
        for disk in published(config) or []
        if disk["state"] in REACHABLE and disk["filesystem_uuid"]
    }
