"""The two JSON channels of a machine: QMP to QEMU, and the guest agent's to the system inside.

Both speak lines of JSON over a UNIX socket. Protocol facts: QEMU's documents "qmp-spec" and "qemu-ga-ref".
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any


class ChannelError(Exception):
    """The other side answered with an error, or not at all."""


class Channel:
    """A socket that carries one JSON document a line."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._buffer = b""

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, document: dict[str, Any], *, prefix: bytes = b"") -> None:
        """Send one document; raises ChannelError when the other side is gone."""
        try:
            self._socket.sendall(prefix + json.dumps(document).encode() + b"\n")
        except OSError as error:
            raise ChannelError(f"the channel is closed: {error}") from error

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next document, or None when none comes within *timeout* seconds."""
        end = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._socket], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise ChannelError(f"the channel is closed: {error}") from error
            if not data:
                raise ChannelError("the channel is closed")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        # After a restore the agent may still send what an earlier owner of the channel asked for, even half of it.
        try:
            document = json.loads(line.rpartition(b"\xff")[2] or b"{}")
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}


class Qmp(Channel):
    """QEMU's machine protocol: commands with answers, and events."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._events: deque[dict[str, Any]] = deque(maxlen=1000)
        if self.receive(10) is None:
            raise ChannelError("QEMU does not greet on its QMP socket")
        self.execute("qmp_capabilities")

    def execute(self, command: str, timeout: float = 30, **arguments: Any) -> Any:
        """Run *command* and return its answer. In names of arguments `_` stands for `-`."""
        self.send({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
        end = time.monotonic() + timeout
        while (document := self.receive(max(0.0, end - time.monotonic()))) is not None:
            if "event" in document:
                self._events.append(document)
            elif "error" in document:
                raise ChannelError(f"QMP {command}: {document['error'].get('desc')}")
            elif "return" in document:
                return document["return"]
        raise ChannelError(f"QMP {command}: no answer within {timeout:.0f} s")

    def forget_events(self, name: str) -> None:
        """Drop the events *name* that came so far."""
        kept = [event for event in self._events if event["event"] != name]
        self._events.clear()
        self._events.extend(kept)

    def wait_event(self, name: str, timeout: float, **data: Any) -> dict[str, Any]:
        """Wait for an event with at least this data, also one that has come already; it is taken out."""
        end = time.monotonic() + timeout
        while True:
            for event in self._events:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    self._events.remove(event)
                    return event
            document = self.receive(max(0.0, end - time.monotonic()))
            if document is None:
                raise ChannelError(f"QEMU did not report {name} {data} within {timeout:.0f} s")
            if "event" in document:
                self._events.append(document)


class Agent(Channel):
    """The QEMU guest agent."""

    def synchronise(self, timeout: float) -> bool:
        """Whether the agent answers; drops whatever else was on the channel."""
        token = time.monotonic_ns() & 0x7FFFFFFF
        # The byte 0xff makes the agent forget half a command that somebody left behind.
        self.send({"execute": "guest-sync-delimited", "arguments": {"id": token}}, prefix=b"\xff")
        end = time.monotonic() + timeout
        while (document := self.receive(max(0.0, end - time.monotonic()))) is not None:
            if document.get("return") == token:
                return True
        return False

    def execute(self, command: str, timeout: float = 30, **arguments: Any) -> Any:
        """Run *command* and return its answer. In names of arguments `_` stands for `-`."""
        self.send({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
        end = time.monotonic() + timeout
        while (document := self.receive(max(0.0, end - time.monotonic()))) is not None:
            if "error" in document:
                raise ChannelError(f"guest agent, {command}: {document['error'].get('desc')}")
            if "return" in document:
                return document["return"]
        raise ChannelError(f"guest agent, {command}: no answer within {timeout:.0f} s")
