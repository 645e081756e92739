"""The media agent: wires the reconciler to udev, systemd, D-Bus, the journal and the service manager."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

from appliance.agents.health import HealthWatch
from appliance.agents.loop import Complaints, Wakeup, serve
from appliance.agents.names import MAGAZINE
from appliance.agents.names import MEDIA as BUS_NAME
from appliance.agents.names import MEDIA_ROOT as ROOT
from appliance.agents.rotation import SIGNAL, SIGNATURE, Rotation
from appliance.config.schema import Config
from appliance.host.api import Host, Interface, Method
from appliance.host.files import write_atomic
from appliance.host.names import escape
from appliance.magazines.attached import MEDIA_ANSWER
from appliance.magazines.media import DiskReport, Media
from appliance.magazines.states import State

# systemd's message ids are 128-bit constants; these are ours (systemd/catalog explains them to the reader).
_MESSAGES = {
    State.MOUNTED: "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a01",
    State.SAFE: "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a02",
    State.GONE: "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a03",
    State.FAILED: "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a04",
}


class MediaAgent:
    """One instance is `magbay-media.service`."""

    def __init__(self, config: Config, host: Host) -> None:
        self._config, self._host = config, host
        self._wakeup = Wakeup()
        self._media = Media(config, host, self._wakeup.set)
        self._reports: tuple[DiskReport, ...] = ()
        self._published: str | None = None
        self._exported: set[str] = set()
        self._complaints = Complaints(host, priority=3)
        self._rotation = Rotation(config, host)
        self._health = HealthWatch(config, host)

    async def run(self) -> None:
        """Serve until cancelled."""
        host, bus = self._host, self._host.bus
        host.devices.start(self._wakeup.set)
        host.mounts.start(self._wakeup.set)
        await host.units.start(self._wakeup.set)
        bus.export(ROOT, self._interface())
        await bus.own(BUS_NAME)
        await serve(host, self._wakeup, self._round)

    async def _round(self) -> bool:
        """One reconcile; whether more is to come soon."""
        before = {(report.node, report.luks_uuid): report for report in self._reports}
        self._reports = self._health.taken_in(await self._media.reconcile())
        self._publish()
        self._rotation.round(self._reports)
        self._complaints.tell(tuple(f"an enrolment cannot be read: {e.message}" for e in self._media.damaged))
        nodes = {report.node for report in self._reports}
        for report in self._reports:
            self._announce(before.get((report.node, report.luks_uuid)), report)
        for key, report in before.items():
            if key[0] not in nodes and not report.magazine:
                self._log(report, f"disk {key[0]} ({report.serial or 'no serial'}) unplugged", 6, "gone")
        self._host.notify.status(status_line(self._reports))
        return any(report.busy for report in self._reports)

    def _publish(self) -> None:
        """The answer file first, then the signals: whoever is woken finds the new state."""
        answer = json.dumps({"disks": [report.document() for report in self._reports]}, indent=1)
        if answer != self._published:
            write_atomic(self._config.run_dir / MEDIA_ANSWER, answer.encode(), mode=0o644, durable=False)
            self._published = answer
            self._export()
            self._host.bus.emit(ROOT, BUS_NAME, "Changed", "", [])

    def _export(self) -> None:
        bus = self._host.bus
        # The disk in use comes after its refused copies, which bear the same name.
        ordered = sorted(self._reports, key=lambda report: bool(report.filesystem_uuid))
        wanted = {f"/org/magbay/magazine/{_element(r.magazine)}": r for r in ordered if r.magazine}
        for path in self._exported - set(wanted):
            bus.unexport(path)
        for path, report in wanted.items():
            bus.export(path, Interface(MAGAZINE, properties=_properties(report)))
        self._exported = set(wanted)

    def _announce(self, old: DiskReport | None, new: DiskReport) -> None:
        if old == new:
            return
        if new.magazine:
            values = [new.magazine, new.filesystem_uuid, new.state.value, new.reason]
            self._host.bus.emit(ROOT, BUS_NAME, "MagazineChanged", "ssss", values)
        if old is None and new.state is State.GONE:
            return  # the agent has just started: a magazine that is away is no news
        if old is not None and (old.state, old.reason) == (new.state, new.reason):
            return
        what = f"magazine {new.magazine}" if new.magazine else f"disk {new.node} ({new.serial or 'no serial'})"
        reason = f": {new.reason}" if new.reason else ""
        where = f" ({new.node}, {new.serial or 'no serial'})" if new.magazine and new.node else ""
        state = "away" if new.state is State.GONE else new.state.value
        hint = f" {new.hint}" if new.hint else ""
        self._log(new, f"{what} is {state}{where}{reason}.{hint}".replace("..", "."), _priority(new.state), state)

    def _log(self, report: DiskReport, text: str, priority: int, state: str) -> None:
        fields = {
            "MAGAZINE": report.magazine,
            "DISK": report.node,
            "SERIAL": report.serial,
            "STATE": state,
            "REASON": report.reason,
            "FILESYSTEM_UUID": report.filesystem_uuid,
            "LUKS_UUID": report.luks_uuid,
            "MESSAGE_ID": _MESSAGES.get(report.state, ""),
        }
        known = {key: value for key, value in fields.items() if value}
        self._host.journal.send(text, priority=priority, **known)

    def _interface(self) -> Interface:
        async def eject(name: str) -> Sequence[Any]:
            self._media.eject(name)
            return ()

        async def rescan() -> Sequence[Any]:
            self._media.retry()
            return ()

        return Interface(
            BUS_NAME,
            methods={"Eject": Method("s", "", eject), "Rescan": Method("", "", rescan)},
            signals={"Changed": "", "MagazineChanged": "ssss", SIGNAL: SIGNATURE},
            properties=lambda: {"Magazines": ("as", sorted({r.magazine for r in self._reports if r.magazine}))},
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


def _priority(state: State) -> int:
    return {State.FAILED: 3, State.SAFE: 5, State.MOUNTED: 5}.get(state, 6)


def status_line(reports: Sequence[DiskReport]) -> str:
    """One line for `systemctl status`."""
    here = [f"{r.magazine} {r.state.value}" for r in reports if r.magazine and r.state is not State.GONE]
    away = [r.magazine for r in reports if r.state is State.GONE]
    foreign = sum(1 for r in reports if r.state is State.FOREIGN)
    parts = ["; ".join(here) if here else "no magazine in a bay"]
    if away:
        parts.append("away: " + ", ".join(away))
    if foreign:
        parts.append(f"{foreign} foreign disk{'s' if foreign > 1 else ''} left alone")
    return " | ".join(parts)


def run(config: Config) -> None:
    """The process of `magbay-media.service`."""
    from appliance.host.real.connect import connect

    async def main() -> None:
        await MediaAgent(config, await connect()).run()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
