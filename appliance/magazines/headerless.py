"""A magazine's disk that has lost its LUKS header: making sure that it is that disk, and giving the header back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.config.schema import Config, Enrolment
from appliance.errors import MagbayError, NotFoundError
from appliance.host.api import BlockDevice, Devices, Mounts
from appliance.keys import headers, rotation
from appliance.keys.rotation import Keys, Opens
from appliance.magazines.attached import enrolments
from appliance.magazines.disks import is_disk, stands_on


@dataclass(frozen=True)
class Headerless:
    """A disk, and the magazine that it is."""

    device: BlockDevice
    enrolment: Enrolment


def identify(config: Config, devices: Devices, mounts: Mounts, node: Path, name: str, force: bool) -> Headerless:
    """The magazine whose disk is at *node*: the one with its serial number and size. *name* is needed when the
    enrolment knows no serial number; *force* allows to replace a header with the magazine's own LUKS UUID.

    Raises `NotFoundError`, `MagbayError` when it must not be written to.
    """
    everything = devices.enumerate()
    device = next((item for item in everything if Path(item.node) == node.resolve()), None)
    if device is None or not is_disk(device):
        raise NotFoundError(f"{node} is no disk that udev knows", hint="'magbay status' lists the disks.")
    enrolment = _enrolment(config, device, name)
    never = _never(device, everything, mounts, enrolment, force)
    if never:
        raise MagbayError(f"{node} is not touched: {never}", hint="Nothing was changed.")
    headers.check_uuid(headers.existing(config.state_dir, enrolment.luks_uuid), enrolment.luks_uuid)
    return Headerless(device, enrolment)


def restore(config: Config, disk: Headerless, keys: Keys) -> Opens:
    """Write the header back; gives what opens it. Raises `MagbayError` also when the restored header opens with neither
    key: then the backup is older than the keys."""
    luks_uuid = disk.enrolment.luks_uuid
    with headers.changing(config.state_dir, luks_uuid):
        headers.restore(disk.device.node, luks_uuid, config.state_dir)
        opens = rotation.which(disk.device.node, keys)
    if opens is Opens.NONE:
        raise MagbayError(
            f"magazine {disk.enrolment.name}: the header is back on {disk.device.node}, but the key does not open it",
            hint="The backup is older than the key: try a passphrase, a recovery key, or an older key file.",
        )
    return opens


def _enrolment(config: Config, device: BlockDevice, name: str) -> Enrolment:
    ours = enrolments(config)
    if name:
        return _named(ours, device, name)
    same = [item for item in ours if device.serial and item.serial == _serial(device) and _fits(item, device)]
    if len(same) != 1:
        raise MagbayError(
            f"{device.node} (serial {_serial(device) or 'unknown'}, {device.size} bytes) is the disk of "
            f"{'no magazine' if not same else 'more than one magazine'} by its serial number and size",
            hint="Say which with --magazine NAME.",
        )
    return same[0]


def _named(ours: tuple[Enrolment, ...], device: BlockDevice, name: str) -> Enrolment:
    found = next((item for item in ours if item.name == name), None)
    if found is None:
        raise NotFoundError(f"no enrolled magazine is called {name}", hint="'magbay magazine list' shows them.")
    if (found.serial and found.serial != _serial(device)) or not _fits(found, device):
        raise MagbayError(
            f"{device.node} (serial {_serial(device) or 'unknown'}, {device.size} bytes) is not the disk of magazine "
            f"{name} (serial {found.serial or 'unknown'}, {found.size} bytes): nothing was changed",
            hint="Plug the right disk in.",
        )
    return found


def _fits(enrolment: Enrolment, device: BlockDevice) -> bool:
    """Whether the size is right; enrolments of old did not note it."""
    return enrolment.size in (0, device.size)


def _serial(device: BlockDevice) -> str:
    """The serial number as enrolments have it."""
    return "".join(char if char.isprintable() else "?" for char in device.serial)


def _never(
    device: BlockDevice, everything: tuple[BlockDevice, ...], mounts: Mounts, enrolment: Enrolment, force: bool
) -> str:
    """Why *device* must not be written to."""
    if device.read_only:
        return "it is write-protected"
    if any(device.name in other.below or other.parent == device.name for other in everything):
        return "it is in use: something is opened from it, or it has partitions"
    if any(stands_on(mount, device) for mount in mounts.table()):
        return "it is mounted"
    elsewhere = [other.node for other in everything if other.fs_uuid == enrolment.luks_uuid and other != device]
    if elsewhere:
        return f"{elsewhere[0]} carries the LUKS header of magazine {enrolment.name}"
    if device.fs_type == "crypto_LUKS" and device.fs_uuid == enrolment.luks_uuid:
        return "" if force else "its LUKS header is there; --force replaces it all the same"
    if device.fs_type or device.has_partitions:
        return f"it holds {device.fs_type or 'partitions'}"
    return ""
