"""A job that waits for a magazine, or for its catalog: it says so, looks again and again, and gives up in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.config.schema import Config
from appliance.magazines import attached
from appliance.storage.catalog import Catalog
from appliance.storage.joblog import JobLog
from appliance.storage.lasting import Outage
from appliance.storage.output import Cancelled

# Seconds between two looks at what is attached; after so many looks a place that was full may have room again.
_LOOK = 1.0
_AGAIN = 30


@dataclass(frozen=True)
class Waiting:
    """How long (seconds) a job waits for a magazine: before it has written anything, and when it needs the next one."""

    first: int = 0
    next: int = 0


class Patience:
    """The waiting of one job. *status* is told a line for `systemctl status`, *pause* lets time pass (seconds)."""

    def __init__(
        self,
        catalog: Catalog,
        config: Config,
        log: JobLog,
        waiting: Waiting,
        cancelled: Callable[[], bool],
        status: Callable[[str], None] = lambda text: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._catalog = catalog
        self._config = config
        self._log = log
        self._waiting = waiting
        self._cancelled = cancelled
        self._status = status
        self._pause = pause
        self._deadline: float | None = None

    def wait(self, reason: str, wanted: Sequence[str], *, begun: bool) -> bool:
        """Return when another look is worth while; False when the time is up. Raises `Cancelled`."""
        limit = self._waiting.next if begun else self._waiting.first
        if self._deadline is None:
            self._deadline = time.monotonic() + limit
            if limit:
                self._tell(reason, wanted, limit)
        here = self._here()
        for _ in range(_AGAIN):
            if time.monotonic() >= self._deadline:
                return False
            if self._cancelled():
                self.over()
                raise Cancelled
            self._pause(min(_LOOK, max(0.0, self._deadline - time.monotonic())))
            if self._here() != here:
                return True
        return True

    def over(self) -> None:
        """The waiting, if any, is over."""
        if self._deadline is not None:
            self._deadline = None
            self._catalog.change("UPDATE Job SET Waiting='' WHERE JobId=?", (self._log.job_id,))
            self._status("running")

    def _tell(self, reason: str, wanted: Sequence[str], limit: int) -> None:
        names = " or ".join(wanted) or "another magazine"
        text = f"{reason}: waiting for {names}, at most {_words(limit)}"
        self._log.info(text, MAGAZINE=wanted[0] if wanted else "")
        self._catalog.change("UPDATE Job SET Waiting=? WHERE JobId=?", (names, self._log.job_id))
        self._status(f"waiting for magazine {names}")

    def _here(self) -> frozenset[tuple[str, bool]]:
        return frozenset((m.identity, m.writable) for m in attached.attached(self._config))


def outage(
    seconds: int,
    log: JobLog,
    cancelled: Callable[[], bool],
    status: Callable[[str], None],
    pause: Callable[[float], None],
) -> Outage:
    """How a job waits *seconds* for a database that went away; `Cancelled` ends it."""

    def told(text: str) -> None:
        log.aside(text)
        status(text)

    def wait(seconds: float) -> None:
        if cancelled():
            raise Cancelled
        pause(seconds)

    return Outage(seconds, told, wait)


def _words(seconds: int) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
