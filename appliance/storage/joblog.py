"""The log of one job: kept in the catalog, told to the caller (the journal), counted for the exit status."""

from __future__ import annotations

from collections.abc import Callable

from appliance.storage.catalog import Catalog

LogCallback = Callable[[str, dict[str, str]], None]
"""Takes a line and its journal fields (JOB, MAGAZINE, VOLUME; PRIORITY by syslog(3), without it "6")."""

INFO = "6"
_PRIORITIES = {"info": INFO, "warning": "4", "error": "3"}
# Warnings beyond these are counted and told, but not kept in memory.
_MOST_KEPT = 1000


class JobLog:
    """Lines of the job *job_id*; *warnings* and *errors* hold the first thousand of each."""

    def __init__(self, catalog: Catalog, job_id: int, callback: LogCallback) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.warning_count = 0
        self.error_count = 0
        self._catalog = catalog
        self.job_id = job_id
        self._callback = callback
        self._asides: list[str] = []

    def info(self, text: str, **fields: str) -> None:
        """Something that is as it should be."""
        self._tell("info", text, fields)

    def aside(self, text: str) -> None:
        """Something about the catalog itself, which gets it with the next line, or at the end."""
        self._callback(text, {"JOB": str(self.job_id), "PRIORITY": _PRIORITIES["warning"]})
        self._asides.append(text)

    def warning(self, text: str, **fields: str) -> None:
        """Something was left out or changed; the job goes on."""
        self.warning_count += 1
        _keep(self.warnings, text)
        self._tell("warning", text, fields)

    def error(self, text: str, **fields: str) -> None:
        """The reason why the job fails."""
        self.error_count += 1
        _keep(self.errors, text)
        self._tell("error", text, fields)

    def _tell(self, kind: str, text: str, fields: dict[str, str]) -> None:
        self._callback(text, {"JOB": str(self.job_id), "PRIORITY": _PRIORITIES[kind]} | fields)
        self._catalog.log(self.job_id, kind, text)
        self.settle()

    def settle(self) -> None:
        """Enter what was said aside."""
        while self._asides:
            self._catalog.log(self.job_id, "info", self._asides.pop(0))


def _keep(lines: list[str], text: str) -> None:
    if len(lines) < _MOST_KEPT:
        lines.append(text)
    elif len(lines) == _MOST_KEPT:
        lines.append("… and more: 'magbay job show' has them all")
