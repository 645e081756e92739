"""What is restored goes to the disk while the restore runs, so that little is left to wait for at its end.

By itself the kernel would begin when a tenth of the memory is dirty or half a minute is over
(vm.dirty_background_ratio, vm.dirty_expire_centisecs): creating files would come first, and writing only behind it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

WRITEOUT_BYTES = 32 << 20
_LOOK_SECONDS = 0.2
_PER_FILE = 4096  # bytes that a file costs beside its data


class Writeout:
    """A thread that calls *sync* again and again while *done* (files, bytes) grows. `stop` it."""

    def __init__(self, sync: Callable[[], None], done: Callable[[], tuple[int, int]]) -> None:
        self._sync = sync
        self._done = done
        self._stop = threading.Event()
        self.trouble: OSError | None = None
        """What a sync met: the kernel tells it once only."""
        self._thread = threading.Thread(target=self._run, name="writeout", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        synced = 0
        while not self._stop.wait(_LOOK_SECONDS):
            files, size = self._done()
            reached = size + files * _PER_FILE
            if reached - synced < WRITEOUT_BYTES:
                continue
            try:
                self._sync()
            except OSError as error:
                self.trouble = error
                return
            synced = reached

    def stop(self) -> None:
        """Return when no sync runs any more."""
        self._stop.set()
        self._thread.join()
