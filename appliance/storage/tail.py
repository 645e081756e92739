"""What a volume's file holds before it is appended to: its label, and what stands behind the catalog's end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from appliance.volumes.blocks import BLOCK_HEADER, DEFAULT_BLOCK, BlockHeader, SessionIds
from appliance.volumes.errors import VolumeError
from appliance.volumes.labels import VolumeLabel
from appliance.volumes.reader import Block, VolumeReader


def read_label(path: Path) -> VolumeLabel:
    """The label of the volume in *path*. Raises `VolumeError` when there is none or it is damaged."""
    with VolumeReader(path) as reader:
        label = reader.label()
    if label is None:
        raise VolumeError(f"{path}: its label is damaged")
    return label


def holds_at_most_its_label(path: Path, name: str, given: Set[SessionIds]) -> bool:
    """Whether in the volume's file stands nothing but the label of *name*, or what a power cut made of one: nothing,
    zeros, or the torn block of a session that was *given* out here. Raises `VolumeError`, `OSError`.
    """
    with path.open("rb") as file:
        head = file.read(BLOCK_HEADER.size)
        if path.stat().st_size > DEFAULT_BLOCK:
            return False
    if not head.strip(b"\0"):
        return True
    with VolumeReader(path) as reader:
        if any(isinstance(block, Block) for block in reader.blocks()):
            return _label_alone(reader, name) is not None
    header = BlockHeader.parse(memoryview(head)) if len(head) == BLOCK_HEADER.size else None
    return header is not None and header.ids in given


def labelled_by(path: Path, name: str) -> SessionIds | None:
    """The session that wrote the label of *name*, when it is whole and nothing else stands in the volume's file.

    Raises `VolumeError`, `OSError`.
    """
    if path.stat().st_size > DEFAULT_BLOCK:
        return None
    with VolumeReader(path) as reader:
        return _label_alone(reader, name)


def _label_alone(reader: VolumeReader, name: str) -> SessionIds | None:
    found = [(block.address, block.ids) for block in reader.blocks() if isinstance(block, Block)]
    if len(found) != 1 or found[0][0] != 0:
        return None
    label = reader.label()
    return found[0][1] if label is not None and label.name == name else None


def headers_at(path: Path, addresses: Iterable[int]) -> Iterator[BlockHeader | None]:
    """The block header at each address (bytes) of the file, None where there is none. Raises `OSError`.

    A pipe in the place of a volume is not waited for: there is nothing in it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        for address in addresses:
            head = os.pread(descriptor, BLOCK_HEADER.size, address)
            yield BlockHeader.parse(memoryview(head)) if len(head) == BLOCK_HEADER.size else None
    finally:
        os.close(descriptor)


def sessions_behind(path: Path, start: int) -> set[SessionIds]:
    """The sessions of every whole block with a good checksum behind the address *start* (bytes)."""
    with VolumeReader(path) as reader:
        return {block.ids for block in reader.blocks(start) if isinstance(block, Block)}


def sessions_between(path: Path, start: int, end: int) -> set[SessionIds] | None:
    """The sessions of all blocks from *start* to *end* (bytes), by their headers only.

    None when it is not one block after the other that leads there. Raises `OSError`.
    """
    found = set()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        while start < end:
            head = os.pread(file.fileno(), BLOCK_HEADER.size, start)
            header = BlockHeader.parse(memoryview(head)) if len(head) == BLOCK_HEADER.size else None
            if header is None or not header.possible:
                return None
            found.add(header.ids)
            start += header.length
    return found if start == end else None
