"""Disks to plug in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Disk:
    """A disk as a dock would see it: an image file and what the drive says about itself.

    *serial* is at most 36 characters and names the disk towards QEMU and in `Guest.device`.
    """

    path: Path
    serial: str
    vendor: str = "MAGBAY"
    product: str = "DOCK DISK"
    format: str = "raw"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,36}", self.serial):
            raise ValueError(f"{self.serial!r} cannot be the serial of a disk")

    @classmethod
    def create(cls, path: Path, size: int | str, serial: str, **more: Any) -> Disk:
        """A blank disk of *size* bytes (or "512M", "2G") in a new sparse file."""
        units = {"K": 10, "M": 20, "G": 30, "T": 40}
        if isinstance(size, str):
            size = int(size[:-1]) << units[size[-1]] if size[-1] in units else int(size)
        with path.open("xb") as file:
            file.truncate(size)
        return cls(path, serial, **more)

    @property
    def node(self) -> str:
        """Name of QEMU's block node; at most 31 characters."""
        return f"node-{self.serial}"[:31]

    @property
    def device(self) -> str:
        """Name of QEMU's device."""
        return f"disk-{self.serial}"
