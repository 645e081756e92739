"""Rows of the catalog as frozen values, and the words for states and levels."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class JobStatus(Enum):
    """State of a job; the values are Bacula's one-letter codes (reference volume-format.md, 4.3)."""

    RUNNING = "R"
    DONE = "T"
    WARNINGS = "W"
    CANCELLED = "A"
    FAILED = "f"
    PURGED = "P"  # it was good, expired, and a volume of it was written anew

    @property
    def word(self) -> str:
        """The word for people and for JSON."""
        return self.name.lower()

    @property
    def good(self) -> bool:
        """Whether what the job saved is whole."""
        return self in (JobStatus.DONE, JobStatus.WARNINGS)

    @property
    def bad(self) -> bool:
        """Whether the job ended, and nothing of it counts as saved."""
        return self in (JobStatus.FAILED, JobStatus.CANCELLED)


DEFAULT_NAME = "backup"
"""Of a job that is in no configuration."""
UNKNOWN = "unknown"
"""Name of a job whose labels were not found yet."""


class Level(Enum):
    """How much a backup saves; the values are Bacula's one-letter codes."""

    FULL = "F"
    DIFFERENTIAL = "D"
    INCREMENTAL = "I"

    @property
    def word(self) -> str:
        """The word of the command line."""
        return self.name.lower()


class VolumeStatus(Enum):
    """Whether a volume takes more blocks."""

    APPEND = "Append"
    FULL = "Full"
    USED = "Used"  # by time or number of jobs
    ERROR = "Error"
    RECYCLE = "Recycle"  # nothing on it counts any more; its file is written anew at the next use


@dataclass(frozen=True)
class Media:
    """A volume in the catalog. *bytes* is the end of its good data; times are Unix seconds, 0 for never."""

    media_id: int
    name: str
    magazine: str
    identity: str
    pool: str
    bytes: int
    status: VolumeStatus
    first_written: int
    last_written: int


@dataclass(frozen=True)
class Stretch:
    """A part of a job on one volume: addresses of its first and last byte, lowest and highest FileIndex in it."""

    media_id: int
    first_index: int
    last_index: int
    start: int
    end: int


@dataclass(frozen=True)
class NewJob:
    """What is known of a job when it starts. *base* is the job that an incremental or differential builds on."""

    name: str
    level: Level
    pool: str
    fileset: str  # JSON list of the paths and patterns, for people
    fileset_md5: str
    base: int | None = None
    client: str = ""


KNOWN_FILESET = "[["  # so begins a fileset as a backup enters it


@dataclass(frozen=True)
class Job:
    """A job in the catalog. *started* and *finished* are Unix seconds, *bytes* counts file data."""

    job_id: int
    name: str
    level: Level
    status: JobStatus
    pool: str
    fileset: str
    fileset_md5: str
    base: int | None
    session_id: int
    session_time: int
    started: int
    finished: int
    files: int
    bytes: int
    job_bytes: int
    errors: int
    warnings: int
    waiting: str = ""  # for which magazines, while it runs
    client: str = ""  # host whose files it saved, as its label says
    type: str = "B"  # Bacula's letter: B backup, C copy, M migrated, A archive …

    @property
    def knows_fileset(self) -> bool:
        """Whether it was made here, or came with its copy: labels have only the name of a fileset."""
        return self.fileset.startswith(KNOWN_FILESET)


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: JobStatus
    files: int
    bytes: int
    job_bytes: int
    errors: int
    warnings: int


@dataclass(frozen=True)
class SavedFile:
    """One saved thing. *path* as stored (directories end in a slash), *digest* base64 without padding or empty."""

    job_id: int
    file_index: int
    type: int
    path: bytes
    lstat: str
    digest: str
