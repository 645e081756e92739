"""The media agent on the simulated machine: plugs, pulls, ejects, wrong keys, copies, lost events, restarts."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from appliance.agents.announce import status_line
from appliance.agents.media import MediaAgent
from appliance.agents.names import MEDIA, MEDIA_ROOT
from appliance.config.schema import Config, EjectConfig, Enrolment, HooksConfig, MountsConfig
from appliance.errors import AwayError, MagbayError, NotFoundError
from appliance.host.api import Host, Mount
from appliance.host.names import hook_unit, idle_unit, unlock_unit
from appliance.host.simulated import MemoryJournal, SimulatedDisk, World, simulated_host
from appliance.magazines.attached import Presence
from appliance.magazines.holders import announced_job, parse, sentence, with_jobs
from appliance.magazines.media import Media
from appliance.magazines.prepare import enrol
from appliance.magazines.settings import Settings
from appliance.magazines.states import ALWAYS, FOLLOWS, State


def uuid(number: int) -> str:
    return str(UUID(int=number))


def disk(config: Config, number: int, *, enrolled: bool = True, **more: object) -> SimulatedDisk:
    content = config.state_dir / f"content-{number}"
    content.mkdir(parents=True, exist_ok=True)
    made = SimulatedDisk(f"SER{number}", uuid(number), uuid(1000 + number), content, **more)  # type: ignore[arg-type]
    if enrolled:
        enrol(config, Enrolment(f"mag{number}", made.filesystem_uuid, made.luks_uuid, serial=made.serial))
    return made


class House:
    """A simulated machine with a media reconciler, and what was seen of each disk's state."""

    def __init__(self, config: Config) -> None:
        self.config = config
        config.run_dir.mkdir(exist_ok=True)
        self.world = World(config.mount_dir, lambda u: (config.enrolment_dir / f"{u}.yaml").exists())
        self.host: Host = simulated_host(self.world)
        self.woken = asyncio.Event()
        self.media = Media(config, self.host, self.woken.set)
        self.last: dict[tuple[str, int], State] = {}

    def restart(self) -> None:
        self.media = Media(self.config, self.host, self.woken.set)

    async def look(self) -> dict[str, State]:
        """One reconcile, half a second later; checks that every change of state is one that FOLLOWS allows."""
        self.host.clock.time += 0.6  # type: ignore[attr-defined]
        reports = await self.media.reconcile()
        sequences = {f"/dev/{bay.name}": bay.sequence for bay in self.world.bays.values()}
        for report in reports:
            if report.node and report.magazine:
                key = (report.luks_uuid, sequences.get(report.node, 0))
                before = self.last.get(key)
                allowed = before is None or report.state in FOLLOWS[before] | ALWAYS | {before}
                assert allowed, f"{before} -> {report.state}"
                self.last[key] = report.state
        return {report.magazine or report.node: report.state for report in reports}

    async def settle(self) -> dict[str, State]:
        """Reconcile until nothing moves."""
        states: dict[str, State] = {}
        for _ in range(12):
            states = await self.look()
            await asyncio.sleep(0)
        return states


async def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")


@pytest.fixture
def house(config: Config) -> Callable[[], House]:
    return lambda: House(config)


def test_plug_unlock_mount_idle_pull(config: Config, house: Callable[[], House]) -> None:
    async def story() -> None:
        h, d = house(), disk(config, 1)
        assert await h.settle() == {"mag1": State.GONE}
        h.world.plug(d)
        seen = [(await h.look())["mag1"] for _ in range(3)]
        assert seen == [State.LOCKED, State.CHECKING, State.UNLOCKED]
        assert (await h.settle())["mag1"] is State.MOUNTED
        h.world.expire()
        assert (await h.settle())["mag1"] is State.IDLE
        h.world.pull(d)
        assert (await h.settle())["mag1"] is State.GONE
        assert not h.world.mappings and not h.world.mounted

    asyncio.run(story())


def test_eject_waits_for_the_holder_and_survives_a_restart(config: Config, house: Callable[[], House]) -> None:
    async def story() -> None:
        h, d = house(), disk(config, 1)
        h.world.plug(d)
        await h.settle()
        h.world.held.add(d.filesystem_uuid)
        h.media.eject("mag1")
        assert (await h.settle())["mag1"] is State.EJECTING
        h.restart()
        assert (await h.settle())["mag1"] is State.EJECTING
        h.world.held.clear()
        assert (await h.settle())["mag1"] is State.SAFE
        assert not h.world.mappings
        h.restart()
        assert (await h.settle())["mag1"] is State.SAFE, "a restart must not unlock what was ejected"
        h.world.pull(d)
        h.world.plug(d)
        assert (await h.settle())["mag1"] is State.MOUNTED, "a replug ends the eject"

    asyncio.run(story())


def test_an_eject_is_called_off(config: Config, house: Callable[[], House]) -> None:
    """While somebody still holds the magazine, and after it was safe to remove: it is used again without a replug."""

    async def story() -> None:
        h, d = house(), disk(config, 1)
        h.world.plug(d)
        await h.settle()
        h.world.held.add(d.filesystem_uuid)
        h.media.eject("mag1")
        assert (await h.settle())["mag1"] is State.EJECTING
        h.media.eject("mag1", wanted=False)
        h.restart()
        assert (await h.settle())["mag1"] is State.MOUNTED
        h.world.held.clear()
        assert (await h.settle())["mag1"] is State.MOUNTED and d.powered_down == 0
        h.media.eject("mag1")
        assert (await h.settle())["mag1"] is State.SAFE and d.powered_down == 1
        h.media.eject("mag1", wanted=False)
        h.restart()
        assert (await h.settle())["mag1"] is State.MOUNTED
        assert not h.world.harm

    asyncio.run(story())


def test_eject_of_unknown_and_away(config: Config, house: Callable[[], House]) -> None:
    async def story() -> None:
        h = house()
        disk(config, 1)
        await h.settle()
        with pytest.raises(AwayError):
            h.media.eject("mag1")
        with pytest.raises(NotFoundError):
            h.media.eject("nobody")

    asyncio.run(story())


def test_wrong_key_is_tried_once_per_plug_and_said(config: Config, house: Callable[[], House]) -> None:
    async def story() -> None:
        h, d, good = house(), disk(config, 1, key_fits=False), disk(config, 2)
        h.world.plug(d)
        h.world.plug(good)
        states = await h.settle()
        assert states == {"mag1": State.FAILED, "mag2": State.MOUNTED}
        assert d.writes == 1
        report = next(r for r in await h.media.reconcile() if r.magazine == "mag1")
        assert "key file does not open" in report.reason and report.hint
        h.world.pull(d)
        d.key_fits = True
        h.world.plug(d)
        assert (await h.settle())["mag1"] is State.MOUNTED

    asyncio.run(story())


def test_foreign_disks_are_never_touched(config: Config, house: Callable[[], House]) -> None:
    async def story() -> None:
        h, mine = house(), disk(config, 1)
        unknown = disk(config, 2, enrolled=False)
        plain = SimulatedDisk("NTFS", fs_type="ntfs", fs_uuid="AB12")
        blank = SimulatedDisk("BLANK")
        cloned = SimulatedDisk("CLONE", fs_type="ext4", fs_uuid=mine.filesystem_uuid)
        for d in (unknown, plain, blank, cloned):
            h.world.plug(d)
        reports = await h.media.reconcile()
        await h.settle()
        assert all(r.state is State.FOREIGN for r in reports if r.node)
        reasons = " | ".join(sorted(r.reason for r in reports if r.node))
        for words in ("unknown LUKS", "holds ntfs", "blank", "though it carries its UUID"):
            assert words in reasons
        assert [d.writes for d in (unknown, plain, blank, cloned)] == [0, 0, 0, 0]

    asyncio.run(story())


def test_copies_are_refused_and_the_open_one_stays(config: Config, house: Callable[[], House]) -> None:
    async def story() -> None:
        h, d = house(), disk(config, 1)
        copy = SimulatedDisk("COPY", d.luks_uuid, d.filesystem_uuid, d.content)
        h.world.plug(d)
        h.world.plug(copy)
        reports = await h.media.reconcile()
        assert [r.state for r in reports] == [State.FAILED, State.FAILED]
        assert "same LUKS UUID as /dev/sd" in reports[0].reason
        assert (d.writes, copy.writes) == (0, 0)
        h.world.pull(copy)
        assert (await h.settle())["mag1"] is State.MOUNTED
        h.world.plug(copy)
        reports = await h.media.reconcile()
        assert {r.serial: r.state for r in reports} == {"SER1": State.MOUNTED, "COPY": State.FAILED}
        h.media.eject("mag1")
        for _ in range(5):
            reports = await h.media.reconcile()
        assert {r.serial: r.state for r in reports} == {"SER1": State.SAFE, "COPY": State.FAILED}
        assert copy.writes == 0

    asyncio.run(story())


def test_other_file_system_inside_is_refused(config: Config, house: Callable[[], House]) -> None:
    async def story() -> None:
        h, d = house(), disk(config, 1)
        d.filesystem_uuid = uuid(77)
        h.world.plug(d)
        assert (await h.settle())["mag1"] is State.FAILED
        assert not h.world.mounted

    asyncio.run(story())


def test_random_worlds_end_in_the_state_of_a_fresh_look(config: Config, house: Callable[[], House]) -> None:
    """Plugs, pulls, ejects, expiries, restarts and lost events in random order; then a fresh look decides."""

    async def story(seed: int) -> None:
        chance = random.Random(seed)
        shutil.rmtree(config.run_dir, ignore_errors=True)  # as a boot does: plug sequence numbers begin anew too
        h = House(config)
        disks = [disk(config, n) for n in range(4)]
        inside: set[int] = set()
        ejected: set[int] = set()
        for _ in range(40):
            n = chance.randrange(4)
            action = chance.choice(["plug", "pull", "eject", "expire", "restart", "look", "look", "jobs"])
            if action == "plug" and n not in inside:
                h.world.plug(disks[n])
                inside.add(n)
            elif action == "pull" and n in inside:
                h.world.pull(disks[n])
                inside.discard(n)
                ejected.discard(n)
            elif action == "eject":
                try:
                    h.media.eject(f"mag{n}")
                    if n in inside:
                        ejected.add(n)
                except MagbayError:
                    pass
            elif action == "expire":
                h.world.expire()
            elif action == "restart":
                h.restart()
                await h.look()
            elif action == "jobs":
                h.world.units.at_once = not h.world.units.at_once
            else:
                await h.look()
                await asyncio.sleep(0)
            h.world.units.run_jobs() if chance.random() < 0.5 else None
        h.world.units.at_once = True
        h.world.units.run_jobs()
        states = await h.settle()
        for n in range(4):
            if n not in inside:
                assert states[f"mag{n}"] is State.GONE
                assert disks[n].luks_uuid not in h.world.mappings
            elif states[f"mag{n}"] is State.SAFE:
                assert n in ejected
            else:
                assert states[f"mag{n}"] in (State.MOUNTED, State.IDLE), f"seed {seed}: mag{n} {states}"
        for n in range(4):
            if n in inside:
                h.world.pull(disks[n])
        await h.settle()
        h.world.destroy()

    for seed in range(60):
        asyncio.run(story(seed))


def test_agent_publishes_signals_journal_and_status(config: Config) -> None:
    async def story() -> None:
        h, d = House(config), disk(config, 1)
        agent = MediaAgent(config, h.host)
        task = asyncio.create_task(agent.run())
        await asyncio.sleep(0.05)
        h.world.plug(d)
        for _ in range(100):
            await asyncio.sleep(0.02)
            text = (config.run_dir / "media.json").read_text()
            if '"mounted"' in text:
                break
        answer = json.loads(text)["disks"][0]
        assert (answer["magazine"], answer["state"], answer["serial"]) == ("mag1", "mounted", "SER1")
        bus = h.host.bus
        names = [signal[2:] for signal in bus.signals]  # type: ignore[attr-defined]
        assert ("MagazineChanged", ("mag1", d.filesystem_uuid, "mounted", "")) in names
        properties = bus.objects["/org/magbay/magazine/mag1"].properties()  # type: ignore[attr-defined]
        assert properties["State"] == ("s", "mounted")
        await bus.call(MEDIA, MEDIA_ROOT, MEDIA, "Eject", "s", ["mag1"])
        for _ in range(200):
            await asyncio.sleep(0.02)
            if '"safe to remove"' in (config.run_dir / "media.json").read_text():
                break
        journal = h.host.journal
        assert isinstance(journal, MemoryJournal)
        states = [record["STATE"] for record in journal.records if record.get("MAGAZINE") == "mag1"]
        assert states[-1] == "safe to remove" and "mounted" in states
        assert h.host.notify.text == "mag1 safe to remove"  # type: ignore[attr-defined]
        assert h.host.notify.beats > 0  # type: ignore[attr-defined]
        task.cancel()

    asyncio.run(story())


def test_stuck_unit_is_started_anew(config: Config, house: Callable[[], House]) -> None:
    """Somebody closes the container by hand; the unit still claims to be active."""

    async def story() -> None:
        h, d = house(), disk(config, 1)
        h.world.plug(d)
        await h.settle()
        h.world.close(d.luks_uuid)
        assert (await h.settle())["mag1"] is State.UNLOCKING
        h.host.clock.time += 60  # type: ignore[attr-defined]
        assert (await h.settle())["mag1"] is State.MOUNTED
        assert (await h.host.units.states(["*"]))[unlock_unit(d.luks_uuid)].active == "active"

    asyncio.run(story())


def test_a_damaged_enrolment_takes_nothing_else_away(config: Config) -> None:
    async def story() -> None:
        h, d = House(config), disk(config, 1)
        (config.enrolment_dir / "bad.yaml").write_text("name: [x")
        agent = MediaAgent(config, h.host)
        task = asyncio.create_task(agent.run())
        h.world.plug(d)
        await wait_until(lambda: h.host.notify.text.startswith("mag1 mounted"))  # type: ignore[attr-defined]
        records = h.host.journal.records  # type: ignore[attr-defined]
        assert len([r for r in records if "bad.yaml" in r["MESSAGE"]]) == 1
        task.cancel()

    asyncio.run(story())


def test_an_agent_ends_when_the_bus_is_lost(config: Config) -> None:
    async def story() -> None:
        h = House(config)
        lost = asyncio.Event()
        h.host.bus.closed = lost.wait  # type: ignore[method-assign, assignment]
        task = asyncio.create_task(MediaAgent(config, h.host).run())
        await wait_until(lambda: h.host.notify.is_ready)  # type: ignore[attr-defined]
        lost.set()
        with pytest.raises(MagbayError, match="bus"):
            await asyncio.wait_for(task, 10)

    asyncio.run(story())


def test_status_line_of_nothing() -> None:
    assert status_line([]) == "no magazine in a bay"


def test_who_holds_a_magazine_is_named(config: Config, house: Callable[[], House]) -> None:
    async def story() -> None:
        h, d = house(), disk(config, 1)
        h.world.plug(d)
        await h.settle()
        h.world.held.add(d.filesystem_uuid)
        h.media.eject("mag1")
        await h.settle()
        (report,) = await h.media.reconcile()
        assert report.reason == f"waits for less (process 4711 of somebody) with {report.holders[0].file} to let go"
        assert report.document()["holders"] == [vars(report.holders[0])]
        h.world.held.clear()
        assert (await h.settle())["mag1"] is State.SAFE
        assert d.powered_down == 1

    asyncio.run(story())


def test_holders_that_are_jobs_of_ours_have_a_name(tmp_path: Path) -> None:
    lines = (
        f"{os.getpid()}\troot\tmagbay\t/mnt/v\n0\t\tthe loop device loop0\t/mnt/i\nrubbish\n1\tx\n7\ta\tb\tf\x1b[0m\n"
    )
    found = parse(lines)
    assert [holder.pid for holder in found] == [os.getpid(), 0, 7]
    assert "\x1b" not in sentence(found)
    assert with_jobs(found, tmp_path) == found
    with announced_job(tmp_path, 12, "nightly"):
        said = sentence(with_jobs(found, tmp_path))
        child = f"import sys; from pathlib import Path; from {parse.__module__} import *\n"
        child += f"print(sentence(with_jobs(parse({lines!r}), Path({str(tmp_path)!r}))))"
        told = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout
    assert f"job 12 (nightly, process {os.getpid()})" in told and "the loop device loop0 with /mnt/i" in told
    assert said == told.strip()
    stale = tmp_path / "jobs" / str(os.getpid())
    assert not stale.exists()
    stale.write_text('{"job_id": 12, "name": "nightly"}')
    assert with_jobs(found, tmp_path) == found, "nobody holds the file: that job has ended"


def test_a_pulled_magazine_is_known_from_what_is_published(config: Config, house: Callable[[], House]) -> None:
    async def story() -> None:
        h, d = house(), disk(config, 1)
        agent = MediaAgent(config, h.host)
        presence = Presence(config, d.filesystem_uuid)
        assert not presence.gone(), "no agent, no word"
        h.world.plug(d)
        for _ in range(6):
            await agent.look()
            await asyncio.sleep(0)
        assert not presence.gone()
        h.world.pull(d)
        await agent.look()
        assert presence.gone()
        assert not Presence(config, "directory:m1").gone()

    asyncio.run(story())


def test_told_once_whatever_happens_to_the_agent(config: Config) -> None:
    """Journal, console and hooks: a restarted agent tells what it missed, and nothing twice."""

    async def story() -> None:
        hooks = HooksConfig(arrived=("/bin/in",), safe_to_remove=("/bin/out",), pulled=("/bin/gone",))
        ours = replace(config, hooks=hooks)
        h, d = House(ours), disk(config, 1)

        async def new_agent() -> MediaAgent:
            agent = MediaAgent(ours, h.host)
            for _ in range(8):
                h.host.clock.time += 0.6  # type: ignore[attr-defined]
                await agent.look()
                await asyncio.sleep(0)
            return agent

        h.world.plug(d)
        agent = await new_agent()
        await new_agent()
        agent.media.eject("mag1")
        await new_agent()
        h.world.pull(d)
        await new_agent()
        h.world.plug(d)
        await new_agent()
        h.world.pull(d)
        await new_agent()
        journal, console, units = h.host.journal, h.host.console, h.world.units
        states = [r["STATE"] for r in journal.records if "STATE" in r]  # type: ignore[attr-defined]
        life = ["locked", "checking", "unlocked", "unlocked", "mounted"]
        assert states == [*life, "ejecting", "safe to remove", "away", *life, "away"], states
        assert [line.split(" (")[0] for line in console.lines] == [  # type: ignore[attr-defined]
            "magazine mag1 is mounted",
            "magazine mag1 is safe to remove",
            "magazine mag1 is away.",
            "magazine mag1 is mounted",
            "magazine mag1 is away.",
        ]
        hooked = [unit for unit in units.started if "hook" in unit]
        assert hooked == [hook_unit(e, "mag1") for e in ("arrived", "safe_to_remove", "arrived", "pulled")]

    asyncio.run(story())


def test_the_idle_time_of_the_configuration_is_put_in_force(config: Config) -> None:
    async def story() -> None:
        h = House(replace(config, mounts=MountsConfig(idle_timeout=45), eject=EjectConfig(power_down=False)))
        settings = Settings(h.config, h.host)
        table = [Mount(str(config.mount_dir), "auto", "0:44", "autofs", False, "rw,fd=6,timeout=300,minproto=5")]
        h.world.table = lambda: tuple(table)  # type: ignore[method-assign]
        for _ in range(3):
            await settings.hand_on()
        assert h.world.units.started == [idle_unit(45)], "asked once, not at every look"
        h.host.clock.time += 100  # type: ignore[attr-defined]
        await settings.hand_on()
        assert len(h.world.units.started) == 2, "and again when it had no effect"
        table[0] = replace(table[0], options="rw,timeout=45")
        h.host.clock.time += 100  # type: ignore[attr-defined]
        await settings.hand_on()
        assert len(h.world.units.started) == 2
        assert (config.run_dir / "settings").read_text() == "power_down=no\n"

    asyncio.run(story())


def test_a_hook_becomes_its_command(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "hooks.yaml"
    file.write_text("run_dir: run\nhooks: {failed: [/bin/sh, -c, 'echo $MAGBAY_EVENT $MAGBAY_MAGAZINE $0', lamp]}\n")
    command = [sys.executable, "-m", "appliance", "--config", str(file), "agent", "hook"]
    done = subprocess.run([*command, "failed/m1"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "failed m1 lamp\n"), done.stderr
    for what, status in (("arrived/m1", 4), ("dance/m1", 2), ("failed", 2)):
        assert subprocess.run([*command, what], capture_output=True).returncode == status


def test_a_few_containers_are_opened_at_a_time(config: Config, house: Callable[[], House]) -> None:
    """All are opened in the end; one that does not end holds its place for a while only."""

    async def story() -> None:
        h = house()
        h.world.units.at_once = False
        for number in range(1, 13):
            h.world.plug(disk(config, number))
        for _ in range(4):
            states = await h.look()
        opening = [name for name, state in states.items() if state is State.UNLOCKING]
        assert len(opening) == 4
        h.world.units.run_jobs(1)
        states = {name: state for name, state in (await h.look()).items() if state is not State.LOCKED}
        assert sum(state is not State.UNLOCKING for state in states.values()) == 1, "the next one's turn"
        assert len(h.world.units._jobs) == 4 + 1, "with the check of the first"
        h.host.clock.time += 11  # type: ignore[attr-defined]
        await h.look()
        assert sum(unit.startswith("magbay-unlock@") for _verb, unit in h.world.units._jobs) == 8
        for _ in range(20):
            h.world.units.run_jobs()
            states = await h.settle()
        assert set(states.values()) == {State.MOUNTED}

    asyncio.run(story())
