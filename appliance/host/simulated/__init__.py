"""A machine in memory: disks that can be plugged and pulled, udev hints, unlocking, mounts, units, bus and clock.

Magazines are real directories below a folder, so that the changer and the storage engine work on them for real.
"""

from __future__ import annotations

from appliance.host.api import Clock, Host
from appliance.host.simulated.services import MemoryBus, MemoryConsole, MemoryJournal, MemoryNotify, StepClock
from appliance.host.simulated.world import SimulatedDisk, World

__all__ = [
    "MemoryBus",
    "MemoryConsole",
    "MemoryJournal",
    "MemoryNotify",
    "SimulatedDisk",
    "StepClock",
    "World",
    "simulated_host",
]


def simulated_host(world: World, clock: Clock | None = None) -> Host:
    """A host in front of *world*; its *clock* stands still unless another one is given."""
    return Host(
        devices=world,
        mounts=world,
        units=world.units,
        bus=MemoryBus(),
        journal=MemoryJournal(),
        notify=MemoryNotify(),
        clock=clock or StepClock(),
        console=MemoryConsole(),
        answers=world,
    )
