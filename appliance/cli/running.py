"""What the commands that run a job share: being asked to stop, and telling of the job."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from appliance.cli.output import Output
from appliance.storage.joblog import LogCallback

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that is set when the process is asked to end; the job then ends as cancelled."""
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_to(out: Output) -> LogCallback:
    """Lines of the job for people."""

    def log(text: str, _fields: dict[str, str]) -> None:
        out.line(text)

    return log
