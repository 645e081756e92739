"""What is remembered of a preparation until it is finished, so that an interrupted one is gone on with.

One file for each disk below `state_dir/preparing`, replaced durably. It holds no secrets: the key of the random data is
never kept, because what is still to be written can have another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.host.api import BlockDevice
from appliance.host.files import make_directory, sync_directory, write_atomic
from appliance.magazines.wipe import Wipe, Wiped


class Phase(Enum):
    """How far a preparation has come. From FORMATTING on, all but the overwriting is done anew: it takes seconds."""

    WIPING = "wiping"
    FORMATTING = "formatting"
    ENROLLED = "enrolled"  # what is left is to create its volumes


@dataclass(frozen=True)
class Preparation:
    """An unfinished preparation of the disk with *serial*, *model* and *size* (bytes)."""

    serial: str
    model: str
    size: int
    name: str
    luks_uuid: str
    filesystem_uuid: str
    wipe: Wipe
    phase: Phase = Phase.WIPING
    wiped: Wiped = field(default_factory=Wiped)
    when: str = ""  # of the last record, ISO 8601

    @property
    def mapping(self) -> str:
        """The container's name below /dev/mapper while the disk is prepared."""
        return f"prepare-{self.luks_uuid}"


def folder(config: Config) -> Path:
    """`state_dir/preparing`, made when missing: records, locks and mount points. Raises `MagbayError`.

    Agents own *state_dir*, root works here: a link or a directory of somebody else in this place is refused.
    """
    path = config.state_dir / "preparing"
    make_directory(path, mode=0o700)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise MagbayError(
            f"{path} is not a directory that only its owner may enter", hint="Move it away; it is made anew."
        )
    return path


def read(config: Config, device: BlockDevice) -> Preparation | None:
    """The unfinished preparation of *device*; None when there is none, or its file is not as we wrote it.

    Raises `MagbayError` as `folder`.
    """
    try:
        values = json.loads((folder(config) / _name(device)).read_bytes())
        found = _parse(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    same = (found.serial, found.model, found.size) == (device.serial, device.model, device.size)
    return found if same else None


def write(config: Config, device: BlockDevice, preparation: Preparation) -> None:
    """Remember *preparation* durably. Raises `OSError`."""
    path = folder(config) / _name(device)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    values = dataclasses.asdict(dataclasses.replace(preparation, when=now))
    values |= {"wipe": preparation.wipe.value, "phase": preparation.phase.value}
    write_atomic(path, json.dumps(values, indent=1).encode(), mode=0o600)


def forget(config: Config, device: BlockDevice) -> None:
    """The preparation of *device* is finished."""
    place = folder(config)
    (place / _name(device)).unlink(missing_ok=True)
    sync_directory(place)


def _name(device: BlockDevice) -> str:
    # Serial numbers come from the disk and may hold anything: no part of a path is made of them.
    facts = "\0".join((device.serial, device.model, str(device.size))).encode("utf-8", "surrogateescape")
    return f"{hashlib.sha256(facts).hexdigest()[:24]}.json"


def _parse(values: Any) -> Preparation:
    texts = {name: values[name] for name in ("serial", "model", "name", "luks_uuid", "filesystem_uuid", "when")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError
    wiped = values["wiped"]
    return Preparation(
        **texts,
        size=int(values["size"]),
        wipe=Wipe(values["wipe"]),
        phase=Phase(values["phase"]),
        wiped=Wiped(int(wiped["done"]), {int(at): str(digest) for at, digest in wiped["samples"].items()}),
    )
