"""`magbay magazine list|show|checksums|import|export|forget`."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.agents.control import ask
from appliance.cli.output import Output, as_told, human_bytes
from appliance.cli.reload import limit_new_disks
from appliance.config.document import plain
from appliance.config.kinds import NAME
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError, NotFoundError, UsageError
from appliance.magazines import leaflet, unlisted
from appliance.magazines.attached import Magazine, enrolments, find, known, published, read_enrolments
from appliance.magazines.enrolment import export, forget, take_over
from appliance.storage import scrubs

if TYPE_CHECKING:
    from argparse import _SubParsersAction

OLDER = "older than the volumes"  # said of the checksums on a magazine


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `magazine`."""
    noun = subparsers.add_parser("magazine", help="enrolled magazines: list, show, checksums, import, export, forget")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    verbs.add_parser("list", help="all magazines that are known").set_defaults(run=run_list)
    show = verbs.add_parser("show", help="everything known of one magazine")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(run=run_show)
    _register_checksums(verbs)
    _register_import(verbs)
    export_ = verbs.add_parser(
        "export",
        help="print enrolments for 'import --from' on another machine; they hold no secrets",
        description="Prints enrolments as YAML for 'magbay magazine import --from FILE' on another machine. They hold "
        "no secrets: the key file has to be carried there by itself.",
    )
    export_.add_argument("names", metavar="NAME", nargs="*", help="default: all")
    export_.set_defaults(run=run_export)
    forget_ = verbs.add_parser("forget", help="end an enrolment; the disk and its volumes are not touched")
    forget_.add_argument("name", metavar="NAME")
    forget_.set_defaults(run=run_forget)


def _register_checksums(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    sums = verbs.add_parser(
        "checksums",
        help="write the lists volumes.txt and volumes.sha256 of a magazine anew",
        description="Writes the lists volumes.txt and volumes.sha256 on a magazine anew, for people without magbay: "
        "'sha256sum -c volumes.sha256' checks them. Volumes that have not changed since the last list are not read "
        "again, unless --all is given: then one whose bytes have changed though nobody wrote to it is damaged.",
    )
    sums.add_argument("name", metavar="NAME")
    sums.add_argument("--all", action="store_true", help="read every volume and compare with the last list")
    sums.set_defaults(run=run_checksums)


def _register_import(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    take = verbs.add_parser(
        "import",
        help="enrol a disk that others have made, or what 'export' printed elsewhere",
        description="Enrols a disk that others have made as it is: LUKS1 or LUKS2 with a key file in any slot, ext4, "
        "xfs or btrfs inside. The disk is only read. Or enrols with --from what 'magbay magazine export' printed on "
        "another machine.",
    )
    take.add_argument("device", metavar="DEVICE", type=Path, nargs="?", help="the disk, or its LUKS partition")
    take.add_argument("--name", default="", help="name of the magazine (default: the label of the disk)")
    take.add_argument("--key-file", type=Path, metavar="FILE", help="another key file that opens it")
    take.add_argument("--leave-closed", action="store_true", help="do not use it before it is plugged in again")
    take.add_argument("--from", dest="source", type=Path, metavar="FILE", help="enrolments of another machine")
    take.set_defaults(run=run_import)


def describe(config: Config) -> list[dict[str, Any]]:
    """Every known magazine as a plain dict."""
    states = {disk["filesystem_uuid"]: disk for disk in published(config) or [] if disk["magazine"]}
    enrolled = {enrolment.filesystem_uuid: plain(enrolment) for enrolment in enrolments(config)}
    found = []
    for magazine in known(config):
        disk = states.get(magazine.identity, {})
        state = disk.get("state", "here" if magazine.attached else "away")
        facts = {
            "name": magazine.name,
            "state": "away" if state == "gone" else state,
            "reason": disk.get("reason", "" if magazine.attached else magazine.reason),
            "path": str(magazine.path) if magazine.path else None,
            "writable": magazine.writable,
            "space": _space(magazine) if state in ("here", "mounted") else None,
            "health": disk.get("health"),
            "verified": scrubs.describe(config, magazine.identity, magazine.name),
            "checksums": checksums_word(config, magazine.identity),
            "kind": "directory" if magazine.identity.startswith("directory:") else "disk",
        }
        found.append(facts | enrolled.get(magazine.identity, {}))
    return found


def checksums_word(config: Config, identity: str) -> str | None:
    """How the checksums on a magazine are; None for directories, which have none."""
    if identity.startswith("directory:"):
        return None
    return OLDER if unlisted.marked(config, identity) else "current"


def _space(magazine: Magazine) -> dict[str, int] | None:
    """Bytes of the file system and those that are free. For mounted magazines: a look must not mount an idle one."""
    try:
        found = os.statvfs(magazine.path) if magazine.path else None
    except OSError:
        return None  # pulled at this moment, or not for this user
    return {"bytes": found.f_frsize * found.f_blocks, "free": found.f_frsize * found.f_bavail} if found else None


def health_words(health: dict[str, Any] | None) -> str:
    """What a disk tells of itself, on one line; empty when it tells nothing."""
    if not health:
        return ""
    counts = {
        "hours": "{} h",
        "wear": "{} % worn",
        "temperature": "{} °C",
        "reallocated": "{} sectors replaced",
        "pending": "{} waiting",
        "uncorrectable": "{} unreadable",
    }
    numbers = [words.format(health[key]) for key, words in counts.items() if health.get(key) is not None]
    reason = f" ({as_told(health['reason'])})" if health["reason"] else ""
    return ", ".join([f"{health['condition']}{reason}", *numbers])


def _shown(key: str, value: Any) -> str:
    if key == "health":
        return health_words(value) or "-"
    if key == "verified":
        return _verified(value)
    if key == "space" and value:
        return f"{human_bytes(value['free'])} free of {human_bytes(value['bytes'])}"
    return "-" if value in ("", None) else str(value)


def _verified(facts: dict[str, Any]) -> str:
    """When the magazine was last verified, and how far the present verification is."""
    told = "never"
    if facts["last"]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts["last"]))
        told = f"{when}, {human_bytes(facts['bytes'])}, {facts['errors']} errors"
    if facts["began"]:
        place = facts["resumes_at"]
        at = f" at {human_bytes(place['address'])} of volume {place['volume']}" if place else ""
        told += f"; begun again{at}, {facts['errors_so_far']} errors so far"
    return told


def run_list(args: argparse.Namespace, out: Output) -> ExitStatus:
    """One line a magazine."""
    config = load(args.config)
    magazines = describe(config)
    out.document(magazines)
    for magazine in magazines:
        size = human_bytes(magazine["size"]) if magazine.get("size") else "-"
        serial = magazine.get("serial") or "-"
        out.line(f"{magazine['name']:<20} {magazine['state']:<15} {magazine['kind']:<10} {size:>9}  {serial}")
    damaged = read_enrolments(config)[1]
    if not magazines and not damaged:
        out.line("No magazine is known yet. 'magbay prepare DEVICE --name NAME' makes one of a blank disk.")
    for error in damaged:
        out.warn(f"magbay: an enrolment cannot be read: {error.message}")
    return ExitStatus.WARNINGS if damaged else ExitStatus.DONE


def run_show(args: argparse.Namespace, out: Output) -> ExitStatus:
    """All facts of one magazine."""
    for magazine in describe(load(args.config)):
        if magazine["name"] == args.name:
            out.document(magazine)
            for key, value in magazine.items():
                out.line(f"{key.replace('_', ' '):<16} {_shown(key, value)}")
            return ExitStatus.DONE
    raise NotFoundError(f"no magazine is called {args.name}", hint="'magbay magazine list' shows the known ones.")


def run_forget(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Remove the enrolment of a disk that is not open."""
    config = load(args.config)
    if any(m.name == args.name and m.attached for m in known(config) if not m.identity.startswith("directory:")):
        raise MagbayError(f"magazine {args.name} is in use", hint=f"'magbay eject {args.name}' first.")
    forget(config, args.name)
    _tell_agent()
    out.document({"forgotten": args.name})
    out.line(f"Magazine {args.name} is no longer enrolled. Its disk was not touched.")
    return ExitStatus.DONE


def run_checksums(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Write the lists of one magazine anew."""
    config = load(args.config)
    magazine = find(config, args.name)
    assert magazine.path is not None  # `find` gives attached magazines only
    unlisted.begin(config, magazine.identity)
    total = sum((magazine.path / name).stat().st_size for name in leaflet.volumes(magazine.path)) if args.all else None
    with out.progress(f"reading {args.name}", total) as progress:
        found = leaflet.checksums(magazine.path, magazine.name, everything=args.all, advance=progress.advance)
    if found.busy:
        unlisted.mark(config, magazine.identity)
    else:
        unlisted.done(config, magazine.identity)
    out.document(
        {
            "magazine": args.name,
            "volumes": len(found.sums),
            "read": found.read,
            "busy": found.busy,
            "damaged": found.damaged,
        }
    )
    out.line(f"{len(found.sums)} volumes are listed on magazine {args.name}, {len(found.read)} of them were read.")
    for name in found.busy:
        out.warn(f"magbay: volume {name} is being written: it has no checksum this time")
    for name in found.damaged:
        out.warn(f"magbay: volume {name} is damaged: other bytes than listed, though nobody has written to it")
    if found.damaged:
        raise MagbayError(
            f"magazine {args.name}: {len(found.damaged)} volumes are damaged",
            hint="'magbay volume check' tells what is still good in them; replace the disk.",
        )
    return ExitStatus.WARNINGS if found.busy else ExitStatus.DONE


def run_export(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print enrolments."""
    text, documents = export(load(args.config), args.names)
    out.document({"enrolments": documents})
    out.line(text.rstrip("\n"))
    return ExitStatus.DONE


def run_import(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Enrol a disk, or a file of enrolments."""
    config = load(args.config)
    if (args.device is None) == (args.source is None):
        raise UsageError("either DEVICE or --from FILE is wanted")
    if args.name and NAME.pattern and not NAME.pattern.fullmatch(args.name):
        raise UsageError(f"--name wants {NAME.wanted}, got {args.name!r}")
    if args.source is not None:
        if args.name or args.key_file or args.leave_closed:
            raise UsageError("--from goes with no other option", hint="The file says the names.")
        status = _import_list(config, args.source, out)
    else:
        status = _import_disk(config, args, out)
    limit_new_disks(config, args.config)
    return status


def _import_list(config: Config, file: Path, out: Output) -> ExitStatus:
    new, old = take_over(config, file)
    _tell_agent()
    out.document({"enrolled": new, "known": old})
    for name in new:
        out.line(f"Magazine {name} is enrolled.")
    for name in old:
        out.line(f"Magazine {name} was enrolled already.")
    return ExitStatus.DONE


def _import_disk(config: Config, args: argparse.Namespace, out: Output) -> ExitStatus:
    from appliance.host.real.devices import UdevDevices
    from appliance.host.real.mounts import KernelMounts
    from appliance.magazines.adopt import adopt

    devices, mounts = UdevDevices(), KernelMounts()
    found = adopt(config, devices, mounts, args.device, args.name, args.key_file, closed=args.leave_closed)
    name = found.enrolment.name
    if not args.leave_closed:
        _tell_agent()
    facts = {"filesystem": found.filesystem, "volumes": found.volumes, "key_fits": found.fits, "notes": found.notes}
    out.document(plain(found.enrolment) | {"device": found.device.node} | facts)
    what = f"{found.device.node} ({found.filesystem}, {len(found.volumes)} volumes)"
    out.line(f"{what} is enrolled as magazine {name}. Nothing was written to it.")
    for note in found.notes:
        out.warn(f"magbay: magazine {name}: {note}")
    if not found.fits:
        out.warn(f"magbay: the key file {config.key_file} does not open magazine {name} yet")
        out.warn(f"        'magbay key add {name} --own-key --key-file {args.key_file}' adds it to the disk.")
    return ExitStatus.WARNINGS if found.notes or not found.fits else ExitStatus.DONE


def _tell_agent() -> None:
    """A hint for the media agent, if there is one: it finds out by itself within seconds, too."""
    with contextlib.suppress(MagbayError):
        ask("Rescan")
