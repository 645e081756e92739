"""Where what is saved goes: records to the session, rows to the catalog, words to the log, in the order of saving."""

from __future__ import annotations

from typing import Protocol

from appliance.storage.pieces import Place


class Cancelled(Exception):
    """The caller wants the job to end."""


class Tally(Protocol):
    """What a job has saved so far."""

    @property
    def files(self) -> int:
        """The last FileIndex."""

    @property
    def bytes(self) -> int:
        """Of file data."""

    @property
    def deleted(self) -> int:
        """How many were noted as gone."""


class Output(Protocol):
    """Takes what a `Saver` makes. All but `info` and `warning` may raise what the volume or the catalog raise."""

    def record(self, index: int, stream: int, data: bytes | memoryview) -> None:
        """One record of the file *index*. *data* are valid during the call only."""

    @property
    def place(self) -> Place | None:
        """Gives where the next plain data of a file may be put for `data` to find them; None where any memory will do.

        What is there may be looked at until `HELD` more of the same file were given.
        """

    def data(self, index: int, data: bytes | memoryview) -> None:
        """Plain data of the file *index*, valid during the call only: records of `CHUNK` bytes, the last of what is
        left. They count as with `advance`. Raises as `check`."""

    def row(self, index: int, kind: int, name: bytes, numbers: bytes, digest: str) -> None:
        """The catalog's row: *numbers* as in the attributes record, *digest* as in `SavedFile`."""

    def small(
        self, index: int, kind: int, name: bytes, numbers: bytes, data: memoryview, algorithm: str | None
    ) -> None:
        """A whole regular file: attributes, *data* (one record, none when they are empty), digest, row."""

    def advance(self, count: int) -> None:
        """So many more bytes of file data were written."""

    def info(self, text: str) -> None:
        """A line of the log."""

    def warning(self, text: str) -> None:
        """A warning of the log."""

    def check(self) -> None:
        """Raises `Cancelled` when the job is to end."""
