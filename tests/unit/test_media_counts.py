"""The media agent on the simulated machine, in numbers: kills at every point, yanks in every state, lost events."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from appliance.agents.changer import ChangerAgent
from appliance.agents.media import MediaAgent
from appliance.changer.service import Changer
from appliance.config.loader import load
from appliance.config.schema import Config, Enrolment
from appliance.host.simulated import SimulatedDisk, StepClock, World, simulated_host
from appliance.magazines.media import Media
from appliance.magazines.prepare import enrol
from appliance.magazines.reports import DiskReport
from appliance.magazines.states import State
from appliance.volumes.blocks import SessionIds
from appliance.volumes.labels import VolumeLabel
from appliance.volumes.writer import label_block


class Killed(BaseException):
    """What SIGKILL is to a process: nothing of it runs after this."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, as /run is."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def config(folder: Path) -> Config:
    """Everything in memory: what is written durably would wait for a disk a thousand times."""
    file = folder / "magbay.yaml"
    file.write_text("state_dir: state\nrun_dir: run\nmount_dir: mnt\nkey_file: key\n")
    (folder / "state").mkdir()
    return load(file)


class Mortal:
    """A part of the host as one agent process sees it. The *fatal*-th call of all parts kills the process: before the
    call takes effect, or after it, when nobody hears of the result any more."""

    def __init__(self, inner: Any, life: Life) -> None:
        self._inner, self._life = inner, life

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(method):

            def call(*args: Any, **kwargs: Any) -> Any:
                with self._life.step(name):
                    return method(*args, **kwargs)

            return call

        async def later(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            with self._life.step(name):
                result = await method(*args, **kwargs)
            await asyncio.sleep(0)
            return result

        return later


class Life:
    """Calls of one agent process until it is killed; *fatal* 0: never."""

    def __init__(self, fatal: int = 0, *, after: bool = False) -> None:
        self.calls, self._fatal, self._after, self.dead = 0, fatal, after, False
        self.transitions: list[int] = []  # calls that move a disk on

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        if self.dead:
            raise Killed
        self.calls += 1
        if name in ("start_unit", "stop_unit", "trigger"):
            self.transitions.append(self.calls)
        self.dead = self.calls == self._fatal
        if self.dead and not self._after:
            raise Killed
        yield
        if self.dead:
            raise Killed


def disk_of(config: Config, number: int) -> SimulatedDisk:
    disk = SimulatedDisk(f"SER{number}", str(UUID(int=number + 1)), str(UUID(int=number + 1001)))
    if not (config.enrolment_dir / f"{disk.filesystem_uuid}.yaml").exists():
        enrol(config, Enrolment(f"mag{number}", disk.filesystem_uuid, disk.luks_uuid, serial=disk.serial))
    return disk


class Bench:
    """A simulated machine with enrolled disks and one agent after the other."""

    def __init__(self, config: Config, folder: Path, disks: int, seed: int = 0) -> None:
        self.config = replace(config, run_dir=folder / "run", mount_dir=folder / "mnt")
        self.config.run_dir.mkdir(parents=True)
        self.world = World(self.config.mount_dir, lambda _uuid: True)
        self.clock = StepClock()
        self.host = simulated_host(self.world, self.clock)
        self.disks = [disk_of(self.config, number) for number in range(disks)]
        self.chance = random.Random(seed)

    def agent(self, life: Life) -> MediaAgent:
        parts = {name: Mortal(part, life) for name, part in vars(self.host).items() if name not in ("clock", "notify")}
        return MediaAgent(self.config, replace(self.host, **parts))

    def media(self) -> Media:
        """All disks go the same way at the same time."""
        return Media(self.config, self.host, lambda: None, at_once=len(self.disks))

    async def settled(self, media: Media, wanted: Callable[[dict[str, State]], bool]) -> dict[str, State]:
        """Looks until the states are as *wanted* and stay so."""
        for _ in range(30):
            states = {report.magazine: report.state for report in await self.look(media)}
            if wanted(states) and not self.world.units.busy:
                return states
        raise AssertionError(f"it did not settle: {states}")

    async def look(self, media: Media) -> tuple[DiskReport, ...]:
        self.clock.time += 0.6
        reports = await media.reconcile()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.world.units.run_jobs()
        return reports


class Killing:
    """One magazine's whole life with an agent that is killed at one of its calls, and a new one in its place."""

    def __init__(self, bench: Bench, fatal: int, *, after: bool) -> None:
        self.bench, self.world, self.disk = bench, bench.world, bench.disks[0]
        self.life = Life(fatal, after=after)
        self.agent = bench.agent(self.life)
        self.killed = False

    async def look(self) -> str:
        bench = self.bench
        bench.clock.time += 0.6
        if bench.chance.random() < 0.8:
            self.world.units.run_jobs()
        try:
            await self.agent.look()
            await asyncio.sleep(0)
        except Killed:
            pass
        if self.life.dead and not self.killed:
            self.killed = True
            self.agent = bench.agent(Life())
            await self.agent.look()
        return str(self.agent.reports[0].state.value) if self.agent.reports else ""

    async def until(self, state: State) -> None:
        for _ in range(60):
            for _ in range(3):
                await asyncio.sleep(0)
            if await self.look() == state.value and not self.world.units.busy:
                return
        raise AssertionError(f"never {state.value}, but {self.agent.reports}")

    async def story(self) -> None:
        self.world.units.at_once = False
        self.world.plug(self.disk)
        await self.until(State.MOUNTED)
        assert self.disk.writes == 1, "unlocked once"
        self.world.expire()
        await self.until(State.IDLE)
        self.agent.media.eject("mag0")
        await self.until(State.SAFE)
        assert (self.world.mounted, self.world.mappings, self.disk.powered_down) == ({}, {}, 1)
        for _ in range(3):
            assert await self.look() == State.SAFE.value, "a forgotten eject"
        self.world.pull(self.disk)
        await self.until(State.GONE)
        self.world.plug(self.disk)
        await self.until(State.MOUNTED)
        self.world.pull(self.disk)
        await self.until(State.GONE)
        assert (self.world.mounted, self.world.mappings, self.world.harm) == ({}, {}, [])


@pytest.mark.parametrize("first_seed", [0, 5, 10, 15])
def test_killed_at_every_call(config: Config, folder: Path, first_seed: int) -> None:
    """SIGKILL at each call that moves a disk on, before and after its effect, in 20 orders of events; and, once each,
    at all other calls that an agent makes to the machine."""

    async def once(number: int, seed: int, fatal: int, *, after: bool) -> Life:
        run = Killing(Bench(config, folder / f"{number}", 1, seed), fatal, after=after)
        await run.story()
        assert run.killed or not fatal or fatal > run.life.calls
        return run.life

    async def everything() -> tuple[int, int]:
        # The tasks of a killed process end with Killed, and nobody is there to hear it.
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        number = moves = 0
        for seed in range(first_seed, first_seed + 5):
            life = await once(number, seed, 0, after=False)
            points = {(fatal, after) for fatal in life.transitions for after in (False, True)}
            moves += len(life.transitions)
            points |= {(fatal, bool(fatal & 1)) for fatal in range(1 + seed, life.calls, 20)}
            for fatal, after in sorted(points):
                number += 1
                await once(number, seed, fatal, after=after)
            number += 1
        return moves, number

    moves, kills = asyncio.run(everything())
    assert moves >= 5 * 9 and kills > 125


class Yard:
    """Disks that are brought to a state and pulled there, with one magazine beside them that must not notice."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.world, self.media = bench, bench.world, bench.media()
        self.bystander, *self.disks = bench.disks
        self.world.units.at_once = False

    async def here(self) -> None:
        self.world.plug(self.bystander)
        await self.bench.settled(self.media, lambda states: states["mag0"] is State.MOUNTED)

    async def to_state(self, wanted: State) -> None:
        """All disks of the yard to *wanted*: the unit that leads out of it is queued and has not run."""
        for disk in self.disks:
            self.world.plug(disk)
        for turn in range(20):
            self.bench.clock.time += 0.6
            reports = [report for report in await self.media.reconcile() if report.magazine != "mag0"]
            if all(report.state is wanted for report in reports):
                return
            if wanted in (State.IDLE, State.EJECTING) and all(r.state is State.MOUNTED for r in reports):
                self.leave(wanted)
            await asyncio.sleep(0)
            if turn % 2:
                self.world.units.run_jobs()
        raise AssertionError(f"never {wanted}: {reports[0]}")

    def leave(self, wanted: State) -> None:
        for disk in self.disks:
            if wanted is State.IDLE:
                self.world.unmount(disk.filesystem_uuid)
            else:
                self.media.eject(f"mag{disk.serial.removeprefix('SER')}")

    async def yank(self, *, writing: bool) -> None:
        """Pull all; nothing of them is left, and the one beside them is as it was."""
        if writing:
            self.world.held |= {disk.filesystem_uuid for disk in self.disks}
        for disk in self.disks:
            self.world.pull(disk)
        states = await self.bench.settled(self.media, lambda s: all(s[n] is State.GONE for n in s if n != "mag0"))
        assert states["mag0"] is State.MOUNTED
        assert list(self.world.mappings) == [self.bystander.luks_uuid]
        assert list(self.world.mounted) == [self.bystander.filesystem_uuid]
        self.world.held.clear()


@pytest.mark.parametrize(
    ("state", "writing"),
    [
        (State.LOCKED, False),
        (State.UNLOCKING, False),
        (State.CHECKING, False),
        (State.UNLOCKED, False),
        (State.MOUNTED, True),
        (State.IDLE, False),
        (State.EJECTING, True),
    ],
)
def test_pulled_a_thousand_times_in_each_state(config: Config, folder: Path, state: State, writing: bool) -> None:
    """Probing, unlocking, checking, mounting, writing, idle, unmounting."""

    async def story() -> None:
        yard = Yard(Bench(config, folder, 26))
        await yard.here()
        yanks = 0
        while yanks < 1000:
            await yard.to_state(state)
            await yard.yank(writing=writing)
            yanks += len(yard.disks)
        await yard.to_state(State.MOUNTED)
        assert yard.world.harm == []
        assert all(not disk.dirty for disk in yard.disks), "what was pulled while mounted was checked at its next plug"
        assert yard.bystander.writes == 1, "the magazine beside them was not touched"

    asyncio.run(story())


def test_events_dropped_doubled_and_overflown(config: Config, folder: Path) -> None:
    """At 1,000 random places events get lost, come twice, or come when nothing happened; then the timer's look, and a
    fresh agent finds nothing to change."""

    async def story() -> None:
        bench = Bench(config, folder, 6, seed=7)
        world, chance = bench.world, bench.chance
        world.units.at_once = False
        woken = [False]
        world.start(lambda: woken.__setitem__(0, True))
        media, places, inside = bench.media(), 0, set[int]()
        while places < 1000:
            world.drop_events = chance.random() < 0.5
            number = chance.randrange(6)
            if number not in inside:
                world.plug(bench.disks[number])
                inside.add(number)
            elif chance.random() < 0.5:
                world.pull(bench.disks[number])
                inside.discard(number)
            elif chance.random() < 0.5:
                world.expire()
            else:
                world.units.run_jobs(1)
            places += world.drop_events
            world.drop_events = False
            for _ in range(chance.choice([0, 1, 1, 2])):  # two: the event came twice
                if woken[0] or chance.random() < 0.1:
                    woken[0] = False
                    await bench.look(media)
                    places += 1
            if chance.random() < 0.1:
                before = await _steady(bench, media)
                media = bench.media()
                assert await _steady(bench, media) == before
                assert {n for n in range(6) if before[f"mag{n}"] is not State.GONE} == inside
        assert world.harm == []

    asyncio.run(story())


async def _steady(bench: Bench, media: Media) -> dict[str, State]:
    at_rest = (State.MOUNTED, State.IDLE, State.GONE)
    return await bench.settled(media, lambda states: all(state in at_rest for state in states.values()))


def test_a_mount_that_fails_is_tried_again_at_growing_intervals(config: Config, folder: Path) -> None:
    async def story() -> None:
        bench = Bench(config, folder, 1)
        media, disk = bench.media(), bench.disks[0]
        disk.mount_failures = 12
        bench.world.plug(disk)
        start, tries, failed = bench.clock.time, [], False
        while not bench.world.mounted:
            left = disk.mount_failures
            (report,) = await bench.look(media)
            failed = failed or report.state is State.FAILED
            if disk.mount_failures < left:
                tries.append(bench.clock.time - start)
            assert bench.clock.time - start < 2000
        pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
        assert failed and max(pauses[:4]) < 2, "quickly at first"
        assert pauses[-1] > 100 and all(pause < 302 for pause in pauses), "then seldom, but not never"
        assert (await bench.look(media))[0].state is State.MOUNTED

    asyncio.run(story())


def test_damage_makes_a_magazine_read_only_with_a_reason(config: Config, folder: Path) -> None:
    async def story() -> None:
        bench = Bench(config, folder, 1)
        media, disk = bench.media(), bench.disks[0]
        disk.damage = "e2fsck finds damage"
        bench.world.plug(disk)
        await bench.settled(media, lambda states: states["mag0"] is State.MOUNTED)
        (report,) = await bench.look(media)
        assert report.read_only and report.reason == "read-only: e2fsck finds damage" and report.hint
        bench.world.expire()
        (report,) = await bench.look(media)
        assert report.state is State.IDLE and report.read_only, "also while it is not mounted"

    asyncio.run(story())


def test_two_hundred_disks_plugged_together(config: Config, folder: Path) -> None:
    """Both agents: every volume has a slot, after less than five seconds of one processor's work."""
    config.run_dir.mkdir()
    world = World(config.mount_dir, lambda _uuid: True)
    host = simulated_host(world)
    disks = [disk_of(config, number) for number in range(200)]
    for number, disk in enumerate(disks):
        disk.content = folder / f"content-{number}"
        disk.content.mkdir()
        label = VolumeLabel(f"mag{number}-0001", "Default", "File", label_time=0, write_time=0)
        (disk.content / label.name).write_bytes(label_block(label, SessionIds(number + 1, 1)))

    def published() -> int:
        answer = config.run_dir / "changer.json"
        return answer.read_text().count('"in bay"') if answer.exists() else 0

    async def story() -> None:
        agents = [MediaAgent(config, host).run(), ChangerAgent(Changer.open(folder / "magbay.yaml"), host).run()]
        tasks = [asyncio.create_task(agent) for agent in agents]
        while not host.notify.is_ready:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
        began = time.process_time()
        for disk in disks:
            world.plug(disk)
        while published() < len(disks):
            await asyncio.sleep(0.1)
            assert time.process_time() - began < 5.0, f"only {published()} volumes by now"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(story())
    offered = {slot.volume: slot.magazine for slot in Changer(config).slots() if slot.attached}
    assert offered == {f"mag{number}-0001": f"mag{number}" for number in range(200)}
