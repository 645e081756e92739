"""systemd units through the system bus."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.errors import MagbayError
from appliance.host.api import Bus, UnitState, Wake

_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_SERVICE = "org.freedesktop.systemd1.Service"
# (ActiveState, type of the queued job) of a unit whose job has not begun.
_QUEUED = {
    ("inactive", "start"): "activating",
    ("failed", "start"): "activating",
    ("active", "stop"): "deactivating",
    ("activating", "stop"): "deactivating",
}


class SystemdUnits:
    """PID 1's manager object. What may be started and stopped is polkit's word (systemd/polkit)."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def start(self, wake: Wake) -> None:
        """Call *wake* whenever a job of systemd ends."""
        await self._bus.watch(_MANAGER, "JobRemoved", wake)
        await self._bus.call(_NAME, _PATH, _MANAGER, "Subscribe")

    async def states(self, patterns: Sequence[str]) -> dict[str, UnitState]:
        """All loaded units that match, in one call; how they ended is asked of those only that failed.

        A job that waits for its turn counts as begun.
        """
        (units,) = await self._bus.call(_NAME, _PATH, _MANAGER, "ListUnitsByPatterns", "asas", [[], list(patterns)])
        found = {}
        for name, _description, _loaded, active, _sub, _following, path, _job, verb, _job_path in units:
            found[name] = UnitState(_QUEUED.get((active, verb), active))
            if active == "failed" and not verb:
                result = await self._get(path, _SERVICE, "Result")
                found[name] = UnitState(active, str(result), int(await self._get(path, _SERVICE, "ExecMainStatus")))
        return found

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
