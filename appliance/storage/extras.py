"""ACLs and extended attributes as records. Source: volume format, 9.3 and 9.4."""

from __future__ import annotations

import errno
import os
import struct
from functools import lru_cache

from appliance.host.accounts import group_name, user_name
from appliance.volumes.streams import Stream

MOST = 3 << 20
"""Bytes that the ACL and the extended attributes of a file may take, so that every restore takes them, too."""
_PACKED = 12  # bytes of an attribute beside name and value
_XATTR_MAGIC = 0x005C5884
_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_NO_SUPPORT = frozenset({errno.ENOTSUP, errno.ENODATA, errno.ENOENT, errno.EPERM})
# The kernel's form of an ACL: u32 version 2, then entries of tag, permissions, id (linux/posix_acl_xattr.h).
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_VERSION = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
# A tree has few owners and many files.
_user, _group = lru_cache(1024)(user_name), lru_cache(1024)(group_name)
_ACL_WORDS = {_USER_OBJ: "user", _USER: "user", _GROUP_OBJ: "group", _GROUP: "group", _MASK: "mask", _OTHER: "other"}


def records(place: int | bytes, *, follow: bool = True) -> list[tuple[Stream, bytes]]:
    """The ACL and xattr records (stream, data) of an open file or a path, in the order of the format.

    Raises `OSError` when they cannot be read; a file system without them has none.
    """
    try:
        names = os.listxattr(place, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_SUPPORT:
            return []
        raise
    if not names:
        return []
    values = _values(place, names, follow)
    found: list[tuple[Stream, bytes]] = []
    for name, stream in ((_ACCESS, Stream.LINUX_ACCESS_ACL), (_DEFAULT, Stream.LINUX_DEFAULT_ACL)):
        if name in values:
            found.append((stream, acl_text(values.pop(name))))
    packed = bytearray()
    for name, value in values.items():
        packed += _pack(os.fsencode(name), value)
    if packed:
        found.append((Stream.LINUX_XATTR, bytes(packed)))
    return found


def _values(place: int | bytes, names: list[str], follow: bool) -> dict[str, bytes]:
    """Without those that were taken away since they were listed. Raises `OSError`."""
    values: dict[str, bytes] = {}
    size = 0
    for name in names:
        try:
            values[name] = os.getxattr(place, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            continue
        size += len(name) + len(values[name]) + _PACKED
        if size > MOST:
            raise OSError(errno.E2BIG, f"they are larger than {MOST >> 20} MiB")
    return values


def _pack(name: bytes, value: bytes) -> bytes:
    return struct.pack(">II", _XATTR_MAGIC, len(name)) + name + struct.pack(">I", len(value)) + value


def acl_text(value: bytes) -> bytes:
    """The kernel's binary ACL as the text of acl_to_text(3), with the closing NUL. Raises `OSError` for other forms."""
    if len(value) < 4 or int.from_bytes(value[:4], "little") != _ACL_VERSION or (len(value) - 4) % _ACL_ENTRY.size:
        raise OSError(errno.EINVAL, "its ACL has an unknown form")
    lines = []
    for tag, permissions, who in _ACL_ENTRY.iter_unpack(value[4:]):
        word = _ACL_WORDS.get(tag)
        if word is None:
            raise OSError(errno.EINVAL, "its ACL has an unknown entry")
        name = _user(who) if tag == _USER else _group(who) if tag == _GROUP else ""
        bits = "".join(letter if permissions & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
        lines.append(f"{word}:{name}:{bits}\n")
    return "".join(lines).encode("utf-8", "surrogateescape") + b"\0"
