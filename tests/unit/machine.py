"""A machine whose devices and mounts are as a test gives them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.host.api import BlockDevice, Mount


@dataclass
class Machine:
    """Devices and mounts as given."""

    devices: tuple[BlockDevice, ...]
    mounts: tuple[Mount, ...] = ()

    def start(self, wake: object, gone: object = None) -> None: ...

    def enumerate(self) -> tuple[BlockDevice, ...]:
        return self.devices

    def table(self) -> tuple[Mount, ...]:
        return self.mounts

    async def trigger(self, path: Path) -> None: ...
