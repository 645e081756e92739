"""The published view once more as plain text, `run_dir/changer.txt`, for the quick half of the Changer Command.

The head is a line of fields with tabs between them, and a line for each thing that it rests on, up to an empty line:

    magbay-changer 3, CONFIG, DRIVE_DIR, DRIVES, LISTED, FOLDERS (0 or 1), SLOTS, and bytes of the three texts
    INODE SIZE CHANGED NS MODIFIED NS MAJOR MINOR, PATH   what statx(2) says (times: seconds, nanoseconds), or
    -, PATH                                               where nothing is

The texts are the answer to `list`, the `S:` lines of `listall` when all drives are empty, and,
behind an empty line, a line `PATH SLOT NAME` for each volume that can be loaded.
"""

# pathlib is slow to import, and this may be on the path of a Changer Command.
# ruff: noqa: PTH118
from __future__ import annotations

import os

from appliance.changer.view import Presence, Stamp, View

PLAIN = "changer.txt"
_NS = 1_000_000_000


def publish(view: View) -> None:
    """Write the text of *view* if it can be proved current and is not there already.

    Raises `OSError`.
    """
    head = _head(view)
    if head is None:
        return
    path = os.path.join(view.run_dir, PLAIN)
    try:
        parts = [text.encode() for text in (view.list_text(), view.shelf_text({}), _paths(view))]
        start = f"{head[0]}\t{chr(9).join(str(len(part)) for part in parts)}\n{head[1]}\n".encode()
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


def _head(view: View) -> tuple[str, str] | None:
    """The first line but the lengths, and the lines of the stamps; None when nothing can be written."""
    stamps = [_stamp(path, then) for path, then in view.stamps]
    values = [view.config, view.drive_dir, *(path for path, _then in view.stamps), *(e.path for e in view.entries)]
    if view.unreadable or not stamps or "" in stamps or any("\t" in v or "\n" in v for v in values):
        return None
    numbers = (view.drives, view.listed, int(view.folders), view.slots)
    return "\t".join(["magbay-changer 3", view.config, view.drive_dir, *map(str, numbers)]), "".join(stamps)


def _stamp(path: str, then: Stamp) -> str:
    """The line of one stamp; empty when it proves nothing."""
    if then is None:
        return f"-\t{path}\n"
    if not isinstance(then, list):
        return ""
    device, inode, modified, changed, size = then
    times = f"{changed // _NS} {changed % _NS} {modified // _NS} {modified % _NS}"
    return f"{inode} {size} {times} {os.major(device)} {os.minor(device)}\t{path}\n"


def _paths(view: View) -> str:
    here = [entry for entry in view.entries if entry.presence is Presence.HERE]
    return "\n" + "".join(f"{entry.path}\t{entry.slot}\t{entry.volume}\n" for entry in here)
