"""A disk of which the power can be cut: what it may hold then, from the calls that `layer.c` has logged.

What is durable, by POSIX and no more:

* a file's content and length after fsync or fdatasync of that file, as they were at that moment;
* names in a directory after fsync of that directory;
* all of that after syncfs (which is Linux's).

What was written before an fsync that failed never is, whatever a later fsync says.

Of everything since, any part may be on the disk and any part may not, in any order. A write is cut into what lies in
one sector (512 bytes) each, and a sector is written whole or not at all. A file whose last bytes are missing may be as
long as it was to become nevertheless, with zeros there. Changes of names are kept or lost one by one, each as a whole.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

SECTOR = 512
_PAGE = 4096
_HEAD = struct.Struct("=IIIIQQ")
# The index of the write-ahead log is shared memory: SQLite makes it anew after a crash, whatever is in it.
_MEMORY = "-shm"


class Kind(IntEnum):
    """What a call does; the numbers of `layer.c`."""

    MADE = 1
    WRITE = 2
    LENGTH = 3
    SYNC = 4
    RENAME = 5
    REMOVE = 6
    LINK = 7
    MARK = 8
    FOREIGN = 9
    LOST = 10
    SYNC_ALL = 11


@dataclass(frozen=True)
class Call:
    """One call: *number* is an offset, a length, or 1 for a directory; *path* and *other* are absolute."""

    kind: Kind
    inode: int
    number: int
    path: str
    other: str
    data: bytes


def calls(log: Path) -> Iterator[Call]:
    """The calls in the log of `layer.c`, in their order."""
    data, at = log.read_bytes(), 0
    while at < len(data):
        kind, path, other, size, inode, number = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        parts = []
        for length in (path, other, size):
            parts.append(data[at : at + length])
            at += length
        call = Call(Kind(kind), inode, number, os.fsdecode(parts[0]), os.fsdecode(parts[1]), parts[2])
        if call.kind is Kind.FOREIGN and not (call.other == "mmap" and call.path.endswith(_MEMORY)):
            raise AssertionError(f"{call.other or 'a call'} of {call.path} is not modelled")
        yield call


@dataclass(frozen=True)
class Piece:
    """A change of a file: *data* at *offset*, or (without) its length set to *offset*."""

    offset: int
    data: bytes | None

    def sectors(self) -> list[Piece]:
        """The same, sector by sector."""
        if self.data is None:
            return [self]
        found, at = [], 0
        while at < len(self.data):
            room = SECTOR - (self.offset + at) % SECTOR
            found.append(Piece(self.offset + at, self.data[at : at + room]))
            at += room
        return found

    def apply(self, content: bytearray) -> None:
        """Do it; a gap becomes zeros."""
        end = self.offset + len(self.data or b"")
        if len(content) < end:
            content.extend(bytes(end - len(content)))
        if self.data is None:
            del content[self.offset :]
        else:
            content[self.offset : end] = self.data


@dataclass(eq=False)
class Node:
    """A file, or (*names* not None) a directory. *pending*: changes since it was flushed."""

    content: bytes = b""
    pending: list[Piece] = field(default_factory=list)
    names: dict[str, Node] | None = None

    def settle(self) -> None:
        """All that was changed is on the disk now."""
        self.content = self.with_all(self.pending)
        self.pending = []

    def with_all(self, pieces: Iterable[Piece]) -> bytes:
        """The content when *pieces* reached the disk."""
        content = bytearray(self.content)
        for piece in pieces:
            piece.apply(content)
        return bytes(content)


@dataclass(frozen=True, eq=False)
class Naming:
    """A change of names, all or nothing: (directory, name, what it means then or None)."""

    steps: tuple[tuple[Node, str, Node | None], ...]

    def concerns(self, directory: Node) -> bool:
        """Whether a flush of *directory* makes it durable."""
        return any(folder is directory for folder, _, _ in self.steps)


State = dict[str, bytes | None]
"""What the disk holds: relative path to content; None for a directory."""


class Disk:
    """The disk below *root* while the calls go on; it begins with what is there now."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_inode: dict[int, Node] = {}
        self.top = self._found(root)
        self._now: dict[Node, dict[str, Node]] = {}
        self._look_at(self.top)
        self.namings: list[Naming] = []
        self.last: Node | None = None  # the file that the last call was for; None when it was for names

    def _found(self, path: Path) -> Node:
        if path.is_dir():
            node = Node(names={child.name: self._found(child) for child in sorted(path.iterdir())})
        else:
            node = Node(path.read_bytes())
        self._by_inode[path.stat().st_ino] = node
        return node

    def _look_at(self, folder: Node) -> None:
        assert folder.names is not None
        self._now[folder] = dict(folder.names)
        for node in folder.names.values():
            if node.names is not None:
                self._look_at(node)

    def _place(self, path: str) -> tuple[Node, str]:
        """The directory, as the kernel sees it now, and the name in it."""
        *folders, name = os.path.relpath(os.path.normpath(path), self._root).split("/")
        node = self.top
        for folder in folders:
            node = self._now[node][folder]
        return node, name

    def do(self, call: Call) -> None:
        """One call more."""
        self.last = self._by_inode[call.inode] if call.kind in (Kind.WRITE, Kind.LENGTH) else None
        if call.kind is Kind.SYNC:
            self._sync(self._by_inode[call.inode])
        elif call.kind is Kind.SYNC_ALL:
            for node in list(self._by_inode.values()):
                self._sync(node)
        elif call.kind is Kind.LOST:
            self._by_inode[call.inode].pending.clear()
        elif call.kind is Kind.WRITE:
            self._by_inode[call.inode].pending.append(Piece(call.number, call.data))
        elif call.kind is Kind.LENGTH:
            self._by_inode[call.inode].pending.append(Piece(call.number, None))
        elif call.kind in (Kind.MADE, Kind.LINK, Kind.REMOVE, Kind.RENAME):
            self._name(call)

    def _name(self, call: Call) -> None:
        folder, name = self._place(call.path)
        if call.kind is Kind.MADE:
            node = Node(names={} if call.number else None)
            self._by_inode[call.inode] = node
            if node.names is not None:
                self._now[node] = {}
            steps: list[tuple[Node, str, Node | None]] = [(folder, name, node)]
        elif call.kind is Kind.LINK:
            steps = [(folder, name, self._by_inode[call.inode])]
        elif call.kind is Kind.REMOVE:
            steps = [(folder, name, None)]
        else:
            steps = [(folder, name, None), (*self._place(call.other), self._now[folder][name])]
        self.namings.append(Naming(tuple(steps)))
        for where, what, node_or_none in steps:
            if node_or_none is None:
                self._now[where].pop(what, None)
            else:
                self._now[where][what] = node_or_none

    def _sync(self, node: Node) -> None:
        if node.names is None:
            node.settle()
            return
        kept = []
        for naming in self.namings:
            if not naming.concerns(node):
                kept.append(naming)
                continue
            for folder, name, what in naming.steps:
                assert folder.names is not None
                if what is None:
                    folder.names.pop(name, None)
                else:
                    folder.names[name] = what
        self.namings = kept

    def nodes(self) -> list[Node]:
        """The files with changes that are not flushed."""
        return [node for node in dict.fromkeys(self._by_inode.values()) if node.pending]

    def state(self, namings: Iterable[Naming], contents: dict[Node, bytes]) -> State:
        """The disk with these of the pending changes of names, and these contents where they differ."""
        changed: dict[Node, dict[str, Node]] = {}
        for naming in namings:
            for folder, name, what in naming.steps:
                names = changed.setdefault(folder, dict(folder.names or {}))
                if what is None:
                    names.pop(name, None)
                else:
                    names[name] = what
        found: State = {}
        self._collect(self.top, "", changed, contents, found)
        return found

    def _collect(
        self, folder: Node, path: str, changed: dict[Node, dict[str, Node]], contents: dict[Node, bytes], to: State
    ) -> None:
        for name, node in changed.get(folder, folder.names or {}).items():
            if node.names is not None:
                to[path + name] = None
                self._collect(node, path + name + "/", changed, contents, to)
            elif not name.endswith(_MEMORY):
                to[path + name] = contents.get(node, node.content)

    def finished(self) -> State:
        """The disk when nothing is lost."""
        return self.state(self.namings, {node: node.with_all(node.pending) for node in self.nodes()})


def key(state: State) -> int:
    """What tells two states apart, within one process."""
    return hash(tuple(sorted((path, len(content or b""), hash(content)) for path, content in state.items())))


class Cuts:
    """The states that a disk may be in when the power is cut now."""

    def __init__(self, disk: Disk, chance: random.Random) -> None:
        self._disk = disk
        self._chance = chance
        self._nodes = disk.nodes()

    def telling(self) -> Iterator[State]:
        """All or nothing of contents and names; of the file of the last call one call more or less, of names too."""
        disk, namings = self._disk, self._disk.namings
        everything = {node: node.with_all(node.pending) for node in self._nodes}
        zeros = {node: _zeros(node.content, len(content)) for node, content in everything.items()}
        pending = bool(self._nodes or namings)
        yield disk.state(namings, everything)
        if not pending:
            return
        yield disk.state([], {})
        yield disk.state(namings, {})
        yield disk.state([], everything)
        yield disk.state(namings, zeros)
        for node in self._nodes:
            if node is not self._disk.last:  # the others had their turn at their own calls
                continue
            yield disk.state(namings, everything | {node: node.with_all(node.pending[:-1])})
            yield disk.state(namings, everything | {node: _zeros(node.with_all(node.pending[:-1]), node_size(node))})
            yield disk.state(namings, everything | {node: node.with_all(node.pending[1:])})
        if self._disk.last is None:
            for naming in namings[-4:]:
                yield disk.state([other for other in namings if other is not naming], everything)

    def any(self, number: int) -> Iterator[State]:
        """*number* states at random, not all different."""
        for _ in range(number if self._nodes or self._disk.namings else 0):
            yield self._any()

    def _any(self) -> State:
        chance = self._chance
        how = chance.random()
        namings = [naming for naming in self._disk.namings if chance.random() < 0.7]
        contents = {node: self._torn(node, how) for node in self._nodes}
        return self._disk.state(namings, contents)

    def _torn(self, node: Node, how: float) -> bytes:
        chance = self._chance
        pieces = node.pending
        if how < 0.35:  # in order, up to somewhere inside a write
            pieces = pieces[: chance.randrange(len(pieces) + 1)]
            if pieces:
                last = pieces[-1].sectors()
                pieces = [*pieces[:-1], *last[: chance.randrange(len(last) + 1)]]
        elif how < 0.55:  # whole writes, any of them
            pieces = [piece for piece in pieces if chance.random() < 0.6]
        elif how < 0.75:  # whole pages, any of them
            taken: dict[int, bool] = {}
            sectors = [sector for piece in pieces for sector in piece.sectors()]
            pieces = [s for s in sectors if taken.setdefault(s.offset // _PAGE, chance.random() < 0.6)]
        else:  # sectors, nearly all or nearly none
            share = chance.choice((0.03, 0.5, 0.97))
            pieces = [s for piece in pieces for s in piece.sectors() if chance.random() < share]
        content = node.with_all(pieces)
        return _zeros(content, node_size(node)) if chance.random() < 0.3 else content


def node_size(node: Node) -> int:
    """The length that the file is to have."""
    size = len(node.content)
    for piece in node.pending:
        size = piece.offset if piece.data is None else max(size, piece.offset + len(piece.data))
    return size


def _zeros(content: bytes, size: int) -> bytes:
    return content + bytes(max(0, size - len(content)))
