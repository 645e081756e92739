"""A Director's console: commands in, reply text out.

Bacula is reached through its own bconsole, which reads the password from its own configuration file; Bareos through
the package python-bareos (an optional extra), because Bareos' bconsole cannot be run without a terminal's prompts.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from appliance.config.schema import DirectorConfig, DirectorKind
from appliance.errors import ConfigError, MagbayError, PermissionDeniedError
from appliance.host.commands import attempt, ours

# A session of python-bareos limits each command by itself; this is for one that hangs all the same.
_MOST_SECONDS = 900.0
# A wrong password is answered after five seconds. For a Director that takes the connection and says nothing bconsole
# waits twenty, whatever -u is, and then has the same words for it.
_REFUSAL, _MUTE = 8, 15.0
_MOST_TOLD = 4  # commands in a message
_WHAT = "talking to the Director"
_REACH = "Is the Director running? 'magbay director test' checks the whole chain."
_CONNECTING = "Connecting to Director "
# A comment, a quoted text, a mark, blanks or a word of a configuration file; quoted texts know backslashes.
_TOKEN = re.compile(r'#[^\n]*|"((?:[^"\\]|\\.)*)"|[{}=;\n]|[ \t\r]+|[^\s{}=;"#]+')


class Console(Protocol):
    """A session with a Director."""

    def send(self, *lines: str, extra: int = 0) -> str:
        """Send *lines* (commands, and answers to what they ask) in one session; gives the reply text.

        *extra*: seconds that the session may take beyond the configured ones. Raises `MagbayError` when the
        Director cannot be reached or does not answer in time.
        """
        ...


class BaculaConsole:
    """bconsole of Bacula 9 and later."""

    def __init__(self, settings: DirectorConfig) -> None:
        self._settings = settings

    def send(self, *lines: str, extra: int = 0) -> str:
        """See `Console`. *lines* go through standard input, so nothing of them shows in the process list."""
        settings = self._settings
        _check_lines(lines)
        check_readable(settings.console_config)
        # -n: no terminal handling, -u: seconds for each command; the session ends when one takes longer.
        seconds = settings.timeout + extra
        argv = [settings.console_program, "-n", "-u", str(seconds), "-c", str(settings.console_config)]
        text = "".join(f"{line}\n" for line in lines)
        began = time.monotonic()
        # One hanging command ends the session, the others take milliseconds.
        limit = max(seconds, _REFUSAL) + len(lines)
        try:
            _status, reply, complaint = attempt(argv, _WHAT, timeout=limit, hint=_REACH, text=text)
        except MagbayError:
            if time.monotonic() - began < limit:
                raise
            raise _silence(lines, limit) from None
        _greeting, marker, rest = reply.partition("1000 OK")
        if marker:
            return rest
        raise MagbayError(f"{_WHAT}: {_reason(reply, complaint, time.monotonic() - began)}", hint=_REACH)


class BareosConsole:
    """The console protocol of Bareos, spoken by python-bareos in a process of its own that can be ended."""

    def __init__(self, settings: DirectorConfig) -> None:
        self._settings = settings

    def send(self, *lines: str, extra: int = 0) -> str:
        """See `Console`."""
        _check_lines(lines)
        path, seconds = self._settings.console_config, self._settings.timeout + extra
        read_console_config(path)  # its troubles are told better from here
        argv = [*ours("appliance.director.bareos"), str(path), str(seconds)]
        text = "".join(f"{line}\n" for line in lines)
        status, reply, complaint = attempt(argv, _WHAT, timeout=_MOST_SECONDS, hint=_REACH, text=text)
        if status == -signal.SIGALRM:
            raise _silence(lines, seconds)
        if status != 0:
            raise MagbayError(f"{_WHAT}: {_last(complaint) or 'the session was cut'}", hint=_REACH)
        return reply


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
    found = {"resource": "director", "port": "9101"}
    for kind, values in _resources(path.read_text(encoding="utf-8", errors="replace")):
        if kind in ("director", "console"):
            found["resource"] = kind
            values = {"port": values.get("dirport", ""), **values}
            found |= {key: values[key] for key in ("address", "port", "name", "password") if values.get(key)}
    absent = [key for key in ("address", "password") if key not in found]
    if absent:
        raise ConfigError(f"{path}: {' and '.join(absent)} missing", hint="It is a bconsole.conf of the Director.")
    return found


def _resources(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Resource type (lower case) and settings (keywords lower case, without blanks) of `Type { Key = Value … }`."""
    kind, values, key, word = "", dict[str, str](), "", ""
    for quoted, mark in ((match[1], match[0]) for match in _TOKEN.finditer(text)):
        if mark == "{":
            kind, values, word = word.lower(), {}, ""
        elif mark == "=":
            key, word = word.lower(), ""
        elif mark in ("\n", ";", "}"):
            if key:
                values[key] = word
            # The brace of a resource may stand on the line after its type.
            key, word = "", (word if mark == "\n" and not kind else "")
            if mark == "}":
                yield kind, values
                kind = ""
        elif mark[0] not in "# \t\r":
            word += mark if quoted is None else re.sub(r"\\(.)", r"\1", quoted)


def _check_lines(lines: Sequence[str]) -> None:
    """Lines are made of checked names; one that would smuggle in a second command is a defect."""
    for line in lines:
        if not line.isprintable():
            raise MagbayError(f"a console command would hold a control character: {line!r}")


def _silence(lines: Sequence[str], seconds: int) -> MagbayError:
    """The replies of the session are lost with it: say what was asked, so that it can be tried by hand."""
    asked = ", ".join(f"'{line}'" for line in lines[:_MOST_TOLD]) + (", …" if len(lines) > _MOST_TOLD else "")
    return MagbayError(f"{_WHAT}: no answer within {seconds} s to {asked}", hint=_REACH)


def _reason(reply: str, complaint: str, seconds: float) -> str:
    """Why bconsole did not get as far as the Director's greeting in *seconds*, in one sentence."""
    if "authorization problem" in reply and seconds < _MUTE:
        return "it refused the password or the name of the console"
    lines = [line.strip() for line in complaint.splitlines() + reply.splitlines() if line.strip()]
    if not lines or "authorization problem" in reply or (len(lines) == 1 and lines[0].startswith(_CONNECTING)):
        where = lines[0].removeprefix(_CONNECTING) if lines else ""
        return f"no answer{' from ' + where if where else ''} within {seconds:.0f} s"
    return lines[-1]


def _last(text: str) -> str:
    lines = text.split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
