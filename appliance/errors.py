"""The errors that magbay declares, each with the exit status of the command-line contract.

An error says what happened and to which magazine or file; its *hint* says what to do next.
Only these errors are expected trouble: `appliance.cli.main` turns them into one or two lines
on stderr and the exit status. Anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of every magbay command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    WARNINGS = 3
    NOT_FOUND = 4
    AWAY = 75  # EX_TEMPFAIL: the magazine is not here, try again when it is
    NOT_PERMITTED = 77  # EX_NOPERM
    CONFIG = 78  # EX_CONFIG
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class MagbayError(Exception):
    """Expected trouble: *message* says what happened to what, *hint* what to do next."""

    status: ExitStatus = ExitStatus.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MagbayError):
    """The command's words do not fit."""

    status = ExitStatus.USAGE


class NotFoundError(MagbayError):
    """A named thing (magazine, volume, job, file) does not exist."""

    status = ExitStatus.NOT_FOUND


class AwayError(MagbayError):
    """A magazine is known but not in a bay."""

    status = ExitStatus.AWAY


class PermissionDeniedError(MagbayError):
    """The caller may not do this."""

    status = ExitStatus.NOT_PERMITTED


class ConfigError(MagbayError):
    """The configuration cannot be used."""

    status = ExitStatus.CONFIG
