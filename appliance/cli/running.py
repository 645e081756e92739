"""What the commands that run a job share: being asked to stop, and telling of the job."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from appliance.changer.service import Changer
from appliance.cli.output import Output
from appliance.config.loader import DEFAULT_PATH
from appliance.errors import MagbayError
from appliance.host.real.services import Journald
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


def log_to(out: Output, config: Path) -> LogCallback:
    """Lines of the job for people, and on an appliance (the *config* file is the system's) for the journal too."""
    journal = Journald() if config == DEFAULT_PATH else None

    def log(text: str, fields: dict[str, str]) -> None:
        out.line(text)
        if journal is not None:
            journal.send(text, priority=6, **fields)

    return log


def refresh_changer(config: Path, out: Output) -> None:
    """Give new volumes their slots. The job or label is done already: trouble here is a warning."""
    try:
        Changer.open(config).refresh()
    except MagbayError as error:
        out.warn(f"magbay: the slots are not up to date: {error.message}")
