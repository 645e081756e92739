"""Handing on to root's one-shot units what the configuration says: how to eject, when a magazine counts as idle.

Those units do not read the configuration. They accept from here nothing but the words below.
"""

from __future__ import annotations

import contextlib
import re

from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.host.api import Host
from appliance.host.files import write_atomic
from appliance.host.names import idle_unit
from appliance.magazines.stays import Retry

_TIMEOUT = re.compile(r"timeout=(\d+)")


class Settings:
    """Compares what is in force with the configuration, and asks for the change."""

    def __init__(self, config: Config, host: Host) -> None:
        self.config, self._host = config, host
        self._retry = Retry(60.0)
        self._written = ""

    async def hand_on(self) -> None:
        """One look. Raises `OSError` when `run_dir` cannot be written."""
        text = f"power_down={'yes' if self.config.eject.power_down else 'no'}\n"
        if text != self._written:
            write_atomic(self.config.run_dir / "settings", text.encode(), mode=0o644, durable=False)
            self._written = text
        wanted, now = self.config.mounts.idle_timeout, self._host.clock.now()
        if self._timeout() in (None, wanted):
            self._retry.reset()
        elif self._retry.due(now):
            self._retry.failed(now)  # until it is seen in the mount table
            with contextlib.suppress(MagbayError):
                await self._host.units.start_unit(idle_unit(wanted))

    def _timeout(self) -> int | None:
        """The idle time (seconds) of the autofs at our mount directory; None without one."""
        for mount in self._host.mounts.table():
            if mount.fs_type == "autofs" and mount.path == str(self.config.mount_dir):
                found = _TIMEOUT.search(mount.options)
                return int(found[1]) if found else None
        return None
