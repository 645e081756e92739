"""The bus module against a real dbus-daemon: objects, properties, signals, declared errors, and nothing else leaves."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import AwayError, MagbayError
from appliance.host.api import Interface, Method
from appliance.host.real.bus import SystemBus

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow send_destination="*"/>
<allow receive_sender="*"/><allow own="*"/></policy></busconfig>"""


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bus of our own that stands for the system bus."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is not installed")
    config = tmp_path / "bus.conf"
    config.write_text(CONFIG.format(path=tmp_path / "bus"))
    command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    yield address
    process.kill()
    process.wait()
    process.stdout.close()


def service() -> Interface:
    async def echo(text: str) -> Sequence[Any]:
        return (text.upper(),)

    async def away() -> Sequence[Any]:
        raise AwayError("magazine m1 is not here")

    async def broken() -> Sequence[Any]:
        raise RuntimeError("the secret is 42")

    return Interface(
        "org.magbay.Test1",
        methods={"Echo": Method("s", "s", echo), "Away": Method("", "", away), "Broken": Method("", "", broken)},
        signals={"Changed": "s"},
        properties=lambda: {"State": ("s", "mounted"), "Count": ("u", 3)},
    )


async def pair() -> tuple[SystemBus, SystemBus]:
    server, client = await SystemBus.connect(), await SystemBus.connect()
    server.export("/org/magbay/test", service())
    await server.own("org.magbay.Test1")
    return server, client


def test_calls_properties_and_objects(daemon: str) -> None:
    async def story() -> None:
        _server, client = await pair()

        async def call(
            interface: str, member: str, signature: str = "", *values: Any, path: str = "/org/magbay/test"
        ) -> Any:
            return await client.call("org.magbay.Test1", path, interface, member, signature, values)

        assert await call("org.magbay.Test1", "Echo", "s", "abc") == ("ABC",)
        properties = "org.freedesktop.DBus.Properties"
        (variant,) = await call(properties, "Get", "ss", "org.magbay.Test1", "State")
        assert variant.value == "mounted"
        (everything,) = await call(properties, "GetAll", "s", "org.magbay.Test1")
        assert everything["Count"].value == 3
        (objects,) = await call("org.freedesktop.DBus.ObjectManager", "GetManagedObjects", path="/org/magbay")
        assert list(objects) == ["/org/magbay/test"]
        (xml,) = await call("org.freedesktop.DBus.Introspectable", "Introspect")
        for words in ("name='Echo'", "name='Changed'", "name='State'"):
            assert words in xml
        (parent,) = await call("org.freedesktop.DBus.Introspectable", "Introspect", path="/org/magbay")
        assert "<node name='test'/>" in parent

    asyncio.run(story())


def test_only_declared_errors_leave(daemon: str) -> None:
    async def story() -> None:
        _server, client = await pair()
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)

        async def call(member: str, signature: str = "", *values: Any) -> str:
            with pytest.raises(MagbayError) as caught:
                await client.call("org.magbay.Test1", "/org/magbay/test", "org.magbay.Test1", member, signature, values)
            return caught.value.message

        assert "magazine m1 is not here" in await call("Away")
        assert "42" not in await call("Broken")
        assert "takes 's'" in await call("Echo", "i", 5)
        assert await call("NoSuchMethod")

    asyncio.run(story())


def test_signals_wake_and_names_are_exclusive(daemon: str) -> None:
    async def story() -> None:
        server, client = await pair()
        woken = asyncio.Event()
        await client.watch("org.magbay.Test1", "Changed", woken.set)
        server.emit("/org/magbay/test", "org.magbay.Test1", "Changed", "s", ["m1"])
        await asyncio.wait_for(woken.wait(), 10)
        with pytest.raises(MagbayError, match="taken"):
            await client.own("org.magbay.Test1")

    asyncio.run(story())


def test_busctl_can_read_it(daemon: str) -> None:
    if shutil.which("busctl") is None:
        pytest.skip("busctl is not installed")

    async def story() -> None:
        await pair()
        command = ["busctl", f"--address={daemon}", "get-property", "org.magbay.Test1", "/org/magbay/test"]
        process = await asyncio.create_subprocess_exec(
            *command, "org.magbay.Test1", "State", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), 20)
        assert output == b's "mounted"\n'

    asyncio.run(story())


def test_without_a_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/no/such/socket")
    with pytest.raises(MagbayError, match="no system bus"):
        asyncio.run(SystemBus.connect())
