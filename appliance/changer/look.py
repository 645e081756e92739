"""One look at the magazines: which volumes are on those that are attached, and what has to stay for that to hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.changer.inventory import Mark, scan
from appliance.changer.olddisk import undo_loads
from appliance.changer.slotmap import SlotMap
from appliance.changer.view import Stamp, Stamps, stamp
from appliance.config.schema import ChangerConfig, Config
from appliance.host.files import write_atomic
from appliance.magazines.attached import MEDIA_ANSWER, Magazine
from appliance.magazines.elsewhere import device_link
from appliance.magazines.states import State

SEEN = "changer-seen.json"


@dataclass(frozen=True)
class Seen:
    """What was seen of one attached magazine: the directory and its stamp, its volumes, a mark for each file."""

    path: str
    stamp: Stamp
    volumes: tuple[str, ...]
    marks: Mapping[str, Mark]

    def document(self) -> dict[str, Any]:
        """For JSON; `recall` reads it."""
        return {"path": self.path, "stamp": self.stamp, "volumes": self.volumes, "marks": self.marks}


@dataclass(frozen=True)
class Look:
    """*magazines*: all known; *seen*: identity to what is on it, of those attached and readable; *unreadable*: identity
    to a sentence, of those attached that could not be read; *stamps*: what the look rests on."""

    magazines: tuple[Magazine, ...]
    seen: Mapping[str, Seen]
    unreadable: Mapping[str, str]
    stamps: Stamps

    def volumes(self, magazine: Magazine) -> tuple[str, ...]:
        """Names of the volumes on *magazine*, none while it is away or cannot be read."""
        found = self.seen.get(magazine.identity)
        return found.volumes if found else ()

    def duplicates(self) -> dict[str, tuple[str, ...]]:
        """Volume names on more than one attached magazine, each with the names of the magazines."""
        holders: dict[str, list[str]] = {}
        for magazine in self.magazines:
            for volume in self.volumes(magazine):
                holders.setdefault(volume, []).append(magazine.name)
        return {volume: tuple(names) for volume, names in sorted(holders.items()) if len(names) > 1}


def home(config: Config, magazine: Magazine) -> Path:
    """The directory of the volumes of *magazine* whenever it is attached."""
    named = {f"directory:{item.name}": item.directory for item in config.magazines}
    return magazine.path or named.get(magazine.identity) or config.mount_dir / magazine.identity


def look(
    config: Config, magazines: tuple[Magazine, ...], slot_map: SlotMap, before: Mapping[str, Seen], thorough: bool
) -> Look:
    """Look at *magazines*, but not at idle disks of which *before* says something certain: a look would have autofs
    mount them, and what is not mounted does not change. With *thorough* False not at mounted ones either."""
    idle = _idle(config)
    seen: dict[str, Seen] = {}
    unreadable: dict[str, str] = {}
    stamps: Stamps = []
    for magazine in magazines:
        path = str(home(config, magazine))
        directory = magazine.identity.startswith("directory:")
        if magazine.path is None:
            # A directory comes without notice; a disk comes with a new answer of the media agent.
            if directory and magazine.reason:
                unreadable[magazine.identity] = f"magazine {magazine.name}: {magazine.reason}"
            elif directory:
                stamps += _stamps_of_absence(config, magazine, path)
            continue
        old = before.get(magazine.identity, Seen(path, False, (), {}))
        resting = magazine.identity in idle
        if (resting or not thorough) and not directory and old.path == path and old.stamp:
            seen[magazine.identity] = old
        else:
            known = {volume for identity, volume in slot_map.slots if identity == magazine.identity}
            try:
                seen[magazine.identity] = _scan(config.changer, path, old, known)
            except OSError as error:
                sentence = f"magazine {magazine.name} ({path}) cannot be read: {error.strerror}"
                unreadable[magazine.identity] = sentence
                continue
        if not resting:  # the media agent's answer, which has a stamp too, changes when the disk is mounted
            stamps.append((path, seen[magazine.identity].stamp))
    return Look(magazines, seen, unreadable, stamps)


def _idle(config: Config) -> frozenset[str]:
    """File-system UUIDs of the disks that are unlocked and not mounted. Doubt means none: they are looked at."""
    try:
        disks = json.loads((config.run_dir / MEDIA_ANSWER).read_bytes())["disks"]
        return frozenset(disk["filesystem_uuid"] for disk in disks if disk["state"] == State.IDLE.value)
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def _stamps_of_absence(config: Config, magazine: Magazine, path: str) -> Stamps:
    """What changes when a magazine of the configuration comes."""
    uuid = next(item.filesystem_uuid for item in config.magazines if f"directory:{item.name}" == magazine.identity)
    if not uuid:
        return [(path, None)]
    link = str(device_link(uuid))
    # Plugged in and not mounted: it may be mounted anywhere at any moment, of which no file tells.
    device = stamp(link)
    return [(path, stamp(path, settled=True)), (link, False if device else None)]


def _scan(changer: ChangerConfig, path: str, old: Seen, known: set[str]) -> Seen:
    if changer.vchanger_disks:
        undo_loads(Path(path), changer.name)
    now = stamp(path, settled=True)  # before the scan: a change in between must show
    listing = scan(Path(path), old.marks if old.path == path else {}, known, unlabelled=changer.unlabelled)
    return Seen(path, now, listing.volumes, listing.marks)


def recall(run_dir: Path) -> dict[str, Seen]:
    """What the last look saw; nothing when that is lost, which costs only a reading of every volume's first bytes."""
    try:
        document = json.loads((run_dir / SEEN).read_bytes())
        return {
            identity: Seen(
                str(item["path"]),
                item["stamp"],
                tuple(item["volumes"]),
                {name: (int(m[0]), int(m[1]), int(m[2]), bool(m[3])) for name, m in item["marks"].items()},
            )
            for identity, item in document.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return {}


def remember(run_dir: Path, seen: Mapping[str, Seen]) -> None:
    """Keep *seen* for the next look. Raises `OSError`."""
    document = {identity: item.document() for identity, item in seen.items()}
    data = json.dumps(document, separators=(",", ":")).encode()
    write_atomic(run_dir / SEEN, data, mode=0o644, durable=False)


def reachable(magazines: Sequence[Magazine]) -> dict[str, str]:
    """Identity to name of the attached ones."""
    return {magazine.identity: magazine.name for magazine in magazines if magazine.attached}
