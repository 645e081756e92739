"""One talk with the Director: compare its catalog with the slots, send what is missing, look again.

Level-triggered: a talk needs no memory of what happened, so it catches up after the Director was away.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from appliance.changer.lock import lock
from appliance.changer.report import Slot
from appliance.config.schema import Config
from appliance.director import newcomers, record
from appliance.director.console import Console, open_console
from appliance.director.newcomers import Content, Newcomer
from appliance.director.ours import media_type
from appliance.director.pieces import archive_device
from appliance.director.plan import Offer, commands, left_in, mount_slot, plan, quoted
from appliance.director.replies import Blocked, CatalogVolume, StorageStatus, names, storage_status, volumes
from appliance.director.wanted import Wanted, wanted
from appliance.errors import MagbayError
from appliance.magazines import attached

_LOCK = "director.lock"
# A drive that stays blocked after `mount` is asked again after this many seconds, then twice as many, up to the most.
_AGAIN, _MOST_AGAIN = 30.0, 900.0
_SECONDS_A_LABEL = 10  # usually a tenth of one; slow disks spin up first


@dataclass(frozen=True)
class Outcome:
    """What a talk did: *sent* commands; *wanted*: jobs that wait for a magazine; *problems*: sentences.

    *held*: devices whose job uses a volume of a magazine that is on its way out; to be released when it ends.
    """

    sent: tuple[str, ...]
    wanted: tuple[Wanted, ...]
    problems: tuple[str, ...]
    held: tuple[str, ...] = ()


class Director:
    """The Director of one configuration. Talks of several processes come one after the other."""

    def __init__(
        self, config: Config, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config, self._settings, self._clock = config, config.director, clock
        self._console = console or open_console(config.director)
        # What was asked of a blocked drive and when to ask again; dropped as soon as it waits for something else.
        self._asked: dict[str, tuple[Blocked, int, float, float]] = {}
        # What was released, as a drive that cannot be emptied is not asked again and again.
        self._released: dict[str, int] = {}
        # Newcomers that cannot be helped, and why: they are not looked at again while they stay, as looking mounts.
        self._helpless: dict[str, str] = {}
        self._media_type = ""

    def sync(self, slots: Sequence[Slot]) -> Outcome:
        """Bring the catalog to what *slots* (all that were ever given) say. Raises `MagbayError`, `OSError`."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock(self._config.run_dir, _LOCK, self._settings.timeout))
            except TimeoutError:
                raise MagbayError(
                    f"another talk with the Director has not ended for {self._settings.timeout} s",
                    hint="It may be labelling volumes; 'magbay status' shows what the agent found. Try again.",
                ) from None
            return self._sync(slots)

    def _sync(self, slots: Sequence[Slot]) -> Outcome:
        offer = Offer.of(slots)
        catalog, status = self._ask()
        self._media_type = self._media_type or media_type(self._settings, self._console)
        sent: list[str] = []
        problems: list[str] = []
        self._correct(offer, catalog, sent)
        self._release(offer, status, sent)
        self._introduce(slots, offer, catalog, status, sent)
        if sent:
            catalog, status = self._ask()
            problems += self._left_over(offer, catalog)
        self._helpless = {name: why for name, why in self._helpless.items() if name in offer.here}
        problems += self._helpless.values()
        self._mount(offer, catalog, status, sent)
        seen = record.sightings(self._config.state_dir)
        waiting = tuple(
            wanted(blocked, slots, catalog, seen)
            for blocked in status.blocked
            if not mount_slot(blocked, offer, catalog)
        )
        held = tuple(sorted(left_in(status, offer).keys() & status.busy))
        return Outcome(tuple(sent), waiting, tuple(problems), held)

    def _ask(self) -> tuple[dict[str, CatalogVolume], StorageStatus]:
        storage = self._settings.storage
        reply = self._console.send(".storage", "list volumes", f"status storage={quoted(storage)}")
        # A Director that does not know a name silently takes another one when that is the only one.
        if storage not in names(reply):
            raise MagbayError(
                f"the Director has no storage called {storage}",
                hint="Set director.storage, or give it the pieces of 'magbay director config'.",
            )
        return volumes(reply), storage_status(reply)

    def _correct(self, offer: Offer, catalog: Mapping[str, CatalogVolume], sent: list[str]) -> None:
        """Slots and flags of the volumes that the catalog knows."""
        disabled = record.disabled(self._config.state_dir)
        found = plan(offer, catalog, disabled, self._media_type)
        if found.disable:
            # First the record: a crash in between must not leave volumes disabled of which nobody knows why.
            record.keep_disabled(self._config.state_dir, disabled | set(found.disable))
        if not found.empty:
            lines = commands(found, self._settings.storage)
            self._console.send(*lines)
            sent += lines
        back = {name for name in disabled if name in offer.here and name in catalog and name not in offer.protected}
        if back:
            # Verified before it is forgotten.
            now, _status = self._ask()
            still = {name for name in back if name in now and not now[name].enabled}
            record.keep_disabled(self._config.state_dir, (disabled - back) | still | set(found.disable))

    def _release(self, offer: Offer, status: StorageStatus, sent: list[str]) -> None:
        """Have the storage daemon let go of what left, or is to leave; never while a job uses the drive.

        `release`, not `unmount`: that would leave the drive waiting for a person's `mount`.
        """
        left = left_in(status, offer)
        numbers = _numbers(status, self._config)
        todo = {device: slot for device, slot in left.items() if device in numbers and device not in status.busy}
        # With a slot: Bacula would ask for one. It is not used.
        lines = [
            f"release storage={quoted(self._settings.storage)} drive={numbers[device]} slot=0"
            for device, slot in sorted(todo.items())
            if self._released.get(device) != slot
        ]
        self._released = todo
        if lines:
            self._console.send(*lines)
            sent += lines

    def _introduce(
        self,
        slots: Sequence[Slot],
        offer: Offer,
        catalog: Mapping[str, CatalogVolume],
        status: StorageStatus,
        sent: list[str],
    ) -> None:
        """Volumes that the catalog does not know."""
        if not self._settings.label:
            return
        unknown = [s for s in slots if s.attached and s.volume not in catalog and s.volume not in self._helpless]
        unknown = [s for s in unknown if s.writable]  # nothing can be labelled there, and data are not lost there
        fresh = list(self._newcomers(unknown)) if unknown else []
        drive = _free_drive(status, self._config)
        if drive is None:
            # All drives write just now; labelling comes with a later talk.
            fresh = [item for item in fresh if item.content is not Content.EMPTY]
        fresh = self._with_pool(fresh)
        for lines in newcomers.commands(fresh, self._settings, drive or 0):
            reply = self._console.send(*lines, extra=_SECONDS_A_LABEL * newcomers.MOST_LABELS)
            sent.append(lines[0])
            for item in fresh:
                if f"Label command failed for Volume {item.volume}" in reply:
                    words = "; ".join(line.strip() for line in reply.splitlines() if line.startswith("39"))
                    self._helpless[item.volume] = f"volume {item.volume} could not be labelled: {words or 'no reason'}"

    def _newcomers(self, unknown: Iterable[Slot]) -> Iterable[Newcomer]:
        paths = {magazine.name: magazine.path for magazine in attached.known(self._config)}
        for slot in unknown:
            folder = paths.get(slot.magazine)
            if folder is None:
                continue
            try:
                content = newcomers.content(folder / slot.volume)
            except OSError as error:
                self._helpless[slot.volume] = f"volume {slot.volume} of {slot.magazine}: {error.strerror}"
                continue
            if content is Content.DATA:
                self._helpless[slot.volume] = (
                    f"volume {slot.volume} of magazine {slot.magazine} holds data that the Director's catalog does not "
                    "know; import it with bscan, or remove the file"
                )
                continue
            yield Newcomer(slot.volume, slot.slot, slot.magazine, content)

    def _with_pool(self, fresh: list[Newcomer]) -> list[Newcomer]:
        """Those of *fresh* whose pool the Director has; labelled into another one they would be lost to people."""
        if not fresh:
            return []
        pools = names(self._console.send(".pools"))
        for item in fresh:
            pool = newcomers.pool_of(item, self._settings)
            if pool not in pools:
                self._helpless[item.volume] = f"volume {item.volume} is not labelled: the Director has no pool {pool}"
        return [item for item in fresh if item.volume not in self._helpless]

    def _left_over(self, offer: Offer, catalog: Mapping[str, CatalogVolume]) -> Iterable[str]:
        """What the Director did not take, as sentences."""
        disabled = record.disabled(self._config.state_dir)
        left = plan(offer, catalog, disabled, self._media_type)
        if not left.empty:
            names = sorted({*left.leave, *left.disable, *left.enable})
            yield f"the Director's catalog still differs for {', '.join(names) or 'some slots'}"

    def _mount(
        self, offer: Offer, catalog: Mapping[str, CatalogVolume], status: StorageStatus, sent: list[str]
    ) -> None:
        """Wake the drives whose job can go on: `update slots` alone does not."""
        now = self._clock()
        self._asked = {b.device: self._asked[b.device] for b in status.blocked if b.device in self._asked}
        lines = []
        for blocked in status.blocked:
            slot = mount_slot(blocked, offer, catalog)
            if not slot or blocked.drive < 0:
                self._asked.pop(blocked.device, None)
                continue
            last = self._asked.get(blocked.device)
            pause = _AGAIN
            if last is not None and last[:2] == (blocked, slot):
                if now < last[2]:
                    continue
                pause = min(last[3] * 2, _MOST_AGAIN)
            self._asked[blocked.device] = (blocked, slot, now + pause, pause)
            # The slot is ignored while blocked, but without it the console asks for one.
            lines.append(f"mount storage={quoted(self._settings.storage)} drive={blocked.drive} slot={slot}")
        if lines:
            self._console.send(*lines)
            sent += lines


def _free_drive(status: StorageStatus, config: Config) -> int | None:
    """A drive for labelling: one that no job uses, else one whose job is blocked anyway."""
    numbers = _numbers(status, config)
    free = [number for device, number in numbers.items() if device not in status.busy]
    if free:
        return min(free)
    return next((blocked.drive for blocked in status.blocked if blocked.drive >= 0), None)


def _numbers(status: StorageStatus, config: Config) -> dict[str, int]:
    """The storage daemon's devices that are virtual drives of ours, and their numbers."""
    by_path = dict(zip(status.paths, status.devices, strict=True))
    ours = ((by_path.get(archive_device(config, number)), number) for number in range(config.changer.drives))
    return {device: number for device, number in ours if device is not None}
