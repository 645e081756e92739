"""The command `check`: where each magazine is and why not, and what the user who runs it may not do.

Run it as the storage daemon's user (root: `-u bacula`): whether that user may is what matters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from appliance.changer.report import Slot
from appliance.changer.service import Changer
from appliance.changer.view import LOCK, PUBLISHED
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import PermissionDeniedError
from appliance.host.accounts import group_name, user_name
from appliance.magazines import elsewhere
from appliance.magazines.attached import Magazine, known, published

_WORDS = {os.R_OK: "read", os.W_OK: "write", os.X_OK: "enter"}


def check(path: Path) -> str:
    """A line for each magazine, and the last for the user. Raises `PermissionDeniedError` that names what is lacking,
    `MagbayError`."""
    config = load(path)
    lacking = list(_lacking(config, path))
    if not lacking:
        slots = Changer.open(path).look()[0]
        lines = [f"{magazine.name}: {explain(config, magazine, slots)}" for magazine in known(config)]
        lacking += [text for magazine in known(config) for text in _lacking_on(magazine, slots)]
    if lacking:
        raise PermissionDeniedError(f"{_who()} {'; '.join(lacking)}", hint="Change owner, group or mode.")
    return "".join(f"{line}\n" for line in [*lines, f"{_who()} can use all of it"])


def explain(config: Config, magazine: Magazine, slots: tuple[Slot, ...]) -> str:
    """Where *magazine* is, or why it is in no bay, in words."""
    if magazine.path is None:
        return f"away: {_why(config, magazine)}"
    mine = [slot for slot in slots if slot.magazine == magazine.name and slot.attached]
    what = f"{len(mine)} volumes" + (f", slots {mine[0].slot} to {mine[-1].slot}" if mine else "")
    protected = "" if magazine.writable else ", cannot be written: for restores only"
    return f"in bay: {magazine.path}, {what}{protected}"


def _why(config: Config, magazine: Magazine) -> str:
    item = next((item for item in config.magazines if f"directory:{item.name}" == magazine.identity), None)
    if item is None:
        return _why_disk(config, magazine)
    if not item.filesystem_uuid:
        there = "is no directory" if item.directory.exists() else "is not there; is its disk mounted?"
        return f"{item.directory} {there}"
    link = elsewhere.device_link(item.filesystem_uuid)
    if link.exists():
        return f"plugged in as {link.resolve()}, but not mounted at {item.directory} or anywhere else"
    return f"no file system with UUID {item.filesystem_uuid} is plugged in and unlocked"


def _why_disk(config: Config, magazine: Magazine) -> str:
    disks = published(config)
    if disks is None:
        return "no media agent has run since the machine started (magbay-media.service)"
    found: Mapping[str, Any] | None = next((disk for disk in disks if disk["magazine"] == magazine.name), None)
    if found is None:
        return "not plugged in"
    reason = ": ".join(text for text in (found["state"], found["reason"], found["hint"]) if text)
    return f"{found['node'] or 'its disk'} {reason}"


def _lacking(config: Config, path: Path) -> Iterator[str]:
    """What is needed before anything can be looked at."""
    yield from _denied(path, os.R_OK)
    for directory in dict.fromkeys((config.run_dir, config.drive_dir)):
        if directory.exists():
            yield from _denied(directory, os.R_OK, os.W_OK, os.X_OK)
    yield from _denied(config.run_dir / LOCK, os.R_OK, os.W_OK)
    if not (config.run_dir / PUBLISHED).exists():
        yield from _denied(config.state_dir, os.R_OK, os.X_OK)


def _lacking_on(magazine: Magazine, slots: tuple[Slot, ...]) -> Iterator[str]:
    """Of the volumes only the first of each kind is named: there may be thousands."""
    if magazine.path is None:
        return
    yield from _denied(magazine.path, os.R_OK, os.X_OK)
    for kind in (os.R_OK, os.W_OK) if not _is_protected(magazine.path) else (os.R_OK,):
        paths = [magazine.path / slot.volume for slot in slots if slot.magazine == magazine.name and slot.attached]
        denied = [text for path in paths for text in _denied(path, kind)]
        if denied:
            more = f" and {len(denied) - 1} more on magazine {magazine.name}" if len(denied) > 1 else ""
            yield denied[0] + more


def _is_protected(directory: Path) -> bool:
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def _denied(path: Path, *kinds: int) -> Iterator[str]:
    denied = [_WORDS[kind] for kind in kinds if not os.access(path, kind, effective_ids=True)]
    if not denied:
        return
    try:
        found = path.stat()
    except FileNotFoundError:
        return  # what is made when it is needed
    except OSError as error:
        yield f"may not reach {path} ({error.strerror})"
        return
    owner, mode = f"{user_name(found.st_uid)}:{group_name(found.st_gid)}", found.st_mode & 0o7777
    yield f"may not {' or '.join(denied)} {path} (of {owner}, mode {mode:04o})"


def _who() -> str:
    groups = " ".join(dict.fromkeys(group_name(gid) for gid in (os.getegid(), *os.getgroups())))
    return f"user {user_name(os.geteuid())} (uid {os.geteuid()}, groups {groups})"
