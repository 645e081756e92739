"""The event loop that every agent has: woken by hints, at the latest by a timer; feeds the watchdog from the loop."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from appliance.errors import MagbayError
from appliance.host.api import Host

_SOON = 1.0  # seconds until the next look while something is on its way
_LATEST = 15.0  # seconds until the next look without any hint; well below WatchdogSec of the units
_SETTLE = 0.02  # seconds at least in which a burst of hints becomes one look
_MOST_SETTLE = 1.0
_SHARE = 0.1  # of a processor that looking may take in the long run
_PURSE = 1.0  # seconds of a processor that looking may take at once


class Wakeup:
    """A flag that wakes the loop; setting it any number of times wakes once."""

    def __init__(self) -> None:
        self._event, self._hurry = asyncio.Event(), asyncio.Event()

    def set(self) -> None:
        """Something may have changed."""
        self._event.set()

    def hurry(self) -> None:
        """Something has changed for which somebody waits."""
        self._hurry.set()
        self._event.set()

    async def wait(self, seconds: float, settle: float = _SETTLE, hurried: float = _SETTLE) -> None:
        """Return *settle* seconds after it was set, *hurried* seconds after it if that is in a hurry, or after
        *seconds*."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
            await asyncio.sleep(min(settle, hurried))
            await asyncio.wait_for(self._hurry.wait(), max(0.0, settle - hurried))
        except TimeoutError:
            pass
        self._event.clear()
        self._hurry.clear()


class Pace:
    """How long hints are gathered before the next look.

    A look after each hint is quickest for one disk. A dock full of disks gives hints without end, and opening the disks
    needs the processors more than looking at them: then looking takes a tenth of one processor. What is in a hurry
    (a disk that is pulled, a person who asks) does not wait for that, see `Wakeup`.
    """

    def __init__(self, now: float) -> None:
        self._spent, self._then = 0.0, now

    def settle(self, computed: float, now: float) -> float:
        """Seconds to gather, at *now* (seconds of a monotonic clock), after a look that took *computed* seconds of a
        processor."""
        self._spent = max(0.0, self._spent - _SHARE * (now - self._then)) + computed
        self._then = now
        return min(max(_SETTLE, (self._spent - _PURSE) / _SHARE), _MOST_SETTLE)


class Complaints:
    """Things that are wrong, each told to the journal when it begins and not again while it lasts."""

    def __init__(self, host: Host, priority: int) -> None:
        self._host, self._priority = host, priority
        self._known: tuple[str, ...] = ()

    def tell(self, problems: tuple[str, ...]) -> None:
        """All that is wrong now."""
        for problem in problems:
            if problem not in self._known:
                self._host.journal.send(problem, priority=self._priority)
        self._known = problems


async def serve(
    host: Host, wakeup: Wakeup, look: Callable[[], Awaitable[bool]], reload: Callable[[], None] = lambda: None
) -> None:
    """Call *look* now, after every hint and at least every 15 s, until SIGTERM or cancellation; *reload* between two
    looks, after SIGHUP.

    Raises `MagbayError` when the bus is lost: the service manager starts the agent anew, with a new connection.
    """
    loop = asyncio.get_running_loop()
    stopping = reloading = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        wakeup.hurry()

    def hang_up() -> None:
        nonlocal reloading
        reloading = True
        wakeup.set()

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    lost = asyncio.ensure_future(host.bus.closed())
    lost.add_done_callback(lambda _done: wakeup.hurry())
    pace = Pace(time.monotonic())
    settle = computed = 0.0
    try:
        soon = await look()
        host.notify.ready()
        while not stopping:
            host.notify.alive()
            await wakeup.wait(_SOON if soon else _LATEST, settle, max(_SETTLE, computed))
            if lost.done():
                raise MagbayError("the system bus closed the connection", hint="systemd starts the agent anew.")
            if reloading:
                reloading = False
                host.notify.reloading()
                reload()
                soon = await look()
                host.notify.ready()
            elif not stopping:
                began = time.process_time()
                soon = await look()
                computed = time.process_time() - began
                settle = pace.settle(computed, time.monotonic())
        host.notify.stopping()
    finally:
        lost.cancel()
