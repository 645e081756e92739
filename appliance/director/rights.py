"""Whether the storage daemon's user may use the virtual drives and the volumes.

Listings go through the Director, a load that is refused does not: it would show first in the night's job. So the
rights are read from the files and from the running daemon. Files with an ACL are taken as good: only the kernel can
judge those.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.changer.report import Slot
from appliance.config.schema import Config
from appliance.magazines import attached

READ, WRITE, SEARCH = 4, 2, 1
_DAEMONS = ("bacula-sd", "bareos-sd")


@dataclass(frozen=True)
class Identity:
    """A user with the groups that a process of it has."""

    name: str
    uid: int
    groups: frozenset[int]

    def may(self, path: Path, what: int) -> bool:
        """Whether all of *what* (`READ`, `WRITE`, `SEARCH`) is allowed on *path* itself. Raises `OSError`."""
        if self.uid == 0:
            return True
        found = path.stat()
        with contextlib.suppress(OSError):
            os.getxattr(path, "system.posix_acl_access")
            return True
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in self.groups else 0
        return stat.S_IMODE(found.st_mode) >> shift & what == what


def of_user(uid: int) -> Identity:
    """The user with number *uid* as a login or service has it; without groups when nobody knows it."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Identity(str(uid), uid, frozenset())
    return Identity(entry.pw_name, uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def storage_daemons(proc: Path = Path("/proc")) -> tuple[Identity, ...]:
    """Whom the storage daemons on this machine run as."""
    found = []
    for path in proc.glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if fields.get("Name") in _DAEMONS:
                # Real, effective, saved, file system.
                uid, gid = int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])
                groups = frozenset({gid, *map(int, fields.get("Groups", "").split())})
                found.append(Identity(of_user(uid).name, uid, groups))
    return tuple(dict.fromkeys(found))


def complaints(config: Config, slots: Iterable[Slot], who: Identity) -> Iterator[tuple[str, str]]:
    """What *who* may not do that a storage daemon has to, each with what helps. One for each magazine."""
    for folder in dict.fromkeys((config.run_dir, config.drive_dir)):
        if folder.is_dir() and not who.may(folder, READ | WRITE | SEARCH):
            hint = f"Add {who.name} to the group of {folder} and give that group all rights on it."
            yield f"user {who.name} may not write in {folder}, so it cannot load a drive", hint
    magazines = {magazine.name: magazine for magazine in attached.attached(config)}
    told = set()
    for slot in slots:
        magazine = magazines.get(slot.magazine)
        if magazine is None or magazine.path is None or not slot.attached or slot.magazine in told:
            continue
        with contextlib.suppress(OSError):  # a disk that is pulled meanwhile
            if trouble := _trouble(who, magazine.path / slot.volume, writable=magazine.writable):
                told.add(slot.magazine)
                yield (
                    f"user {who.name} {trouble} (magazine {slot.magazine})",
                    f"Add {who.name} to the group of the files, give that group the right, and set prepare.group and "
                    "prepare.owner so that new magazines have it.",
                )


def _trouble(who: Identity, file: Path, *, writable: bool) -> str:
    above = next((parent for parent in reversed(file.parents) if not who.may(parent, SEARCH)), None)
    if above is not None:
        return f"may not look into {above}"
    # A volume without any write bit is protected on purpose.
    writable = writable and bool(file.stat().st_mode & 0o222)
    if not who.may(file, READ | WRITE if writable else READ):
        return f"may not read{' and write' if writable else ''} {file}"
    return ""
