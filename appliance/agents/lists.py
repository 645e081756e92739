"""The media agent's part in the lists of volumes on magazines: has them made anew when a job has written there."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.host.api import Host, Mount
from appliance.host.names import lists_unit
from appliance.magazines import unlisted
from appliance.magazines.holders import lock_holders
from appliance.magazines.reports import DiskReport
from appliance.magazines.states import State
from appliance.magazines.stays import Retry

_QUIET = 60.0  # seconds without a writer, so that a row of jobs is followed by one reading


class ListKeeper:
    """Called after each look at the disks."""

    def __init__(self, config: Config, host: Host) -> None:
        self._config, self._host = config, host
        self._quiet: dict[str, float] = {}  # UUID of the file system to since when nobody writes
        self._retries: dict[str, Retry] = {}

    async def round(self, reports: Iterable[DiskReport]) -> None:
        """Start or stop what is due."""
        waiting = [r for r in reports if r.filesystem_uuid and unlisted.marked(self._config, r.filesystem_uuid)]
        table = {mount.path: mount for mount in self._host.mounts.table()} if waiting else {}
        for report in waiting:
            uuid = report.filesystem_uuid
            mount = table.get(str(self._config.mount_dir / uuid))
            if report.state is not State.MOUNTED or report.read_only or self._written(mount):
                self._quiet.pop(uuid, None)
                continue
            now = self._host.clock.now()
            retry = self._retries.setdefault(uuid, Retry(600.0, longest=6 * 3600.0))
            if now - self._quiet.setdefault(uuid, now) >= _QUIET and retry.due(now):
                retry.failed(now)  # until the mark is gone
                await self._ask(report.magazine)
        here = {report.filesystem_uuid for report in waiting}
        self._quiet = {uuid: since for uuid, since in self._quiet.items() if uuid in here}
        self._retries = {uuid: retry for uuid, retry in self._retries.items() if uuid in here}

    def _written(self, mount: Mount | None) -> bool:
        return mount is None or bool(lock_holders(mount))

    async def _ask(self, magazine: str) -> None:
        try:
            await self._host.units.start_unit(lists_unit(magazine))
        except MagbayError as error:
            text = f"the lists on magazine {magazine} are not made anew: {error.message}"
            self._host.journal.send(text, priority=4, MAGAZINE=magazine)
