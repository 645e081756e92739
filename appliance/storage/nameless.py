"""Making a small file in one go. It has no name until it is whole (O_TMPFILE of open(2)): half a file never has one."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from appliance.storage.setting import Rights, Setting
from appliance.volumes.stat64 import EncodedStat

TARGET_GONE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE})
"""Errors that say that nothing more can be written."""
_NAMELESS = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC


class Made(NamedTuple):
    """What became of a file. *missed*: what could not be set, in words; *foreign*: as of `setting.Setting`."""

    missed: list[str]
    foreign: bool


def make(
    directory: int,
    name: bytes,
    data: bytes | bytearray | memoryview,
    saved: EncodedStat,
    rights: Rights,
    acls: Sequence[tuple[int, bytes]] = (),
    xattrs: Sequence[bytes] = (),
) -> Made | None:
    """A regular file *name* in *directory* (an open one) with *data* and what is *saved* of it, which replaces nothing.

    None: it cannot be made like this, and nothing is made: the name is taken, or the file system has no nameless files.
    Raises `OSError` when nothing can be written any more.
    """
    try:
        # Nobody can open it while it has no name, so it has its mode from the beginning.
        descriptor = os.open(b".", _NAMELESS, rights.mode(saved) & 0o777, dir_fd=directory)
        try:
            return _fill(descriptor, directory, name, data, Setting(descriptor, saved, rights), acls, xattrs)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in TARGET_GONE:
            raise
        return None


def _fill(
    descriptor: int,
    directory: int,
    name: bytes,
    data: bytes | bytearray | memoryview,
    setting: Setting,
    acls: Sequence[tuple[int, bytes]],
    xattrs: Sequence[bytes],
) -> Made:
    done = os.write(descriptor, data) if data else 0
    while done < len(data):
        done += os.write(descriptor, memoryview(data)[done:])
    setting.all(os.fstat(descriptor), acls, xattrs)
    os.link(b"/proc/self/fd/%d" % descriptor, name, dst_dir_fd=directory)
    return Made(setting.missed, setting.foreign)
