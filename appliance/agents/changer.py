"""The changer agent: keeps the slot map and the virtual drives true when magazines come and go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.agents.director import DirectorLink
from appliance.agents.loop import Complaints, Wakeup, serve
from appliance.agents.names import CHANGER as BUS_NAME
from appliance.agents.names import CHANGER_ROOT as ROOT
from appliance.agents.names import MEDIA
from appliance.agents.onattach import AttachedJobs
from appliance.agents.settings import Reloading
from appliance.changer.service import Changer, Slot
from appliance.config.accepted import in_force
from appliance.config.schema import Config, DirectorKind
from appliance.director.sync import Director
from appliance.errors import MagbayError
from appliance.host.api import Host, Interface


@dataclass(frozen=True)
class Parts:
    """What follows from the configuration."""

    changer: Changer
    link: DirectorLink | None
    jobs: AttachedJobs | None


class ChangerAgent:
    """One instance is `magbay-changer.service`."""

    def __init__(
        self,
        changer: Changer,
        host: Host,
        link: DirectorLink | None = None,
        jobs: AttachedJobs | None = None,
        reread: Callable[[], Parts | None] = lambda: None,
    ) -> None:
        """*reread* gives the parts for a configuration that has changed, None when it has not."""
        self._host, self._link, self._jobs = host, link, jobs
        self._changer, self._reread = changer, reread
        self._talking: asyncio.Task[None] | None = None
        self._wakeup = Wakeup()
        self._here: dict[str, tuple[Slot, ...]] | None = None
        self._complaints = Complaints(host, priority=4)

    async def run(self) -> None:
        """Serve until cancelled."""
        bus = self._host.bus
        await bus.watch(MEDIA, "Changed", self._wakeup.set)
        bus.export(ROOT, Interface(BUS_NAME, signals={"SlotsChanged": "s", "MagazineWanted": "sss"}))
        await bus.own(BUS_NAME)
        self._talk()
        try:
            await serve(self._host, self._wakeup, self._checked_round, self._reload)
        finally:
            if self._talking:
                self._talking.cancel()

    def _talk(self) -> None:
        """Begin to tell the Director, if there is one, in place of who is told now."""
        if self._talking:
            self._talking.cancel()
        self._talking = asyncio.create_task(self._link.run()) if self._link else None
        if self._talking:
            self._talking.add_done_callback(lambda _task: self._wakeup.set())

    def _reload(self) -> None:
        parts = self._reread()
        if parts:
            self._changer, self._link, self._jobs = parts.changer, parts.link, parts.jobs
            self._talk()

    async def _checked_round(self) -> bool:
        if self._talking and self._talking.done():
            self._talking.result()  # a defect: it ends the agent, which systemd starts again
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


def parts_of(path: Path, config: Config, host: Host) -> Parts:
    """What an agent with the configuration *config* of the file *path* works with."""
    told = config.director.kind is not DirectorKind.NONE
    link = DirectorLink(config, host, Director(config)) if told else None
    return Parts(Changer.open(path), link, AttachedJobs(config, host))


def run(path: Path) -> None:
    """The process of `magbay-changer.service`, with the configuration file *path*."""
    from appliance.host.real.connect import connect

    found = in_force(path)

    async def main() -> None:
        host = await connect()
        reloading = Reloading(path, found, host)

        def reread() -> Parts | None:
            config = reloading.read()
            return parts_of(path, config, host) if config else None

        parts = parts_of(path, found.config, host)
        await ChangerAgent(parts.changer, host, parts.link, parts.jobs, reread).run()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
