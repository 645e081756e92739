"""What an extraction keeps of a file while it is written, and which kinds of entries and records make one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from appliance.storage.targets import Parts
from appliance.volumes.attributes import FileType
from appliance.volumes.backupread import BackupStream
from appliance.volumes.events import FileEntry
from appliance.volumes.streams import Stream
from appliance.volumes.verify import FileDigest

AS_FILE = frozenset({FileType.EMPTY, FileType.REGULAR, FileType.PLUGIN, FileType.RAW, FileType.FIFO})
NO_FILE = frozenset(
    {
        FileType.DELETED,
        FileType.RESTORE_FIRST,
        FileType.PLUGIN_CONFIG,
        FileType.PLUGIN_CONFIG_FILLED,
        FileType.PLUGIN_OBJECT,
        FileType.SECURITY_OBJECT,
    }
)
# Records beside a file's content that say nothing about the file itself.
NOT_MISSED = {Stream.PROGRAM_NAMES, Stream.PROGRAM_DATA, Stream.SIGNED_DIGEST, Stream.ENCRYPTED_SESSION_DATA}
NOT_MISSED |= {Stream.PLUGIN_NAME, Stream.RESTORE_OBJECT, Stream.FILEEVENT, Stream.NDMP_SEPARATOR}


@dataclass(slots=True)
class OpenFile:
    """The file of a session that is being written.

    *held*: the data of a small one so far, of which nothing is in the target yet; None when it is written as it comes.
    """

    entry: FileEntry
    parts: Parts
    path: str
    held: bytearray | None = None
    replaces: bool = False  # something that is there
    fd: int | None = None
    unfinished: bytes | None = None  # its name while it is not whole
    aside: os.stat_result | None = None  # what it was when it was closed for a while
    unwritable: bool = False  # the target did not take it: what was there stays
    outdone: bool = False  # since it was begun another session put a file in its place
    digest: FileDigest | None = None
    position: int = 0
    length: int = 0
    has_holes: bool = False
    failed: str = ""
    verified: bool | None = None
    verdict: Future[bool | None] | None = None  # instead, while its last bytes are still digested
    has_digest: bool = False
    acls: Sequence[tuple[int, bytes]] = ()
    xattrs: Sequence[bytes] = ()
    extras: int = 0  # bytes that both take
    windows: BackupStream | None = None
    left_out: frozenset[str] = frozenset()  # kinds of records that are not restored
