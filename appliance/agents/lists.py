"""The media agent's part in the lists of volumes on magazines: has them made anew when somebody has written there.

Jobs of ours leave a mark. A daemon of Bacula or Bareos leaves none: that it has written is seen by the device's own
count of what was written, and when that has stood still for a while, the volumes are compared with the lists, once.
Nothing is looked at on the magazine before, because each look puts off its becoming idle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.host.api import Host, Mount
from appliance.host.names import lists_unit
from appliance.magazines import leaflet, unlisted
from appliance.magazines.holders import lock_holders
from appliance.magazines.reports import DiskReport
from appliance.magazines.states import State
from appliance.magazines.stays import Retry

_QUIET = 60.0  # seconds without a writer, so that a row of jobs is followed by one reading
_LONGEST_LOOK = 10.0  # seconds; a dying disk may never answer
_EJECTED = (State.EJECTING, State.SAFE)


class ListKeeper:
    """Called after each look at the disks."""

    def __init__(self, config: Config, host: Host) -> None:
        self.config, self._host = config, host
        # By UUID of the file system:
        self._quiet: dict[str, tuple[int, float]] = {}  # what was written by then, and since when nobody writes
        self._compared: dict[str, int] = {}  # what was written when the lists were found to be current
        self._retries: dict[str, Retry] = {}

    def note(self, reports: Sequence[DiskReport]) -> None:
        """Take in what root's eject units have found: magazines whose lists lack checksums."""
        for report in reports:
            if report.filesystem_uuid and report.state in _EJECTED:
                older = self._host.answers.text(f"{report.luks_uuid}.lists").strip() == "older"
                if older and not unlisted.marked(self.config, report.filesystem_uuid):
                    unlisted.mark(self.config, report.filesystem_uuid)

    async def round(self, reports: Sequence[DiskReport]) -> None:
        """Start what is due."""
        open_ = [r for r in reports if r.filesystem_uuid and r.state is State.MOUNTED and not r.read_only]
        table = {mount.path: mount for mount in self._host.mounts.table()} if open_ else {}
        for report in open_:
            mount = table.get(str(self.config.mount_dir / report.filesystem_uuid))
            if mount is None:
                self._quiet.pop(report.filesystem_uuid, None)
            else:
                await self._one(report, mount)
        here = {report.filesystem_uuid for report in open_}
        self._quiet = {uuid: since for uuid, since in self._quiet.items() if uuid in here}
        in_bays = {report.filesystem_uuid for report in reports if report.filesystem_uuid}
        self._compared = {uuid: count for uuid, count in self._compared.items() if uuid in in_bays}
        self._retries = {uuid: retry for uuid, retry in self._retries.items() if unlisted.marked(self.config, uuid)}

    async def _one(self, report: DiskReport, mount: Mount) -> None:
        uuid, now, written = report.filesystem_uuid, self._host.clock.now(), self._host.mounts.written(mount)
        marked = unlisted.marked(self.config, uuid)
        if not marked and self._compared.get(uuid) == written:
            return
        if lock_holders(mount):
            self._quiet.pop(uuid, None)
            return
        before, since = self._quiet.get(uuid, (written, now))
        if before != written:
            since = now
        self._quiet[uuid] = (written, since)
        if now - since < min(_QUIET, self.config.mounts.idle_timeout / 2):
            return
        if not marked:
            self._compared[uuid] = written
            if await self._current(Path(mount.path)):
                return
            unlisted.mark(self.config, uuid)
        retry = self._retries.setdefault(uuid, Retry(600.0, longest=6 * 3600.0))
        if retry.due(now):
            retry.failed(now)  # until the mark is gone
            await self._ask(report.magazine)

    async def _current(self, path: Path) -> bool:
        try:
            return await asyncio.wait_for(asyncio.to_thread(leaflet.current, path), _LONGEST_LOOK)
        except (OSError, TimeoutError):
            return True  # pulled, or not for us: no lists could be made either

    async def _ask(self, magazine: str) -> None:
        try:
            await self._host.units.start_unit(lists_unit(magazine))
        except MagbayError as error:
            text = f"the lists on magazine {magazine} are not made anew: {error.message}"
            self._host.journal.send(text, priority=4, MAGAZINE=magazine)
