"""The log file that a configuration of vchanger names. What the Changer Command says to the daemon goes there too."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from appliance.config import vchanger
from appliance.config.loader import is_vchanger
from appliance.errors import MagbayError


def append(config: str, text: str) -> None:
    """Append a line with *text* to the log of the configuration *config*, if it is one of vchanger and names a log.

    A log that cannot be written is no reason to fail: the daemon has the text already.
    """
    with contextlib.suppress(MagbayError, OSError, ValueError):
        path = Path(config)
        if not is_vchanger(path):
            return
        file = vchanger.read(path)
        if file.logfile is None or not file.logs_errors:
            return
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}]: {text}\n"
        fd = os.open(file.logfile, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            os.write(fd, line.encode("utf-8", "backslashreplace"))
        finally:
            os.close(fd)
