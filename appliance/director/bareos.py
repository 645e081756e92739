"""One session with a Bareos Director: arguments CONFIG and SECONDS, lines on standard input.

A process of its own because python-bareos waits for ever for a Director that hangs: SIGALRM ends it. The password is
read from the console's configuration, so it is in no argument.
"""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from typing import Any

from appliance.director.console import read_console_config
from appliance.errors import MagbayError

# Never matches: a reply ends with the Director's prompt, not with the first line such as "3000 OK label".
_NO_END = rb"(?!)"


def talk(config: Path, seconds: int, lines: list[str]) -> str:
    """Send *lines* to the Director of *config*; gives its replies. Raises `MagbayError`.

    The process dies by SIGALRM when the login or one of the commands takes more than *seconds*.
    """
    settings = read_console_config(config)
    try:
        bsock: Any = importlib.import_module("bareos.bsock")
        errors: Any = importlib.import_module("bareos.exceptions")
    except ImportError:
        raise MagbayError("python-bareos is not installed: install magbay[bareos]") from None
    named = {"name": settings["name"]} if settings["resource"] == "console" and "name" in settings else {}
    signal.alarm(seconds)
    try:
        console = bsock.DirectorConsole(
            address=settings["address"],
            port=int(settings["port"]),
            timeout=seconds,
            password=bsock.Password(settings["password"]),
            **named,
        )
        reply = b""
        for line in lines:
            signal.alarm(seconds)
            console.send(bytearray(line, "utf-8"))
            reply += bytes(console.recv_msg(regex=_NO_END)) + b"\n"
    except errors.AuthenticationError:
        raise MagbayError("it refused the password or the name of the console") from None
    except (OSError, ValueError, errors.Error) as error:
        raise MagbayError(f"{settings['address']}: {error or type(error).__name__}") from None
    return reply.decode("utf-8", "replace")


def main() -> int:
    """The process."""
    try:
        sys.stdout.write(talk(Path(sys.argv[1]), int(sys.argv[2]), sys.stdin.read().splitlines()))
    except MagbayError as error:
        sys.stderr.write(error.message + "\n")
        return 1
    return 0
