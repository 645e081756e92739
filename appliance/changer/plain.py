"""The published view once more as plain text, `run_dir/changer.txt`, for the quick half of the Changer Command.

The head is lines of fields with tabs between them, up to an empty line:

    magbay-changer 1
    config PATH, drive_dir PATH, drives NUMBER, listed NUMBER, folders 0|1, slots NUMBER
    lengths BYTES BYTES BYTES                          of the three texts that follow the head
    stamp DEVICE INODE MODIFIED CHANGED SIZE PATH      what stat(2) says (times in whole seconds), or
    stamp - PATH                                       where nothing is

The texts are the answer to `list`, the `S:` lines of `listall` when all drives are empty, and, behind an empty line, a
line `PATH SLOT NAME` for each volume that can be loaded.

Its reader sees whole seconds only. So it is written only when everything that it rests on has not changed for some
seconds: then every later change has another second.
"""

# pathlib is slow to import, and this may be on the path of a Changer Command.
# ruff: noqa: PTH118
from __future__ import annotations

import os
import time

from appliance.changer.view import COARSE, Presence, Stamp, View

PLAIN = "changer.txt"
_NS = 1_000_000_000


def publish(view: View) -> None:
    """Write the text of *view* if it can be proved current by whole seconds and is not there already.

    Raises `OSError`.
    """
    head = _head(view)
    if head is None:
        return
    path = os.path.join(view.run_dir, PLAIN)
    texts = [view.list_text(), view.shelf_text({}), _paths(view)]
    try:
        parts = [text.encode() for text in texts]
        start = f"{head}lengths\t{'	'.join(str(len(part)) for part in parts)}\n\n".encode()
    except UnicodeEncodeError:
        return  # a path that is no text: the other half answers
    try:
        with open(path, "rb") as file:
            if file.read(len(start)) == start:
                return
    except FileNotFoundError:
        pass
    from pathlib import Path

    from appliance.host.files import write_atomic

    write_atomic(Path(path), start + b"".join(parts), mode=0o644, durable=False)


def _head(view: View) -> str | None:
    """All of the head but the lengths; None when it cannot be written."""
    stamps = [_stamp(path, then) for path, then in view.stamps]
    values = [view.config, view.drive_dir, *(path for path, _then in view.stamps), *(e.path for e in view.entries)]
    if view.unreadable or not view.stamps or None in stamps or any("\t" in v or "\n" in v for v in values):
        return None
    lines = [
        "magbay-changer 1",
        f"config\t{view.config}",
        f"drive_dir\t{view.drive_dir}",
        f"drives\t{view.drives}",
        f"listed\t{view.listed}",
        f"folders\t{int(view.folders)}",
        f"slots\t{view.slots}",
        *(line for line in stamps if line is not None),
    ]
    return "\n".join(lines) + "\n"


def _stamp(path: str, then: Stamp) -> str | None:
    """The line of one stamp; None when it proves nothing to somebody who sees whole seconds."""
    if then is None:
        return f"stamp\t-\t{path}"
    if not isinstance(then, list):
        return None
    device, inode, modified, changed, size = then
    if time.time() - max(modified, changed) / _NS < COARSE:
        return None
    return f"stamp\t{device}\t{inode}\t{modified // _NS}\t{changed // _NS}\t{size}\t{path}"


def _paths(view: View) -> str:
    here = [entry for entry in view.entries if entry.presence is Presence.HERE]
    return "\n" + "".join(f"{entry.path}\t{entry.slot}\t{entry.volume}\n" for entry in here)
