"""A new file system for each restore that is timed.

ext4 without a journal passes over every inode that was freed in the last minutes (`recently_deleted` in
fs/ext4/ialloc.c): where as many files were deleted shortly before, making one takes ten to thirty times as long, for
whoever comes next. So no side may restore to where anything was deleted.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def fresh(scratch: Path, size: int) -> Iterator[Path]:
    """An empty ext4 of *size* bytes in a file below *scratch*; a directory there for who may not mount. Gone behind."""
    work = Path(tempfile.mkdtemp(dir=scratch))
    image, place = work / "image", work / "place"
    place.mkdir()
    try:
        with open(image, "wb") as file:
            file.truncate(size)
        mounted = _quietly("mkfs.ext4", "-qF", "-E", "lazy_itable_init=0,lazy_journal_init=0", image) and _quietly(
            "mount", "-o", "loop", image, place
        )
        try:
            yield place
        finally:
            if mounted:
                subprocess.run(["umount", str(place)], check=True)
    finally:
        shutil.rmtree(work)


def _quietly(*words: str | Path) -> bool:
    try:
        return subprocess.run([str(word) for word in words], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
