"""The changer agent tells the Director by itself: nobody types a command when magazines come and go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from appliance.agents.changer import ChangerAgent
from appliance.agents.director import DirectorLink
from appliance.agents.names import CHANGER, MEDIA, MEDIA_ROOT
from appliance.changer.service import Changer
from appliance.director.sync import Director
from appliance.host.simulated import MemoryBus, MemoryJournal, World, simulated_host
from tests.native.rig import Rig

pytestmark = [pytest.mark.native, pytest.mark.timeout(180)]


class Running:
    """An agent in this process, and what it said."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.host = simulated_host(World(rig.root / "mnt", lambda _uuid: False))

    def told(self) -> list[str]:
        journal = self.host.journal
        assert isinstance(journal, MemoryJournal)
        return [record["MESSAGE"] for record in journal.records]

    def wanted(self) -> list[tuple[object, ...]]:
        bus = self.host.bus
        assert isinstance(bus, MemoryBus)
        return [values for _path, name, signal, values in bus.signals if (name, signal) == (CHANGER, "MagazineWanted")]

    def hint(self) -> None:
        """What the media agent sends when a disk came or went."""
        self.host.bus.emit(MEDIA_ROOT, MEDIA, "Changed", "", [])

    async def until(self, what: str, done: Callable[[], bool], seconds: float = 30) -> None:
        for _ in range(int(seconds / 0.2)):
            if await asyncio.to_thread(done):
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"waited {seconds} s for {what}\n" + "\n".join(self.told()) + self.rig.log()[-2000:])


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Running]:
    found = Running(rig)
    link = DirectorLink(rig.config, found.host, Director(rig.config), settle=0.3, latest=1.5)
    agent = asyncio.create_task(ChangerAgent(Changer.open(rig.root / "magbay.yaml"), found.host, link).run())
    try:
        yield found
    finally:
        agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await agent


def flags(rig: Rig) -> set[tuple[object, ...]]:
    return set(rig.rows("select InChanger, Enabled, Slot > 0 from Media"))


@pytest.mark.complaint(6, 15)
def test_a_job_that_waits_for_a_magazine_goes_on_when_it_arrives(rig: Rig) -> None:
    """Complaints 6 and 15; two magazines at once are one update."""

    async def story() -> None:
        async with running(rig) as agent:
            await agent.until("the labels", lambda: len(rig.rows("select 1 from Media")) == 8)
            await agent.until("the talk's end", lambda: any("label" in line for line in agent.told()))
            rig.take("m1")
            rig.take("m2")
            agent.hint()
            await agent.until("the departure", lambda: flags(rig) == {(0, 0, 0)})
            await asyncio.to_thread(rig.console, "run job=one yes")
            await agent.until("the signal", lambda: bool(agent.wanted()))
            magazine, volume, job = agent.wanted()[0]
            assert (volume, job) == ("", "one")
            assert magazine in ("m1", "m2")
            shown = (await asyncio.to_thread(rig.magbay, "status")).stdout
            assert f"Insert magazine {magazine} (last seen 20" in shown
            assert "job one (JobId 1) waits for a volume of pool Default" in shown
            assert str(rig.root / str(magazine)) in shown
            before = len(agent.told())
            rig.bring("m1")
            rig.bring("m2")
            agent.hint()
            await agent.until("the job", lambda: "Termination:            Backup OK" in rig.log())
            await agent.until("the flags", lambda: flags(rig) == {(1, 1, 1)})
            # Two magazines, eight volumes: one update.
            updates = [line for line in agent.told()[before:] if "update slots" in line]
            assert updates == ["told the Director: update slots, enabled=yes (8), mount"]
            shown = ""
            await agent.until("status to forget", lambda: "nsert magazine" not in rig.magbay("status").stdout)

    asyncio.run(story())


def test_the_director_was_away(rig: Rig) -> None:
    """It is told when it is back; meanwhile the slots follow the magazines as ever."""

    async def story() -> None:
        async with running(rig) as agent:
            await agent.until("the labels", lambda: len(rig.rows("select 1 from Media")) == 8)
            await asyncio.to_thread(rig.stop, "bacula-dir")
            await asyncio.to_thread(rig.take, "m1")
            agent.hint()
            await agent.until("the slots", lambda: "magazine m1: its slots are empty" in agent.told(), 3)
            await agent.until("the complaint", lambda: any("not told for now" in line for line in agent.told()), 60)
            assert "The Director is not told of changes" in (await asyncio.to_thread(rig.magbay, "status")).stdout
            await asyncio.to_thread(rig.start, "bacula-dir")
            await agent.until(
                "the catalog", lambda: not rig.rows("select 1 from Media where VolumeName like 'm1-%' and Enabled"), 60
            )
            await agent.until("the news", lambda: "the Director answers again" in agent.told())

    asyncio.run(story())


def test_no_password_is_seen(rig: Rig, tmp_path: Path) -> None:
    """Neither in what the commands print, nor in the process list while they run, nor in what is kept."""
    seen: set[str] = set()

    async def story() -> None:
        async with running(rig) as agent:

            def look() -> bool:
                for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
                    with contextlib.suppress(OSError):
                        seen.add(cmdline.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
                return len(rig.rows("select 1 from Media")) == 8

            await agent.until("the labels", look)
            seen.update(agent.told())

    asyncio.run(story())
    shown = rig.magbay("director", "config").stdout + rig.magbay("director", "test").stdout
    kept = "".join(path.read_text() for path in (rig.root / "state").rglob("*.json"))
    assert any(str(rig.root / "bconsole.conf") in line for line in seen)
    for secret in ("console-secret-7", "sd-secret-8"):
        assert not [line for line in seen if secret in line]
        assert secret not in shown + kept
