"""The changer agent: keeps the slot map and the virtual drives true when magazines come and go."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from appliance.agents.director import DirectorLink
from appliance.agents.loop import Complaints, Wakeup, serve
from appliance.agents.names import CHANGER as BUS_NAME
from appliance.agents.names import CHANGER_ROOT as ROOT
from appliance.agents.names import MEDIA
from appliance.agents.onattach import AttachedJobs
from appliance.changer.service import Changer, Slot
from appliance.config.loader import load
from appliance.config.schema import DirectorKind
from appliance.director.sync import Director
from appliance.errors import MagbayError
from appliance.host.api import Host, Interface


class ChangerAgent:
    """One instance is `magbay-changer.service`."""

    def __init__(
        self, changer: Changer, host: Host, link: DirectorLink | None = None, jobs: AttachedJobs | None = None
    ) -> None:
        self._host, self._link, self._jobs = host, link, jobs
        self._changer = changer
        self._wakeup = Wakeup()
        self._here: dict[str, tuple[Slot, ...]] | None = None
        self._complaints = Complaints(host, priority=4)

    async def run(self) -> None:
        """Serve until cancelled."""
        bus = self._host.bus
        await bus.watch(MEDIA, "Changed", self._wakeup.set)
        bus.export(ROOT, Interface(BUS_NAME, signals={"SlotsChanged": "s", "MagazineWanted": "sss"}))
        await bus.own(BUS_NAME)
        talking = asyncio.create_task(self._link.run()) if self._link else None
        if talking:
            talking.add_done_callback(lambda _task: self._wakeup.set())
        try:
            await serve(self._host, self._wakeup, lambda: self._checked_round(talking))
        finally:
            if talking:
                talking.cancel()

    async def _checked_round(self, talking: asyncio.Task[None] | None) -> bool:
        if talking and talking.done():
            talking.result()  # a defect: it ends the agent, which systemd starts again
        return await self._round()

    async def _round(self) -> bool:
        """Bring slots and drives up to date. In a thread: looking into a magazine may wait for autofs."""
        try:
            # Only a cursory look: walking into every magazine all the time would never let autofs find it idle.
            slots, report = await asyncio.to_thread(self._changer.look, thorough=False)
        except (MagbayError, OSError) as error:
            # A magazine that is pulled while we look into it; the next look, soon, finds it away.
            self._complaints.tell((str(error),))
            return True
        self._complaints.tell((*report.warnings(), *await self._start_jobs()))
        if self._link:
            self._link.told(slots)
        now: dict[str, list[Slot]] = {}
        for slot in slots:
            if slot.attached and slot.volume:
                now.setdefault(slot.magazine, []).append(slot)
        self._announce({name: tuple(found) for name, found in now.items()})
        loaded = sum(1 for slot in slots if slot.drive is not None)
        here = sum(len(found) for found in now.values())
        self._host.notify.status(f"{here} volumes of {len(now)} magazines in slots, {loaded} drives loaded")
        return False

    async def _start_jobs(self) -> tuple[str, ...]:
        """Start the jobs that waited for a magazine to arrive; gives what went wrong."""
        try:
            if self._jobs:
                await self._jobs.round()
        except (MagbayError, OSError) as error:
            return (f"jobs that start when a magazine arrives: {error}",)
        return ()

    def _announce(self, now: dict[str, tuple[Slot, ...]]) -> None:
        before, self._here = self._here or {}, now
        for name in sorted(set(before) | set(now)):
            if before.get(name) == now.get(name):
                continue
            slots = now.get(name, ())
            text = (
                f"slots {_ranges([slot.slot for slot in slots])} hold the volumes" if slots else "its slots are empty"
            )
            gone = ",".join(str(slot.slot) for slot in before.get(name, ()))
            numbers = ",".join(str(slot.slot) for slot in slots) or gone
            self._host.journal.send(f"magazine {name}: {text}", MAGAZINE=name, SLOT=numbers)
            self._host.bus.emit(ROOT, BUS_NAME, "SlotsChanged", "s", [name])


def _ranges(numbers: list[int]) -> str:
    """1-3, 7 for [1, 2, 3, 7]."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def run(config: Path) -> None:
    """The process of `magbay-changer.service`, with the configuration file *config*."""
    changer, settings = Changer.open(config), load(config)
    from appliance.host.real.connect import connect

    async def main() -> None:
        host = await connect()
        told = settings.director.kind is not DirectorKind.NONE
        link = DirectorLink(settings, host, Director(settings)) if told else None
        await ChangerAgent(changer, host, link, AttachedJobs(settings, host)).run()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
