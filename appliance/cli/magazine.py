"""`magbay magazine list|show|forget`."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from appliance.cli.output import Output, as_told, human_bytes
from appliance.config.document import plain
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError, NotFoundError
from appliance.host.files import sync_directory
from appliance.magazines.attached import Magazine, enrolments, known, published, read_enrolments

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `magazine`."""
    noun = subparsers.add_parser("magazine", help="enrolled magazines: list, show, forget")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    verbs.add_parser("list", help="all magazines that are known").set_defaults(run=run_list)
    show = verbs.add_parser("show", help="everything known of one magazine")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(run=run_show)
    forget = verbs.add_parser("forget", help="end an enrolment; the disk and its volumes are not touched")
    forget.add_argument("name", metavar="NAME")
    forget.set_defaults(run=run_forget)


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
            "reason": disk.get("reason", ""),
            "path": str(magazine.path) if magazine.path else None,
            "writable": magazine.writable,
            "space": _space(magazine) if state in ("here", "mounted") else None,
            "health": disk.get("health"),
            "kind": "directory" if magazine.identity.startswith("directory:") else "disk",
        }
        found.append(facts | enrolled.get(magazine.identity, {}))
    return found


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
    if key == "space" and value:
        return f"{human_bytes(value['free'])} free of {human_bytes(value['bytes'])}"
    return "-" if value in ("", None) else str(value)


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
    for enrolment in enrolments(config):
        if enrolment.name == args.name:
            if any(m.name == args.name and m.attached for m in known(config)):
                raise MagbayError(f"magazine {args.name} is in use", hint=f"'magbay eject {args.name}' first.")
            (config.enrolment_dir / f"{enrolment.filesystem_uuid}.yaml").unlink()
            sync_directory(config.enrolment_dir)
            out.document({"forgotten": args.name})
            out.line(f"Magazine {args.name} is no longer enrolled. Its disk was not touched.")
            return ExitStatus.DONE
    raise NotFoundError(
        f"no enrolled magazine is called {args.name}", hint="'magbay magazine list' shows the known ones."
    )
