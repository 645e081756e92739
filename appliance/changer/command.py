"""`magbay-changer CONFIG COMMAND SLOT ARCHIVE_DEVICE DRIVE`, the Changer Command of a storage daemon.

The daemon reads stdout and stderr through one pipe: on success nothing but the answer is written, on failure nothing
but one line on stderr. The whole answer is made before any of it is written, because a partial list with a failure
makes a Director clear the slots that are left out.

This is the half that is always right, `magbay-changer-full`; `bin/magbay-changer` gives what `plain` has published and
hands over to it for the rest. A daemon waits for every call, so nothing that is slow to import is imported before it
is needed.
"""

# pathlib is among what is slow to import.
# ruff: noqa: PTH109, PTH118
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from enum import Enum

from appliance.changer.view import View, current
from appliance.errors import MagbayError, UsageError

TYPE_CHECKING = False  # typing itself is slow to import
if TYPE_CHECKING:
    from pathlib import Path

    from appliance.changer.service import Changer

_USAGE = "magbay-changer [-u USER] [-g GROUP] CONFIG COMMAND [SLOT ARCHIVE_DEVICE DRIVE]"
# Long and short form of the options that take a value; vchanger takes them anywhere on the line.
_OPTIONS = {
    "-u": "-u",
    "--user": "-u",
    "-g": "-g",
    "--group": "-g",
    "-l": "-l",
    "--label": "-l",
    "--pool": "--pool",
    "-m": "-m",
}
# More digits than any slot or drive has; int() of a longer text is slow and, from 4300 digits on, refused.
_MOST_DIGITS = 9


class Command(Enum):
    """The commands, as the daemon sends them."""

    LOADED = "loaded"
    LOAD = "load"
    UNLOAD = "unload"
    LIST = "list"
    LISTALL = "listall"
    SLOTS = "slots"
    TRANSFER = "transfer"
    # For people, as vchanger has them.
    LISTMAGS = "listmags"
    CREATEVOLS = "createvols"
    INITMAG = "initmag"
    CHECK = "check"
    REFRESH = "refresh"


class Request:
    """One call. *slot* matters to load and transfer, *drive* to loaded, load and unload, *target* to transfer, and of
    *device*, the archive device, only its form matters to load. *words*: what follows the command."""

    __slots__ = ("command", "config", "device", "drive", "options", "slot", "target", "words")

    def __init__(self, config: str, command: Command, options: dict[str, str], words: list[str]) -> None:
        self.config, self.command, self.options, self.words = config, command, options, words
        self.slot = self.drive = self.target = 0
        self.device = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command with the words *argv*; 0 when done, else 1."""
    words = sys.argv[1:] if argv is None else argv
    try:
        _write(1, answer(parse(words)).encode())
    except MagbayError as error:
        return _fail(f"{error.message}. {error.hint}" if error.hint else error.message, words)
    except OSError as error:
        return _fail(f"{error.filename or 'answer'}: {error.strerror or error}", words)
    except Exception as error:
        # A defect. A traceback would be read as part of the answer; the place is what it would be needed for.
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown place"
        return _fail(f"internal error: {type(error).__name__}: {error} at {place}", words)
    return 0


def parse(words: Sequence[str]) -> Request:
    """The request of the command line *words*. Words after the drive are ignored. Raises `UsageError`."""
    rest, options = _options(words)
    if len(rest) < 2:
        raise UsageError("a configuration and a command are needed", hint=f"Usage: {_USAGE}")
    try:
        command = Command(rest[1].lower())
    except ValueError:
        known = ", ".join(item.value for item in Command)
        raise UsageError(f"there is no changer command {rest[1]!r}", hint=f"Known: {known}") from None
    # What the published answer rests on is named by absolute paths.
    request = Request(os.path.join(os.getcwd(), rest[0]), command, options, rest[2:])
    if command in (Command.LOADED, Command.LOAD, Command.UNLOAD):
        if len(rest) < 5:
            raise UsageError(f"{command.value} needs slot, archive device and drive", hint=f"Usage: {_USAGE}")
        # In loaded and unload the slot is what the daemon believes, which need not be so.
        if command is not Command.LOADED:
            request.slot = _number("slot", rest[2])
        request.device, request.drive = rest[3], _number("drive", rest[4])
    if command is Command.TRANSFER:
        # Bareos puts the target where the archive device stands and leaves the drive out.
        if len(rest) < 4:
            raise UsageError("transfer needs source and target slot", hint=f"Usage: {_USAGE}")
        request.slot, request.target = _number("source slot", rest[2]), _number("target slot", rest[3])
    return request


def answer(request: Request) -> str:
    """What goes to stdout. Raises `MagbayError`, `OSError`."""
    _become(request.options.get("-u", ""), request.options.get("-g", ""))
    if request.command in (Command.LOAD, Command.UNLOAD):
        _move(request)
        return ""
    if request.command in _OTHERS:
        return _OTHERS[request.command](request)
    view = _published(request.config) or _changer(request).view()
    if request.command is Command.LOADED:
        return f"{view.loaded(request.drive)}\n"
    if request.command is Command.LIST:
        return view.list_text()
    return view.listall_text() if request.command is Command.LISTALL else f"{view.slots}\n"


def _published(config: str) -> View | None:
    """The published view if it holds. The text for the quick half is written anew when it can be."""
    view = current(config)
    if view is not None:
        from appliance.changer import plain

        # Who may not publish only costs the next one the time to come here.
        with contextlib.suppress(OSError):
            plain.publish(view)
    return view


def _become(user: str, group: str) -> None:
    if user or group:
        from appliance.changer.identity import become

        become(user, group)


def _path(request: Request) -> Path:
    """The configuration, for all that is not answered from the published view.

    One of vchanger names who is to do it, when root asks.
    """
    from pathlib import Path

    from appliance.config import vchanger
    from appliance.config.loader import is_vchanger

    path = Path(request.config)
    if os.geteuid() == 0 and is_vchanger(path):
        named = vchanger.read(path)
        _become(named.user, named.group)
    return path


def _transfer(request: Request) -> str:
    from appliance.changer.transfer import WAIT_SECONDS

    seconds = float("inf") if "--force" in request.options else WAIT_SECONDS
    return _changer(request).transfer(request.slot, request.target, seconds) + "\n"


def _createvols(request: Request) -> str:
    from appliance.changer import people

    return people.createvols(_path(request), request.words, request.options)


def _initmag(request: Request) -> str:
    from appliance.changer import people

    return people.initmag(_path(request), request.words, request.options)


def _check(request: Request) -> str:
    from appliance.changer import check

    return check.check(_path(request))


def _listmags(request: Request) -> str:
    from appliance.changer import people

    return people.listmags(_path(request))


def _refresh(request: Request) -> str:
    from appliance.changer import people

    return people.refresh(_path(request))


# What the published view cannot answer.
_OTHERS: dict[Command, Callable[[Request], str]] = {
    Command.TRANSFER: _transfer,
    Command.CREATEVOLS: _createvols,
    Command.INITMAG: _initmag,
    Command.CHECK: _check,
    Command.LISTMAGS: _listmags,
    Command.REFRESH: _refresh,
}


def _changer(request: Request) -> Changer:
    from appliance.changer.service import Changer

    return Changer.open(_path(request))


def _move(request: Request) -> None:
    from pathlib import Path

    from appliance.changer.lock import lock

    published = current(request.config)
    if published is not None:
        with lock(Path(published.run_dir)):
            published = _published(request.config)  # another caller may just have changed what it rests on
            if published is not None:
                return _switch(published, request)
    return _switch(_changer(request), request)


def _switch(changer: View | Changer, request: Request) -> None:
    if request.command is Command.LOAD:
        changer.load(request.slot, request.drive, request.device)
    else:
        changer.unload(request.drive)


def _options(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words that are no options, and the values of those that are: `-u X`, `-uX`, `--user X` or `--user=X`.

    Before the configuration an unknown option is an error; behind it, a word that begins with `-` may be anything.
    """
    rest: list[str] = []
    found: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        if name == "--force":
            # For transfer. A refresh always looks and publishes; telling the Director is not the command's business.
            found[name] = name
            continue
        if name not in _OPTIONS:
            if word.startswith("-") and not rest:
                raise UsageError(f"there is no option {word!r}", hint=f"Usage: {_USAGE}")
            rest.append(word)
            continue
        if not equals and left:
            value = left.pop(0)
        if not value:
            raise UsageError(f"{name} needs a name", hint=f"Usage: {_USAGE}")
        found[_OPTIONS[name]] = value
    return rest, found


def _number(what: str, word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS):
        raise UsageError(f"the {what} must be a whole number, not {word[:40]!r}")
    return int(word)


def _fail(text: str, words: Sequence[str]) -> int:
    """Write *text* as one line on stderr, whatever characters it has, and into the log of a vchanger configuration."""
    line = "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in text)
    try:
        _log(line, words)
        _write(2, f"magbay-changer: {line}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        return 1
    return 1


def _log(line: str, words: Sequence[str]) -> None:
    from appliance.changer import logfile

    try:
        rest = _options(words)[0]
    except UsageError:
        return
    if rest:
        logfile.append(rest[0], f"{' '.join(rest[1:6])}: {line}")


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
