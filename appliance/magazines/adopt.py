"""Taking over a disk that others have made: a LUKS container (1 or 2) with a file system of volumes in it.

The disk is only read: its container is opened read-only, its file system is mounted read-only without looking at its
journal. From its next unlocking on the agents use it as any other magazine.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.config.kinds import NAME
from appliance.config.schema import Config, Enrolment
from appliance.errors import MagbayError, PermissionDeniedError
from appliance.host.accounts import allowed, group_name, user_name
from appliance.host.api import BlockDevice, Devices, Mounts
from appliance.host.commands import attempt
from appliance.keys import headers, keyfile
from appliance.magazines import candidate, containers, leaflet, preparations
from appliance.magazines.enrolment import check_name, enrol, printable
from appliance.magazines.stays import stays_folder, write_stay

# How each is mounted so that not even its journal is written.
_READ_ONLY = {
    "ext2": ("ro", "noload"),
    "ext3": ("ro", "noload"),
    "ext4": ("ro", "noload"),
    "xfs": ("ro", "norecovery"),
    "btrfs": ("ro",),
}
_LUKS = "crypto_LUKS"
_AGENT = "magbay"


@dataclass(frozen=True)
class Adopted:
    """What was found: *volumes* are their names; *fits* whether the appliance's own key file opens the disk."""

    enrolment: Enrolment
    device: BlockDevice
    filesystem: str
    volumes: tuple[str, ...]
    fits: bool
    notes: tuple[str, ...]


def adopt(
    config: Config, devices: Devices, mounts: Mounts, node: Path, name: str, key_file: Path | None, *, closed: bool
) -> Adopted:
    """Enrol the disk (or its LUKS partition) at *node* as magazine *name* (empty: by its own label).

    *key_file*: another key that opens it; *closed*: the agents leave it alone until it is plugged in again.
    Raises `NotFoundError`, `PermissionDeniedError` or `MagbayError`: why not.
    """
    if os.geteuid() != 0:
        raise PermissionDeniedError("taking over a disk needs root", hint="Run it with sudo.")
    around = candidate.look(devices, mounts, node)
    device = _container(around)
    known = candidate.enrolled_as(around, config)
    if known:
        raise MagbayError(f"{device.node} is magazine {known.name} already", hint="'magbay magazine list' shows it.")
    used = candidate.in_use(around.stack, around)
    if used:
        raise MagbayError(f"{device.node} is not taken over: {used}", hint="Unmount and close it first.")
    fits, key = _key(config, device, key_file)
    with _opened(config, device, key) as inner:
        kind, uuid, label = _inside(inner)
        if kind not in _READ_ONLY or not uuid:
            raise MagbayError(
                f"{device.node} holds {kind or 'nothing known'} inside: only {', '.join(_READ_ONLY)} are used",
                hint="Copy its volumes to a magazine of magbay, if they are needed.",
            )
        volumes, notes = _contents(config, inner, kind, device)
    enrolment = Enrolment(
        name=name or _own_name(config, (label, _probe(Path(device.node)).get("LABEL", ""))),
        filesystem_uuid=uuid,
        luks_uuid=device.fs_uuid,
        serial=printable(device.serial),
        model=printable(device.model),
        size=device.size,
    )
    check_name(config, enrolment.name, uuid)
    headers.backup(device.node, enrolment.luks_uuid, config.state_dir)
    if closed:
        _leave_alone(config, device)
    enrol(config, enrolment)
    return Adopted(enrolment, device, kind, volumes, fits, notes)


def _container(around: candidate.Surroundings) -> BlockDevice:
    """The LUKS container itself: the disk, or its only partition that is one."""
    device = around.device
    if device.fs_type == _LUKS:
        return device
    parts = [other for other in around.everything if other.parent == device.name and other.fs_type == _LUKS]
    if len(parts) == 1:
        return parts[0]
    if parts:
        names = ", ".join(part.node for part in parts)
        raise MagbayError(f"{device.node} has several LUKS containers", hint=f"Name the one that is meant: {names}.")
    what = f"holds {device.fs_type}" if device.fs_type else "has partitions" if device.has_partitions else "is blank"
    raise MagbayError(
        f"{device.node} is no LUKS container: it {what}",
        hint="Only disks with LUKS are taken over. 'magbay prepare' makes a magazine of a blank disk.",
    )


def _key(config: Config, device: BlockDevice, other: Path | None) -> tuple[bool, Path]:
    """Whether the appliance's key file opens *device*, and the key file that does. Any key slot will do.

    Raises `MagbayError` when none does.
    """
    # While a rotation is unfinished the previous key will do, too: the disk is re-keyed as any other.
    for mine in (config.key_file, keyfile.previous(config.key_file)):
        if keyfile.form(mine) is not None and _fits(mine, device):
            return True, mine
    if other is None:
        raise MagbayError(
            f"the key file {config.key_file} does not open {device.node}",
            hint="Name a key file that does with --key-file FILE (a passphrase: in a file, without the line's end).",
        )
    if not other.exists() or not _fits(other, device):
        raise MagbayError(f"the key file {other} does not open {device.node}", hint="Is it the right one?")
    return False, other


def _fits(key_file: Path, device: BlockDevice) -> bool:
    words = ["cryptsetup", "open", "--type", "luks", "--readonly", "--test-passphrase", "--key-file"]
    with keyfile.passed(key_file) as (key, inherited):
        what = f"trying the key on {device.node}"
        status, _, complaint = attempt([*words, key, device.node], what, descriptors=inherited)
    if status not in (0, 2):  # 2: no key slot takes it (cryptsetup(8))
        raise MagbayError(f"{device.node} cannot be opened: {complaint.strip()}", hint="Is the disk damaged?")
    return status == 0


@contextmanager
def _opened(config: Config, device: BlockDevice, key: Path) -> Iterator[Path]:
    mapping = f"import-{device.fs_uuid}"
    containers.clear(mapping, preparations.folder(config) / mapping)
    with containers.opened(Path(device.node), mapping, key, read_only=True) as inner:
        yield inner


def _inside(inner: Path) -> tuple[str, str, str]:
    """Type, UUID and label of the file system on *inner*."""
    facts = _probe(inner)
    return facts.get("TYPE", ""), facts.get("UUID", "").lower(), facts.get("LABEL", "")


def _probe(node: Path) -> dict[str, str]:
    """What blkid(8) finds on *node*, without its cache."""
    _, output, _ = attempt(["blkid", "--probe", "--output", "export", str(node)], f"looking at {node}")
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def _contents(config: Config, inner: Path, kind: str, device: BlockDevice) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The volumes on *inner*, and what the agents will not like about it."""
    place = preparations.folder(config) / f"import-{device.fs_uuid}"
    try:
        with containers.mounted(inner, place, *_READ_ONLY[kind]):
            names = tuple(leaflet.volumes(place))
            return names, _rights(place, names)
    except MagbayError as error:
        # Its journal has to be replayed first, perhaps, which the agents' mount will do.
        return (), (f"its volumes could not be looked at: {error.message}",)


def _rights(place: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """What keeps the agents' user from the volumes."""
    try:
        account = pwd.getpwnam(_AGENT)
        groups = set(os.getgrouplist(_AGENT, account.pw_gid))
    except KeyError:
        return ()

    def may(path: Path, bit: int) -> bool:
        return allowed(path.stat(), account.pw_uid, groups, bit)

    closed = [name for name in names if not may(place / name, 4)]
    if may(place, 5) and not closed:
        return ()
    facts = place.stat()
    whose = f"{user_name(facts.st_uid)}:{group_name(facts.st_gid)} {facts.st_mode & 0o7777:o}"
    return (
        f"the user {_AGENT} may not read its volumes (its directory is {whose}): once it is mounted, give it to the "
        "group tape, as 'chgrp -R tape' and 'chmod -R g+rX' do",
    )


def _own_name(config: Config, labels: tuple[str, str]) -> str:
    """The first of *labels* (of the file system, of the container) that can be a magazine's name."""
    for label in labels:
        if label and NAME.pattern and NAME.pattern.fullmatch(label):
            return label
    raise MagbayError("the disk has no label that could be the magazine's name", hint="Give one with --name NAME.")


def _leave_alone(config: Config, device: BlockDevice) -> None:
    """Have the media agent treat this plugging of the disk as one that was ejected already."""
    where = stays_folder(config.run_dir)
    where.mkdir(parents=True, exist_ok=True)
    write_stay(where, device.fs_uuid, device.sequence, eject=True)
