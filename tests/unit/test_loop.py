"""How often the agents look."""

from __future__ import annotations

import asyncio

import pytest

from appliance.agents.loop import Pace, Wakeup
from appliance.host.real.devices import is_removal


def _looks(cost: float, seconds: float) -> list[float]:
    """The moments of looks that take *cost* seconds of a processor each, while hints come without end."""
    now, pace, moments = 100.0, Pace(100.0), []
    while now < 100.0 + seconds:
        moments.append(now - 100.0)
        now += cost
        now += pace.settle(cost, now)
    return moments


@pytest.mark.parametrize("cost", [0.004, 0.08, 0.3])
def test_looking_takes_a_tenth_of_a_processor_when_hints_do_not_end(cost: float) -> None:
    # More than a second apart they would be late for a disk that is pulled.
    allowed = max(0.1, cost / (1.0 + cost)) * 1.05
    assert cost * len(_looks(cost, 1000.0)) <= 1.0 + allowed * 1000.0


def test_one_disk_is_looked_at_after_each_hint() -> None:
    assert _looks(0.08, 1.2)[:12] == pytest.approx([0.1 * number for number in range(12)])


def test_a_quiet_time_pays_the_debt_off() -> None:
    pace = Pace(0.0)
    for second in range(20):
        pace.settle(0.5, float(second))
    assert pace.settle(0.5, 20.0) == 1.0
    assert pace.settle(0.01, 200.0) == 0.02


def test_hints_are_gathered_unless_somebody_waits() -> None:
    async def story() -> None:
        wakeup = Wakeup()
        wakeup.set()
        gathering = asyncio.create_task(wakeup.wait(3600, settle=3600, hurried=0))
        for _ in range(100):
            await asyncio.sleep(0)
            wakeup.set()
        assert not gathering.done()
        wakeup.hurry()
        await asyncio.wait_for(gathering, 60)
        # What comes while the agent looks is not lost, and not taken for new a second time.
        wakeup.hurry()
        await asyncio.wait_for(wakeup.wait(3600, settle=3600, hurried=0), 60)
        again = asyncio.create_task(wakeup.wait(3600))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not again.done()
        again.cancel()

    asyncio.run(story())


def test_a_pull_is_seen_in_the_message_of_udev() -> None:
    head = b"libudev\0\xfe\xed\xca\xfe\x28\0\0\0\x28\0\0\0" + bytes(20)
    words = b"DEVPATH=/devices/pci0000:00/0000:00:04.0/block/sdb\0SUBSYSTEM=block\0SEQNUM=4093\0"
    assert is_removal(head + b"ACTION=remove\0" + words)
    assert not is_removal(head + b"ACTION=change\0" + words)
