"""Block devices through udev."""

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


class UdevDevices:
    """Enumeration and hints. The descriptor is used in the event loop; its messages are thrown away unread:
    an event says only that something changed, and an overflow (ENOBUFS) says the same."""

    def __init__(self) -> None:
        self._context = pyudev.Context()
        self._monitor: Any = None
        self._socket: socket.socket | None = None

    def start(self, wake: Wake) -> None:
        """Call *wake* after every event of a block device."""
        monitor = pyudev.Monitor.from_netlink(self._context)
        monitor.filter_by("block")
        monitor.start()
        self._monitor = monitor
        # pyudev's own poll() raises while an error is pending and never clears it; reading the socket does.
        events = self._socket = socket.socket(fileno=os.dup(monitor.fileno()))
        # As large as an unprivileged process may have; an overflow loses hints, and the next look needs none.
        events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)

        def drain() -> None:
            for _ in range(_MOST_EVENTS):
                try:
                    events.recv(65536, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # ENOBUFS: events were lost; the fresh enumeration that follows does not need them
            wake()

        asyncio.get_running_loop().add_reader(events.fileno(), drain)

    def enumerate(self) -> tuple[BlockDevice, ...]:
        """All block devices that udev has finished with."""
        found = []
        for device in self._context.list_devices(subsystem="block"):
            try:
                if device.is_initialized and device.device_node:
                    found.append(_describe(device))
            except (OSError, KeyError, pyudev.DeviceNotFoundError):
                continue  # went away while we looked; the event for that wakes us again
        return tuple(found)


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
