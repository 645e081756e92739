"""What a volume's file holds before it is appended to: its label, and what stands behind the catalog's end."""

from __future__ import annotations

from pathlib import Path

from appliance.volumes.blocks import SessionIds
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


def sessions_behind(path: Path, start: int) -> set[SessionIds]:
    """The sessions of every whole block with a good checksum behind the address *start* (bytes)."""
    with VolumeReader(path) as reader:
        return {block.ids for block in reader.blocks(start) if isinstance(block, Block)}
