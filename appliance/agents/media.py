"""The media agent: wires the reconciler to udev, systemd, D-Bus, the journal and the service manager."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.agents.announce import Announcer, status_line
from appliance.agents.health import HealthWatch
from appliance.agents.lists import ListKeeper
from appliance.agents.loop import Complaints, Wakeup, serve
from appliance.agents.names import MAGAZINE
from appliance.agents.names import MEDIA as BUS_NAME
from appliance.agents.names import MEDIA_ROOT as ROOT
from appliance.agents.rotation import SIGNAL, SIGNATURE, Rotation
from appliance.agents.settings import Reloading
from appliance.config.accepted import in_force
from appliance.config.schema import Config
from appliance.host.api import Host, Interface, Method
from appliance.host.files import write_atomic
from appliance.host.names import escape
from appliance.magazines.attached import MEDIA_ANSWER
from appliance.magazines.media import Media
from appliance.magazines.reports import DiskReport
from appliance.magazines.settings import Settings


class MediaAgent:
    """One instance is `magbay-media.service`."""

    def __init__(self, config: Config, host: Host, reloading: Reloading | None = None) -> None:
        self._config, self._host, self._reloading = config, host, reloading
        self._wakeup = Wakeup()
        self.media = Media(config, host, self._wakeup.set)
        self.reports: tuple[DiskReport, ...] = ()
        self._published: str | None = None
        self._exported: set[str] = set()
        self._complaints = Complaints(host, priority=3)
        self._rotation = Rotation(config, host)
        self._health = HealthWatch(config, host)
        self._announcer = Announcer(config, host)
        self._settings = Settings(config, host)
        self._lists = ListKeeper(config, host)

    async def run(self) -> None:
        """Serve until cancelled."""
        host, bus = self._host, self._host.bus
        host.devices.start(self._wakeup.set, self._wakeup.hurry)
        host.mounts.start(self._wakeup.set)
        await host.units.start(self._wakeup.set)
        bus.export(ROOT, self._interface())
        await bus.own(BUS_NAME)
        await serve(host, self._wakeup, self.look, self._reload)

    def _reload(self) -> None:
        """Go on with the configuration as it is now: what was found out of the disks that are here stays."""
        config = self._reloading.read() if self._reloading else None
        if config is not None:
            self._config = config
            for part in (self.media, self._rotation, self._health, self._announcer, self._settings, self._lists):
                part.config = config

    async def look(self) -> bool:
        """One reconcile; whether more is to come soon."""
        self.reports = self._health.taken_in(await self.media.reconcile())
        self._lists.note(self.reports)
        self._publish()
        self._rotation.round(self.reports)
        self._complaints.tell(tuple(f"an enrolment cannot be read: {e.message}" for e in self.media.damaged))
        await self._announcer.tell(self.reports)
        await self._settings.hand_on()
        await self._lists.round(self.reports)
        self._host.notify.status(status_line(self.reports))
        return any(report.busy for report in self.reports)

    def _publish(self) -> None:
        """The answer file first, then the signals: whoever is woken finds the new state."""
        # A line for each disk, for people; json's own indentation takes five times as long.
        answer = '{"disks": [\n' + ",\n".join(json.dumps(report.document()) for report in self.reports) + "\n]}"
        if answer != self._published:
            write_atomic(self._config.run_dir / MEDIA_ANSWER, answer.encode(), mode=0o644, durable=False)
            self._published = answer
            self._export()
            self._host.bus.emit(ROOT, BUS_NAME, "Changed", "", [])

    def _export(self) -> None:
        bus = self._host.bus
        # The disk in use comes after its refused copies, which bear the same name.
        ordered = sorted(self.reports, key=lambda report: bool(report.filesystem_uuid))
        wanted = {f"/org/magbay/magazine/{_element(r.magazine)}": r for r in ordered if r.magazine}
        for path in self._exported - set(wanted):
            bus.unexport(path)
        for path, report in wanted.items():
            bus.export(path, Interface(MAGAZINE, properties=_properties(report)))
        self._exported = set(wanted)

    def _interface(self) -> Interface:
        async def eject(name: str) -> Sequence[Any]:
            self.media.eject(name)
            self._wakeup.hurry()
            return ()

        async def undo_eject(name: str) -> Sequence[Any]:
            self.media.eject(name, wanted=False)
            self._wakeup.hurry()
            return ()

        async def rescan() -> Sequence[Any]:
            self.media.retry()
            self._wakeup.hurry()
            return ()

        return Interface(
            BUS_NAME,
            methods={
                "Eject": Method("s", "", eject),
                "UndoEject": Method("s", "", undo_eject),
                "Rescan": Method("", "", rescan),
            },
            signals={"Changed": "", "MagazineChanged": "ssss", SIGNAL: SIGNATURE},
            properties=lambda: {"Magazines": ("as", sorted({r.magazine for r in self.reports if r.magazine}))},
        )


def _properties(report: DiskReport) -> Any:
    texts = {
        "Name": report.magazine,
        "FilesystemUUID": report.filesystem_uuid,
        "LuksUUID": report.luks_uuid,
        "State": report.state.value,
        "Reason": report.reason,
        "Hint": report.hint,
        "Disk": report.node,
        "Serial": report.serial,
        "Health": report.health.condition.value if report.health else "",
    }
    return lambda: {name: ("s", _text(value)) for name, value in texts.items()} | {"ReadOnly": ("b", report.read_only)}


def _text(value: str) -> str:
    """D-Bus strings are UTF-8 without NUL; serial numbers of strange disks are not."""
    return value.encode("utf-8", "replace").decode("utf-8", "replace").replace("\0", "?")


def _element(name: str) -> str:
    """*name* as one element of an object path, as systemd does it."""
    return "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):02x}" for c in escape(name)) or "_"


def run(path: Path) -> None:
    """The process of `magbay-media.service`, with the configuration file *path*."""
    from appliance.host.real.connect import connect

    found = in_force(path)

    async def main() -> None:
        host = await connect()
        await MediaAgent(found.config, host, Reloading(path, found, host)).run()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
