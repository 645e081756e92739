"""What a command prints: text for people, one JSON document for programs, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

_STEP = 0.2  # seconds between two drawings of a progress line
_CLEAR = "\r\033[K"  # to the beginning of the terminal's line, and erase it
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {0x0A: "\\n"}
_ORDERS = {code: told for code, told in _CONTROLS.items() if code not in (0x09, 0x0A)}  # what a terminal would obey


def one_line(text: str) -> str:
    """*text* without control characters: a file's name gives no orders to the terminal and does not look like two."""
    return text.translate(_CONTROLS)


def as_told(text: str) -> str:
    """*text* that a device says of itself, on one line and without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def human_bytes(count: float) -> str:
    """*count* bytes as a short text in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def human_time(seconds: float) -> str:
    """A duration in *seconds* as m:ss or h:mm:ss."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def silence(stream: TextIO) -> None:
    """Let what is still to be written on *stream* go nowhere: its reader is gone, or its disk is full."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Progress:
    """Counts bytes and draws rate and ETA, on a terminal or as JSON lines. It never raises: work matters more."""

    def __init__(self, label: str, total: int | None, style: str) -> None:
        self.label, self.total, self.style = label, total, style
        self.done = self._before = 0
        self._began = self._drawn = time.monotonic()

    def resume(self, count: int) -> None:
        """Begin at *count* bytes that were done before: they are no part of the rate."""
        self.done = self._before = count
        self._began = time.monotonic()

    def advance(self, count: int) -> None:
        """Add *count* bytes."""
        self.done += count
        now = time.monotonic()
        if self.style != "none" and now - self._drawn >= _STEP:
            self._drawn = now
            self._draw(now)

    def _draw(self, now: float) -> None:
        rate = (self.done - self._before) / max(now - self._began, 1e-6)
        eta = max(self.total - self.done, 0) / rate if self.total and rate else None
        if self.style == "json":
            record = {"progress": self.label, "bytes": self.done, "total": self.total, "rate": round(rate)}
            _to_stderr(json.dumps(record | {"eta": None if eta is None else round(eta)}) + "\n")
        else:
            of = f" of {human_bytes(self.total)}" if self.total else ""
            left = f", {human_time(eta)} left" if eta is not None else ""
            text = f"{self.label}: {human_bytes(self.done)}{of}, {human_bytes(rate)}/s{left}"
            _to_stderr(_CLEAR + text[: _columns() - 1])  # a line that is broken could not be erased

    def close(self) -> None:
        """End the line."""
        if self.style == "text" and self._drawn > self._began:
            _to_stderr(_CLEAR)


def _columns() -> int:
    """Of the terminal, at least 2; 80 where it does not tell."""
    try:
        return max(os.get_terminal_size(sys.stderr.fileno()).columns or 80, 2)
    except (OSError, ValueError):
        return 80


def _to_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


class Output:
    """Where a command's answers go. No dataclass: that would be half of what a command imports before it begins."""

    def __init__(self, *, json: bool = False, progress_style: str = "none") -> None:
        """*json*: one document on stdout and nothing else there; *progress_style*: none, text or json."""
        self.json, self.progress_style = json, progress_style

    def document(self, value: Any) -> None:
        """Print *value* as the JSON document (only with --json)."""
        if self.json:
            sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True) + "\n")
            sys.stdout.flush()

    def line(self, text: str = "") -> None:
        """Print a line for people (not with --json). Bytes of odd file names are written as they are."""
        if not self.json:
            self._clear_progress()
            self._print(text.translate(_ORDERS) + "\n")

    def clear_screen(self) -> None:
        """Begin anew at the top of the terminal (not with --json)."""
        if not self.json:
            self._print("\033[H\033[2J")

    @staticmethod
    def _print(text: str) -> None:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()

    def warn(self, text: str) -> None:
        """Print a line on stderr."""
        self._clear_progress()
        _to_stderr(one_line(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace") + "\n")

    def _clear_progress(self) -> None:
        if self.progress_style == "text":
            _to_stderr(_CLEAR)

    @contextlib.contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        """A progress display for work of *total* bytes (None: unknown)."""
        display = Progress(label, total, self.progress_style)
        try:
            yield display
        finally:
            display.close()
