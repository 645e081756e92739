"""Whether the storage daemon's user may use the virtual drives and the volumes.

Listings go through the Director, a load that is refused does not: it would show first in the night's job. So the
Changer Command's `check` is run with exactly the user and the groups that the running daemon has.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from appliance.host.accounts import allowed, user_name
from appliance.host.commands import attempt, ours

_DAEMONS = ("bacula-sd", "bareos-sd")


@dataclass(frozen=True)
class Identity:
    """User and groups of a process."""

    uid: int
    gid: int
    groups: frozenset[int]

    @property
    def name(self) -> str:
        """The user's name, or the number when nobody knows it."""
        return user_name(self.uid)


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
                found.append(Identity(uid, gid, frozenset(map(int, fields.get("Groups", "").split()))))
    return tuple(dict.fromkeys(found))


def can_check(who: Identity) -> bool:
    """Whether we may act as *who*."""
    return os.geteuid() in (0, who.uid)


def complaint(file: Path, who: Identity) -> str:
    """What *who* may not do with the drives and volumes of the configuration *file*, in words; empty when all is well.

    Raises `MagbayError` when it cannot be asked.
    """
    argv = [*ours("appliance.changer.command"), str(file), "check"]
    if os.geteuid() != who.uid:
        groups = ",".join(map(str, sorted(who.groups)))
        extra = f"--groups={groups}" if groups else "--clear-groups"
        argv = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", extra, *argv]
    status, _output, said = attempt(argv, f"asking as user {who.name}")
    return "" if status == 0 else said.strip().removeprefix("magbay-changer: ")


def may_read(path: Path, uid: int) -> bool:
    """Whether the user *uid*, as a service or login of it has groups, may read *path*. Raises `OSError`."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        groups = set[int]()
    else:
        groups = set(os.getgrouplist(entry.pw_name, entry.pw_gid))
    found = path.stat()
    return uid == 0 or allowed(found, uid, groups, 4)
