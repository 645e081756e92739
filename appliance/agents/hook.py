"""The process of `magbay-hook@.service`: becomes the command that the configuration has for an event."""

from __future__ import annotations

import os

from appliance.config.schema import Config
from appliance.errors import MagbayError, NotFoundError, UsageError
from appliance.magazines.attached import published

EVENTS = ("arrived", "safe_to_remove", "failed", "pulled")


def run(config: Config, what: str) -> None:
    """Become the command for *what*, an event and a magazine with a slash between.

    Raises `UsageError`, `NotFoundError` (no command for the event), `MagbayError` (it cannot be run).
    """
    event, _, name = what.partition("/")
    if event not in EVENTS or not name:
        raise UsageError(f"{what!r} is no event and magazine", hint=f"Events are: {', '.join(EVENTS)}.")
    command: tuple[str, ...] = getattr(config.hooks, event)
    if not command:
        raise NotFoundError(f"the configuration has no command for {event}", hint=f"Set hooks.{event}.")
    disk = next((disk for disk in published(config) or [] if disk["magazine"] == name), {})
    about = {
        "MAGBAY_EVENT": event,
        "MAGBAY_MAGAZINE": name,
        "MAGBAY_STATE": disk.get("state", ""),
        "MAGBAY_REASON": disk.get("reason", ""),
    }
    try:
        os.execvpe(command[0], command, dict(os.environ) | about)  # noqa: S606 (words of the configuration, no shell)
    except OSError as error:
        raise MagbayError(f"{command[0]}: {error.strerror}", hint=f"Correct hooks.{event}.") from None
