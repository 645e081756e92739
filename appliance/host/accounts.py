"""Users and groups of the machine: their names, and what the mode of a file lets them do."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Collection


def user_name(uid: int) -> str:
    """The user's name, or the number when nobody knows it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """The group's name, or the number when nobody knows it."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def allowed(facts: os.stat_result, uid: int, groups: Collection[int], bits: int) -> bool:
    """Whether the mode in *facts* gives the user *uid* of *groups* all of *bits* (4 read, 2 write, 1 enter)."""
    shift = 6 if facts.st_uid == uid else 3 if facts.st_gid in groups else 0
    return facts.st_mode >> shift & bits == bits
