"""From the events of volumes to files below a target directory, each compared with its digest on the way."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.errors import MagbayError
from appliance.storage.directories import Directories
from appliance.storage.nameless import TARGET_GONE
from appliance.storage.opened import AS_FILE, NO_FILE, NOT_MISSED, OpenFile
from appliance.storage.outcome import FileResult, Outcome, Replace, Summary
from appliance.storage.renaming import Renaming
from appliance.storage.selection import Key
from appliance.storage.small import SmallFiles, berths
from appliance.storage.targets import LimitError, Parts, Target, no_more, parts_of
from appliance.storage.writeout import Writeout
from appliance.volumes.attributes import FileType
from appliance.volumes.backupread import BackupStream
from appliance.volumes.blocks import SessionIds
from appliance.volumes.compression import Chunk, decode
from appliance.volumes.errors import VolumeError
from appliance.volumes.events import (
    Acl,
    Data,
    Digest,
    Event,
    FileEnd,
    FileEntry,
    FileStart,
    FileState,
    Other,
    Partial,
    SessionEnd,
    Xattr,
)
from appliance.volumes.reader import Damage
from appliance.volumes.streams import TYPE_MASK, WINDOWS_DATA, Stream, stream_name
from appliance.volumes.verify import DigestPlan

_MAX_EXTRAS = 4 << 20  # bytes of ACLs and extended attributes of one file, and what each record costs beside its bytes
_RECORD_COST = 256
_CLOCK_STEP = 10_000_000  # ns that the clock of file systems may be behind, at most
_EXTRAS = (Acl, Xattr)
_SHOWN_NAME = 200  # characters of a name that no file can have
_PLAIN = int(Stream.FILE_DATA)


class Extractor:
    """Writes the files of an event stream below *target* (made if missing; "/" restores to where they came from).

    *select*: which entries (default all). *aliases*: from `selection.link_aliases`. *algorithm*: digest of the job, if
    known. *on_result* is told what became of each file. *trusted*: see `Target`. *limit*: most bytes of data in all.
    *renaming*: other names; messages have the stored ones.
    One extractor for one run.
    """

    def __init__(
        self,
        target: Path,
        *,
        select: Callable[[FileEntry], bool] | None = None,
        replace: Replace = Replace.ALWAYS,
        aliases: Mapping[Key, bytes] | None = None,
        algorithm: str | None = None,
        on_result: Callable[[FileResult], None] | None = None,
        trusted: bool = True,
        limit: int | None = None,
        renaming: Renaming | None = None,
    ) -> None:
        self.summary = Summary()
        self._renaming = renaming or Renaming()
        self._renames = bool(renaming)
        self._began = time.time_ns() - _CLOCK_STEP
        self._target = Target(target, trusted=trusted)
        self._limit = limit
        self._select = select
        self._replace = replace
        self._aliases = aliases or {}
        self._algorithm = algorithm
        self._plan = DigestPlan(algorithm)
        self._on_result = on_result
        self._open: dict[SessionIds, OpenFile] = {}
        self._directories = Directories()
        self._links: dict[Key, Parts] = {}
        self._branches: list[Extractor] = []
        self._lost: OSError | None = None  # what did not reach the disk, of which the kernel tells once only
        # With a limit every file is made when its turn has come.
        self._berths = berths() if limit is None else []
        self._small = self._small_files()

    def _small_files(self) -> SmallFiles:
        return SmallFiles(
            self._target,
            self._berths,
            made=self._made_small,
            again=self._make_again,
            failed=self._fail,
            warn=lambda text: self.summary.warn(text),
        )

    def branch(self, select: Callable[[FileEntry], bool], aliases: Mapping[Key, bytes]) -> Extractor:
        """One for a thread of its own, with the same target and settings; `take`, `close` and `absorb` it.

        Hard links are made only to what the same branch restored.
        """
        other = copy.copy(self)
        other.summary = Summary()
        other._target = self._target.branch()
        other._plan = DigestPlan(self._algorithm)
        other._open, other._links = {}, {}
        other._select, other._aliases = select, aliases
        other._small = other._small_files()
        self._branches.append(other)
        return other

    def absorb(self, branch: Extractor) -> None:
        """A branch is done: what it restored counts here."""
        self._branches.remove(branch)
        self.summary.add(branch.summary)
        self._target.foreign += branch._target.foreign

    def run(self, events: Iterable[Event]) -> Summary:
        """Consume *events*; gives the summary. `MagbayError` when the target is full; others as the events do."""
        try:
            with self.writing_out():
                self.take(events)
            self.finish()
        finally:
            self.close()
        return self.summary

    @contextlib.contextmanager
    def writing_out(self) -> Iterator[None]:
        """What this one and its branches restore goes to the disk while that is done. `finish` tells what did not."""
        writeout = Writeout(self._target.flush, self._done)
        try:
            yield
        finally:
            writeout.stop()
            self._lost = writeout.trouble

    def _done(self) -> tuple[int, int]:
        summaries = [self.summary, *(branch.summary for branch in self._branches)]
        return sum(one.files for one in summaries), sum(one.bytes for one in summaries)

    def take(self, events: Iterable[Event]) -> None:
        """Consume *events*, all but the attributes of directories. Raises as `run`."""
        handlers: dict[type, Callable[[Any], None]] = {
            FileStart: self._start,
            Data: self._data,
            Digest: self._keep,
            Acl: self._keep,
            Xattr: self._keep,
            Other: self._other,
            FileEnd: self._end,
            Damage: lambda event: self.summary.fail(str(event)),
            Partial: lambda event: self.summary.warn(str(event)),
            SessionEnd: lambda event: self._plan.forget(event.ids),
        }
        try:
            for event in events:
                handler = handlers.get(type(event))
                if handler:
                    handler(event)
            self._small.settle()
        except OSError as error:
            raise no_more(self._target.root, error) from None
        except Exception:  # the caller's, to end it; what is begun is counted
            with contextlib.suppress(OSError):
                self._small.settle()
            raise

    def close(self) -> None:
        """Close all files, end other processes."""
        self._small.close()
        for one in self._open.values():
            self._close_one(one)
        self._open.clear()
        self._target.close()
        self._plan.close()

    def _close_one(self, one: OpenFile) -> None:
        """Close the file; one that is not in its place by now is gone, and nothing can be linked to it."""
        if one.fd is not None:
            os.close(one.fd)
            one.fd = None
        if one.unfinished is not None:
            self._target.drop_file(one.unfinished, one.parts)
            one.unfinished = None
            self._links.pop((one.entry.ids, one.entry.file_index), None)

    # One file

    def _start(self, event: FileStart) -> None:
        entry = event.entry
        name = entry.attributes.name
        if self._select is not None and not self._select(entry):
            if (entry.ids, entry.file_index) not in self._aliases:
                return
            name = self._aliases[entry.ids, entry.file_index]
        path = name.decode("utf-8", "surrogateescape")
        kind = entry.attributes.kind
        try:
            one = OpenFile(entry, parts_of(self._renaming(name) if self._renames else name), path)
        except VolumeError as error:
            self._fail(OpenFile(entry, (), path[:_SHOWN_NAME] + "…"), error)
            return
        if self._renames and not one.parts and kind != "directory":
            self.summary.warn(f"{path}: is left out: nothing is left of its name")
            return
        saved = entry.attributes.stat
        first = self._links.get((entry.ids, saved.link_fi)) if saved.link_fi else None
        if entry.attributes.ftype in NO_FILE or (kind == "hardlink" and first == one.parts):
            return  # nothing to make, or made already under this name with the data of another
        if self._small.awaits(one.parts):
            self._small.settle()
        try:
            if self._begin(one, kind):
                self._open[entry.ids] = one
        except (OSError, OverflowError, VolumeError) as error:
            self._fail(one, error)
            self._open[entry.ids] = one

    def _begin(self, one: OpenFile, kind: str) -> bool:
        """Make what can be made before the data come; False when what is there stays."""
        small = SmallFiles.suits(one, len(self._open)) and (one.entry.ids, one.entry.file_index) not in self._aliases
        # In a directory that is new nothing can be in the way, and if there is, it shows when the file gets its name.
        if not (small and self._target.place(one.parts).is_new) and self._is_in_the_way(one, kind):
            self._skip(one)
            return False
        if small and not one.replaces:
            one.held = bytearray()
            return True
        if one.replaces and kind != "directory":
            self._small.settle()  # nothing is to be made in a directory that goes
        self._create(one, kind)
        return True

    def _skip(self, one: OpenFile) -> None:
        self.summary.skipped += 1
        self._tell(one.path, Outcome.SKIPPED, "is there already")

    def _is_in_the_way(self, one: OpenFile, kind: str) -> bool:
        if not one.parts:
            if kind != "directory":
                raise VolumeError("its name has no component below the target")
            return False
        found = self._target.existing(one.parts)
        if one.entry.is_update:
            if found is None:
                raise VolumeError("only its attributes are saved here, and it is not in the target")
            return self._replace is Replace.NEVER
        if found is None or (kind == "directory" and self._target.was_made_on_the_way(one.parts)):
            return False
        one.replaces = True
        if self._renames and kind != "directory" and found.st_ctime_ns >= self._began:
            raise VolumeError(f"another file was restored as {os.fsdecode(b'/'.join(one.parts))} just now")
        return self._replace.keeps(one.entry.attributes.stat.mtime, int(found.st_mtime))

    def _create(self, one: OpenFile, kind: str) -> None:
        attributes = one.entry.attributes
        if one.entry.is_update:
            return
        if attributes.ftype in AS_FILE:  # made with its first bytes: what is there stays when nothing can be read
            one.digest = self._plan.start(one.entry.ids)
        elif kind == "directory":
            self._target.create_directory(one.parts)
        elif kind == "symlink":
            self._target.create_symlink(one.parts, attributes.link)
        elif kind == "hardlink":
            self._create_link(one)
        elif attributes.ftype == FileType.SPECIAL and kind != "other":
            self._create_node(one, kind)
        else:
            raise VolumeError(f"its type ({kind}, code {attributes.ftype}) cannot be restored")
        key = (one.entry.ids, one.entry.file_index)
        if (attributes.stat.nlink > 1 and kind not in ("directory", "hardlink")) or key in self._aliases:
            self._links[key] = one.parts

    def _create_link(self, one: OpenFile) -> None:
        first = self._links.get((one.entry.ids, one.entry.attributes.stat.link_fi))
        if first is None:
            raise VolumeError(f"it is a link to {one.entry.link!r}, whose data are not among the files extracted")
        self._target.create_link(one.parts, first)

    def _create_node(self, one: OpenFile, kind: str) -> None:
        try:
            self._target.create_node(one.parts, one.entry.attributes.stat)
        except PermissionError:
            one.failed = f"{kind} not made (only root may, and from trusted volumes only)"
            self.summary.warn(f"{one.path}: {one.failed}")

    def _other(self, event: Other) -> None:
        one = self._open.get(event.entry.ids)
        if one is not None and event.stream & TYPE_MASK not in NOT_MISSED:
            one.left_out |= {stream_name(event.stream)}

    def _data(self, event: Data) -> None:
        one = self._open.get(event.entry.ids)
        if one is None or one.failed:
            return
        try:
            if one.held is not None:
                if event.stream == _PLAIN and len(one.held) + len(event.data) <= one.entry.attributes.stat.size:
                    one.held += event.data
                    return
                self._write_held(one)
            chunk = decode(event.stream, event.data)
            if one.digest is None:
                raise VolumeError(f"it is a {one.entry.attributes.kind} but has data")
            one.digest.update(chunk.data)
            for piece in self._pieces(one, event.stream, chunk):
                self._write_piece(one, self._file(one), piece)
        except (OSError, OverflowError, VolumeError) as error:
            self._fail(one, error)

    def _write_held(self, one: OpenFile) -> None:
        """Go on as with any other file: there is something about it that does not come with small ones."""
        held, one.held = one.held, None
        one.digest = self._plan.start(one.entry.ids)
        if held:
            data = memoryview(held)
            one.digest.update(data)
            self._write_piece(one, self._file(one), Chunk(None, data))

    def _file(self, one: OpenFile) -> int:
        if one.fd is None:
            one.fd, one.unfinished = self._target.create_file(one.parts)
        return one.fd

    def _pieces(self, one: OpenFile, stream: int, chunk: Chunk) -> Iterable[Chunk]:
        """The bytes of the file in a decoded record: itself, but for Windows what is the file's among other things."""
        if stream & TYPE_MASK not in WINDOWS_DATA:
            return [chunk]
        one.windows = one.windows or BackupStream()
        return one.windows.feed(chunk.data)

    def _write_piece(self, one: OpenFile, fd: int, chunk: Chunk) -> None:
        data = chunk.data
        if chunk.offset is not None:
            one.position, one.has_holes = chunk.offset, True
        self._check_limit(one, len(data))
        while data:
            written = os.pwrite(fd, data, one.position)
            one.position += written
            data = data[written:]
        self.summary.bytes += len(chunk.data)
        one.length = max(one.length, one.position)

    def _check_limit(self, one: OpenFile, length: int) -> None:
        if self._limit is not None and self.summary.bytes + length > self._limit:
            hint = "Raise --limit if you trust the volumes; what was restored before is kept."
            raise LimitError(f"{one.path} goes over the limit of {self._limit} bytes", hint=hint)

    def _keep(self, event: Digest | Acl | Xattr) -> None:
        one = self._open.get(event.entry.ids)
        if one is None:
            return
        if isinstance(event, _EXTRAS):
            one.extras += len(event.data) + _RECORD_COST
            if one.extras > _MAX_EXTRAS:
                return
        if isinstance(event, Acl):
            one.acls = [*one.acls, (event.stream & TYPE_MASK, event.data)]
        elif isinstance(event, Xattr) and event.stream & TYPE_MASK == Stream.LINUX_XATTR:
            one.xattrs = [*one.xattrs, event.data]
        elif isinstance(event, Xattr):
            one.left_out |= {f"extended attributes of another system ({stream_name(event.stream)})"}
        else:
            one.has_digest = True
            self._plan.learn(event)
            if one.held is not None:
                one.verified = self._plan.matches(event, one.held)
            elif one.digest is not None:
                one.verified = one.digest.matches(event.algorithm, event.value)

    def _end(self, event: FileEnd) -> None:
        one = self._open.pop(event.entry.ids, None)
        if one is None:
            return
        if one.digest is not None and one.digest.bytes and not one.has_digest:
            self._plan.learn_none(event)
        if one.outdone and event.state is not FileState.WHOLE:
            self._close_one(one)
            self._leave(one)
            return
        for other in self._open.values():
            other.outdone |= other.parts == one.parts
        if one.held is not None and self._end_small(one, event):
            return
        self._put(one, event.state)

    def _put(self, one: OpenFile, state: FileState) -> None:
        """A thing whose records have all come gets its place."""
        try:
            if one.digest is not None and one.fd is None:
                self._make_empty(one, state)
            missed = [] if one.failed else self._complete(one)
            if one.unfinished is not None and not one.unwritable:
                self._target.place_file(one.unfinished, one.parts)
                one.unfinished = None
        except (OSError, OverflowError) as error:
            self._fail(one, error)
            return
        finally:
            self._close_one(one)
        if one.failed:
            return
        self.summary.files += 1
        self._judge(one, state, missed)

    def _leave(self, one: OpenFile) -> None:
        """A job that never ended leaves its last file open to the end of the volumes; what came after it is newer."""
        one.failed = "is not whole in a job that has no end: the one that was saved after it is kept"
        self.summary.warn(f"{one.path}: {one.failed}")
        self._tell(one.path, Outcome.SKIPPED, one.failed)

    def _end_small(self, one: OpenFile, event: FileEnd) -> bool:
        """Make a file whose data are held; False when it has to be written like any other."""
        assert one.held is not None
        good = event.state is FileState.WHOLE and one.verified is not False and not one.left_out
        if good and len(one.held) == one.entry.attributes.stat.size and one.extras <= _MAX_EXTRAS:
            if one.held and not one.has_digest:
                self._plan.learn_none(event)
            self._check_limit(one, len(one.held))
            self._small.make(one)
            return True
        return not self._written(one)

    def _written(self, one: OpenFile) -> bool:
        """Write what is held; False when that fails."""
        try:
            self._write_held(one)
        except (OSError, OverflowError, VolumeError) as error:
            self._fail(one, error)
            self._close_one(one)
            return False
        return True

    def _made_small(self, one: OpenFile, missed: Sequence[str]) -> None:
        self.summary.files += 1
        self.summary.bytes += len(one.held or b"")
        self._judge(one, FileState.WHOLE, [*missed])

    def _make_again(self, one: OpenFile) -> None:
        """A small file that could not be made in one go: its name is taken, or the file system is a simple one."""
        try:
            kept = self._is_in_the_way(one, "file")
        except (OSError, VolumeError) as error:
            self._fail(one, error)
            return
        if kept:
            self._skip(one)
        elif self._written(one):
            self._put(one, FileState.WHOLE)

    def _make_empty(self, one: OpenFile, state: FileState) -> None:
        """A file of which no byte came: right if it is empty, and nothing at all otherwise."""
        if not one.failed and state is FileState.DAMAGED and one.entry.attributes.stat.size:
            self._fail(one, VolumeError("damaged on the volume, nothing of it is left"))
        if one.failed:
            self._links.pop((one.entry.ids, one.entry.file_index), None)
        else:
            self._file(one)

    def _complete(self, one: OpenFile) -> list[str]:
        """Length and attributes of a file whose data are written. Those of directories wait for their contents."""
        saved = one.entry.attributes.stat
        kind = one.entry.attributes.kind
        if kind == "directory":
            self._directories.add(one)
            return []
        if kind == "hardlink":
            return []
        missed = []
        if one.extras > _MAX_EXTRAS:
            missed.append("has more ACLs and extended attributes than a file can have")
        missed += [f"{what} not restored" for what in sorted(one.left_out)]
        if one.windows:
            missed += [f"Windows' {part.name} not restored" for part in sorted(one.windows.left_out)]
            if not one.windows.is_whole:
                missed.append("Windows' data end inside a part")
        if one.fd is not None:
            if one.has_holes and saved.size > one.length:
                os.ftruncate(one.fd, saved.size)
                one.length = saved.size
            if one.length != saved.size and saved.size >= 0:
                missed.append(f"has {one.length} bytes, not {saved.size} as when its saving began")
        return missed + self._target.apply(one.parts, saved, one.acls, one.xattrs, one.fd)

    def _judge(self, one: OpenFile, state: FileState, missed: list[str]) -> None:
        if state is FileState.DAMAGED:
            self._fail(one, VolumeError("is kept, but not whole: damaged on the volume"))
        elif one.has_digest and one.verified is False:
            self._fail(one, VolumeError("is kept, but its content does not match its digest"))
        else:
            if state is FileState.CUT:
                missed = ["is not whole: its job ends inside it, or goes on on another volume", *missed]
            if one.has_digest and one.verified is None and one.entry.attributes.ftype in AS_FILE:
                self.summary.unverified += 1
            for text in missed:
                self.summary.warn(f"{one.path}: {text}")
            self._tell(one.path, Outcome.WARNED if missed else Outcome.RESTORED, "; ".join(missed))

    def _fail(self, one: OpenFile, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in TARGET_GONE:
            raise OSError(error.errno, error.strerror, one.path) from error
        message = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        one.failed = message
        one.unwritable = isinstance(error, OSError)
        self.summary.fail(f"{one.path}: {message}")
        self._tell(one.path, Outcome.FAILED, message)

    def _tell(self, path: str, outcome: Outcome, message: str) -> None:
        if self._on_result is not None:
            self._on_result(FileResult(path, outcome, message))

    def finish(self) -> None:
        """At the end, when no branch runs any more: attributes of directories, and everything to the disk.

        Raises as `run`.
        """
        try:
            self._directories.finish(self._target, self.summary.warn, self._fail)
        except OSError as error:
            raise no_more(self._target.root, error) from None
        try:
            if self._lost:
                raise self._lost
            self._target.flush()
        except OSError as error:
            text = f"{self._target.root}: what was restored may not be on the disk: {error.strerror}"
            raise MagbayError(text, hint="Look at the disk, and restore again.") from None
        if self._target.foreign:
            told = "belong to other users or groups, and only root can give them back"
            self.summary.warn(f"{self._target.foreign} of the restored files {told}: they are yours now")
