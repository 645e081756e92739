"""`magbay prepare DEVICE --name NAME`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.agents.control import ask, wait_for
from appliance.cli import moreslots
from appliance.cli.output import Output, human_bytes, one_line
from appliance.cli.reload import limit_new_disks
from appliance.cli.running import refresh_changer, stoppable
from appliance.config.kinds import NAME
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError, UsageError
from appliance.keys.slots import Disk
from appliance.magazines import leaflet
from appliance.magazines.attached import find
from appliance.magazines.filesystems import Filesystem
from appliance.magazines.prepare import Plan, Request, execute, finished, plan, tell_udev
from appliance.magazines.wipe import Wipe

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_READY_WITHIN = 120.0  # seconds for the agent to unlock and mount a new magazine
_MOST_VOLUMES = 9999

_DESCRIPTION = """Makes a magazine out of a blank disk: overwrites it, makes a LUKS2 container with the key file of the
appliance and a file system in it, tests it, saves its LUKS header, enrols it, and creates volumes. Interrupted (by a
power cut, a kill, the disk pulled out), the same command goes on where it was.

Refused are disks that are in use (mounted, swap, LUKS, LVM, RAID), the system's own, write-protected or too small
ones. Disks with something on them (partitions, a file system, a RAID, LVM or LUKS signature, another magazine) are
refused unless their exact serial number is given."""

_WIPES = """random (default): overwrite everything with random data: nothing old is left and nobody sees how much is
used; as long as the disk takes to be written once. discard: have the disk drop its blocks (SSDs); seconds; what was
on it may still be in the chips, and used and unused space can be told apart. none: seconds; old contents stay readable
below the new ones until they are overwritten. For disks that are new or held nothing secret"""


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `prepare`."""
    parser = subparsers.add_parser("prepare", help="make a magazine out of a blank disk", description=_DESCRIPTION)
    parser.add_argument("device", metavar="DEVICE", type=Path, help="the whole disk, such as /dev/sdb or a link to it")
    parser.add_argument("--name", required=True, help="name of the magazine")
    parser.add_argument("--wipe", choices=[how.value for how in Wipe], default=Wipe.RANDOM.value, help=_WIPES)
    parser.add_argument("--restart-wipe", action="store_true", help="overwrite from the beginning again, not go on")
    parser.add_argument(
        "--filesystem",
        choices=[f.value for f in Filesystem],
        default=Filesystem.EXT4.value,
        help="default ext4; no space is reserved and few inodes are made: it is for few, large files",
    )
    parser.add_argument("--volumes", type=_count, metavar="N", help="create so many volumes (default: prepare.volumes)")
    parser.add_argument("--pool", help="pool of the volumes (default: prepare.pool)")
    parser.add_argument(
        "--overwrite-serial",
        metavar="SERIAL",
        default="",
        help="lose what is on the disk; SERIAL must be exactly its serial number. Nothing makes a disk that is in use "
        "acceptable",
    )
    moreslots.register(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > _MOST_VOLUMES:
        raise argparse.ArgumentTypeError(f"must be between 0 and {_MOST_VOLUMES}")
    return int(text)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Inspect, ask, carry out, wait for the agent, create the volumes."""
    from appliance.host.real.devices import UdevDevices
    from appliance.host.real.mounts import KernelMounts

    if NAME.pattern and not NAME.pattern.fullmatch(args.name):
        raise UsageError(f"--name wants {NAME.wanted}, got {args.name!r}")
    config = load(args.config)
    pool, count = _pool(args, config), config.prepare.volumes if args.volumes is None else args.volumes
    request = Request(
        args.device,
        args.name,
        Wipe(args.wipe),
        Filesystem(args.filesystem),
        args.overwrite_serial,
        args.restart_wipe,
    )
    todo = plan(request, config, UdevDevices(), KernelMounts())
    wanted = moreslots.ask(args, todo.name)
    volumes = f"create {count} volumes in the pool {pool}, list them and their checksums on it"
    steps = (*todo.steps(config), volumes, *wanted.steps())
    _show(todo, steps, out)
    facts = {"magazine": todo.name, "device": todo.device.node, "serial": todo.device.serial}
    if args.dry_run:
        out.document(facts | {"steps": steps, "notes": todo.notes, "goes_on": todo.goes_on, "done": False})
        return ExitStatus.DONE
    if not args.yes and not todo.enrolled:
        _confirm(todo)
    if not todo.enrolled:
        _carry_out(todo, config, out)
        limit_new_disks(config, args.config)
    names = _finish(todo, config, out, pool, count)
    refresh_changer(args.config, out)
    disk = Disk(todo.device.node, todo.state.luks_uuid, config.state_dir)
    recovery = moreslots.add(wanted, disk, todo.name, config, out)
    uuids = {"luks_uuid": todo.state.luks_uuid, "filesystem_uuid": todo.state.filesystem_uuid}
    made = {"recovery_key": recovery} if recovery else {}
    out.document(facts | uuids | made | {"volumes": names, "done": True})
    out.line(f"Magazine {todo.name} is ready with {len(names)} volumes.")
    return ExitStatus.DONE


def _pool(args: argparse.Namespace, config: Config) -> str:
    pool = args.pool or config.prepare.pool or ("Default" if "Default" in config.pools else next(iter(config.pools)))
    if pool not in config.pools:
        raise UsageError(f"there is no pool {pool}", hint="'magbay config show' lists the pools.")
    return str(pool)


def _show(todo: Plan, steps: tuple[str, ...], out: Output) -> None:
    device = todo.device
    model, serial = device.model or "unknown model", device.serial or "unknown"
    out.line(one_line(f"{device.node}: {model}, serial {serial}, {human_bytes(device.size)} ({device.size} bytes)"))
    for note in todo.notes:
        out.line(f"  Note: {note}.")
    for index, step in enumerate(steps, 1):
        out.line(f"  {index}. {step}")


def _confirm(todo: Plan) -> None:
    node, serial = todo.device.node, todo.device.serial
    if not sys.stdin.isatty():
        raise UsageError(f"everything on {node} would be lost and nobody can be asked", hint="Add --yes.")
    words = "its serial number or yes" if serial else "yes"
    sys.stderr.write(one_line(f"Everything on {node} will be lost. Type {words} to go on: "))
    sys.stderr.flush()
    if sys.stdin.readline().strip() not in {"yes", serial or "yes"}:
        raise MagbayError("nothing was done", hint="Neither yes nor the disk's serial number was typed.")


def _carry_out(todo: Plan, config: Config, out: Output) -> None:
    node, size, wiped = todo.device.node, todo.device.size, todo.state.wiped.done
    with stoppable() as asked, out.progress(f"overwriting {node}", size) as progress:
        progress.resume(wiped)
        try:
            execute(todo, config, out.line, progress.advance, asked.is_set)
        except BaseException:
            with contextlib.suppress(MagbayError):
                tell_udev(todo)
            raise
    tell_udev(todo)


def _finish(todo: Plan, config: Config, out: Output, pool: str, count: int) -> list[str]:
    """Let the agents take the new magazine as if it had just been plugged in, and create its volumes."""
    from appliance.storage.labelling import fill

    try:
        ask("Rescan")
        wait_for(config, todo.name, ("mounted", "idle"), _READY_WITHIN, lambda disk: out.line(f"  {disk['state']}"))
        directory = find(config, todo.name).path
        assert directory is not None  # `find` gives attached magazines only
        names = fill(
            config,
            magazine=todo.name,
            pool=pool,
            count=count,
            say=lambda missing: out.line(f"creating {missing} volumes"),
        )
        leaflet.checksums(directory, todo.name, everything=False, advance=lambda count: None)
        finished(todo, config)
    except MagbayError as error:
        error.hint = f"{error.hint} The magazine is enrolled; the same command creates its volumes.".strip()
        raise
    return names
