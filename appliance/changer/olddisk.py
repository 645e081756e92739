"""Magazines of vchanger 0.8: a loaded volume is called `driveN` there, and `loadedN` has its real name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from appliance.changer.inventory import legal_name

# `index` and `loadedN` hold one short name.
_MOST_BYTES = 1000


def undo_loads(directory: Path, changer: str) -> None:
    """Give volumes that vchanger 0.8 left loaded their names back, on a disk that its `index` says is of *changer*.

    `loadedN` is kept as `.loadedN.done`. Nothing is done on a disk that cannot be written, or where the name is taken.
    """
    owner = _text(directory / "index")
    if not owner or owner.rpartition("_")[0] != changer:
        return
    for loaded in sorted(directory.glob("loaded*")):
        drive = directory / f"drive{loaded.name[6:]}"
        name = _text(loaded)
        if not loaded.name[6:].isdigit() or not legal_name(name) or os.path.lexists(directory / name):
            continue
        # One that cannot be renamed (a write-protected disk) stays hidden; the other volumes are not concerned.
        with contextlib.suppress(OSError):
            if drive.is_file() and not drive.is_symlink():
                drive.rename(directory / name)
                loaded.rename(directory / f".{loaded.name}.done")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""
