"""Owner, mode, ACL, extended attributes and times of what was restored, from the forms in which volumes have them."""

from __future__ import annotations

import grp
import os
import pwd
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from appliance.volumes.errors import VolumeError
from appliance.volumes.stat64 import EncodedStat

_SPECIAL_BITS = 0o6000
_XATTR_MAGIC = 0x005C5884
_ACL_VERSION = 2  # of the kernel's form (linux/posix_acl_xattr.h): u32 version, then entries of tag, permissions, id
_NO_ID = 0xFFFFFFFF
_ACL_TAGS = {("user", False): 1, ("user", True): 2, ("group", False): 4, ("group", True): 8, ("mask", False): 16}
_ACL_OTHER = 32
_ACL_NAMES = {1007: "system.posix_acl_default", 1008: "system.posix_acl_access"}
_ACL_NAMES |= {15: "system.posix_acl_access", 16: "system.posix_acl_default"}
_ACCESS, _DEFAULT = (1008, 15), (1007, 16)


def without_inherited(acls: Sequence[tuple[int, bytes]], *, is_directory: bool) -> list[tuple[int, bytes]]:
    """The *acls* of a thing that its directory has given some: what was not saved goes (an empty text)."""
    kinds = (_ACCESS, _DEFAULT) if is_directory else (_ACCESS,)
    found = {stream for stream, _ in acls}
    return [*acls, *((kind[0], b"") for kind in kinds if found.isdisjoint(kind))]


class Rights(NamedTuple):
    """Who restores (effective user ID), and whether what the volumes say may give rights (see `targets.Target`)."""

    user: int
    trusted: bool

    def mode(self, saved: EncodedStat) -> int:
        """The permission bits that a thing gets: nobody gets a set-user-ID file that was another one's."""
        mode = saved.mode & 0o7777
        if not self.trusted or (self.user != 0 and self.user != saved.uid):
            mode &= ~_SPECIAL_BITS
        return mode


class Setting:
    """Sets what was *saved* of the thing at *place*, a descriptor or a path that leads to the thing itself.

    What cannot be set is in `missed`, in words. `foreign`: its owner or group would have taken the rights of root.
    """

    def __init__(self, place: int | bytes, saved: EncodedStat, rights: Rights, *, is_link: bool = False) -> None:
        self.missed: list[str] = []
        self.foreign = False
        self._place, self._saved, self._rights = place, saved, rights
        self._is_link = is_link

    def all(self, found: os.stat_result, acls: Sequence[tuple[int, bytes]], xattrs: Sequence[bytes]) -> None:
        """Everything, in the order in which nothing undoes what was set before. *found*: what the thing has now."""
        saved, rights = self._saved, self._rights
        if rights.trusted and (found.st_uid != saved.uid or found.st_gid != saved.gid):
            self._owner(found)
        mode = rights.mode(saved)
        is_link = self._is_link
        if xattrs and not is_link and not mode & 0o200 and rights.user != 0:  # only what may be written takes them
            self._try("mode", lambda: os.chmod(self._place, 0o700))  # noqa: PTH101 (a descriptor)
        for packed in xattrs:
            self._try("extended attributes", partial(_set_xattrs, self._place, packed, rights.trusted))
        # Another owner takes special bits away, and so may an attribute.
        if not is_link and (found.st_mode & 0o7777 != mode or mode > 0o777 or xattrs):
            self._try("mode", lambda: os.chmod(self._place, mode))  # noqa: PTH101 (a descriptor)
        for stream, text in acls:
            self._try("ACL", partial(_set_acl, self._place, stream, text))
        self._try("times", self._times)

    def _owner(self, found: os.stat_result) -> None:
        """Both by root; the group, where others may."""
        saved = self._saved
        if self._rights.user == 0:
            self._try("owner", lambda: os.chown(self._place, saved.uid, saved.gid))
            return
        self.foreign = saved.uid != found.st_uid
        if saved.gid != found.st_gid:
            try:
                os.chown(self._place, -1, saved.gid)
            except (OSError, OverflowError):
                self.foreign = True

    def _times(self) -> None:
        times = (self._saved.atime * 10**9, self._saved.mtime * 10**9)
        os.utime(self._place, ns=times)

    def _try(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self.missed.append(f"{what} not set ({error.strerror})")
        except (OverflowError, VolumeError) as error:
            self.missed.append(f"{what} not set ({error})")


def unpack_xattrs(packed: bytes) -> list[tuple[bytes, bytes]]:
    """The (name, value) pairs of an extended attributes record (stream 1998). Raises `VolumeError`.

    Source: volume format, section 9.4.
    """
    found, at = [], 0

    def take(length: int) -> bytes:
        nonlocal at
        if length > len(packed) - at:
            raise VolumeError("the record of extended attributes is damaged")
        at += length
        return packed[at - length : at]

    while at < len(packed):
        magic, length = struct.unpack(">II", take(8))
        name = take(length)
        if magic != _XATTR_MAGIC or not name or b"\0" in name:
            raise VolumeError("the record of extended attributes is damaged")
        (length,) = struct.unpack(">I", take(4))
        found.append((name, take(length)))
    return found


def _set_xattrs(place: int | bytes, packed: bytes, trusted: bool) -> None:
    failed: list[str] = []
    for name, value in unpack_xattrs(packed):
        if not trusted and not name.startswith(b"user."):
            continue
        try:
            os.setxattr(place, name, value)
        except OSError as error:
            failed.append(f"{os.fsdecode(name)}: {error.strerror}")
    if failed:
        raise VolumeError("; ".join(failed))


def _set_acl(place: int | bytes, stream: int, text: bytes) -> None:
    name = _ACL_NAMES.get(stream)
    if name is None:
        raise VolumeError(f"of another system, stream {stream}")
    os.setxattr(place, name, pack_acl(text))


def pack_acl(text: bytes) -> bytes:
    """The kernel's form of an ACL from the text of acl_to_text(3). Raises `VolumeError` for anything else.

    Names that this system does not know are taken as numbers if they are some.
    """
    entries = []
    for line in text.rstrip(b"\0").decode("utf-8", "surrogateescape").splitlines():
        fields = line.partition("#")[0].strip().split(":")
        if fields == [""]:
            continue
        if len(fields) != 3 or len(fields[2]) != 3:
            raise VolumeError(f"the ACL has the line {line[:60]!r}")
        kind, who, letters = fields
        tag = _ACL_OTHER if kind == "other" else _ACL_TAGS.get((kind, bool(who)))
        if tag is None:
            raise VolumeError(f"the ACL has the line {line[:60]!r}")
        bits = sum(bit for bit, letter in zip((4, 2, 1), letters, strict=True) if letter != "-")
        entries.append((tag, bits, _identity(kind, who) if tag in (2, 8) else _NO_ID))
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return struct.pack("<I", _ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _identity(kind: str, who: str) -> int:
    try:
        return pwd.getpwnam(who).pw_uid if kind == "user" else grp.getgrnam(who).gr_gid
    except (KeyError, ValueError):
        if not who.isdigit() or int(who) >= _NO_ID:
            raise VolumeError(f"the ACL names the {kind} {who!r}, who is not known here") from None
        return int(who)
