"""How the process that reads files and the one that writes volumes talk: what a `Saver` gives out, as bytes.

Each message begins with its length (u32) and its kind (u8), in the machine's own order of bytes. A small file's holds
its records as they will stand on the volume, so that they are copied at once; its digest may still be missing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from appliance.config.filesets import FilesetConfig, Signature
from appliance.storage.limits import Limits

ALGORITHMS = ("", "MD5", "SHA1", "SHA256", "SHA512")
"""A digest's algorithm is told by its place here."""
HEAD = struct.Struct("=IB")
RECORD = struct.Struct("=IBxxxIi")  # index, stream; the data follow, behind those of `MORE`
DATA = struct.Struct("=IBxxxI")  # index; plain data of it follow
ROW = struct.Struct("=IBBHII")  # type, bytes of the numbers, index, bytes of the name; name, numbers, digest follow
SMALL = struct.Struct("=IBBB?IIIIII")
"""Type, algorithm, whether its digest is there, index; in the records: where the name begins, its length and that of
the numbers, where the data begin and their length. The records follow, the digest last."""
ADVANCE = struct.Struct("=IBxxxQ")


class Message(IntEnum):
    """Kinds of messages."""

    RECORD = 1
    MORE = 2
    ROW = 3
    SMALL = 4
    ADVANCE = 5
    INFO = 6
    WARNING = 7
    END = 8
    FAILED = 9
    DATA = 10


@dataclass(frozen=True)
class Task:
    """What is to be read: *names* are absolute; *signature* is the pool's."""

    names: list[bytes]
    limits: Limits
    rules: FilesetConfig
    signature: Signature
