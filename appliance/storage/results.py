"""What became of the files of an extraction: counted, and told."""

from __future__ import annotations

from collections.abc import Callable

from appliance.storage.nameless import TARGET_GONE
from appliance.storage.opened import AS_FILE, OpenFile
from appliance.storage.outcome import FileResult, Outcome, Summary
from appliance.volumes.errors import VolumeError
from appliance.volumes.events import FileState


class Results:
    """Enters in *summary*, and tells *on_result*, what became of each file."""

    def __init__(self, summary: Summary, on_result: Callable[[FileResult], None] | None) -> None:
        self._summary = summary
        self._on_result = on_result

    def skipped(self, one: OpenFile, why: str = "is there already") -> None:
        """What is there stays."""
        self._summary.skipped += 1
        self._tell(one.path, Outcome.SKIPPED, why)

    def left(self, one: OpenFile) -> None:
        """A job that never ended leaves its last file open to the end of the volumes; what came after it is newer."""
        one.failed = "is not whole in a job that has no end: the one that was saved after it is kept"
        self._summary.warn(f"{one.path}: {one.failed}")
        self._tell(one.path, Outcome.SKIPPED, one.failed)

    def nothing(self, one: OpenFile) -> None:
        """The volumes end before its first byte; what is in its place stays."""
        one.failed = "is not restored: its job ends before its content, or goes on on another volume"
        self._summary.warn(f"{one.path}: {one.failed}")
        self._tell(one.path, Outcome.SKIPPED, one.failed)

    def judge(self, one: OpenFile, state: FileState, missed: list[str]) -> None:
        """It has its place. *missed*: what could not be set, in words."""
        if state is FileState.DAMAGED:
            self.failed(one, VolumeError("is kept, but not whole: damaged on the volume"))
        elif one.has_digest and one.verified is False:
            self.failed(one, VolumeError("is kept, but its content does not match its digest"))
        else:
            if state is FileState.CUT:
                missed = ["is not whole: its job ends inside it, or goes on on another volume", *missed]
            if one.has_digest and one.verified is None and one.entry.attributes.ftype in AS_FILE:
                self._summary.unverified += 1
            for text in missed:
                self._summary.warn(f"{one.path}: {text}")
            self._tell(one.path, Outcome.WARNED if missed else Outcome.RESTORED, "; ".join(missed))

    def failed(self, one: OpenFile, error: Exception) -> None:
        """It is not as it was saved, or not there. Raises `OSError` when nothing more can be written."""
        if isinstance(error, OSError) and error.errno in TARGET_GONE:
            raise OSError(error.errno, error.strerror, one.path) from error
        message = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        one.failed = message
        one.unwritable = isinstance(error, OSError)
        self._summary.fail(f"{one.path}: {message}")
        self._tell(one.path, Outcome.FAILED, message)

    def _tell(self, path: str, outcome: Outcome, message: str) -> None:
        if self._on_result is not None:
            self._on_result(FileResult(path, outcome, message))
