"""Bus, journal, notification and clock of the simulated house."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import MagbayError
from appliance.host.api import Interface, Wake


class MemoryBus:
    """Objects and signals within one process."""

    def __init__(self) -> None:
        self.objects: dict[str, Interface] = {}
        self.signals: list[tuple[str, str, str, tuple[Any, ...]]] = []
        self._owned: set[str] = set()
        self._watches: dict[tuple[str, str], list[Wake]] = {}

    async def own(self, name: str) -> None:
        """Take *name*; a second owner is refused, as on the real bus."""
        if name in self._owned:
            raise MagbayError(f"{name} is taken on the system bus")
        self._owned.add(name)

    def export(self, path: str, interface: Interface) -> None:
        """Publish an object."""
        self.objects[path] = interface

    def unexport(self, path: str) -> None:
        """Take it back."""
        self.objects.pop(path, None)

    def emit(self, path: str, interface: str, signal: str, signature: str, values: Sequence[Any]) -> None:
        """Record the signal and wake who watches it."""
        self.signals.append((path, interface, signal, tuple(values)))
        for wake in self._watches.get((interface, signal), []):
            wake()

    async def watch(self, interface: str, signal: str, wake: Wake) -> None:
        """Call *wake* at every such signal."""
        self._watches.setdefault((interface, signal), []).append(wake)

    async def closed(self) -> None:
        """The bus of one process is never lost."""
        await asyncio.Event().wait()

    async def call(
        self, name: str, path: str, interface: str, member: str, signature: str = "", values: Sequence[Any] = ()
    ) -> tuple[Any, ...]:
        """Call the handler."""
        found = self.objects.get(path)
        if found is None or found.name != interface or member not in found.methods:
            raise MagbayError(f"{name} has no {interface}.{member} at {path}")
        return tuple(await found.methods[member].handler(*values))


@dataclass
class MemoryJournal:
    """Keeps what was logged."""

    records: list[dict[str, str]] = field(default_factory=list)

    def send(self, message: str, *, priority: int = 6, **fields: str) -> None:
        """Keep one record."""
        self.records.append({"MESSAGE": message, "PRIORITY": str(priority), **fields})


@dataclass
class MemoryNotify:
    """Keeps what the service manager would have been told."""

    is_ready: bool = False
    text: str = ""
    beats: int = 0

    def ready(self) -> None:
        """The service is up."""
        self.is_ready = True

    def status(self, text: str) -> None:
        """The status line."""
        self.text = text

    def alive(self) -> None:
        """One beat of the watchdog."""
        self.beats += 1

    def reloading(self) -> None:
        """The configuration is taken in anew."""
        self.is_ready = False

    def stopping(self) -> None:
        """The service goes down."""
        self.is_ready = False


@dataclass
class MemoryConsole:
    """Keeps what would stand on the screen."""

    lines: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """One line."""
        self.lines.append(text)


@dataclass
class StepClock:
    """A clock that stands until it is moved."""

    time: float = 1_700_000_000.0

    def now(self) -> float:
        """Unix seconds."""
        return self.time
