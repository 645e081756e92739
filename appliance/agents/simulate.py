"""`magbay --simulate`: all agents on the simulated machine, in one process, without root, driven by typed lines.

The magazines are real directories, so everything else (slots, volumes, backups) works on them for real; other
magbay commands may be used on the same configuration meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import NAMESPACE_DNS, uuid5

from appliance.agents.changer import ChangerAgent
from appliance.agents.media import MediaAgent
from appliance.agents.names import MEDIA, MEDIA_ROOT
from appliance.changer.service import Changer
from appliance.config.loader import load
from appliance.config.schema import Enrolment
from appliance.errors import MagbayError, UsageError
from appliance.host.real.services import WallClock
from appliance.host.simulated import MemoryJournal, SimulatedDisk, World, simulated_host
from appliance.magazines.attached import MEDIA_ANSWER
from appliance.magazines.enrolment import enrol
from appliance.volumes.blocks import SessionIds
from appliance.volumes.labels import VolumeLabel
from appliance.volumes.writer import label_block

HELP = """plug NAME | pull NAME | eject NAME | hold NAME | release NAME | idle
status | slots | journal | wait SECONDS | quit
NAME: m1 m2 m3 (enrolled magazines), wrongkey (enrolled with another key), copy (a copy of m1),
      foreign (an unknown LUKS disk), blank"""

_VOLUMES = 3  # on each simulated magazine
_TELL = 0.3  # seconds between two looks at the journal


class Simulation:
    """A small dock with agents, and the lines that drive it."""

    def __init__(self, file: Path, say: Callable[[str], None]) -> None:
        self.config, self.file, self._say = load(file), file, say
        config = self.config
        for folder in (config.run_dir, config.state_dir):
            folder.mkdir(parents=True, exist_ok=True)
        (config.run_dir / MEDIA_ANSWER).unlink(missing_ok=True)
        self.world = World(config.mount_dir, lambda uuid: (config.enrolment_dir / f"{uuid}.yaml").exists())
        self.host = simulated_host(self.world, WallClock())
        self.disks = self._make_disks()
        self._told = 0

    def _make_disks(self) -> dict[str, SimulatedDisk]:
        disks = {name: self._magazine(name) for name in ("m1", "m2", "m3", "wrongkey")}
        disks["wrongkey"].key_fits = False
        first = disks["m1"]
        disks["copy"] = SimulatedDisk("SIM-copy", first.luks_uuid, first.filesystem_uuid, first.content)
        disks["foreign"] = SimulatedDisk("SIM-foreign", str(uuid5(NAMESPACE_DNS, "foreign")), "")
        disks["blank"] = SimulatedDisk("SIM-blank")
        return disks

    def _magazine(self, name: str) -> SimulatedDisk:
        content = self.config.state_dir / "simulated" / name
        content.mkdir(parents=True, exist_ok=True)
        luks, filesystem = str(uuid5(NAMESPACE_DNS, f"luks {name}")), str(uuid5(NAMESPACE_DNS, f"filesystem {name}"))
        enrol(self.config, Enrolment(name, filesystem, luks, serial=f"SIM-{name}"))
        for number in range(1, _VOLUMES + 1):
            volume = content / f"{name}-{number:04d}"
            if not volume.exists():
                label = VolumeLabel(volume.name, "Default", "File", label_time=0, write_time=0)
                volume.write_bytes(label_block(label, SessionIds(number, 1)))
        return SimulatedDisk(f"SIM-{name}", luks, filesystem, content)

    async def line(self, text: str) -> None:
        """Do what one typed line says. Raises `MagbayError`."""
        words = text.split()
        if not words or words[0].startswith("#"):
            return
        verb, name = words[0], words[1] if len(words) > 1 else ""
        if verb in ("plug", "pull", "eject", "hold", "release"):
            await self._with_disk(verb, name)
        elif verb == "idle":
            self.world.expire()
        elif verb in ("status", "slots", "journal"):
            await self._show(verb)
        elif verb == "wait":
            await asyncio.sleep(float(name or "1"))
        else:
            raise UsageError(f"unknown: {text.strip()!r}", hint=HELP)
        await asyncio.sleep(0.2)
        self.tell()

    async def _with_disk(self, verb: str, name: str) -> None:
        if name not in self.disks:
            raise UsageError(f"no simulated disk is called {name!r}", hint="They are: " + " ".join(self.disks))
        disk = self.disks[name]
        plugged = any(bay.disk is disk for bay in self.world.bays.values())
        if verb == "plug":
            if plugged:
                raise UsageError(f"{name} is plugged already")
            self.world.plug(disk)
        elif verb == "pull":
            self.world.pull(disk)
        elif verb == "hold":
            self.world.held.add(disk.filesystem_uuid)
        elif verb == "release":
            self.world.held.discard(disk.filesystem_uuid)
        else:
            await self.host.bus.call(MEDIA, MEDIA_ROOT, MEDIA, "Eject", "s", [name])

    async def _show(self, what: str) -> None:
        if what == "status":
            for disk in json.loads((self.config.run_dir / MEDIA_ANSWER).read_text())["disks"]:
                reason = f": {disk['reason']}" if disk["reason"] else ""
                self._say(f"  {disk['node'] or '-':<10} {disk['magazine'] or '-':<10} {disk['state']}{reason}")
        elif what == "slots":
            for slot in await asyncio.to_thread(Changer(self.config).slots):
                self._say(
                    f"  {slot.slot:>4} {slot.volume:<20} {slot.magazine:<10} {'here' if slot.attached else 'away'}"
                )
        self.tell()

    def tell(self) -> None:
        """Print what was logged since the last time."""
        journal = self.host.journal
        assert isinstance(journal, MemoryJournal)
        for record in journal.records[self._told :]:
            self._say(f"  | {record['MESSAGE']}")
        self._told = len(journal.records)


async def _drive(simulation: Simulation, say: Callable[[str], None]) -> int:
    agents = [
        asyncio.create_task(MediaAgent(simulation.config, simulation.host).run()),
        asyncio.create_task(ChangerAgent(Changer.open(simulation.file), simulation.host).run()),
    ]
    failures = 0
    lines: asyncio.Queue[str] = asyncio.Queue()
    teller = asyncio.create_task(_tell(simulation))
    try:
        await asyncio.sleep(0.1)
        # Each agent has put its own handler here, which ends that agent only.
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        assert me is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, me.cancel)
        threading.Thread(target=_read, args=(loop, lines), daemon=True).start()
        while text := await lines.get():
            if text.strip() == "quit":
                break
            if not sys.stdin.isatty():
                say(f"> {text.strip()}")
            try:
                await simulation.line(text)
            except MagbayError as error:
                failures += 1
                say(f"  {error.message}{' - ' + error.hint if error.hint else ''}")
            for agent in agents:
                if agent.done():
                    agent.result()
    except asyncio.CancelledError:
        pass  # Ctrl-C
    finally:
        for task in (*agents, teller):
            task.cancel()
        await asyncio.gather(*agents, teller, return_exceptions=True)
    return failures


def _read(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[str]) -> None:
    """Hand typed lines to the loop; an empty one is the end. For a daemon thread, so that Ctrl-C need not wait for it:
    hence not sys.stdin's buffer, whose lock the end of the process would wait for."""
    left = b""
    with contextlib.suppress(RuntimeError, OSError):  # the loop has ended
        while data := os.read(sys.stdin.fileno(), 65536):
            *whole, left = (left + data).split(b"\n")
            for line in whole:
                loop.call_soon_threadsafe(lines.put_nowait, line.decode("utf-8", "replace") + "\n")
        if left:
            loop.call_soon_threadsafe(lines.put_nowait, left.decode("utf-8", "replace"))
        loop.call_soon_threadsafe(lines.put_nowait, "")


async def _tell(simulation: Simulation) -> None:
    """What happens between two lines is told when it happens."""
    while True:
        await asyncio.sleep(_TELL)
        simulation.tell()


def run(file: Path, say: Callable[[str], None]) -> int:
    """Run on the configuration *file* until `quit` or the end of input; gives the number of lines that failed."""
    say(HELP)
    return asyncio.run(_drive(Simulation(file, say), say))


def default_config(folder: Path) -> Path:
    """A configuration below *folder* for a simulation; gives its path."""
    file = folder / "magbay.yaml"
    if not file.exists():
        file.write_text(
            "state_dir: state\nrun_dir: run\nmount_dir: mnt\nkey_file: key\nchanger: {name: sim, drives: 2}\n"
        )
    return file
