"""Telling people of what happened to disks: journal, D-Bus signal, console, hooks.

What was told is kept in `run_dir/told.json`, so that a restarted agent tells everything once: what happened while
it was away, and nothing that is old.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.agents.names import MEDIA, MEDIA_ROOT
from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.host.api import Host
from appliance.host.files import write_atomic
from appliance.host.names import hook_unit
from appliance.magazines.reports import DiskReport
from appliance.magazines.states import State

# systemd's message ids are 128-bit constants; these are ours (systemd/catalog explains them to the reader).
_MESSAGES = {
    State.MOUNTED: "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a01",
    State.SAFE: "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a02",
    State.GONE: "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a03",
    State.FAILED: "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a04",
}
_CHECKED = "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a11"
_CLEAN = "clean"  # what the check of a file system says when there was nothing to do
_READY = (State.MOUNTED.value, State.IDLE.value)


@dataclass(frozen=True)
class _Told:
    """What was told last of one disk."""

    name: str = ""  # as in sentences
    state: str = ""
    reason: str = ""
    checked: str = ""
    foreign: str = ""  # node of a disk that is none of ours


class Announcer:
    """Compares what is with what was told."""

    def __init__(self, config: Config, host: Host) -> None:
        self.config, self._host = config, host
        self._file = config.run_dir / "told.json"
        self._told = self._read()

    def _read(self) -> dict[str, _Told]:
        try:
            return {key: _Told(**told) for key, told in json.loads(self._file.read_bytes()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # none yet, or of another version

    async def tell(self, reports: Sequence[DiskReport]) -> None:
        """Tell what is new in *reports*. Raises `OSError` when that cannot be kept."""
        now: dict[str, _Told] = {}
        for report in reports:
            key = f"{report.luks_uuid if report.magazine else report.node} {report.serial}"
            foreign = "" if report.magazine else report.node
            told = _Told(_name(report), report.state.value, report.reason, report.checked, foreign)
            now[key] = told
            before = self._told.get(key)
            if before != told:
                await self._news(before or _Told(), report)
        nodes = {report.node for report in reports}
        for key in self._told.keys() - now.keys():
            if self._told[key].foreign and self._told[key].foreign not in nodes:
                self._host.journal.send(f"{self._told[key].name} unplugged", priority=6, STATE="gone")
        if now != self._told:
            document = {key: vars(told) for key, told in now.items()}
            write_atomic(self._file, json.dumps(document).encode(), mode=0o644, durable=False)
            self._told = now

    async def _news(self, before: _Told, report: DiskReport) -> None:
        if report.checked and report.checked != before.checked:
            priority = 6 if report.checked == _CLEAN else 4
            text = f"magazine {report.magazine}: its file system was checked: {report.checked}"
            self._log(report, text, priority, {"CHECKED": report.checked, "MESSAGE_ID": _CHECKED})
        if (report.state.value, report.reason) == (before.state, before.reason):
            return
        if report.magazine:
            values = [report.magazine, report.filesystem_uuid, report.state.value, report.reason]
            self._host.bus.emit(MEDIA_ROOT, MEDIA, "MagazineChanged", "ssss", values)
        if report.state is State.GONE and before.state in ("", State.GONE.value):
            return  # the machine has just started, or what was left behind is cleared away: no news
        state = "away" if report.state is State.GONE else report.state.value
        text = _sentence(report, state)
        message = _MESSAGES.get(report.state)
        self._log(report, text, _priority(report.state), {"MESSAGE_ID": message} if message else {})
        if report.magazine and (report.state in _MESSAGES or report.holders):
            self._host.console.say(text)
        await self._hook(before, report)

    async def _hook(self, before: _Told, report: DiskReport) -> None:
        if not report.magazine or report.state.value == before.state:
            return
        hooks, event = self.config.hooks, ""
        if report.state is State.MOUNTED and before.state not in _READY and hooks.arrived:
            event = "arrived"
        elif report.state is State.SAFE and hooks.safe_to_remove:
            event = "safe_to_remove"
        elif report.state is State.FAILED and hooks.failed:
            event = "failed"
        elif report.state is State.GONE and before.state != State.SAFE.value and hooks.pulled:
            event = "pulled"
        if event:
            try:
                await self._host.units.start_unit(hook_unit(event, report.magazine))
            except MagbayError as error:
                self._log(report, f"the hook {event} of magazine {report.magazine} was not run: {error.message}", 4, {})

    def _log(self, report: DiskReport, text: str, priority: int, more: dict[str, str]) -> None:
        fields = {
            "MAGAZINE": report.magazine,
            "DISK": report.node,
            "SERIAL": report.serial,
            "STATE": "away" if report.state is State.GONE else report.state.value,
            "REASON": report.reason,
            "FILESYSTEM_UUID": report.filesystem_uuid,
            "LUKS_UUID": report.luks_uuid,
        } | more
        self._host.journal.send(text, priority=priority, **{key: value for key, value in fields.items() if value})


def _name(report: DiskReport) -> str:
    return f"magazine {report.magazine}" if report.magazine else f"disk {report.node} ({report.serial or 'no serial'})"


def _sentence(report: DiskReport, state: str) -> str:
    where = f" ({report.node}, {report.serial or 'no serial'})" if report.magazine and report.node else ""
    reason = f": {report.reason}" if report.reason else ""
    hint = f" {report.hint}" if report.hint else ""
    return f"{_name(report)} is {state}{where}{reason}.{hint}".replace("..", ".")


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
