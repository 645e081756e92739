"""What the product may ask of the machine: one protocol, two houses behind it.

`appliance.host.real` talks to udev, systemd, the kernel and D-Bus; `appliance.host.simulated` is a world in
memory (and a directory) on which all agents run without root. Everything that can change by itself calls a
*wake* function: a hint that something changed, never the change itself; the agents look afresh.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Wake = Callable[[], None]


@dataclass(frozen=True)
class BlockDevice:
    """One block device as udev describes it."""

    name: str  # kernel name: sda, sda1, dm-0
    node: str  # /dev/sda
    kind: str  # disk or partition
    size: int = 0  # bytes
    sequence: int = 0  # DISKSEQ: grows with every plug, so it names one stay of one disk
    number: str = ""  # major:minor
    parent: str = ""  # kernel name of the whole disk of a partition
    below: tuple[str, ...] = ()  # kernel names of the devices a mapping stands on
    fs_type: str = ""
    fs_uuid: str = ""
    has_partitions: bool = False
    serial: str = ""
    model: str = ""
    mapping: str = ""  # name below /dev/mapper
    read_only: bool = False


class Devices(Protocol):
    """Block devices (udev)."""

    def start(self, wake: Wake, gone: Wake) -> None:
        """Call *wake* after every event, and *gone* after it when a device has gone."""
        ...

    def enumerate(self) -> tuple[BlockDevice, ...]: ...


@dataclass(frozen=True)
class Mount:
    """One line of the mount table."""

    path: str
    source: str
    number: str  # major:minor of the device
    fs_type: str
    read_only: bool
    options: str = ""  # of the file system, with commas between


class Mounts(Protocol):
    """The mount table, and autofs behind it."""

    def start(self, wake: Wake) -> None: ...

    def table(self) -> tuple[Mount, ...]: ...

    def written(self, mount: Mount) -> int:
        """How much was written to the device of *mount* since it came, in sectors of 512 bytes; 0: not known.
        The mount itself is not touched: that would keep autofs from unmounting it."""
        ...

    async def trigger(self, path: Path) -> None:
        """Touch *path* so that autofs mounts it. Raises `OSError` when nothing could be mounted there."""
        ...


@dataclass(frozen=True)
class UnitState:
    """What systemd says of a unit. *status* is the exit status of its main process."""

    active: str = "inactive"  # inactive activating active deactivating failed
    result: str = "success"
    status: int = 0


class Units(Protocol):
    """systemd units. Starting and stopping only queue the job; wake follows when it is done."""

    async def start(self, wake: Wake) -> None: ...

    async def states(self, patterns: Sequence[str]) -> Mapping[str, UnitState]:
        """The states of the units whose names match one of *patterns* (shell patterns); others are inactive."""
        ...

    async def start_unit(self, unit: str) -> None: ...

    async def stop_unit(self, unit: str) -> None: ...


@dataclass(frozen=True)
class Method:
    """A D-Bus method: signatures of what it takes and gives, and the handler.

    The handler may raise `MagbayError`, whose text goes to the caller; of any other exception only its being an
    internal error does.
    """

    takes: str
    gives: str
    handler: Callable[..., Awaitable[Sequence[Any]]]


@dataclass(frozen=True)
class Interface:
    """A D-Bus interface. *properties* gives name to (signature, value) at the moment of asking."""

    name: str
    methods: Mapping[str, Method] = field(default_factory=dict)
    signals: Mapping[str, str] = field(default_factory=dict)
    properties: Callable[[], Mapping[str, tuple[str, Any]]] = dict


class Bus(Protocol):
    """The system bus."""

    async def own(self, name: str) -> None: ...

    def export(self, path: str, interface: Interface) -> None: ...

    def unexport(self, path: str) -> None: ...

    def emit(self, path: str, interface: str, signal: str, signature: str, values: Sequence[Any]) -> None: ...

    async def watch(self, interface: str, signal: str, wake: Wake) -> None: ...

    async def closed(self) -> None:
        """Return when the connection is lost."""
        ...

    async def call(
        self, name: str, path: str, interface: str, member: str, signature: str = "", values: Sequence[Any] = ()
    ) -> tuple[Any, ...]:
        """Call a method; an error of the other side is raised as `MagbayError`."""
        ...


class Journal(Protocol):
    """Structured log. Field names are upper case; values must never hold secrets."""

    def send(self, message: str, *, priority: int = 6, **fields: str) -> None: ...


class Notify(Protocol):
    """The service manager's notification socket."""

    def ready(self) -> None: ...

    def status(self, text: str) -> None: ...

    def alive(self) -> None: ...

    def reloading(self) -> None: ...

    def stopping(self) -> None: ...


class Clock(Protocol):
    """Wall clock, Unix seconds."""

    def now(self) -> float: ...


class Console(Protocol):
    """The screen (or serial line) of the machine itself."""

    def say(self, text: str) -> None: ...


class Answers(Protocol):
    """What root's one-shot units found out, one small text each (systemd/tmpfiles says where)."""

    def text(self, name: str) -> str:
        """The answer *name*; empty when there is none."""
        ...


@dataclass(frozen=True)
class Host:
    """All of the machine that the agents may use."""

    devices: Devices
    mounts: Mounts
    units: Units
    bus: Bus
    journal: Journal
    notify: Notify
    clock: Clock
    console: Console
    answers: Answers
