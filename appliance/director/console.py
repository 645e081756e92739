"""A Director's console: commands in, reply text out.

Bacula is reached through its own bconsole, which reads the password from its own configuration file; Bareos through
the package python-bareos (an optional extra), because Bareos' bconsole cannot be run without a terminal's prompts.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from appliance.config.schema import DirectorConfig, DirectorKind
from appliance.errors import ConfigError, MagbayError, PermissionDeniedError
from appliance.host.commands import attempt

# The daemon's own limit is per call of the changer (300 s); labelling many volumes is many of them.
_MOST_SECONDS = 900.0
_WHAT = "talking to the Director"
_REACH = "Is the Director running? 'magbay director test' checks the whole chain."
# `Name = value` or `Name = "value"` in a console configuration; keywords ignore case and blanks.
_SETTING = re.compile(r'^\s*([A-Za-z ]+?)\s*=\s*(?:"([^"]*)"|([^\s;}]+))', re.MULTILINE)


class Console(Protocol):
    """A session with a Director."""

    def send(self, *lines: str) -> str:
        """Send *lines* (commands, and answers to what they ask) in one session; gives the reply text.

        Raises `MagbayError` when the Director cannot be reached or ends the session.
        """
        ...


class BaculaConsole:
    """bconsole of Bacula 9 and later."""

    def __init__(self, settings: DirectorConfig) -> None:
        self._settings = settings

    def send(self, *lines: str) -> str:
        """See `Console`. *lines* go through standard input, so nothing of them shows in the process list."""
        settings = self._settings
        _check_lines(lines)
        check_readable(settings.console_config)
        # -n: no terminal handling, -u: seconds after which a session without progress ends.
        argv = [settings.console_program, "-n", "-u", str(settings.timeout), "-c", str(settings.console_config)]
        text = "".join(f"{line}\n" for line in lines)
        _status, reply, complaint = attempt(argv, _WHAT, timeout=_MOST_SECONDS, hint=_REACH, text=text)
        _greeting, marker, rest = reply.partition("1000 OK")
        if marker:
            return rest
        raise MagbayError(f"{_WHAT}: {_reason(reply, complaint, settings.timeout)}", hint=_REACH)


class BareosConsole:
    """The console protocol of Bareos, spoken by python-bareos."""

    def __init__(self, settings: DirectorConfig) -> None:
        self._settings = settings

    def send(self, *lines: str) -> str:
        """See `Console`."""
        _check_lines(lines)
        try:
            bsock: Any = importlib.import_module("bareos.bsock")
        except ImportError:
            raise MagbayError(
                "python-bareos is not installed", hint="Install magbay with its extra 'bareos' (pip: magbay[bareos])."
            ) from None
        settings = read_console_config(self._settings.console_config)
        try:
            console = bsock.DirectorConsole(
                address=settings["address"],
                port=int(settings.get("port", "9101")),
                password=bsock.Password(settings["password"]),
                **({"name": settings["name"]} if settings["resource"] == "console" else {}),
            )
            return "".join(bytes(console.call(line)).decode("utf-8", "replace") for line in lines)
        except (OSError, bsock.exceptions.Error) as error:
            # The texts of python-bareos hold addresses and reasons, never the password.
            raise MagbayError(f"the Director at {settings['address']}: {error}", hint=_REACH) from None


def open_console(settings: DirectorConfig) -> Console:
    """The console of the Director that *settings* name. Raises `ConfigError` when they name none."""
    if settings.kind is DirectorKind.NONE:
        raise ConfigError(
            "no Director is configured", hint="Set director.kind to bacula or bareos; see docs/director.md."
        )
    return BareosConsole(settings) if settings.kind is DirectorKind.BAREOS else BaculaConsole(settings)


def check_readable(path: Path) -> None:
    """Raise `ConfigError` or `PermissionDeniedError` unless the console's configuration *path* can be read."""
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError:
        hint = "Copy the Director's bconsole.conf there, or set director.console_config."
        raise ConfigError(f"the console's configuration {path} is not there", hint=hint) from None
    except OSError as error:
        hint = "The user magbay must be able to read it: chgrp magbay, chmod 640."
        raise PermissionDeniedError(f"the console's configuration {path}: {error.strerror}", hint=hint) from None


def read_console_config(path: Path) -> dict[str, str]:
    """`address`, `port`, `name`, `password` of a console configuration, and `resource`: director or console.

    Keywords as in the manuals of both products. Raises `ConfigError`, `PermissionDeniedError`.
    """
    check_readable(path)
    text = re.sub(r"#.*", "", path.read_text(encoding="utf-8", errors="replace"))
    found: dict[str, str] = {"resource": "director"}
    for kind, body in re.findall(r"(?is)\b(director|console)\s*\{(.*?)\}", text):
        values = {
            key.lower().replace(" ", ""): quoted or plain
            for key, quoted, plain in _SETTING.findall(body.replace(";", "\n"))
        }
        values["port"] = values.get("dirport") or values.get("port") or "9101"
        found |= {key: values[key] for key in ("address", "port", "name", "password") if key in values}
        if kind.lower() == "console":
            found["resource"] = "console"
    absent = [key for key in ("address", "password") if not found.get(key)]
    if absent:
        raise ConfigError(f"{path}: {' and '.join(absent)} missing", hint="It is a bconsole.conf of the Director.")
    return found


def _check_lines(lines: Sequence[str]) -> None:
    """Lines are made of checked names; one that would smuggle in a second command is a defect."""
    for line in lines:
        if not line.isprintable():
            raise MagbayError(f"a console command would hold a control character: {line!r}")


def _reason(reply: str, complaint: str, seconds: int) -> str:
    """Why bconsole did not get as far as the Director's greeting, in one sentence."""
    if "authorization problem" in reply:
        return "it refused the password or the name of the console"
    lines = [line.strip() for line in complaint.splitlines() + reply.splitlines() if line.strip()]
    if not lines or (len(lines) == 1 and lines[0].startswith("Connecting to Director")):
        where = lines[0].removeprefix("Connecting to Director ") if lines else ""
        return f"no answer{' from ' + where if where else ''} within {seconds} s"
    return lines[-1]
