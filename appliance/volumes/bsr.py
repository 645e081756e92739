"""Bootstrap files: which records of which volumes are wanted. Source: volume format, section 13.

`Count` lets a reader stop early and changes nothing about what is wanted, so it is checked but not used.
"""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import NotFoundError, PermissionDeniedError
from appliance.volumes.blocks import SessionIds
from appliance.volumes.errors import VolumeError
from appliance.volumes.labels import SessionLabel
from appliance.volumes.posixre import Pattern

_Ranges = list[tuple[int, int]]
_RANGE = re.compile(r"(\d{1,20})(?:\s*-\s*(\d{1,20}))?")
_MAX_LINE = 1 << 20
_MAX_FILE = 256 << 20
_NUMBERS = {"volsessionid", "volsessiontime", "voladdr", "volfile", "volblock", "fileindex", "jobid", "count", "slot"}
_OF_FILES = {"fileindex", "count"}
_NAMES = {"job", "client"}
_IGNORED = {"include", "exclude", "storage", "mediatype", "device", "jobtype", "joblevel"}


@dataclass
class BsrEntry:
    """One `Volume=` entry. Empty criteria match everything; *ranges* by keyword in small letters.

    A Director names each file of a restore by its own FileIndex, so there may be a million: `settle` before asking.
    """

    volumes: dict[str, None] = field(default_factory=dict)  # their order is that of reading
    ranges: dict[str, _Ranges] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    streams: set[int] = field(default_factory=set)
    pattern: Pattern | None = None

    def settle(self) -> None:
        """All criteria are there: put ranges in order, those that touch together."""
        for keyword, ranges in self.ranges.items():
            merged: _Ranges = []
            for low, high in sorted(ranges):
                if merged and low <= merged[-1][1] + 1:
                    merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
                else:
                    merged.append((low, high))
            self.ranges[keyword] = merged

    def likeness(self) -> tuple[object, ...]:
        """The same for entries that differ in nothing but the numbers of their files."""
        others = [(keyword, tuple(ranges)) for keyword, ranges in self.ranges.items() if keyword not in _OF_FILES]
        has = tuple(sorted(_OF_FILES & self.ranges.keys()))
        names = [(keyword, tuple(names)) for keyword, names in self.names.items()]
        return tuple(self.volumes), tuple(sorted(others)), has, tuple(sorted(names)), frozenset(self.streams)

    def _in(self, keyword: str, value: int) -> bool:
        ranges = self.ranges.get(keyword)
        if not ranges:
            return True
        at = bisect(ranges, (value, math.inf)) - 1
        return at >= 0 and value <= ranges[at][1]

    def wants_block(self, volume: str, ids: SessionIds, last_byte: int) -> bool:
        """Whether anything in this block can match. *last_byte*: address of the block's last byte."""
        return (
            volume in self.volumes
            and self._in("volsessionid", ids.session_id)
            and self._in("volsessiontime", ids.session_time)
            and self._in("voladdr", last_byte)
            and self._in("volfile", last_byte >> 32)
            and self._in("volblock", last_byte & 0xFFFFFFFF)
        )

    def wants_file(self, label: SessionLabel | None, file_index: int) -> bool:
        """Whether the file matches, given that its block does."""
        if not self._in("fileindex", file_index):
            return False
        if ("count" in self.ranges and "fileindex" in self.ranges) or not (self.names or "jobid" in self.ranges):
            return True  # readers do not look at the job when FileIndex and Count are given
        return label is not None and (
            self._in("jobid", label.job_id)
            and ("job" not in self.names or label.job in self.names["job"])
            and ("client" not in self.names or label.client in self.names["client"])
        )

    def wants_name(self, path: str) -> bool:
        """Whether the name in the attributes matches FileRegex."""
        return self.pattern is None or self.pattern.search(path)

    @property
    def span(self) -> tuple[int, int] | None:
        """(smallest, largest) address wanted, None when the entry has no VolAddr."""
        ranges = self.ranges.get("voladdr")
        return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None

    @property
    def session(self) -> SessionIds | None:
        """The one session that the entry is about; None for several or any."""
        pairs = [self.ranges.get(name, []) for name in ("volsessionid", "volsessiontime")]
        if all(len(pair) == 1 and pair[0][0] == pair[0][1] for pair in pairs):
            return SessionIds(pairs[0][0][0], pairs[1][0][0])
        return None


class Bootstrap:
    """A parsed bootstrap file: something is wanted if one entry matches in all its criteria.

    Ask in the order in which reading goes: block, then its records, then the name; each answer narrows the entries.
    """

    def __init__(self, entries: Sequence[BsrEntry]) -> None:
        self.entries = tuple(entries)
        self._of_block: list[BsrEntry] = []
        self._of_file: list[BsrEntry] = []

    def span(self, volume: str) -> tuple[int, int | None]:
        """(start, last): where reading of *volume* may begin, and the last address wanted (None: to the end).

        (0, None) unless every entry has addresses; (0, -1) when the volume is not wanted at all.
        """
        entries = [entry for entry in self.entries if volume in entry.volumes]
        spans = [entry.span for entry in entries if entry.span]
        if not entries:
            return 0, -1
        if len(spans) < len(entries):
            return 0, None
        return min(low for low, _ in spans), max(high for _, high in spans)

    @property
    def volumes(self) -> tuple[str, ...]:
        """The names of all volumes, in the order in which they are to be read."""
        return tuple(dict.fromkeys(name for entry in self.entries for name in entry.volumes))

    def files(self) -> dict[SessionIds, _Ranges] | None:
        """The FileIndex ranges wanted of each session; None where other criteria decide, too."""
        found: dict[SessionIds, _Ranges] = {}
        for entry in self.entries:
            ids = entry.session
            if ids is None or "fileindex" not in entry.ranges or entry.streams or entry.pattern:
                return None
            found.setdefault(ids, []).extend(entry.ranges["fileindex"])
        return found

    def wants_block(self, volume: str, ids: SessionIds, last_byte: int) -> bool:
        """Whether anything in this block of *volume* can match; *last_byte*: address of its last byte."""
        self._of_block = [entry for entry in self.entries if entry.wants_block(volume, ids, last_byte)]
        return bool(self._of_block)

    def wants_record(self, label: SessionLabel | None, file_index: int, stream: int) -> bool:
        """Whether a record of the block last asked for is wanted; *stream*: the full number."""
        self._of_file = [
            entry
            for entry in self._of_block
            if entry.wants_file(label, file_index) and (not entry.streams or stream in entry.streams)
        ]
        return bool(self._of_file)

    def wants_name(self, path: str) -> bool:
        """Whether the file of the record last asked for matches by its name."""
        return any(entry.wants_name(path) for entry in self._of_file)


def _parse_ranges(text: str, where: str) -> _Ranges:
    ranges = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        if not found:
            raise VolumeError(f"{where}: {part.strip()[:60]!r} is not a number or a range a-b")
        low = int(found[1])
        high = int(found[2]) if found[2] else low
        if high < low:
            raise VolumeError(f"{where}: the range {part.strip()} runs backwards")
        ranges.append((low, high))
    return ranges


def _parse_streams(entry: BsrEntry, value: str, where: str) -> None:
    try:
        entry.streams.update(int(part) for part in value.split(","))
    except ValueError:
        raise VolumeError(f"{where}: {value[:60]!r} is not a list of streams") from None


def _parse_pattern(entry: BsrEntry, value: str, where: str) -> None:
    try:
        entry.pattern = Pattern(value)
    except VolumeError as error:
        raise VolumeError(f"{where}: FileRegex: {error.message}") from None


_OTHER: dict[str, Callable[[BsrEntry, str, str], None]] = {"stream": _parse_streams, "fileregex": _parse_pattern}


def _apply(entry: BsrEntry, keyword: str, value: str, where: str) -> None:
    if keyword in _NUMBERS:
        entry.ranges.setdefault(keyword, []).extend(_parse_ranges(value, where))
    elif keyword in _NAMES:
        # A list like "a","b" as well: names of resources have neither commas nor quotes.
        entry.names.setdefault(keyword, []).extend(name.strip(' "') for name in value.split(","))
    elif keyword in _OTHER:
        _OTHER[keyword](entry, value, where)
    elif keyword not in _IGNORED:
        raise VolumeError(f"{where}: the keyword {keyword!r} is unknown", hint="The bootstrap file is not used.")


def load_bsr(path: Path) -> Bootstrap:
    """The bootstrap file at *path*. Raises `NotFoundError`, `PermissionDeniedError`, `VolumeError`."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        hint = "Look at the spelling of the bootstrap file."
        raise NotFoundError(f"{path}: no such bootstrap file", hint=hint) from None
    except PermissionError as error:
        raise PermissionDeniedError(f"{path}: {error.strerror}", hint="Run as its owner.") from None
    except OSError as error:
        raise VolumeError(f"{path}: {error.strerror}", hint="Give the path of a bootstrap file.") from None
    if len(text) > _MAX_FILE:
        raise VolumeError(f"{path}: too long for a bootstrap file", hint="Is it a bootstrap file at all?")
    return parse_bsr(text, str(path))


def parse_bsr(text: str, name: str) -> Bootstrap:
    """Parse the *text* of a bootstrap file; *name* stands in messages. Raises `VolumeError` with file and line."""
    entries = [BsrEntry()]
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{name}, line {number}"
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        keyword, equals, value = (part.strip() for part in line.partition("="))
        if not equals or len(line) > _MAX_LINE:
            raise VolumeError(f"{where}: not of the form keyword=value", hint="Is it a bootstrap file at all?")
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if keyword.lower() == "volume":
            if entries[-1].volumes:
                entries.append(BsrEntry())
            entries[-1].volumes.update(dict.fromkeys(value.split("|")))
        else:
            _apply(entries[-1], keyword.lower(), value, where)
    if not any(entry.volumes for entry in entries):
        raise VolumeError(f"{name}: names no volume, so nothing would be read", hint='Add a line Volume="name".')
    return Bootstrap(_joined(entries))


def _joined(entries: Sequence[BsrEntry]) -> list[BsrEntry]:
    """The entries, those together that differ in their files only."""
    found: dict[object, BsrEntry] = {}
    for entry in entries:
        entry.settle()
        key = id(entry) if entry.pattern else entry.likeness()
        first = found.setdefault(key, entry)
        if first is not entry:
            for keyword in _OF_FILES & entry.ranges.keys():
                first.ranges[keyword].extend(entry.ranges[keyword])
    for entry in found.values():
        entry.settle()
    return [*found.values()]
