"""Disks to plug in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Disk:
    """A disk as a dock would see it: an image file and what the drive says about itself.

    *name* names it towards QEMU; by default that is *serial*, by which `Guest.device` finds it. With a name of its own,
    the serial, vendor and product may be anything (QEMU cuts them at 36, 8 and 16 bytes; an empty serial is none).
    *target*: the SCSI target that the disk becomes, for those that cannot be known by their serial.
    """

    path: Path
    serial: str
    vendor: str = "MAGBAY"
    product: str = "DOCK DISK"
    format: str = "raw"
    name: str = ""
    target: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,36}", self.name or self.serial):
            raise ValueError(f"{self.name or self.serial!r} cannot be the name of a disk")

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
        return f"node-{self.name or self.serial}"[:31]

    @property
    def device(self) -> str:
        """Name of QEMU's device."""
        return f"disk-{self.name or self.serial}"
