"""The process that makes small files for a restore (`making.py`), as it is told, and knows nothing of volumes."""

from __future__ import annotations

import marshal
import mmap
import os
import socket
import struct

from appliance.storage import nameless
from appliance.storage.setting import Rights
from appliance.volumes.stat64 import EncodedStat

DATA = 512 << 10
"""Bytes of file data in a slot."""
WORDS = 256 << 10
"""Bytes behind them: what is to be made, and then what became of it."""
SLOT = DATA + WORDS
MESSAGE = struct.Struct("=II")
"""Number of the slot, bytes of its words."""
FOLDERS = 16
"""Directories that come with one slot, at most."""
NOT_LIKE_THIS = -1
"""Instead of an errno: nothing is made, as `nameless.make` says."""
_LONGEST = 500  # characters about one file

# One file: which of the directories, name, begin and end of its data in the slot; mode, owner, group, times of access
# and modification; ACLs and extended attributes.
File = tuple[int, bytes, int, int, tuple[int, ...], tuple[tuple[int, bytes], ...], tuple[bytes, ...]]
# One with which there is something: its place in the slot, errno (0: it is made), and the parts of a `nameless.Made`.
Result = tuple[int, int, list[str], bool]


def main(words: list[str]) -> None:
    """Make files until the other end of the socket is closed. *words*: memory, socket, whether volumes are trusted."""
    memory, end = map(int, words[:2])
    slots = memoryview(mmap.mmap(memory, 0))
    rights = Rights(os.geteuid(), trusted=words[2] == "trusted")
    parent = os.getppid()
    os.umask(0)  # no file has a name, or anybody else's eyes, before its mode is right
    with socket.socket(fileno=end) as channel:
        while True:
            try:
                message, folders, _, _ = socket.recv_fds(channel, MESSAGE.size, FOLDERS)
                if not message or os.getppid() != parent:
                    return
                number, size = MESSAGE.unpack(message)
                length = _make_all(slots[number * SLOT : (number + 1) * SLOT], size, folders, rights)
                for folder in folders:
                    os.close(folder)
                channel.send(MESSAGE.pack(number, length))
            except (BrokenPipeError, ConnectionResetError):
                return


def _make_all(slot: memoryview, size: int, folders: list[int], rights: Rights) -> int:
    """Make the files of a slot; gives the bytes of what is said about them."""
    files: list[File] = marshal.loads(slot[DATA : DATA + size])  # noqa: S302 - from the process that started this one
    results: list[Result] = []
    for number, (folder, name, begin, end, numbers, acls, xattrs) in enumerate(files):
        mode, uid, gid, atime, mtime = numbers
        saved = EncodedStat(0, 0, mode, 1, uid, gid, 0, end - begin, 0, 0, atime, mtime)
        try:
            made = nameless.make(folders[folder], name, slot[begin:end], saved, rights, acls, xattrs)
        except OSError as error:
            results.append((number, error.errno or NOT_LIKE_THIS, [], False))
            continue
        if made is None:
            results.append((number, NOT_LIKE_THIS, [], False))
        elif made.missed or made.foreign:
            missed = made.missed if sum(map(len, made.missed)) < _LONGEST else ["; ".join(made.missed)[:_LONGEST] + "…"]
            results.append((number, 0, missed, made.foreign))
    told = marshal.dumps(results)
    slot[DATA : DATA + len(told)] = told
    return len(told)
