"""Journal, service notification and clock."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from pathlib import Path

import sdnotify

_JOURNAL = "/run/systemd/journal/socket"


def journal_datagram(fields: dict[str, str]) -> bytes:
    """The native journal protocol: `KEY=value` lines, or key, newline, u64 little-endian length, bytes, newline."""
    parts = []
    for key, value in fields.items():
        data = value.encode("utf-8", "surrogateescape")
        if b"\n" in data:
            parts.append(key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(key.encode() + b"=" + data + b"\n")
    return b"".join(parts)


class Journald:
    """The system journal; where there is none, messages go to stderr."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def send(self, message: str, *, priority: int = 6, **fields: str) -> None:
        """Send *message* (syslog *priority* 0 to 7) with structured *fields* under the identifier magbay."""
        record = {"MESSAGE": message, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "magbay", **fields}
        try:
            self._socket.sendto(journal_datagram(record), _JOURNAL)
        except OSError:
            # No journal here (a container, a build): the words must not be lost.
            with contextlib.suppress(OSError):
                os.write(2, (message + "\n").encode("utf-8", "replace"))


class ServiceNotify:
    """`$NOTIFY_SOCKET`."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()

    def ready(self) -> None:
        """The service is up."""
        self._notifier.notify("READY=1")

    def status(self, text: str) -> None:
        """The STATUS line of `systemctl status`."""
        self._notifier.notify("STATUS=" + text.replace("\n", " "))

    def alive(self) -> None:
        """Feed the watchdog."""
        self._notifier.notify("WATCHDOG=1")

    def reloading(self) -> None:
        """The service takes in its configuration anew, until it is `ready` again (sd_notify(3))."""
        self._notifier.notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The service goes down on request."""
        self._notifier.notify("STOPPING=1")


class SystemConsole:
    """The system's console, when the unit hands it to us (`OpenFile=…:console`, sd_listen_fds(3))."""

    def __init__(self) -> None:
        names = os.environ.get("LISTEN_FDNAMES", "").split(":")
        mine = os.environ.get("LISTEN_PID") == str(os.getpid())
        self._fd = 3 + names.index("console") if mine and "console" in names else -1
        if self._fd >= 0:
            # One that takes nothing (Ctrl-S on a serial line) must not stop us.
            os.set_blocking(self._fd, False)

    def say(self, text: str) -> None:
        """Print one line."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self._fd, f"\r\nmagbay: {text}\r\n".encode("utf-8", "replace"))


class RootAnswers:
    """Files below a directory that only root writes."""

    def __init__(self, directory: Path = Path("/run/magbay-disks")) -> None:
        self._directory = directory

    def text(self, name: str) -> str:
        """What stands in the file *name*; empty when there is none."""
        try:
            return (self._directory / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


class WallClock:
    """The system's clock."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()
