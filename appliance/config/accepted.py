"""The configuration in force: the file, or, while that is wrong, the last one that was accepted.

`magbay reload` accepts a configuration: it copies it, fragments merged, into a file that only root changes. Who must go
on whatever somebody is just editing (agents, timers, jobs that systemd starts, the Changer Command) reads through here;
a person who runs a command is told what is wrong instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from appliance.config.loader import load, load_copy, load_with_text
from appliance.config.place import DEFAULT_PATH
from appliance.config.schema import Config
from appliance.errors import ConfigError
from appliance.host import files

# Of the system's configuration; the directory is made by systemd/tmpfiles.
ACCEPTED = Path("/var/lib/magbay-accepted/magbay.yaml")
# What an agent cannot change while it runs.
_FIXED = ("state_dir", "run_dir", "mount_dir")


@dataclass(frozen=True)
class InForce:
    """The configuration to work with, and why that is not the one in the file; None when it is."""

    config: Config
    trouble: ConfigError | None = None

    @property
    def words(self) -> str:
        """What to tell people; empty when all is well."""
        return f"the configuration is wrong, the one before stays in force: {self.trouble}" if self.trouble else ""


def in_force(path: Path, accepted: Path | None = None) -> InForce:
    """The configuration of the file *path*; the copy in *accepted* while that is wrong (default: for the system's file
    the system's copy). Raises `ConfigError` when there is neither."""
    if accepted is None and path == DEFAULT_PATH:
        accepted = ACCEPTED
    try:
        return InForce(load(path))
    except ConfigError as trouble:
        before = None if accepted is None else last(path, accepted)
        if before is None:
            raise
        return InForce(before, trouble)


def last(path: Path, accepted: Path) -> Config | None:
    """What of *path* was accepted last; None when nothing was, or an older version that said otherwise did it."""
    try:
        return load_copy(accepted, path)
    except ConfigError:
        return None


def accept(path: Path, accepted: Path) -> Config:
    """Read the configuration *path* and keep a copy in *accepted*. Raises `ConfigError` when it is wrong: then the copy
    stays as it was. Raises `OSError`."""
    config, text = load_with_text(path)
    if text:
        # Whoever may not read the configuration may not read its copy.
        status = path.stat()
        files.write_atomic(accepted, text.encode(), mode=status.st_mode & 0o644)
        if os.geteuid() == 0:
            os.chown(accepted, status.st_uid, status.st_gid)
    return config


def needs_restart(before: Config, now: Config) -> bool:
    """Whether agents that run with *before* must be started anew for *now*."""
    return any(getattr(before, name) != getattr(now, name) for name in _FIXED)
