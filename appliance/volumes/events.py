"""What reading volumes yields, in order: sessions, and in them the files, piece by piece.

Events of sessions that ran at the same time alternate; each says which session and file it belongs to. Those that
come several times for each file are tuples, which are made in half the time of frozen dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from appliance.volumes.attributes import Attributes
from appliance.volumes.blocks import SessionIds
from appliance.volumes.labels import SessionLabel, VolumeLabel
from appliance.volumes.reader import Damage


class FileState(Enum):
    """How a file came off the volumes."""

    WHOLE = "whole"
    DAMAGED = "damaged"  # bytes of it were lost, or may have been
    CUT = "cut"  # its session ends inside it (cancelled job, or the next volume was not given)


class FileEntry(NamedTuple):
    """A saved thing. *volume*: the file of the volume on which its attributes begin; *job_id* 0 when not known.

    *is_update*: only attributes were saved, for something that an earlier job holds.
    """

    ids: SessionIds
    job_id: int
    volume: str
    attributes: Attributes
    is_update: bool = False

    @property
    def file_index(self) -> int:
        """Its number in the job, from 1."""
        return self.attributes.file_index

    @property
    def path(self) -> str:
        """The name as on the volume; bytes that are not UTF-8 as lone surrogates. Directories end in a slash."""
        return self.attributes.name.decode("utf-8", "surrogateescape")

    @property
    def link(self) -> str:
        """Target of a symbolic link, first name of a hard link, else empty."""
        return self.attributes.link.decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class VolumeStart:
    """The next volume begins; *label* None when it is damaged."""

    path: str
    label: VolumeLabel | None


@dataclass(frozen=True)
class SessionStart:
    """The first block of a session; *label* None when its start is not on these volumes or damaged."""

    ids: SessionIds
    label: SessionLabel | None
    volume: str


class FileStart(NamedTuple):
    """A file's attributes."""

    entry: FileEntry


class Data(NamedTuple):
    """A data record of *entry* as stored (see `compression.decode`). *data* is valid until the next event."""

    entry: FileEntry
    stream: int
    data: memoryview


class Digest(NamedTuple):
    """The digest record of *entry*."""

    entry: FileEntry
    algorithm: str
    value: bytes


class Acl(NamedTuple):
    """An access control list of *entry*: for streams 1007 (default) and 1008 (access) text with a NUL behind."""

    entry: FileEntry
    stream: int
    data: bytes


class Xattr(NamedTuple):
    """The extended attributes of *entry*, packed (volume format, section 9.4)."""

    entry: FileEntry
    stream: int
    data: bytes


class Other(NamedTuple):
    """Any other record of *entry* (plugin name, restore object, unknown). *data* is valid until the next event."""

    entry: FileEntry
    stream: int
    data: memoryview


class FileEnd(NamedTuple):
    """No more of *entry* follows; *damage* says what touched it when it is not whole."""

    entry: FileEntry
    state: FileState
    damage: tuple[Damage, ...] = ()


@dataclass(frozen=True)
class Partial:
    """Something begins before what was read (an earlier volume was not given): no damage, but not all there."""

    volume: str
    address: int
    what: str

    def __str__(self) -> str:
        return f"{self.volume}: at address {self.address}: {self.what}"


@dataclass(frozen=True)
class Loose:
    """A record, file data excepted, whose file or whose other part is on another volume (`SessionReader` with *loose*).

    *stream* below 0: the last part of a record that begins on the volume before. *missing*: bytes of it that are on the
    next volume, 0 for a whole record of a file whose attributes are on the volume before.
    """

    ids: SessionIds
    file_index: int
    stream: int
    data: bytes
    missing: int = 0


@dataclass(frozen=True)
class SessionEnd:
    """A session is over. *end* None: no end label (cancelled, still running, or it goes on on another volume)."""

    ids: SessionIds
    start: SessionLabel | None
    end: SessionLabel | None
    last_index: int
    volumes: tuple[str, ...] = field(default=())


Event = (
    VolumeStart
    | SessionStart
    | FileStart
    | Data
    | Digest
    | Acl
    | Xattr
    | Other
    | FileEnd
    | SessionEnd
    | Damage
    | Partial
    | Loose
)
