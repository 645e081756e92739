"""One stream of events to files: what each record does."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.storage.creating import Creator, Rules
from appliance.storage.directories import Directories
from appliance.storage.opened import AS_FILE, NO_FILE, NOT_MISSED, OpenFile
from appliance.storage.outcome import FileResult, Summary
from appliance.storage.renaming import Renaming
from appliance.storage.results import Results
from appliance.storage.selection import Key
from appliance.storage.small import SmallFiles
from appliance.storage.targets import Target, no_more, parts_of
from appliance.storage.writing import Writer
from appliance.volumes.blocks import SessionIds
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
    SessionStart,
    VolumeStart,
    Xattr,
)
from appliance.volumes.reader import Damage
from appliance.volumes.streams import TYPE_MASK, Stream, stream_name
from appliance.volumes.verify import DigestPlan, Pieces

_MAX_EXTRAS = 4 << 20  # bytes of ACLs and extended attributes of one file, and what each record costs beside its bytes
_RECORD_COST = 256
_EXTRAS = (Acl, Xattr)
_SHOWN_NAME = 200  # characters of a name that no file can have
_PLAIN = int(Stream.FILE_DATA)


@dataclass(frozen=True)
class Settings:
    """What all branches of an extraction share. *berths*: as of `small.berths`. Else as of `extract.Extractor`."""

    rules: Rules
    renaming: Renaming
    algorithm: str | None
    limit: int | None
    on_result: Callable[[FileResult], None] | None
    berths: list[int]
    directories: Directories = field(default_factory=Directories)
    pieces: Pieces = field(default_factory=Pieces)


class Branch:
    """Takes the events of one thread. *target*: its own, which it closes. *summary*: where it counts. `close` it.

    Hard links are made only to what the same branch restored.
    """

    def __init__(
        self,
        settings: Settings,
        target: Target,
        summary: Summary,
        select: Callable[[FileEntry], bool] | None,
        aliases: Mapping[Key, bytes],
    ) -> None:
        self.summary = summary
        self.target = target
        self._settings = settings
        self._select, self._aliases = select, aliases
        self._renames = bool(settings.renaming)
        self._versions = settings.rules.made
        self._open: dict[SessionIds, OpenFile] = {}
        self._unjudged: deque[tuple[OpenFile, FileState, list[str]]] = deque()
        self._plan = DigestPlan(settings.algorithm, settings.pieces)
        self._results = Results(summary, settings.on_result)
        self._writer = Writer(target, summary, settings.limit)
        self._creator = Creator(target, settings.rules, aliases, summary.warn, settings.directories)
        self._small = SmallFiles(
            target,
            settings.berths,
            made=self._made_small,
            made_all=self._made_all_small,
            again=self._make_again,
            failed=self._results.failed,
            warn=summary.warn,
        )

    def take(self, events: Iterable[Event]) -> None:
        """Consume *events*, all but the attributes of directories. Raises as `extract.Extractor.run`."""
        handlers: dict[type, Callable[[Any], None]] = {
            VolumeStart: self._begin_volume,
            SessionStart: self._begin_job,
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
            self._settle()
        except OSError as error:
            raise no_more(self.target.root, error) from None
        except Exception:  # the caller's, to end it; what is begun is counted
            with contextlib.suppress(OSError):
                self._settle()
            raise

    def finish(self) -> None:
        """When all branches are done: the attributes of directories. Raises as `take`."""
        try:
            self._settings.directories.finish(self.target, self.summary.warn, self._results.failed)
        except OSError as error:
            raise no_more(self.target.root, error) from None

    def _settle(self) -> None:
        self._small.settle()
        while self._unjudged:
            self._judge_late()

    def close(self) -> None:
        """Close all files, end other processes."""
        self._small.close()
        for one in self._open.values():
            self._close_one(one)
        self._open.clear()
        self.target.close()
        self._plan.close()

    def _close_one(self, one: OpenFile) -> None:
        """Close the file; one that is not in its place by now is gone, and nothing can be linked to it."""
        if one.digest is not None:
            one.digest.drop()
        self._writer.close(one)
        if one.unfinished is not None:
            self.target.drop_file(one.unfinished, one.parts)
            one.unfinished = None
            self._creator.forget(one)

    def _begin_volume(self, event: VolumeStart) -> None:
        if self._versions is not None:
            self._versions.begin_volume()

    def _begin_job(self, event: SessionStart) -> None:
        if self._versions is not None:
            self._versions.begin_job(event)
        self._small.settle()  # what is in the way of this one is in its place
        self.target.begin_job()

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
            one = OpenFile(entry, parts_of(self._settings.renaming(name) if self._renames else name), path)
        except VolumeError as error:
            self._results.failed(OpenFile(entry, (), path[:_SHOWN_NAME] + "…"), error)
            return
        if self._renames and not one.parts and kind != "directory":
            self.summary.warn(f"{path}: is left out: nothing is left of its name")
            return
        if entry.attributes.ftype in NO_FILE or (kind == "hardlink" and self._creator.first(one) == one.parts):
            return  # nothing to make, or made already under this name with the data of another
        if self._small.awaits(one.parts):
            self._small.settle()
        try:
            if self._begin(one, kind):
                self._open[entry.ids] = one
        except (OSError, OverflowError, VolumeError) as error:
            self._results.failed(one, error)
            self._open[entry.ids] = one

    def _begin(self, one: OpenFile, kind: str) -> bool:
        """Make what can be made before the data come; False when what is there stays."""
        if self._versions is not None and self._creator.is_outdated(one):
            self._results.skipped(one, "was restored from a newer job")
            return False
        small = SmallFiles.suits(one, len(self._open)) and (one.entry.ids, one.entry.file_index) not in self._aliases
        # In a directory that is new nothing can be in the way, and if there is, it shows when the file gets its name.
        place = self.target.find(one.parts) if small else None
        if not (place is not None and place.is_new) and self._creator.is_in_the_way(one, kind):
            self._results.skipped(one)
            return False
        self._creator.begin(one, kind)
        if small and not one.replaces:
            one.held = bytearray()
            return True
        if one.replaces and kind != "directory":
            self._small.settle()  # nothing is to be made in a directory that goes
        if one.entry.is_update:
            return True
        if one.entry.attributes.ftype in AS_FILE:  # made with its first bytes
            one.digest = self._plan.start(one.entry.ids)
        else:
            self._creator.create(one, kind)
        self._creator.remember(one, kind)
        return True

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
            self._writer.record(one, event.stream, event.data)
        except (OSError, OverflowError, VolumeError) as error:
            self._results.failed(one, error)

    def _write_held(self, one: OpenFile) -> None:
        """Go on as with any other file: there is something about it that does not come with small ones."""
        held, one.held = one.held, None
        one.digest = self._plan.start(one.entry.ids)
        if held:
            self._writer.held(one, held)

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
                one.verdict = one.digest.judged(event.algorithm, event.value)

    def _end(self, event: FileEnd) -> None:
        one = self._open.pop(event.entry.ids, None)
        if one is None:
            return
        if one.digest is not None and one.digest.bytes and not one.has_digest:
            self._plan.learn_none(event)
        if one.outdone and event.state is not FileState.WHOLE:
            self._close_one(one)
            self._results.left(one)
            return
        for other in self._open.values():
            other.outdone |= other.parts == one.parts
        if one.held is not None and self._end_small(one, event):
            return
        self._put(one, event.state)

    def _put(self, one: OpenFile, state: FileState) -> None:
        """A thing whose records have all come gets its place."""
        try:
            if one.digest is not None and one.unfinished is None:
                self._make_empty(one, state)
            elif one.unfinished is not None and not one.failed:
                self._writer.file(one)  # it may be set aside
            missed = [] if one.failed else self._complete(one)
            if one.unfinished is not None and not one.unwritable:
                name = one.unfinished
                self._creator.place(one, lambda: self.target.place_file(name, one.parts))
                one.unfinished = None
        except (OSError, OverflowError) as error:
            self._results.failed(one, error)
            return
        finally:
            self._close_one(one)
        if one.failed:
            return
        self.summary.files += 1
        self._unjudged.append((one, state, missed))
        while self._unjudged:
            verdict = self._unjudged[0][0].verdict
            if verdict is not None and not verdict.done():
                break  # judged when another one has its place, or at the end
            self._judge_late()

    def _judge_late(self) -> None:
        """The oldest file whose digest was still computed when it had its place."""
        one, state, missed = self._unjudged.popleft()
        if one.verdict is not None:
            one.verified = one.verdict.result()
        self._results.judge(one, state, missed)

    def _end_small(self, one: OpenFile, event: FileEnd) -> bool:
        """Make a file whose data are held; False when it has to be written like any other."""
        assert one.held is not None
        good = event.state is FileState.WHOLE and one.verified is not False and not one.left_out
        if good and len(one.held) == one.entry.attributes.stat.size and one.extras <= _MAX_EXTRAS:
            if one.held and not one.has_digest:
                self._plan.learn_none(event)
            self._writer.check_limit(one, len(one.held))
            self._small.make(one)
            return True
        return not self._written(one)

    def _written(self, one: OpenFile) -> bool:
        """Write what is held; False when that fails."""
        try:
            self._write_held(one)
        except (OSError, OverflowError, VolumeError) as error:
            self._results.failed(one, error)
            self._close_one(one)
            return False
        return True

    def _made_small(self, one: OpenFile, missed: Sequence[str]) -> None:
        self.summary.files += 1
        self.summary.bytes += len(one.held or b"")
        self._results.judge(one, FileState.WHOLE, [*missed])

    def _made_all_small(self, files: Sequence[OpenFile]) -> None:
        self.summary.files += len(files)
        self.summary.bytes += sum([len(one.held or b"") for one in files])
        for one in files:
            if self._settings.on_result is not None or one.verified is None:
                self._results.judge(one, FileState.WHOLE, [])

    def _make_again(self, one: OpenFile) -> None:
        """A small file that could not be made in one go: its name is taken, or the file system is a simple one."""
        try:
            kept = self._creator.is_in_the_way(one, "file")
        except (OSError, VolumeError) as error:
            self._results.failed(one, error)
            return
        if kept:
            self._results.skipped(one)
        elif self._written(one):
            self._put(one, FileState.WHOLE)

    def _make_empty(self, one: OpenFile, state: FileState) -> None:
        """A file of which no byte came: right if it is empty, and nothing at all otherwise."""
        if not one.failed and state is not FileState.WHOLE and one.entry.attributes.stat.size:
            if state is FileState.CUT:
                self._results.nothing(one)
            else:
                self._results.failed(one, VolumeError("damaged on the volume, nothing of it is left"))
        if one.failed:
            self._creator.forget(one)
        else:
            self._writer.file(one)

    def _complete(self, one: OpenFile) -> list[str]:
        """Length and attributes of a file whose data are written. Those of directories wait for their contents."""
        saved = one.entry.attributes.stat
        kind = one.entry.attributes.kind
        if kind == "directory":
            self._settings.directories.add(one)
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
        return missed + self.target.apply(one.parts, saved, one.acls, one.xattrs, one.fd)
