"""`magbay prepare DEVICE --name NAME`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.agents.control import ask, wait_for
from appliance.cli.output import Output, human_bytes
from appliance.cli.running import refresh_changer
from appliance.config.kinds import NAME
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError, UsageError
from appliance.magazines.prepare import Filesystem, Plan, execute, plan
from appliance.magazines.wipe import Wipe

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_READY_WITHIN = 120.0  # seconds for the agent to unlock and mount a new magazine


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `prepare`."""
    parser = subparsers.add_parser(
        "prepare",
        help="make a magazine out of a blank disk",
        description="Makes a magazine out of a blank disk: wipes it, makes a LUKS2 container with the appliance's key "
        "file and a file system in it, enrols it, and creates volumes. A disk that is not blank, is mounted, is "
        "enrolled or belongs to the system is refused.",
    )
    parser.add_argument("device", metavar="DEVICE", type=Path, help="the whole disk, such as /dev/sdb")
    parser.add_argument("--name", required=True, help="name of the magazine")
    parser.add_argument(
        "--wipe",
        choices=[how.value for how in Wipe],
        default=Wipe.RANDOM.value,
        help="random (default): overwrite everything, so that nobody sees how much is used; discard: let a flash disk "
        "drop its blocks, quick; none: quick, old contents stay readable for those who look below",
    )
    parser.add_argument("--filesystem", choices=[f.value for f in Filesystem], default=Filesystem.EXT4.value)
    parser.add_argument(
        "--overwrite-serial", metavar="SERIAL", default="", help="use a disk that is not blank, by serial"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Inspect, ask, carry out, wait for the agent, create the volumes."""
    from appliance.host.real.devices import UdevDevices
    from appliance.host.real.mounts import KernelMounts

    if NAME.pattern and not NAME.pattern.fullmatch(args.name):
        raise UsageError(f"--name wants {NAME.wanted}, got {args.name!r}")
    config = load(args.config)
    how, filesystem = Wipe(args.wipe), Filesystem(args.filesystem)
    serial = args.overwrite_serial
    todo = plan(config, UdevDevices(), KernelMounts(), args.device, args.name, how, filesystem, serial)
    device = todo.device
    model, number = device.model or "unknown model", device.serial or "unknown"
    out.line(f"{device.node}: {model}, serial {number}, {human_bytes(device.size)}")
    for index, step in enumerate(todo.steps(config), 1):
        out.line(f"  {index}. {step}")
    if args.dry_run:
        out.document({"device": device.node, "serial": device.serial, "steps": todo.steps(config), "done": False})
        return ExitStatus.DONE
    if not args.yes:
        _confirm(device.node)
    with out.progress(f"wiping {device.node}", device.size) as progress:
        execute(todo, config, out.line, progress.advance)
    volumes = _finish(todo, config, out)
    refresh_changer(args.config, out)
    out.document(
        {
            "magazine": todo.name,
            "device": device.node,
            "serial": device.serial,
            "luks_uuid": todo.luks_uuid,
            "filesystem_uuid": todo.filesystem_uuid,
            "volumes": volumes,
            "done": True,
        }
    )
    out.line(f"Magazine {todo.name} is ready with {len(volumes)} volumes.")
    return ExitStatus.DONE


def _confirm(node: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"everything on {node} would be lost and nobody can be asked", hint="Add --yes.")
    try:
        typed = input(f"Everything on {node} will be lost. Type its name to go on: ")
    except EOFError:
        typed = ""
    if typed.strip() != node:
        raise MagbayError("nothing was done", hint="The name of the disk was not typed.")


def _finish(todo: Plan, config: Config, out: Output) -> list[str]:
    """Let the agents take the new magazine as if it had just been plugged in, and create its volumes."""
    from appliance.storage.labelling import create

    hint = f"The magazine is enrolled; 'magbay label --magazine {todo.name}' creates its volumes later."
    try:
        ask("Rescan")
        wait_for(config, todo.name, ("mounted", "idle"), _READY_WITHIN, lambda disk: out.line(f"  {disk['state']}"))
    except MagbayError as error:
        raise MagbayError(f"{error.message}", hint=hint) from None
    pool = "Default" if "Default" in config.pools else next(iter(config.pools))
    return [volume.name for volume in create(config, magazine=todo.name, pool=pool, count=config.prepare.volumes)]
