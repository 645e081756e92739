"""What the commands that run a job share: being asked to stop, and telling of the job."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

from appliance.changer.service import Changer
from appliance.cli.output import Output, one_line, silence
from appliance.config.loader import load
from appliance.config.place import DEFAULT_PATH
from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.host.real.services import Journald
from appliance.storage.joblog import INFO, LogCallback

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Request = TypeVar("Request", contravariant=True)
Result = TypeVar("Result", covariant=True)


class Reading(Protocol[Request, Result]):
    """The entry points of restore and verify."""

    def __call__(
        self,
        config: Config,
        request: Request,
        *,
        log: LogCallback,
        progress: Callable[[int], None],
        started: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> Result: ...


@contextlib.contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that is set when the process is asked to end; the job then ends as cancelled.

    An ignored SIGHUP stays ignored: that is how nohup(1) keeps a job alive when its terminal is closed.
    """
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    heard = [number for number in _SIGNALS if number != signal.SIGHUP or hangup]
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def heard_or_not() -> Iterator[None]:
    """A job, and the status that it ends with, do not depend on somebody who reads its words (`| head -1`)."""
    try:
        yield
    except BrokenPipeError:
        silence(sys.stdout)


def log_to(out: Output, config: Path) -> LogCallback:
    """What the job does, for people; its troubles come with the result.

    On an appliance (the *config* file is the system's) the journal gets all lines.
    """
    journal = Journald() if config == DEFAULT_PATH else None
    # systemd sets it for what it connects to the journal (systemd.exec(5)): there each line would stand twice.
    printed = journal is None or "JOURNAL_STREAM" not in os.environ

    def log(text: str, fields: dict[str, str]) -> None:
        others = {key: value for key, value in fields.items() if key != "PRIORITY"}
        priority = fields.get("PRIORITY", INFO)
        if priority == INFO and printed:
            with heard_or_not():
                out.line(one_line(text))
        if journal is not None:
            journal.send(text, priority=int(priority), **others)

    return log


def run_reading(work: Reading[Request, Result], label: str, config: Path, request: Request, out: Output) -> Result:
    """Run *work* on the configuration in the file *config*: stoppable, with progress called *label*, telling *out*."""
    with stoppable() as asked, out.progress(label) as display:

        def started(total: int) -> None:
            display.total = display.done + total

        return work(
            load(config),
            request,
            log=log_to(out, config),
            progress=display.advance,
            started=started,
            cancelled=asked.is_set,
        )


def warn_of(out: Output, *lines: Sequence[str]) -> None:
    """Print the warnings and errors of a result."""
    for line in (one for some in lines for one in some):
        out.warn(f"magbay: {line}")


def refresh_changer(config: Path, out: Output) -> None:
    """Give new volumes their slots. The job or label is done already: trouble here is a warning."""
    try:
        Changer.open(config).refresh()
    except (MagbayError, OSError) as error:
        out.warn(f"magbay: the slots are not up to date: {error}")
