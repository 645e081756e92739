"""All of the real machine, for the agents."""

from __future__ import annotations

from appliance.host.api import Host
from appliance.host.real.bus import SystemBus
from appliance.host.real.devices import UdevDevices
from appliance.host.real.mounts import KernelMounts
from appliance.host.real.services import Journald, RootAnswers, ServiceNotify, SystemConsole, WallClock
from appliance.host.real.units import SystemdUnits


async def connect() -> Host:
    """The host of this machine, connected to the system bus. Raises `MagbayError` when there is no bus."""
    bus = await SystemBus.connect()
    return Host(
        devices=UdevDevices(),
        mounts=KernelMounts(),
        units=SystemdUnits(bus),
        bus=bus,
        journal=Journald(),
        notify=ServiceNotify(),
        clock=WallClock(),
        console=SystemConsole(),
        answers=RootAnswers(),
    )
