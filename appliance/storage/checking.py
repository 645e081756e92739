"""Comparing what comes off the volumes with the rows of the catalog, file by file."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.storage import digests
from appliance.storage.model import SavedFile
from appliance.storage.saved_files import text
from appliance.volumes.attributes import FileType
from appliance.volumes.compression import decode
from appliance.volumes.digests import Hash
from appliance.volumes.digests import new as new_hash
from appliance.volumes.errors import UnsupportedError, VolumeError
from appliance.volumes.events import Data, FileEntry


class FileCheck:
    """One file: its attributes against its *row*, its data against size and digest. *trouble*: what is wrong, in words.

    *content*: whether that is so of the data that lie on the volume. *unread*: why its data cannot be compared, though
    nothing is wrong with them (encrypted by the client, a compression that is not read here).
    """

    def __init__(self, entry: FileEntry, row: SavedFile) -> None:
        self.trouble: list[str] = []
        self.bytes = 0
        self.content = False
        self.unread = ""
        self._row = row
        self._reached = 0
        self._has_holes = False
        algorithm = digests.algorithm_of(row.digest)
        self._hash: Hash | None = new_hash(algorithm) if algorithm else None
        if row.path != entry.attributes.name or row.lstat.encode("ascii") != entry.attributes.stat.pack():
            self.trouble.append(f"{text(row.path)} has other attributes on the volume ({entry.path})")
        if row.type == FileType.SYMLINK and row.digest not in ("", digests.link_digest(entry.attributes.link)):
            self.trouble.append(f"{entry.path} leads elsewhere on the volume")

    def data(self, event: Data) -> None:
        """Take a data record."""
        if self.unread:
            return
        try:
            chunk = decode(event.stream, event.data)
        except UnsupportedError as error:
            self.unread = error.message
            return
        except VolumeError as error:
            self._wrong(f"{event.entry.path}: {error.message}")
            return
        self._has_holes |= chunk.offset is not None
        self._reached = (self._reached if chunk.offset is None else chunk.offset) + len(chunk.data)
        self.bytes += len(chunk.data)
        if self._hash:
            self._hash.update(chunk.data)

    def end(self, entry: FileEntry) -> None:
        """Judge the whole file."""
        if self.unread or entry.attributes.ftype not in (FileType.REGULAR, FileType.EMPTY):
            return
        size = entry.attributes.stat.size  # negative where a plugin does not know it
        # Some leave out even the last block of a file when it holds zeros only; then the digest must tell.
        cut = self._reached < size and self._has_holes and self._hash
        if size >= 0 and self._reached != size and not cut:
            self._wrong(f"{entry.path} has {self._reached} bytes on the volume, {size} were saved")
        elif self._hash:
            digest = digests.digest_text(self._hash.digest())
            if digest != self._row.digest:
                self._wrong(f"{entry.path} differs from its digest")

    def _wrong(self, line: str) -> None:
        self.content = True
        self.trouble.append(line)


def unread_lines(counts: Mapping[str, int]) -> list[str]:
    """Warnings about files whose data cannot be compared. *counts*: how many, by whose and why ("job 3: reason")."""
    return [f"{what}: the content of {count} files is not compared" for what, count in counts.items()]
