"""Handing small files to processes that make them (`maker.py`), so that a restore uses more than one processor.

Whole files go out in batches: data and numbers in a slot of shared memory, directories as descriptors, so that the
other process walks no path. What comes back tells about those with which there was something. No process is waited
for as long as there is something else to do: who finds no slot free makes the file itself.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import socket
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from appliance.host import workers
from appliance.storage.maker import DATA, FOLDERS, MESSAGE, SLOT, File, Result
from appliance.storage.opened import OpenFile
from appliance.storage.setting import Rights
from appliance.storage.targets import Place

DIED = -2
"""Instead of an errno: it may be made or not, the process has ended."""
_MODULE = "appliance.storage.maker"
_SLOTS = 8  # of each process
_FILES = 64  # in a slot, at most
_EXTRAS = 2048  # bytes of ACLs and extended attributes of a file that is handed over
_NAME = 255


class Told(NamedTuple):
    """A file that is not just made: as `maker.Result`, or `DIED`."""

    file: OpenFile
    errno: int
    missed: Sequence[str] = ()
    foreign: bool = False


class _Batch:
    """A slot being filled, or handed over."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.files: list[OpenFile] = []
        self.words: list[File] = []
        self.used = 0
        self.folders: list[int] = []
        self.last: Place | None = None

    def close(self) -> None:
        for folder in self.folders:
            os.close(folder)
        self.folders = []


class _Maker:
    """One process, and what it was given."""

    def __init__(self, memory: int, rights: Rights) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            trust = "trusted" if rights.trusted else "untrusted"
            descriptors = (memory, theirs.fileno())
            try:
                self.process = workers.start(_MODULE, [*map(str, descriptors), trust], descriptors)
            except BaseException:
                self.channel.close()
                raise
        self.given: dict[int, _Batch] = {}


class Crew:
    """*count* processes. Raises `OSError` when there can be none. Close it."""

    def __init__(self, count: int, rights: Rights) -> None:
        self._makers: list[_Maker] = []
        memory, self._memory = workers.shared(count * _SLOTS * SLOT)
        try:
            for _ in range(count):
                self._makers.append(_Maker(memory, rights))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(memory)
        # In turn, so that no process has all.
        self._free = [
            (slot * count + number, maker) for slot in range(_SLOTS) for number, maker in enumerate(self._makers)
        ]
        self._batch: _Batch | None = None
        self._maker = self._makers[0]
        self._poll = select.poll()
        self._by_descriptor = {maker.channel.fileno(): maker for maker in self._makers}
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.POLLIN)
        self.ends: list[str] = []
        """How processes ended that should not have."""

    @property
    def is_full(self) -> bool:
        """Whether no file is taken before something has come back."""
        return self._batch is None and not self._free

    def take(self, one: OpenFile, place: Place) -> bool:
        """Hand over a file whose data are held, to be made at *place*; False when that is to be done here."""
        data = one.held
        assert data is not None
        name = one.parts[-1]
        if one.extras > _EXTRAS or len(name) > _NAME:
            return False
        batch = self._batch
        if batch is not None and batch.used + len(data) > DATA:
            self.send()
            batch = None
        if batch is None:
            if not self._free:
                return False
            number, self._maker = self._free.pop()
            batch = self._batch = _Batch(number)
        if place is not batch.last:
            batch.folders.append(os.dup(place.descriptor))
            batch.last = place
        begin, end = batch.used, batch.used + len(data)
        at = batch.number * SLOT
        self._memory[at + begin : at + end] = data
        saved = one.entry.attributes.stat
        numbers = (saved.mode, saved.uid, saved.gid, saved.atime, saved.mtime)
        batch.words.append((len(batch.folders) - 1, name, begin, end, numbers, tuple(one.acls), tuple(one.xattrs)))
        batch.files.append(one)
        batch.used = end
        if len(batch.files) == _FILES or len(batch.folders) == FOLDERS:
            self.send()
        return True

    def send(self) -> None:
        """Give away what was taken last, however little it is."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        words = marshal.dumps(batch.words)
        at = batch.number * SLOT + DATA
        self._memory[at : at + len(words)] = words
        self._maker.given[batch.number] = batch
        with contextlib.suppress(OSError):  # one that has ended shows when it is asked
            socket.send_fds(self._maker.channel, [MESSAGE.pack(batch.number, len(words))], batch.folders)
        batch.close()

    @property
    def is_busy(self) -> bool:
        """Whether something is handed over and not yet told."""
        return any(maker.given for maker in self._makers)

    def collect(self, *, wait: bool) -> Iterator[tuple[Sequence[OpenFile], Sequence[Told]]]:
        """The files that are settled by now, and what is to be told of some; *wait* for something."""
        if self.is_busy:
            for descriptor, _ in self._poll.poll(None if wait else 0):
                yield self._hear(self._by_descriptor[descriptor])

    def _hear(self, maker: _Maker) -> tuple[Sequence[OpenFile], Sequence[Told]]:
        try:
            message = maker.channel.recv(MESSAGE.size)
        except OSError:
            message = b""
        if not message:
            return self._lose(maker)
        number, size = MESSAGE.unpack(message)
        batch = maker.given.pop(number)
        at = number * SLOT + DATA
        results: list[Result] = marshal.loads(self._memory[at : at + size])  # noqa: S302 - from our own process
        self._free.append((number, maker))
        return batch.files, [
            Told(batch.files[which], errno, missed, foreign) for which, errno, missed, foreign in results
        ]

    def _lose(self, maker: _Maker) -> tuple[Sequence[OpenFile], Sequence[Told]]:
        """A process that has ended has made of its files what has a name."""
        self._poll.unregister(maker.channel.fileno())
        maker.process.kill()  # if it has only closed its socket
        status = maker.process.wait()
        self.ends.append(f"signal {-status}" if status < 0 else f"exit status {status}")
        lost = [*maker.given.values()]
        if self._batch is not None and self._maker is maker:
            lost.append(self._batch)
            self._batch.close()
            self._batch = None
        maker.given.clear()
        self._free = [(slot, free) for slot, free in self._free if free is not maker]
        files = [one for batch in lost for one in batch.files]
        return files, [Told(one, DIED) for one in files]

    def close(self) -> None:
        """End the processes. One that still has files to make is killed: none of them is half in its place."""
        for maker in self._makers:
            maker.channel.close()
            if maker.given:
                maker.process.kill()
        for maker in self._makers:
            workers.end(maker.process)
        if self._makers and self._batch is not None:
            self._batch.close()
