"""Reading one file volume: its blocks in order, and what is damaged between them.

Source: volume format, sections 2 and 18. Memory is bounded by one block (20 MB) or the read window.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.errors import NotFoundError, PermissionDeniedError
from appliance.host import files
from appliance.volumes import bb03
from appliance.volumes.bb03 import VolumeKey, VolumeKeys
from appliance.volumes.blocks import (
    BLOCK_HEADER,
    MAGIC,
    MAGIC3,
    MAGIC_OFFSET,
    MAX_BLOCK,
    MAX_RECORD,
    MIN_BLOCK,
    RECORD_HEADER,
    BlockHeader,
    Option,
    SessionIds,
    checksum,
)
from appliance.volumes.errors import UnsupportedError, VolumeError
from appliance.volumes.labels import LabelKind, VolumeLabel

_WINDOW = 4 << 20
_HEAD = BLOCK_HEADER.size
_OLD = b"BB01"
_OLD_TOLD = "in block format BB01 (Bacula before 2002), which this version does not read"
_NO_LIBRARY = "in block format BB03 (Bacula 15), whose checksums need the Python library xxhash"
_NO_KEY = "that are enciphered, and no key for them is given (--volume-key)"
_LIBRARY_HINT = "Install the package python3-xxhash (or: pip install xxhash)."
_FAMILY = MAGIC[:3]
_LONGEST_HEAD = MIN_BLOCK + 8
_NOT_ONE = "Leave it out; 'magbay volume list' takes volume files only."
# While looking for the next block, every "BB02" in the data costs a checksum over the length it claims. This much more
# than the distance searched is spent at most, so that a hostile file cannot make the search quadratic.
_SEARCH_ALLOWANCE = 256 << 20
# What the kernel reads at least, and so is passed over at first where the disk cannot be read; then four times as much
# each time.
_PAGE = 4096
_MOST_FAILURES = 9  # in a row, behind some 350 MB; then the disk is gone rather than damaged


@dataclass(frozen=True)
class Block:
    """A whole block with a good checksum. *data* (header included) is valid until the next block is asked for.

    *begin*: where in it the first record stands. The data of an enciphered block are the plain ones.
    """

    address: int
    number: int
    ids: SessionIds
    data: memoryview
    begin: int = _HEAD


@dataclass(frozen=True)
class Damage:
    """*length* bytes at *address* of the file *volume* that could not be used; *what* says why, in words.

    *foreign*: they may be good, but need a key or a library that is not there, or are of another format.
    """

    volume: str
    address: int
    length: int
    what: str
    foreign: bool = False

    def __str__(self) -> str:
        skipped = f", {self.length} bytes skipped" if self.length else ""
        return f"{self.volume}: at address {self.address}: {self.what}{skipped}"


class _UnreadableError(VolumeError):
    """The disk does not give the bytes at the address *at*."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


@dataclass(frozen=True)
class _Flaw:
    what: str
    length: int = 0  # of the block as its header claims, where that is possible at all
    foreign: str = ""  # why this version or this call does not read blocks like it


class VolumeReader:
    """One open volume. `NotFoundError` when there is no such file, `VolumeError` when it cannot be a volume.

    *keys*: where the keys of enciphered volumes are. *from_disk*: what the disk has is read, as far as that can be
    told, even if memory has the file.
    """

    def __init__(self, path: Path, keys: VolumeKeys | None = None, *, from_disk: bool = False) -> None:
        self.path = path
        self.name = str(path)
        self._keys: tuple[VolumeKey, ...] = ()  # of this volume
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            hint = "Check the name, and that the magazine is in."
            raise NotFoundError(f"{path}: no such volume file", hint=hint) from None
        except PermissionError as error:
            raise PermissionDeniedError(f"{path}: {error.strerror}", hint="Run as root or as its owner.") from None
        except OSError as error:
            raise VolumeError(f"{path}: {error.strerror}") from None
        self._buffer = bytearray()
        self._begin = self._end = 0  # what of the file the buffer holds
        self._stops = False  # what comes behind that cannot be read
        self._usual = 0  # length of the last good block
        self._failures = 0  # unreadable places in a row
        try:
            if stat.S_ISDIR(os.fstat(self._fd).st_mode):
                raise VolumeError(f"{path}: is a directory", hint=f"Give the volumes in it: {path}/*")
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
            if from_disk:
                with contextlib.suppress(OSError):  # then what can be read is judged
                    files.forget_cached(self._fd)
            self._buffer = bytearray(min(self.size, _WINDOW))
            self._refuse_foreign()
            if keys is not None:
                self._keys = keys.of(path, self._label_name())
        except OSError:
            os.close(self._fd)
            raise VolumeError(f"{path}: is not a regular file", hint="Give the path of a volume file.") from None
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _refuse_foreign(self) -> None:
        if not self.size:
            raise VolumeError(f"{self.path}: the file is empty, no volume label on it", hint=_NOT_ONE)
        try:
            magic = bytes(self._window(0, 16)[MAGIC_OFFSET:])
        except _UnreadableError:  # what lies behind may still be read
            return
        if magic == _OLD:
            hint = "Read it with the tools of the Bacula version that wrote it."
            raise UnsupportedError(f"{self.path}: the volume is {_OLD_TOLD}", hint=hint)
        if magic == MAGIC3 and bb03.library() is None:
            raise UnsupportedError(f"{self.path}: the volume is {_NO_LIBRARY}", hint=_LIBRARY_HINT)

    def _label_name(self) -> str:
        try:
            first = self._judge(0)
            label = parse_label_block(first, self.path) if isinstance(first, Block) else None
        except VolumeError:  # told where the label is asked for
            label = None
        return label.name if label else ""

    def _window(self, address: int, length: int, *, or_fewer: bool = False) -> memoryview:
        """*length* bytes of the file from *address*, fewer at its end; *or_fewer*: also before an unreadable place."""
        length = max(0, min(length, self.size - address))
        if not self._begin <= address <= address + length <= self._end:
            if length > len(self._buffer):
                self._buffer = bytearray(length)
            view, self._begin, self._end, self._stops = memoryview(self._buffer), address, address, False
            while self._end - address < len(view):
                try:
                    got = os.preadv(self._fd, [view[self._end - address :]], self._end)
                except OSError as error:
                    self._stops = True
                    length = self._stopped(error, address, length, or_fewer=or_fewer)
                    break
                if not got:
                    break
                self._end += got
            if self._end - address < length:  # the file became shorter while it was read
                self.size = self._end
                length = self._end - address
        start = address - self._begin
        return memoryview(self._buffer)[start : start + length]

    def _stopped(self, error: OSError, address: int, length: int, *, or_fewer: bool) -> int:
        """How many of *length* bytes from *address* there are. Raises `VolumeError` if they are too few."""
        got = self._end - address
        if got >= length:  # what lies further on may never be wanted
            return length
        if or_fewer and got >= MIN_BLOCK:
            return got
        told = f"{self.path}: {error.strerror} at address {self._end}"
        raise (_UnreadableError(told, self._end) if error.errno == errno.EIO else VolumeError(told)) from None

    def _judge(self, address: int) -> Block | _Flaw:
        head = self._window(address, _HEAD)
        if len(head) < _HEAD:
            return _Flaw(f"the volume ends inside a block header ({len(head)} of {_HEAD} bytes)")
        header = BlockHeader.parse(head)
        if header is None:
            return self._no_block(address, head)
        length = header.length
        if not header.possible:
            return _Flaw(f"a block claims an impossible length of {length} bytes")
        block = self._window(address, length)
        if len(block) < length:
            return _Flaw(f"the volume is cut short: a block of {length} bytes, the file ends after {len(block)}")
        if header.magic == MAGIC:
            if checksum(block) != header.first:
                return _Flaw(f"wrong checksum of a block of {length} bytes", length)
        else:
            told = self._judge3(header, block)
            if isinstance(told, _Flaw):
                return told
            block = told
        return Block(address, header.number, header.ids, block, header.size)

    def _no_block(self, address: int, head: memoryview) -> _Flaw:
        length: int = BLOCK_HEADER.unpack(head)[1]
        possible = length if MIN_BLOCK <= length <= MAX_BLOCK else 0
        if head[MAGIC_OFFSET : MAGIC_OFFSET + len(_OLD)] == _OLD:
            return _Flaw(f"blocks {_OLD_TOLD}", possible, _OLD_TOLD)
        zeros = not any(self._window(address, 4096))
        return _Flaw("zeros instead of a block" if zeros else "no block where one must begin", possible)

    def _judge3(self, header: BlockHeader, block: memoryview) -> memoryview | _Flaw:
        """The block with its plain body, or what is wrong with it."""
        if bb03.library() is None:
            return _Flaw(f"blocks {_NO_LIBRARY}", header.length, _NO_LIBRARY)
        if header.options & Option.BLOCK_ENCIPHERED and not self._keys:
            return _Flaw(f"blocks {_NO_KEY}", header.length, _NO_KEY)
        judged = bb03.judge(header, block, self._keys)
        return _Flaw(judged, header.length) if isinstance(judged, str) else judged

    def _good(self, address: int) -> bool:
        try:
            return address == self.size or (address < self.size and isinstance(self._judge(address), Block))
        except _UnreadableError:
            return False

    def _resync(self, address: int, flaw: _Flaw) -> int:
        """The address where reading can go on behind the flaw at *address*.

        The places where the next block must be, if only this one is bad, come before a search: the data of a damaged
        block may hold good blocks of another volume that was backed up.
        """
        while flaw.foreign and flaw.length:
            address += flaw.length
            if self._good(address):
                return address
            judged = self._judge(min(address, self.size))
            if address >= self.size or isinstance(judged, Block):
                return min(address, self.size)
            flaw = judged
        for length in (flaw.length, self._usual):
            if length and self._good(address + length):
                return address + length
        return self._search(address + 1)

    def _search(self, start: int) -> int:
        """The address of the next good block at or behind *start*, or the end of the file."""
        at, spent = start, 0
        while self.size - at >= MIN_BLOCK:
            # Not again for each place that looks like a block: a disk may try for seconds before it gives up.
            if not self._begin <= at <= at + _LONGEST_HEAD <= self._end:
                self._window(at, min(_WINDOW, self.size - at), or_fewer=True)
            end, stops = self._end, self._stops
            low = at - self._begin + MAGIC_OFFSET
            found = self._buffer.find(_FAMILY, low, self._end - self._begin)
            if found < 0:
                at = self._end - MAGIC_OFFSET - len(_FAMILY) + 1
                if self._end >= self.size:
                    break
                continue
            at += found - low
            length = self._claimed(at)
            spent += length
            if spent > _SEARCH_ALLOWANCE + 4 * (at - start):
                break
            # Where the window ends before an unreadable place, what reaches into that is no good block.
            if length and (at + length <= end or not stops) and self._good(at):
                return at
            at += 1
        return self.size

    def _claimed(self, address: int) -> int:
        """Length of the block that may begin at *address*, 0 if header and first record cannot be true."""
        head = self._window(address, _LONGEST_HEAD)
        header = BlockHeader.parse(head) if len(head) >= MIN_BLOCK else None
        if header is None or not header.possible or header.length > self.size - address:
            return 0
        if header.options & Option.BLOCK_ENCIPHERED or len(head) < header.size + RECORD_HEADER.size:
            return header.length
        index, _, size = RECORD_HEADER.unpack_from(head, header.size)
        return header.length if index and size < MAX_RECORD else 0

    def blocks(self, start: int = 0) -> Iterator[Block | Damage]:
        """Every block from address *start* on (a block border), and in its place whatever is damaged.

        What the disk cannot read is passed over in growing steps. Raises `VolumeError` when that does not end.
        """
        address, self._failures = start, 0
        while address < self.size:
            try:
                item = self._block_or_damage(address)
            except _UnreadableError as error:
                item = self._unreadable(address, error)
            else:
                self._failures = 0
            yield item
            address = item.address + (len(item.data) if isinstance(item, Block) else item.length)

    def _unreadable(self, address: int, error: _UnreadableError) -> Damage:
        near = error.at - address < max(self._usual, _PAGE)  # hardly anything was read since the last one
        self._failures = self._failures + 1 if near else 1
        if self._failures > _MOST_FAILURES:
            raise error
        length = self._behind(address, error.at) - address
        return Damage(self.name, address, length, error.message.removeprefix(f"{self.path}: "))

    def _behind(self, address: int, unreadable: int) -> int:
        """The address where reading can go on: of the block at *address* the place *unreadable* cannot be read."""
        following = address + self._usual
        if unreadable < following and self._good(following):  # no other block is lost
            return following
        step = _PAGE << (2 * (self._failures - 1))
        return min((unreadable // _PAGE) * _PAGE + step, self.size)

    def _block_or_damage(self, address: int) -> Block | Damage:
        judged = self._judge(address)
        if isinstance(judged, Block):
            self._usual = len(judged.data)
            return judged
        behind = self._resync(address, judged)
        return Damage(self.name, address, behind - address, judged.what, bool(judged.foreign))

    def is_block(self, address: int) -> bool:
        """Whether a good block begins at *address*."""
        return address < self.size and isinstance(self._judge(address), Block)

    def label(self) -> VolumeLabel | None:
        """The volume label; None when the first block is damaged.

        `VolumeError` when the file holds no block at all; `UnsupportedError` for labels of unknown kind.
        """
        try:
            first = self._judge(0)
        except _UnreadableError:
            if not any(isinstance(item, Block) for item in self.blocks()):
                raise
            return None
        if not isinstance(first, Block):
            if self._resync(0, first) >= self.size:
                told = f"{self.path}: is not a volume, or destroyed: no block in it ({first.what})"
                raise VolumeError(told, hint=_NOT_ONE)
            return None
        return parse_label_block(first, self.path)


def parse_label_block(block: Block, path: Path) -> VolumeLabel | None:
    """The label in the first *block* of a volume; None when another record stands there. `VolumeError` as `label`."""
    index, _, length = RECORD_HEADER.unpack_from(block.data, block.begin)
    if index not in (LabelKind.PRE_LABEL, LabelKind.VOL_LABEL):
        return None
    begin = block.begin + RECORD_HEADER.size
    try:
        return VolumeLabel.parse(bytes(block.data[begin : begin + length]))
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{path}: {error.message}", hint="Only labels of Bacula (11) and Bareos (20) are read."
        ) from None
    except VolumeError as error:
        raise VolumeError(f"{path}: {error.message}") from None
