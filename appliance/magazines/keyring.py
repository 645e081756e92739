"""Which key opens which magazine, and re-keying those that are here: enrolments, disks and keys brought together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from appliance.config.schema import Config, Enrolment
from appliance.errors import AwayError, MagbayError, NotFoundError
from appliance.host.api import Devices, Mounts
from appliance.keys import headers, records, rotation
from appliance.keys.records import Record
from appliance.keys.rotation import Keys, Opens
from appliance.magazines.attached import enrolments
from appliance.magazines.disks import survey


@dataclass(frozen=True)
class Container:
    """The LUKS container of an enrolled magazine. *node* is empty while it is away, *refusal* says why it must not be
    used."""

    enrolment: Enrolment
    node: str = ""
    refusal: str = ""


class Backup(Enum):
    """State of a header backup."""

    CURRENT = "current"
    KEPT = "kept"  # there; whether it is current cannot be told while the disk is away
    STALE = "stale"  # the key slots have changed since
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """What `magbay key check` says of one magazine."""

    container: Container
    opens: Opens | None  # None: cannot be told
    record: Record | None
    backup: Backup
    trouble: str = ""

    def settled(self, keys: Keys) -> bool:
        """Whether the previous key is of no more use for it."""
        if self.container.node:
            return self.opens is Opens.NEW and self.backup is Backup.CURRENT
        return self.record is not None and self.record.key == keys.key.fingerprint()

    def document(self, keys: Keys) -> dict[str, Any]:
        """For JSON."""
        enrolment = self.container.enrolment
        return {
            "magazine": enrolment.name,
            "luks_uuid": enrolment.luks_uuid,
            "serial": enrolment.serial,
            "node": self.container.node or None,
            "opens_with": self.opens.value if self.opens else "unknown",
            "needs_previous_key": keys.rotating and not self.settled(keys),
            "header_backup": self.backup.value,
            "seen": self.record.seen if self.record else None,
            "trouble": self.trouble,
        }


def containers(config: Config, devices: Devices, mounts: Mounts) -> tuple[Container, ...]:
    """The container of each enrolled magazine, here or away, by name of the magazine."""
    ours = enrolments(config)
    found: dict[str, Container] = {}
    for disk in survey(devices.enumerate(), mounts.table(), ours, config.mount_dir):
        if disk.enrolment is None:
            continue
        # A copy is refused while the magazine itself is in use: that one is meant then.
        if not disk.refusal:
            found[disk.enrolment.luks_uuid] = Container(disk.enrolment, disk.device.node)
        else:
            found.setdefault(disk.enrolment.luks_uuid, Container(disk.enrolment, refusal=disk.refusal))
    return tuple(found.get(enrolment.luks_uuid, Container(enrolment)) for enrolment in ours)


def here(config: Config, devices: Devices, mounts: Mounts, name: str) -> Container:
    """The container of magazine *name*, whose disk is plugged. Raises `NotFoundError`, `AwayError`, `MagbayError`."""
    for container in containers(config, devices, mounts):
        if container.enrolment.name == name:
            if container.refusal:
                raise MagbayError(f"magazine {name}: its disk {container.refusal}", hint="Pull one of the two disks.")
            if not container.node:
                raise AwayError(f"magazine {name} is not here", hint="Plug its disk in and try again.")
            return container
    raise NotFoundError(f"no enrolled magazine is called {name}", hint="'magbay magazine list' shows them.")


def examine(config: Config, found: tuple[Container, ...], keys: Keys) -> tuple[Finding, ...]:
    """Which key opens each of *found*: those that are here are tried, for the others the record speaks."""
    return tuple(_examine(config.state_dir, container, keys) for container in found)


def _examine(state_dir: Path, container: Container, keys: Keys) -> Finding:
    luks_uuid = container.enrolment.luks_uuid
    record = records.read(state_dir, luks_uuid)
    backup = Backup.KEPT if headers.path_of(state_dir, luks_uuid).exists() else Backup.MISSING
    if container.node:
        try:
            opens = rotation.which(container.node, keys)
            if backup is Backup.KEPT:
                backup = Backup.CURRENT if headers.current(container.node, luks_uuid, state_dir) else Backup.STALE
            return Finding(container, opens, record, backup)
        except MagbayError as error:
            return Finding(container, None, record, backup, error.message)
    opens_when_seen = None
    if record is not None and record.key == keys.key.fingerprint():
        opens_when_seen = Opens.NEW
    elif record is not None and keys.previous is not None and record.key == keys.previous.fingerprint():
        opens_when_seen = Opens.OLD
    return Finding(container, opens_when_seen, record, backup, container.refusal)


def rekey_all(
    config: Config, found: tuple[Container, ...], keys: Keys, say: Callable[[str], None]
) -> tuple[MagbayError, ...]:
    """Re-key those of *found* that are here; trouble with one of them (given back) does not stop the others."""
    troubles = []
    for container in found:
        if container.node:
            try:
                rekey(config, container, keys, say)
            except MagbayError as error:
                troubles.append(error)
    return tuple(troubles)


def rekey(config: Config, container: Container, keys: Keys, say: Callable[[str], None]) -> None:
    """Re-key one magazine, see `rotation.rekey`. Raises `MagbayError` when neither key opens it, too."""
    name = container.enrolment.name
    opens = rotation.rekey(
        container.node,
        container.enrolment.luks_uuid,
        keys,
        config.state_dir,
        lambda text: say(f"magazine {name}: {text}"),
    )
    if opens is Opens.NONE:
        raise MagbayError(
            f"magazine {name}: neither the key file nor the previous one opens {container.node}: nothing was changed",
            hint="It was prepared with another key; 'magbay key restore' takes that one from its sheet.",
        )
