"""The system bus through dbus-next: the only module that exports and calls D-Bus.

dbus-next's own service classes hand the text of any exception to the caller; here every call goes through one
handler, and only declared errors leave the process. Who may call what is the bus policy's word (systemd/dbus).
"""

from __future__ import annotations

import asyncio
import contextlib
import html
from collections.abc import Sequence
from typing import Any

from dbus_next import BusType, Message, MessageType, Variant
from dbus_next.aio import MessageBus
from dbus_next.signature import SignatureTree

from appliance.errors import MagbayError
from appliance.host.api import Interface, Wake

_PROPERTIES = "org.freedesktop.DBus.Properties"
_INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
_OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
_TIMEOUT = 30.0  # seconds for one call; dbus-daemon's own limit is 25 for most services
_ERROR = "org.magbay.Error"


class SystemBus:
    """A connection to the system bus. Use `SystemBus.connect()`."""

    def __init__(self, bus: Any) -> None:
        self._bus = bus
        self._objects: dict[str, Interface] = {}
        self._watches: dict[tuple[str, str], list[Wake]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        bus.add_message_handler(self._incoming)

    @classmethod
    async def connect(cls) -> SystemBus:
        """Connect. Raises `MagbayError` when there is no system bus."""
        try:
            # A bus that does not let us in never answers, so the wait is bounded.
            return cls(await asyncio.wait_for(MessageBus(bus_type=BusType.SYSTEM).connect(), _TIMEOUT))
        except TimeoutError:
            raise MagbayError("the system bus does not answer", hint="Is dbus running?") from None
        except (OSError, ValueError) as error:
            raise MagbayError(f"no system bus: {error}", hint="Is dbus running?") from None

    async def own(self, name: str) -> None:
        """Take the well-known *name*. Raises `MagbayError` when another process has it."""
        reply = await self._bus.request_name(name)
        if reply.name not in ("PRIMARY_OWNER", "ALREADY_OWNER"):
            raise MagbayError(f"{name} is taken on the system bus", hint="Another magbay agent runs; stop it first.")

    def export(self, path: str, interface: Interface) -> None:
        """Publish one object with one interface at *path*."""
        self._objects[path] = interface

    def unexport(self, path: str) -> None:
        """Take the object at *path* back."""
        self._objects.pop(path, None)

    def emit(self, path: str, interface: str, signal: str, signature: str, values: Sequence[Any]) -> None:
        """Send a signal."""
        self._bus.send(Message.new_signal(path, interface, signal, signature, list(values)))

    async def watch(self, interface: str, signal: str, wake: Wake) -> None:
        """Call *wake* at every such signal, whoever sends it: it is only a hint to look afresh."""
        self._watches.setdefault((interface, signal), []).append(wake)
        rule = f"type='signal',interface='{interface}',member='{signal}'"
        await self.call(
            "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", [rule]
        )

    async def call(
        self, name: str, path: str, interface: str, member: str, signature: str = "", values: Sequence[Any] = ()
    ) -> tuple[Any, ...]:
        """Call a method and give its answer. Raises `MagbayError` with the other side's words."""
        message = Message(
            destination=name, path=path, interface=interface, member=member, signature=signature, body=list(values)
        )
        try:
            reply = await asyncio.wait_for(self._bus.call(message), _TIMEOUT)
        except TimeoutError:
            raise MagbayError(f"{name} did not answer {member} within {_TIMEOUT:.0f} s") from None
        except (EOFError, OSError):
            raise MagbayError("the system bus closed the connection") from None
        if reply.message_type is MessageType.ERROR:
            words = reply.body[0] if reply.body and isinstance(reply.body[0], str) else reply.error_name
            raise MagbayError(f"{member}: {words}")
        return tuple(reply.body)

    async def closed(self) -> None:
        """Return when the connection is lost, whatever the reason."""
        with contextlib.suppress(OSError, EOFError):
            await self._bus.wait_for_disconnect()

    def _incoming(self, message: Message) -> Message | bool | None:
        if message.message_type is MessageType.SIGNAL:
            for wake in self._watches.get((message.interface, message.member), []):
                wake()
            return None
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        if message.interface == _INTROSPECTABLE and message.member == "Introspect":
            return Message.new_method_return(message, "s", [introspection(message.path, self._objects)])
        if message.interface == _OBJECT_MANAGER and message.member == "GetManagedObjects":
            return Message.new_method_return(message, "a{oa{sa{sv}}}", [self._managed(message.path)])
        interface = self._objects.get(message.path)
        if interface is None:
            return None
        if message.interface == _PROPERTIES:
            return self._property(message, interface)
        method = interface.methods.get(message.member)
        if message.interface not in (interface.name, None) or method is None:
            return None
        if message.signature != method.takes:
            return Message.new_error(message, f"{_ERROR}.Usage", f"{message.member} takes {method.takes!r}")
        task = asyncio.get_running_loop().create_task(self._handle(message, interface))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _handle(self, message: Message, interface: Interface) -> None:
        method = interface.methods[message.member]
        try:
            values = await method.handler(*message.body)
            reply = Message.new_method_return(message, method.gives, list(values))
        except MagbayError as error:
            reply = Message.new_error(message, f"{_ERROR}.{error.status.name.title().replace('_', '')}", error.message)
        except Exception:  # the one place where it must not leave: texts and tracebacks may hold anything
            reply = Message.new_error(message, f"{_ERROR}.Internal", "internal error; the journal has more")
            self._bus.send(reply)
            raise
        self._bus.send(reply)

    def _property(self, message: Message, interface: Interface) -> Message | None:
        values = {key: Variant(sig, value) for key, (sig, value) in interface.properties().items()}
        if message.member == "GetAll":
            return Message.new_method_return(message, "a{sv}", [values])
        if message.member == "Get" and len(message.body) == 2 and message.body[1] in values:
            return Message.new_method_return(message, "v", [values[message.body[1]]])
        return Message.new_error(message, f"{_ERROR}.NotFound", "no such property, or not writable")

    def _managed(self, root: str) -> dict[str, Any]:
        inside = root.rstrip("/") + "/"
        return {
            path: {item.name: {key: Variant(sig, value) for key, (sig, value) in item.properties().items()}}
            for path, item in self._objects.items()
            if path.startswith(inside)
        }


def introspection(path: str, objects: dict[str, Interface]) -> str:
    """The introspection XML of *path*."""
    lines = ["<node>"]
    interface = objects.get(path)
    if interface is not None:
        lines.append(f"<interface name='{html.escape(interface.name)}'>")
        for name, method in interface.methods.items():
            arguments = _arguments(method.takes, "in") + _arguments(method.gives, "out")
            lines.append(f"<method name='{html.escape(name)}'>{arguments}</method>")
        for name, signature in interface.signals.items():
            lines.append(f"<signal name='{html.escape(name)}'>{_arguments(signature, None)}</signal>")
        for name, (signature, _value) in interface.properties().items():
            lines.append(f"<property name='{html.escape(name)}' type='{html.escape(signature)}' access='read'/>")
        lines.append("</interface>")
    inside = path.rstrip("/") + "/"
    children = {other[len(inside) :].split("/")[0] for other in objects if other.startswith(inside)}
    lines.extend(f"<node name='{html.escape(child)}'/>" for child in sorted(children))
    return "".join([*lines, "</node>"])


def _arguments(signature: str, direction: str | None) -> str:
    words = f" direction='{direction}'" if direction else ""
    return "".join(f"<arg type='{html.escape(kind.signature)}'{words}/>" for kind in SignatureTree(signature).types)
