"""Block devices through udev."""

# pathlib is slow, and what is here is done for each device at each look.
# ruff: noqa: PTH116, PTH208

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path
from typing import Any

import pyudev

from appliance.host.api import BlockDevice, Wake

_HEX = re.compile(rb"\\x([0-9a-fA-F]{2})")
# Bytes for the netlink buffer: a dock full of disks raises some hundred events of about 2 KiB at once.
_BUFFER = 16 * 1024 * 1024
# Events read in one go before the loop gets its turn.
_MOST_EVENTS = 1000


def _decode(text: str) -> str:
    """Undo udev's `\\xNN` in the _ENC properties; what is no UTF-8 is kept as surrogate escapes."""
    raw = _HEX.sub(lambda match: bytes([int(match[1], 16)]), text.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape").strip()


def is_removal(message: bytes) -> bool:
    """Whether *message* of udev's monitor says that a device has gone (a head, then `KEY=value` with NULs between)."""
    return b"ACTION=remove\0" in message


class Marks:
    """Tells cheaply whether udev has said anything new of a device: a dock full of disks is looked at after each event.

    udev replaces the device's file in its database at every event; the device's directory in /sys is another one after
    each plug. Both are stat(2)s, where asking libudev costs some twenty system calls a device.
    """

    def __init__(self, devices: Path = Path("/sys/class/block"), database: Path = Path("/run/udev/data")) -> None:
        # Words rather than paths: these are looked at more often than anything else, and making a path of them takes
        # longer than the system call.
        self._devices, self._database = str(devices), str(database)
        self._numbers: dict[str, tuple[int, str]] = {}  # name to inode and major:minor

    def names(self) -> list[str]:
        """Kernel names of all block devices. Raises `OSError`."""
        return sorted(os.listdir(self._devices))

    def mark(self, name: str) -> tuple[int, ...] | None:
        """A mark of the device *name* that changes with it; None when it cannot be told whether it has changed."""
        try:
            inode = os.stat(f"{self._devices}/{name}").st_ino
            known = self._numbers.get(name)
            if known is None or known[0] != inode:
                known = self._numbers[name] = (inode, Path(self._devices, name, "dev").read_text().strip())
            entry = os.stat(f"{self._database}/b{known[1]}")
            return inode, entry.st_ino, entry.st_mtime_ns, entry.st_size
        except OSError:
            return None


class UdevDevices:
    """Enumeration and hints. The descriptor is used in the event loop; its messages are thrown away: an
    event says only that something changed, or at most that it is urgent, and an overflow (ENOBUFS) says the same."""

    def __init__(self) -> None:
        self._context = pyudev.Context()
        self._monitor: Any = None
        self._socket: socket.socket | None = None
        self._marks = Marks()
        self._known: dict[str, tuple[tuple[int, ...], BlockDevice]] = {}

    def start(self, wake: Wake, gone: Wake) -> None:
        """Call *wake* after events of block devices, and *gone* when one of them was that a device has gone."""
        monitor = pyudev.Monitor.from_netlink(self._context)
        monitor.filter_by("block")
        monitor.start()
        self._monitor = monitor
        # pyudev's own poll() raises while an error is pending and never clears it; reading the socket does.
        events = self._socket = socket.socket(fileno=os.dup(monitor.fileno()))
        # As large as an unprivileged process may have; an overflow loses hints, and the next look needs none.
        events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)

        def drain() -> None:
            removed = False
            for _ in range(_MOST_EVENTS):
                try:
                    removed = is_removal(events.recv(65536, socket.MSG_DONTWAIT)) or removed
                except BlockingIOError:
                    break
                except OSError:
                    continue  # ENOBUFS: events were lost; the fresh enumeration that follows does not need them
            wake()
            if removed:
                gone()

        asyncio.get_running_loop().add_reader(events.fileno(), drain)

    def enumerate(self) -> tuple[BlockDevice, ...]:
        """All block devices that udev has finished with."""
        found: dict[str, tuple[tuple[int, ...] | None, BlockDevice]] = {}
        for name in self._marks.names():
            mark = self._marks.mark(name)  # before looking: what changes meanwhile is looked at again
            known = self._known.get(name)
            if known is not None and known[0] == mark:
                found[name] = known
            elif (device := self._look(name)) is not None:
                found[name] = (mark, device)
        self._known = {name: (mark, device) for name, (mark, device) in found.items() if mark is not None}
        return tuple(device for _mark, device in found.values())

    def _look(self, name: str) -> BlockDevice | None:
        """What udev knows of *name*; None when that is not all yet, or the device has gone."""
        try:
            device = pyudev.Devices.from_name(self._context, "block", name)
            return _describe(device) if device.is_initialized and device.device_node else None
        except (OSError, KeyError, pyudev.DeviceNotFoundError):
            return None  # went away while we looked; the event for that wakes us again


def _describe(device: Any) -> BlockDevice:
    get = device.properties.get
    sys_path = Path(device.sys_path)
    kind = device.device_type or "disk"
    parent = sys_path.parent.name if kind == "partition" else ""
    whole = sys_path.parent if kind == "partition" else sys_path
    return BlockDevice(
        name=device.sys_name,
        node=device.device_node,
        kind=kind,
        size=int(_attribute(sys_path / "size") or "0") * 512,
        sequence=int(get("DISKSEQ") or _attribute(whole / "diskseq") or "0"),
        number=_attribute(sys_path / "dev"),
        parent=parent,
        below=tuple(sorted(entry.name for entry in (sys_path / "slaves").glob("*"))),
        fs_type=get("ID_FS_TYPE") or "",
        fs_uuid=(get("ID_FS_UUID") or "").lower(),
        has_partitions=bool(get("ID_PART_TABLE_TYPE")),
        serial=_decode(get("ID_SCSI_SERIAL") or get("ID_SERIAL_SHORT") or get("ID_SERIAL") or ""),
        model=_decode(get("ID_MODEL_ENC") or get("ID_MODEL") or ""),
        mapping=get("DM_NAME") or "",
        read_only=_attribute(sys_path / "ro") == "1",
    )


def _attribute(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
