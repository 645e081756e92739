"""The pieces of configuration that the Director and the storage daemon need for our changer, ready to be included.

Keywords as in the manuals of Bacula 9 to 13 and Bareos 20 and later; why each value is as it is stands in
docs/director.md.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.changer import drives
from appliance.config.schema import Config, DirectorKind
from appliance.director.ours import our_media_type
from appliance.director.plan import quoted

# Settings whose values are names of resources.
_NAMES = frozenset(
    {"Name", "Device", "Media Type", "Autochanger", "Storage", "Client", "FileSet", "Pool", "Messages", "Schedule"}
)


@dataclass(frozen=True)
class OtherSide:
    """Names that only the administrator of the Director knows."""

    address: str = "127.0.0.1"  # where the Director and the clients reach the storage daemon
    port: int = 9103
    password_file: Path = Path("/etc/bacula/magbay-sd-password")  # the quoted password, in a file of its own
    client: str = "bacula-fd"
    messages: str = "Standard"
    changer_command: str = "/usr/bin/magbay-changer"


def usual(kind: DirectorKind) -> OtherSide:
    """The names of the packages: Debian's Bacula calls the Client after the host, Bareos' does not."""
    if kind is DirectorKind.BAREOS:
        return OtherSide(password_file=Path("/etc/bareos/magbay-sd-password"), client="bareos-fd")
    return OtherSide(client=f"{platform.node() or 'bacula'}-fd")


def pieces(config: Config, file: Path, other: OtherSide, kind: DirectorKind) -> dict[str, str]:
    """File name to text, for the configuration *file* whose contents are *config*."""
    side = "bareos" if kind is DirectorKind.BAREOS else "bacula"
    return {
        f"{side}-sd-magbay.conf": storage_daemon(config, file, other),
        f"{side}-dir-magbay.conf": director(config, other, kind),
    }


def storage_daemon(config: Config, file: Path, other: OtherSide) -> str:
    """Autochanger and Device resources."""
    name = config.director.storage
    devices = [f"{name}-{number}" for number in range(config.changer.drives)]
    # The daemon fills in the letters and then splits at blanks outside quotes.
    config_word = "'%c'" if " " in str(file.absolute()) else "%c"
    device_word = "'%a'" if " " in str(config.drive_dir) else "%a"
    command = f"{other.changer_command} {config_word} %o %S {device_word} %d"
    parts = [
        "# magbay: include this in the storage daemon's configuration (@/path/of/this/file).",
        _resource(
            "Autochanger",
            [
                ("Name", name),
                ("Device", ", ".join(devices)),
                ("Changer Device", _quoted(str(file.absolute()))),
                ("Changer Command", _quoted(command)),
            ],
        ),
    ]
    for number, device in enumerate(devices):
        settings = [
            ("Name", device),
            ("Media Type", our_media_type(config.director)),
            ("Device Type", "File"),
            (
                "Archive Device",
                _quoted(drives.place(str(config.drive_dir), number, folder=config.changer.drive_folders)),
            ),
            ("Autochanger", "yes"),
            ("Drive Index", str(number)),
            ("Random Access", "yes"),
            ("Removable Media", "yes  # with no, volumes of absent magazines are marked Error"),
            ("Always Open", "no  # so that a magazine can be ejected between jobs"),
            ("Automatic Mount", "yes"),
            ("Label Media", "no"),
            ("Maximum Concurrent Jobs", "1"),
        ]
        parts.append(_resource("Device", settings))
    return "\n".join(parts)


def archive_device(config: Config, drive: int) -> str:
    """The path that the storage daemon opens for the virtual *drive*."""
    return drives.place(str(config.drive_dir), drive, folder=config.changer.drive_folders)


def director(config: Config, other: OtherSide, kind: DirectorKind) -> str:
    """Storage, Pools and the Admin job UpdateSlots with its schedule."""
    name = config.director.storage
    storage = [
        ("Name", name),
        ("Address", other.address),
        ("Port" if kind is DirectorKind.BAREOS else "SD Port", str(other.port)),
        ("Password", f"@{other.password_file}"),
        ("Device", name),
        ("Media Type", our_media_type(config.director)),
        ("Autochanger", "yes" if kind is DirectorKind.BAREOS else name),
        ("Maximum Concurrent Jobs", str(config.changer.drives)),
    ]
    if kind is DirectorKind.BAREOS:
        storage[-2] = ("Auto Changer", "yes")
    return "\n".join(
        [
            "# magbay: include this in the Director's configuration (@/path/of/this/file).",
            f"# {other.password_file} holds the password of the storage daemon's Director resource, in quotes.",
            _resource("Storage", storage),
            *_pools(config),
            *_update_slots(config, other),
        ]
    )


def _pools(config: Config) -> Iterable[str]:
    # Only those that the Director is to label into: `pools` of the configuration are of our own jobs.
    for name in dict.fromkeys([config.director.pool, *config.director.pools.values()]):
        settings = [("Name", name), ("Pool Type", "Backup"), ("Storage", config.director.storage)]
        if name in config.pools:
            settings.append(("Maximum Volume Bytes", str(config.pools[name].maximum_volume_bytes)))
        settings += [
            ("Recycle", "yes"),
            ("Auto Prune", "yes"),
            ("Volume Retention", "30 days"),
            ("Recycle Oldest Volume", "no  # it would take volumes of magazines that are away"),
        ]
        yield _resource("Pool", settings)


def _update_slots(config: Config, other: OtherSide) -> Iterable[str]:
    storage = config.director.storage
    yield "# The nightly belt with the braces: the changer agent keeps the slots true at every change."
    yield _resource("Schedule", [("Name", f"{storage}-nightly"), ("Run", "daily at 20:55")])
    yield 'FileSet {\n  Name = "' + storage + '-nothing"\n  Include {\n    File = /var/empty\n  }\n}\n'
    job = [
        ("Name", "UpdateSlots"),
        ("Type", "Admin"),
        ("Client", other.client),
        ("FileSet", f"{storage}-nothing"),
        ("Storage", storage),
        ("Pool", config.director.pool),
        ("Messages", other.messages),
        ("Schedule", f"{storage}-nightly"),
    ]
    script = [
        ("Runs When", "Before"),
        ("Runs On Client", "no"),
        ("Console", _quoted(f"update slots storage={quoted(storage)} drive=0")),
    ]
    inside = _resource("RunScript", script).replace("\n", "\n  ").rstrip()
    yield _resource("Job", job)[:-2] + f"  {inside}\n}}\n"


def _resource(kind: str, settings: Iterable[tuple[str, str]]) -> str:
    rows = [(key, _named(value) if key in _NAMES else value) for key, value in settings]
    return kind + " {\n" + "".join(f"  {key} = {value}\n" for key, value in rows) + "}\n"


def _named(value: str) -> str:
    """One name, or several with commas between them, in quotes where one has blanks."""
    return ", ".join(f'"{name}"' if " " in name else name for name in value.split(", "))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
