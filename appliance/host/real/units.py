"""systemd units through the system bus."""

from __future__ import annotations

from appliance.errors import MagbayError
from appliance.host.api import Bus, UnitState, Wake

_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"


class SystemdUnits:
    """PID 1's manager object. What may be started and stopped is polkit's word (systemd/polkit)."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def start(self, wake: Wake) -> None:
        """Call *wake* whenever a job of systemd ends."""
        await self._bus.watch(_MANAGER, "JobRemoved", wake)
        await self._bus.call(_NAME, _PATH, _MANAGER, "Subscribe")

    async def state(self, unit: str) -> UnitState:
        """The state of *unit*; one that was never loaded is inactive."""
        (path,) = await self._bus.call(_NAME, _PATH, _MANAGER, "LoadUnit", "s", [unit])
        active = await self._get(path, "org.freedesktop.systemd1.Unit", "ActiveState")
        if not unit.endswith(".service"):
            return UnitState(str(active))
        service = "org.freedesktop.systemd1.Service"
        result = await self._get(path, service, "Result")
        status = await self._get(path, service, "ExecMainStatus")
        return UnitState(str(active), str(result), int(status))

    async def _get(self, path: str, interface: str, name: str) -> str | int:
        (variant,) = await self._bus.call(
            _NAME, path, "org.freedesktop.DBus.Properties", "Get", "ss", [interface, name]
        )
        value: str | int = variant.value
        return value

    async def start_unit(self, unit: str) -> None:
        """Queue a start job."""
        await self._bus.call(_NAME, _PATH, _MANAGER, "StartUnit", "ss", [unit, "replace"])

    async def stop_unit(self, unit: str) -> None:
        """Queue a stop job; a unit that is not loaded is stopped already."""
        try:
            await self._bus.call(_NAME, _PATH, _MANAGER, "StopUnit", "ss", [unit, "replace"])
        except MagbayError as error:
            if "not loaded" not in error.message:
                raise

    async def reset_failed(self, unit: str) -> None:
        """Forget a failure."""
        try:
            await self._bus.call(_NAME, _PATH, _MANAGER, "ResetFailedUnit", "s", [unit])
        except MagbayError as error:
            if "not loaded" not in error.message:
                raise
