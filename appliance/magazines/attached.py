"""Which magazines there are and where their volumes can be reached now.

Directory magazines come from the configuration; disks from the enrolments and from what the media agent
publishes in `run_dir/media.json`. Readers need no agent: without one only directory magazines are attached.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from appliance.config.loader import load_enrolment
from appliance.config.schema import Config, Enrolment, MagazineConfig
from appliance.errors import AwayError, MagbayError, NotFoundError
from appliance.magazines import elsewhere

MEDIA_ANSWER = "media.json"
# States of a disk in which its volumes can be reached: mounted, or mounted by autofs at the next access.
REACHABLE = frozenset({"mounted", "idle"})


@dataclass(frozen=True)
class Magazine:
    """A magazine that is known. *path* is its directory of volumes, None while it is away."""

    name: str
    identity: str  # file-system UUID, or "directory:<name>"
    path: Path | None
    writable: bool = True

    @property
    def attached(self) -> bool:
        """Whether its volumes can be reached now."""
        return self.path is not None


def enrolments(config: Config) -> tuple[Enrolment, ...]:
    """All enrolled disks, by name. Raises `ConfigError` for a damaged enrolment file."""
    found = [load_enrolment(path) for path in sorted(config.enrolment_dir.glob("*.yaml"))]
    return tuple(sorted(found, key=lambda enrolment: enrolment.name))


def known(config: Config) -> tuple[Magazine, ...]:
    """Every magazine of the configuration and the enrolments, attached or away, directories first."""
    directories = [_directory(magazine) for magazine in config.magazines]
    reachable = _reachable(config)
    disks = []
    for enrolment in enrolments(config):
        uuid = enrolment.filesystem_uuid
        path = config.mount_dir / uuid if uuid in reachable else None
        disks.append(Magazine(enrolment.name, uuid, path, reachable.get(uuid, False)))
    return (*directories, *disks)


def attached(config: Config) -> tuple[Magazine, ...]:
    """The magazines whose volumes can be reached now."""
    return tuple(magazine for magazine in known(config) if magazine.attached)


def find(config: Config, name: str) -> Magazine:
    """The attached magazine *name*. Raises `NotFoundError`, or `AwayError` when it is not in a bay."""
    for magazine in known(config):
        if magazine.name == name:
            if magazine.path is None:
                raise AwayError(f"magazine {name} is not here", hint="Plug its disk in and try again.")
            return magazine
    raise NotFoundError(f"no magazine is called {name}", hint="'magbay magazine list' shows the known ones.")


def create_directories(config: Config) -> None:
    """Create the directory of each directory magazine that was never used before.

    A magazine that was used and whose directory is missing is away (its disk is not mounted), and creating
    it would fill the system disk instead; a marker below `state_dir/magazines` remembers the first use.
    """
    for magazine in config.magazines:
        if not magazine.create:
            continue
        marker = config.enrolment_dir / f"{magazine.name}.directory"
        if marker.exists():
            continue
        magazine.directory.mkdir(parents=True, exist_ok=True)
        config.enrolment_dir.mkdir(parents=True, exist_ok=True)
        marker.touch()


def _directory(magazine: MagazineConfig) -> Magazine:
    if magazine.filesystem_uuid:
        path = elsewhere.directory_of(magazine.filesystem_uuid, magazine.directory)
    else:
        path = magazine.directory if magazine.directory.is_dir() else None
    identity = f"directory:{magazine.name}"
    return Magazine(magazine.name, identity, path, path is not None and os.access(path, os.W_OK))


def _reachable(config: Config) -> dict[str, bool]:
    """File-system UUID to writable, of the disks that the media agent says can be reached."""
    try:
        answer = json.loads((config.run_dir / MEDIA_ANSWER).read_bytes())
        return {
            disk["filesystem_uuid"]: not disk["read_only"]
            for disk in answer["disks"]
            if disk["state"] in REACHABLE and disk["filesystem_uuid"]
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise MagbayError(
            f"{config.run_dir / MEDIA_ANSWER} is damaged",
            hint="Remove it and restart magbay-media: it writes it anew.",
        ) from None
