"""The changer agent's link to the Director, in a task of its own: a Director that is slow or away delays no slot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from appliance.agents.loop import Complaints, Wakeup
from appliance.agents.names import CHANGER as BUS_NAME
from appliance.agents.names import CHANGER_ROOT as ROOT
from appliance.changer.report import Slot
from appliance.config.schema import Config
from appliance.director import record
from appliance.director.record import Sighting
from appliance.director.sync import Director, Outcome
from appliance.director.wanted import Wanted, publish
from appliance.errors import MagbayError
from appliance.host.api import Host
from appliance.magazines.attached import published

_SETTLE = 1.0  # seconds in which the arrivals of several disks become one talk
_LATEST = 30.0  # seconds between two talks without any change: jobs block by themselves
_HELD = 5.0  # seconds between two talks while a job uses a magazine that is to be ejected
_FIRST_PAUSE, _MOST_PAUSE = 2.0, 60.0  # seconds until the next try while the Director cannot be reached
# Of systemd/catalog/magbay.catalog.
_AWAY = "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a07"
_BRING = "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a05"


class DirectorLink:
    """Tells the Director what `told` was told last, again and again until it agrees."""

    def __init__(
        self, config: Config, host: Host, director: Director, settle: float = _SETTLE, latest: float = _LATEST
    ) -> None:
        self._config, self._host, self._director = config, host, director
        self._settle, self._latest = settle, latest
        self._wakeup = Wakeup()
        self._slots: Sequence[Slot] | None = None
        self._here: frozenset[str] = frozenset()
        self._seen = record.sightings(config.state_dir)
        self._pause = 0.0
        self._error = ""
        self._wanted: tuple[Wanted, ...] = ()
        self._complaints = Complaints(host, priority=4)

    def told(self, slots: Sequence[Slot]) -> None:
        """The slots as they are now. Returns at once."""
        if slots != self._slots:
            self._slots = slots
            self._sight(frozenset(slot.magazine for slot in slots if slot.attached))
            self._wakeup.set()

    async def run(self) -> None:
        """Talk until cancelled."""
        while True:
            await self._wakeup.wait(self._pause or self._latest)
            await asyncio.sleep(self._settle)
            if self._slots is not None:
                await self._talk(self._slots)

    async def _talk(self, slots: Sequence[Slot]) -> None:
        try:
            outcome = await asyncio.to_thread(self._director.sync, slots)
        except (MagbayError, OSError) as error:
            self._failed(error)
        else:
            self._went(outcome)
        now = self._host.clock.now()
        await asyncio.to_thread(publish, self._config.run_dir, self._wanted, self._error, now)

    def _failed(self, error: MagbayError | OSError) -> None:
        self._pause = min(self._pause * 2 or _FIRST_PAUSE, _MOST_PAUSE)
        if str(error) != self._error:
            self._error = str(error)
            text = f"the Director is not told for now, trying again: {error}"
            self._host.journal.send(text, priority=4, MESSAGE_ID=_AWAY, REASON=str(error))

    def _went(self, outcome: Outcome) -> None:
        if self._error:
            self._host.journal.send("the Director answers again")
        self._pause, self._error = _HELD if outcome.held else 0.0, ""
        if outcome.sent:
            self._host.journal.send(_summary(outcome.sent))
        self._complaints.tell(outcome.problems)
        for item in outcome.wanted:
            if item not in self._wanted:
                self._ask_for(item)
        self._wanted = outcome.wanted

    def _ask_for(self, item: Wanted) -> None:
        magazine = item.magazines[0] if item.magazines else ""
        self._host.journal.send(
            item.sentence(),
            priority=4,
            MESSAGE_ID=_BRING,
            MAGAZINE=magazine,
            VOLUME=item.volume,
            JOB=item.job,
        )
        self._host.bus.emit(ROOT, BUS_NAME, "MagazineWanted", "sss", [magazine, item.volume, item.job])

    def _sight(self, here: frozenset[str]) -> None:
        """Remember when and where the magazines that came or left were last seen."""
        changed = here ^ self._here
        if not changed:
            return
        places, now = _places(self._config), self._host.clock.now()
        for name in changed:
            before = self._seen[name].where if name in self._seen else "an unknown bay"
            self._seen[name] = Sighting(now, places.get(name, before) if name in here else before)
        self._here = here
        try:
            record.keep_sightings(self._config.state_dir, self._seen)
        except OSError as error:
            self._host.journal.send(f"where magazines were seen cannot be kept: {error}", priority=4)


def _places(config: Config) -> dict[str, str]:
    """Magazine to where it is now, for people."""
    places = {magazine.name: str(magazine.directory) for magazine in config.magazines}
    for disk in published(config) or []:
        if disk["magazine"] and disk["state"] != "gone":
            places[disk["magazine"]] = f"{disk['node']} (serial {disk['serial'] or 'unknown'})"
    return places


def _summary(sent: Iterable[str]) -> str:
    """One line for the journal, however many volumes it was."""
    counts: dict[str, int] = {}
    for line in sent:
        words = line.split()
        verb = " ".join(words[:2]) if words[1].startswith("slots") else words[0]
        if words[-1].startswith("enabled="):
            verb = words[-1]
        counts[verb] = counts.get(verb, 0) + 1
    return "told the Director: " + ", ".join(
        f"{verb} ({count})" if count > 1 else verb for verb, count in counts.items()
    )
