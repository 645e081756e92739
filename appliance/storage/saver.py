"""Saving one thing: its attributes, data, ACL, extended attributes and digest as records, and its catalog row."""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.storage import compressing, extras
from appliance.storage.compressing import Compressor
from appliance.storage.digests import digest_text, link_digest
from appliance.storage.output import Output
from appliance.storage.pieces import CHUNK, OFFSET, cut, zeros
from appliance.storage.reading import BUFFER, Reader
from appliance.storage.saving_options import FileOptions, SavingOptions
from appliance.storage.walk import NOT_LOOKED_AT, Found
from appliance.volumes.attributes import LONGEST_NAME, FileType, join_attributes
from appliance.volumes.digests import Hash
from appliance.volumes.digests import new as new_hash
from appliance.volumes.stat64 import EncodedStat, pack_stat
from appliance.volumes.streams import DIGEST_STREAMS, Stream

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_LINKABLE = (modes.S_IFREG, modes.S_IFIFO, modes.S_IFCHR, modes.S_IFBLK)


@dataclass
class _Link:
    """The first saved name of an inode with several."""

    file_index: int
    path: bytes
    digest: bytes
    algorithm: str | None
    names_left: int


class Saver:
    """Gives what the walk finds to *output*, as the records of one session."""

    def __init__(self, output: Output, options: SavingOptions) -> None:
        self.files = 0
        self.bytes = 0
        self.deleted = 0
        self._output = output
        self._choice = options
        self._options = FileOptions()  # of the file in hand
        self._reader = Reader()
        self._compressor = Compressor()
        # Only names that are still to come are kept, so memory does not grow with the tree.
        self._links: dict[tuple[int, int], _Link] = {}

    def close(self) -> None:
        """End the threads."""
        self._reader.close()
        self._compressor.close()

    def save(self, found: Found) -> None:
        """Save one thing; what cannot be read becomes a warning. Raises what the volume raises, and `Cancelled`."""
        self._output.check()
        kind = modes.S_IFMT(found.stat.st_mode)
        if kind == modes.S_IFSOCK:
            return
        if len(found.path) >= LONGEST_NAME:  # a directory's gets a slash
            self.trouble(found.path, OSError(errno.ENAMETOOLONG, "its path is longer than a restore takes"))
            return
        if found.stat.st_nlink > 1 and kind in _LINKABLE and self._link(found, found.stat):
            return
        try:
            self._save_as(kind, found)
        except OSError as error:
            self.trouble(found.path, error)

    def gone(self, path: bytes, mtime: int, ctime: int) -> None:
        """Note that something that was saved before, with these times, is not there any more (volume format, 6.2)."""
        self._output.check()
        stat = EncodedStat(mtime=mtime, ctime=ctime, data_stream=Stream.FILE_DATA)
        self._begin(FileType.DELETED, path, stat.pack())
        self.deleted += 1

    def trouble(self, path: bytes, error: OSError) -> None:
        """Warn that *path* is not saved."""
        self._output.warning(f"{os.fsdecode(path)} is not saved: {error.strerror or error}")

    def _save_as(self, kind: int, found: Found) -> None:
        self._options = self._choice.of(found.path)
        if kind == modes.S_IFREG:
            self._regular(found)
        elif kind == modes.S_IFDIR:
            name = found.path if found.path.endswith(b"/") else found.path + b"/"
            self._plain(found, FileType.DIRECTORY, name, self._extras_of(found, found.descriptor))
        elif kind == modes.S_IFLNK:
            target = os.readlink(found.name, dir_fd=_dir_fd(found))
            self._plain(found, FileType.SYMLINK, found.path, self._extras_of(found), target)
        else:
            index = self._plain(found, FileType.SPECIAL, found.path, self._extras_of(found))
            self._remember(found.stat, index, found.path, b"")

    def _extras_of(self, found: Found, descriptor: int = -1) -> list[tuple[Stream, bytes]]:
        """ACL and extended attributes, of an open thing by its *descriptor*. What cannot be read is a warning."""
        place: int | bytes = descriptor
        if descriptor < 0:
            place = found.name if found.parent < 0 else b"/proc/self/fd/%d/%s" % (found.parent, found.name)
        try:
            return extras.records(place, follow=descriptor >= 0)
        except OSError as error:
            what = "its ACL and extended attributes are not saved"
            self._output.warning(f"{os.fsdecode(found.path)}: {what}: {error.strerror}")
            return []

    def _plain(
        self, found: Found, kind: FileType, name: bytes, more: list[tuple[Stream, bytes]], link: bytes = b""
    ) -> int:
        index = self._begin(kind, name, pack_stat(found.stat), link)
        self._write_extras(index, more)
        return index

    def _begin(self, kind: FileType, name: bytes, numbers: bytes, link: bytes = b"", digest: bytes = b"") -> int:
        """Attributes record and, unless the digest is still to come, the catalog row."""
        index = self.files + 1
        self._output.record(index, Stream.UNIX_ATTRIBUTES, join_attributes(index, kind, name, numbers, link))
        self.files = index
        if kind is FileType.SYMLINK:
            self._output.row(index, kind, name, numbers, link_digest(link))
        elif kind is not FileType.REGULAR and kind is not FileType.EMPTY:
            self._output.row(index, kind, name, numbers, digest_text(digest))
        return index

    def _write_extras(self, index: int, more: list[tuple[Stream, bytes]]) -> None:
        for stream, data in more:
            self._output.record(index, stream, data)

    def _write_digest(self, index: int, digest: bytes, algorithm: str | None) -> None:
        if digest and algorithm:
            self._output.record(index, DIGEST_STREAMS[algorithm], digest)

    # -- hard links -------------------------------------------------------------------------------------------

    def _link(self, found: Found, status: os.stat_result) -> bool:
        """Save another name of an inode that was saved before; False when it is the first."""
        key = (status.st_dev, status.st_ino)
        first = self._links.get(key)
        if first is None:
            return False
        more = self._extras_of(found)
        numbers = pack_stat(status, link_fi=first.file_index)
        index = self._begin(FileType.HARD_LINK, found.path, numbers, first.path, first.digest)
        self._write_extras(index, more)
        self._write_digest(index, first.digest, first.algorithm)
        first.names_left -= 1
        if first.names_left <= 0:
            del self._links[key]
        return True

    def _remember(self, status: os.stat_result, index: int, path: bytes, digest: bytes) -> None:
        if status.st_nlink > 1:
            link = _Link(index, path, digest, self._options.algorithm, status.st_nlink - 1)
            self._links[status.st_dev, status.st_ino] = link

    # -- regular files ----------------------------------------------------------------------------------------

    def _regular(self, found: Found) -> None:
        descriptor = _open(found, noatime=self._options.noatime)
        try:
            status = os.fstat(descriptor)
            if not modes.S_ISREG(status.st_mode):
                raise OSError(0, "it is another thing now than when it was found")
            if status.st_nlink > 1 and found.stat is NOT_LOOKED_AT and self._link(found, status):
                return
            more = self._extras_of(found, descriptor)
            digest = self._read_and_write(found, descriptor, status, more)
            self._remember(status, self.files, found.path, digest)
            self._warn_if_changed(found, status, os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _read_and_write(
        self, found: Found, descriptor: int, status: os.stat_result, more: list[tuple[Stream, bytes]]
    ) -> bytes:
        size = status.st_size
        holes = self._options.sparse and status.st_blocks * 512 < size
        whole = None
        if size <= BUFFER and not holes:
            # It fits the buffer: all of it is read before its attributes are written.
            whole = self._reader.whole(descriptor, size)
            if len(whole) == size <= CHUNK and not more and status.st_nlink == 1 and self._options.packing is None:
                self._write_small(found, status, whole)
                return b""
        digest = new_hash(self._options.algorithm) if self._options.algorithm else None
        if whole is not None:
            if digest:
                digest.update(whole)
            pieces = iter((whole,))
        elif holes:
            pieces = self._reader.sparse(descriptor, size, digest)
        else:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            os.pread(descriptor, 1, 0)  # a file that cannot be read at all leaves no record
            pieces = self._reader.plain(descriptor, size, digest, None if self._options.packing else self._output.place)
        return self._write(found, status, more, pieces, digest, sparse=holes)

    def _write_small(self, found: Found, status: os.stat_result, data: memoryview) -> None:
        """A file without anything special, whose *data* are one record at most: most files are so."""
        kind = FileType.REGULAR if data else FileType.EMPTY
        index = self.files + 1
        self._output.small(index, kind, found.path, pack_stat(status), data, self._options.algorithm)
        self.files = index
        self.bytes += len(data)

    def _write(
        self,
        found: Found,
        status: os.stat_result,
        more: list[tuple[Stream, bytes]],
        pieces: Iterator[memoryview],
        digest: Hash | None,
        sparse: bool,
    ) -> bytes:
        """All records of a regular file; gives its digest."""
        kind = FileType.REGULAR if status.st_size else FileType.EMPTY
        numbers = pack_stat(status, data_stream=self._options.stream(sparse=sparse))
        index = self._begin(kind, found.path, numbers)
        reached, readable = self._write_data(index, pieces, found, sparse)
        if reached < status.st_size:
            if readable:
                shorter = f"is shorter than it was: {status.st_size - reached} bytes at its end are saved as zeros"
                self._output.warning(f"{os.fsdecode(found.path)} {shorter}")
            self._fill_up(index, status.st_size - reached, digest, reached if sparse else None)
        self._write_extras(index, more)
        value = digest.digest() if digest else b""
        self._write_digest(index, value, self._options.algorithm)
        self._output.row(index, kind, found.path, numbers, digest_text(value))
        return value

    def _write_data(self, index: int, pieces: Iterator[memoryview], found: Found, sparse: bool) -> tuple[int, bool]:
        """Data records; gives the end (bytes in the file) of the last one, and whether all could be read."""
        packing, stream = self._options.packing, self._options.stream(sparse=sparse)
        packed = (
            self._compressor.pack(_records(pieces), packing.compress, sparse=sparse)
            if packing
            else compressing.unpacked(pieces, sparse=sparse)
        )
        reached = 0
        while True:
            try:
                piece = next(packed, None)
            except OSError as error:
                name = os.fsdecode(found.path)
                text = f"cannot be read behind byte {reached}: {error.strerror}; what follows is saved as zeros"
                self._output.warning(f"{name} {text}")
                return reached, False
            if piece is None:
                return reached, True
            if stream is Stream.FILE_DATA:
                self._output.data(index, piece.data)
            else:
                self._output.check()
                self._output.record(index, stream, piece.data)
                self._output.advance(piece.plain)
            reached = reached + piece.plain if piece.end is None else piece.end
            self.bytes += piece.plain

    def _fill_up(self, index: int, missing: int, digest: Hash | None, sparse_at: int | None) -> None:
        """Zeros instead of what is missing, so that the size in the attributes and the data stay equal."""
        if sparse_at is not None:
            last = sparse_at + missing - 1
            self._write_zeros(index, last.to_bytes(OFFSET, "big") + b"\0", sparse=True)
            if digest:
                digest.update(memoryview(b"\0"))
            return
        for piece in zeros(missing):
            self._output.check()
            self._write_zeros(index, piece, sparse=False)
            if digest:
                digest.update(piece)

    def _write_zeros(self, index: int, piece: bytes | memoryview, *, sparse: bool) -> None:
        packing = self._options.packing
        data = compressing.pack(bytes(piece), packing.compress, sparse=sparse).data if packing else piece
        self._output.record(index, self._options.stream(sparse=sparse), data)

    def _warn_if_changed(self, found: Found, before: os.stat_result, after: os.stat_result) -> None:
        if before.st_mtime_ns != after.st_mtime_ns or before.st_size != after.st_size:
            self._output.warning(f"{os.fsdecode(found.path)} changed while it was being read")


def _records(pieces: Iterator[memoryview]) -> Iterator[memoryview]:
    """*pieces* as the data of one record each."""
    return (part for piece in pieces for part in cut(piece))


def _dir_fd(found: Found) -> int | None:
    return found.parent if found.parent >= 0 else None


def _open(found: Found, *, noatime: bool) -> int:
    """The file opened for reading; *noatime*: without touching its access time where permitted. Raises `OSError`."""
    if not noatime:
        return os.open(found.name, _OPEN, dir_fd=_dir_fd(found))
    try:
        return os.open(found.name, _OPEN | os.O_NOATIME, dir_fd=_dir_fd(found))
    except PermissionError:
        return os.open(found.name, _OPEN, dir_fd=_dir_fd(found))
