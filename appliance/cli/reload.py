"""`magbay reload`: takes in an edited configuration. `magbay-reload.path` runs it whenever one of the files changes."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.cli.output import Output
from appliance.config.accepted import ACCEPTED, accept, last, needs_restart
from appliance.config.place import DEFAULT_PATH
from appliance.config.schema import Config
from appliance.errors import ConfigError, ExitStatus, MagbayError, PermissionDeniedError, UsageError
from appliance.host import commands
from appliance.host.real.services import Journald
from appliance.storage import timers

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_AGENTS = ("magbay-media.service", "magbay-changer.service")
# Where systemd keeps what magbay-schedule-generator made (systemd.generator(7)).
_MADE = Path("/run/systemd/generator")
_ROUNDS = 10  # of somebody who saves a file again and again
# Of systemd/catalog/magbay.catalog.
_WRONG = "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a12"


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `reload`."""
    subparsers.add_parser(
        "reload",
        help="take in the edited configuration: timers, limits, agents",
        description="Checks the configuration and takes it in: timers and limits of jobs, and the agents. While it is "
        "wrong, the one before stays in force. The appliance does this by itself when a file changes.",
    ).set_defaults(run=run)


@dataclass(frozen=True)
class Change:
    """What a configuration changes: timers to *stop* and to *start*, whether there are other *units*, and whether the
    agents are told (*agents*) or must be restarted."""

    stop: tuple[str, ...]
    start: tuple[str, ...]
    units: bool
    agents: bool
    restart: bool

    def commands(self) -> tuple[tuple[str, ...], ...]:
        """The command lines that make it so."""
        found: list[tuple[str, ...]] = []
        if self.units:
            found.append(("systemctl", "daemon-reload"))
        if self.stop:
            found.append(("systemctl", "stop", *self.stop))
        if self.start:
            found.append(("systemctl", "start", *self.start))
        if self.agents:
            found.append(("systemctl", "try-restart" if self.restart else "try-reload-or-restart", *_AGENTS))
        return tuple(found)


def change_of(before: Config | None, now: Config, source: Path, made: Path) -> Change:
    """What is to be done for the configuration *now* of the file *source*, when *before* was accepted last (None: not
    known) and the generator left its units in *made*."""
    wanted, found = timers.units(now, source), timers.written(made)
    old, new = (tuple(sorted(name for name in units if name.endswith(".timer"))) for units in (found, wanted))
    return Change(
        stop=tuple(name for name in old if name not in new),
        start=tuple(name for name in new if name not in old),
        units=wanted != found,
        agents=before != now,
        restart=before is not None and needs_restart(before, now),
    )


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Take in the configuration, again if it was changed meanwhile."""
    if args.config != DEFAULT_PATH:
        raise UsageError("only the system's configuration is taken in", hint="Other ones are read by each command.")
    if os.geteuid() != 0:
        raise PermissionDeniedError("only root takes in the configuration", hint="Run it with sudo.")
    done: list[str] = []
    for _ in range(_ROUNDS):
        stamps = _stamps(args.config)
        done += _round(args.config)
        if _stamps(args.config) == stamps:
            break
    out.document({"done": done})
    out.line("\n".join(done) if done else "The configuration is in force as it is.")
    return ExitStatus.DONE


def _round(path: Path) -> list[str]:
    before = last(path, ACCEPTED)
    try:
        now = accept(path, ACCEPTED)
    except ConfigError as error:
        kept = ", the one before stays in force" if before is not None else ""
        Journald().send(f"the configuration is wrong{kept}: {error}", priority=3, MESSAGE_ID=_WRONG)
        raise
    except OSError as error:
        raise MagbayError(f"{error.filename}: {error.strerror}", hint="systemd-tmpfiles makes the directory.") from None
    change = change_of(before, now, path, _MADE)
    for words in change.commands():
        commands.run(words, "taking in the configuration")
    return _told(change)


def limit_new_disks(config: Config, path: Path) -> None:
    """A disk was enrolled: have the limits of jobs made anew, where there are such that name disks. *path*: the file of
    *config*. It happens behind the back of the caller."""
    if path == DEFAULT_PATH and any(job.limits.write_bandwidth for job in config.jobs.values()):
        with contextlib.suppress(MagbayError):
            words = ["systemctl", "start", "--no-block", "magbay-reload.service"]
            commands.run(words, "limiting jobs on the new disk")


def _told(change: Change) -> list[str]:
    found = []
    if change.units:
        found.append("The timers and limits of jobs are as the configuration says now.")
    if change.agents:
        found.append("The agents were restarted." if change.restart else "The agents go on with the configuration.")
    return found


def _stamps(path: Path) -> Sequence[tuple[str, int, int]]:
    """What changes when one of the files does."""
    fragments = path.parent / f"{path.stem}.d"
    files = [path, *(sorted(fragments.glob("*.yaml")) if fragments.is_dir() else ())]
    return [(str(file), status.st_mtime_ns, status.st_ino) for file in files if (status := _status(file))]


def _status(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None
