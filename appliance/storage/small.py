"""The small files of an extraction: held until they are whole, then made in one go, here or by other processes."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Callable, Sequence

from appliance.host import workers
from appliance.storage import nameless
from appliance.storage.maker import NOT_LIKE_THIS
from appliance.storage.making import DIED, Crew, Told
from appliance.storage.opened import OpenFile
from appliance.storage.setting import without_inherited
from appliance.storage.targets import Parts, Target
from appliance.volumes.attributes import FileType

_SMALL = 128 << 10  # bytes of a file that is held
_MOST_HELD = 64  # files that are, of sessions that ran at the same time
_TYPES = (int(FileType.REGULAR), int(FileType.EMPTY))
_ENOUGH = 500  # files from which on other processes pay
_MOST_MAKERS = 2  # who reads the volume cannot keep more of them busy


def berths() -> list[int]:
    """Numbers of processes that may be started, to be taken by whoever comes first."""
    return [min(len(os.sched_getaffinity(0)) - 1, _MOST_MAKERS)] if workers.worthwhile() else []


class SmallFiles:
    """*made* is told of each file that is in its place and what could not be set, *made_all* of those of which nothing
    is to be said; *again* of each that has to be made like any other; *failed* of errors of the target, which it may
    raise. *warn*: words that are about no file.
    """

    def __init__(
        self,
        target: Target,
        free: list[int],
        *,
        made: Callable[[OpenFile, Sequence[str]], None],
        made_all: Callable[[Sequence[OpenFile]], None],
        again: Callable[[OpenFile], None],
        failed: Callable[[OpenFile, OSError], None],
        warn: Callable[[str], None],
    ) -> None:
        self._target = target
        self._berths = free
        self._made_all = made_all
        self._made, self._again, self._failed, self._warn = made, again, failed, warn
        self._crew: Crew | None = None
        self._given: set[Parts] = set()
        self._count = 0

    @staticmethod
    def suits(one: OpenFile, opened: int) -> bool:
        """Whether it may be held: a small file that no other one is to be linked to. *opened*: files in hand."""
        attributes = one.entry.attributes
        return (
            attributes.ftype in _TYPES
            and 0 <= attributes.stat.size <= _SMALL
            and attributes.stat.nlink <= 1
            and not one.entry.is_update
            and bool(one.parts)
            and opened < _MOST_HELD
        )

    def make(self, one: OpenFile) -> None:
        """A file whose data are whole and held. Raises what *failed* does."""
        crew = self._crew
        if crew is not None and crew.is_full:
            self._collect(crew, wait=False)
        try:
            place = self._target.place(one.parts)
            if place.gives_acls:
                one.acls = without_inherited(one.acls, is_directory=False)
            if crew is not None and crew.take(one, place):
                self._given.add(one.parts)
                return
            assert one.held is not None
            saved = one.entry.attributes.stat
            made = nameless.make(
                place.descriptor, one.parts[-1], one.held, saved, self._target.rights, one.acls, one.xattrs
            )
        except OSError as error:
            self._failed(one, error)
            return
        if made is None:
            self._again(one)
        else:
            self._target.foreign += made.foreign
            self._made(one, made.missed)
        self._count += 1
        if self._count == _ENOUGH:
            self._start()

    def _start(self) -> None:
        try:
            count = self._berths.pop()
        except IndexError:
            return
        try:
            self._crew = Crew(count, self._target.rights)
        except OSError:  # too many processes, no memory: it goes without
            return

    def awaits(self, parts: Parts) -> bool:
        """Whether a file is being made there and not in its place for certain: `settle` comes before anything else."""
        return parts in self._given

    def settle(self) -> None:
        """Return when all files are made. Raises what *failed* does."""
        crew = self._crew
        if crew is not None:
            crew.send()
            while crew.is_busy:
                self._collect(crew, wait=True)

    def _collect(self, crew: Crew, *, wait: bool) -> None:
        for files, told in crew.collect(wait=wait):
            self._given.difference_update([one.parts for one in files])
            apart = {id(one.file) for one in told}
            self._made_all([one for one in files if id(one) not in apart] if apart else files)
            for one in told:
                self._take(one)
        while crew.ends:
            self._warn(f"a process that made small files was ended ({crew.ends.pop()}): they are made without it")

    def _take(self, told: Told) -> None:
        one = told.file
        if told.errno == NOT_LIKE_THIS or (told.errno == DIED and not self._is_there(one)):
            self._again(one)
        elif told.errno > 0:
            self._failed(one, OSError(told.errno, os.strerror(told.errno)))
        else:
            self._target.foreign += told.foreign
            self._made(one, told.missed)

    def _is_there(self, one: OpenFile) -> bool:
        """Whether it has its name, and so is whole."""
        try:
            found = self._target.existing(one.parts)
        except OSError:
            return False
        saved = one.entry.attributes.stat
        return found is not None and modes.S_ISREG(found.st_mode) and found.st_size == saved.size

    def close(self) -> None:
        """End the other processes."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None
