"""What is known of a session while its blocks come. Source: volume format, sections 3.2 and 5."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.volumes.blocks import SessionIds
from appliance.volumes.events import Acl, Data, Digest, Event, FileEntry, Other, Xattr
from appliance.volumes.labels import SessionLabel
from appliance.volumes.reader import Damage
from appliance.volumes.streams import ACL, DATA, TYPE_MASK, XATTR, digest_name

REMEMBERED = 8
"""Damages that one file or session remembers."""


@dataclass
class OpenRecord:
    """A record cut at the end of a block."""

    file_index: int
    stream: int
    missing: int
    data: bytearray
    address: int
    volume: str


@dataclass
class OpenSession:
    """A session whose blocks come, its open file and record."""

    ids: SessionIds
    volumes: list[str]
    suspect: list[Damage]  # damage since its last block, which may have taken blocks of it
    start: SessionLabel | None = None
    number: int | None = None  # of its last block; None: the next one cannot be told
    last_index: int = 0
    ignored: int = 0  # FileIndex whose records are passed over (its beginning is missing, or its name not wanted)
    partial: int = 0  # FileIndex that begins before what was read, on a volume that may be read some other time
    skipped: bool = False  # blocks were left out on request
    in_middle: bool = False  # reading began inside the present file, for all that is known
    record: OpenRecord | None = None
    # Of the open file:
    entry: FileEntry | None = None
    has_digest: bool = False
    is_cut: bool = False
    flaws: list[Damage] = field(default_factory=list)

    def name(self) -> str:
        """For messages."""
        return f"job {self.start.job_id}" if self.start else f"session {self.ids}"

    @property
    def has_all(self) -> bool:
        """Whether all records of the open file are here: its digest is the last, or a record of another one began."""
        return self.has_digest or (self.record is not None and self.record.file_index != self.last_index)

    def touch(self, damage: list[Damage]) -> None:
        """The open file, if any, may have lost bytes."""
        if self.entry:
            self.flaws = (self.flaws + damage)[:REMEMBERED]


def record_event(session: OpenSession, entry: FileEntry, stream: int, data: memoryview) -> Event:
    """The event of one more record of the open file *entry*."""
    kind = stream & TYPE_MASK
    if kind in DATA:
        return Data(entry, stream, data)
    algorithm = digest_name(stream, len(data))
    if algorithm:
        session.has_digest = True
        return Digest(entry, algorithm, bytes(data))
    if kind in ACL:
        return Acl(entry, stream, bytes(data))
    if kind in XATTR:
        return Xattr(entry, stream, bytes(data))
    return Other(entry, stream, data)
