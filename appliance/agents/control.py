"""Asking the media agent for something, from a command.

What it takes to ask is quick to import, so that the agent can begin while the command still reads its configuration.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from appliance.agents.names import MEDIA, MEDIA_ROOT
from appliance.errors import AwayError, MagbayError, NotFoundError
from appliance.host.commands import attempt

if TYPE_CHECKING:
    from appliance.config.schema import Config

_LOOK = 0.1  # seconds between two looks at the published answer
_GRACE = 2.0  # seconds in which a failure may be that of before the request


def of_magazine(config: Config, name: str) -> dict[str, Any]:
    """The published disk of magazine *name*. Raises `NotFoundError`, `AwayError`, `MagbayError` (it has no disk)."""
    from appliance.magazines.attached import enrolments

    disk = _disk_of(config, name)
    if disk is not None:
        return disk
    if any(enrolment.name == name for enrolment in enrolments(config)):
        raise AwayError(
            f"magazine {name} is not here", hint="Plug its disk in; 'magbay status' shows what is in the bays."
        )
    if any(magazine.name == name for magazine in config.magazines):
        raise MagbayError(
            f"magazine {name} is a plain directory: there is no disk to eject", hint="Unmount its file system yourself."
        )
    raise NotFoundError(f"no enrolled magazine is called {name}", hint="'magbay magazine list' shows the known ones.")


def _disk_of(config: Config, name: str) -> dict[str, Any] | None:
    """The published disk of magazine *name*; None while it is in no bay."""
    from appliance.magazines.attached import published

    return next((d for d in published(config) or [] if d["magazine"] == name and d["state"] != "gone"), None)


def ask(member: str, signature: str = "", *values: str) -> None:
    """Call a method of the media agent. Raises `MagbayError` when there is none or it refuses.

    By busctl(1), which is wherever an agent runs: bringing up a bus client here would take longer than all else that a
    command does.
    """
    words = ["busctl", "--system", "--quiet", "call", MEDIA, MEDIA_ROOT, MEDIA, member]
    status, _, complaint = attempt([*words, *([signature, *values] if signature else [])], "asking the media agent")
    if status != 0:
        raise MagbayError(
            f"the media agent: {complaint.strip().removeprefix('Call failed: ') or f'busctl ended with {status}'}",
            hint="Is it running? 'systemctl status magbay-media' says; the call needs root or group tape.",
        )


def wait_for(
    config: Config, name: str, states: tuple[str, ...], seconds: float, told: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Wait until the disk of magazine *name* is in one of *states*; *told* hears of each change on the way.

    Raises `MagbayError` when it fails or *seconds* pass.
    """
    start = time.monotonic()
    last: tuple[str, str] | None = None
    while True:
        disk = _disk_of(config, name)
        if disk is not None and (disk["state"], disk["reason"]) != last:
            last = (disk["state"], disk["reason"])
            told(disk)
        if disk is not None and disk["state"] in states:
            return disk
        passed = time.monotonic() - start
        if disk is not None and disk["state"] == "failed" and passed > _GRACE:
            raise MagbayError(f"magazine {name}: {disk['reason']}", hint=disk["hint"])
        if passed > seconds:
            reached = f"is {last[0]}" + (f" ({last[1]})" if last[1] else "") if last else "has not appeared"
            raise MagbayError(
                f"magazine {name} {reached} after {seconds:.0f} s", hint="'magbay status' shows how it goes on."
            )
        time.sleep(_LOOK)
