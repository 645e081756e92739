"""`magbay status`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from appliance.changer.service import Changer
from appliance.cli.magazine import OLDER, describe, health_words
from appliance.cli.output import Output, as_told, human_bytes, one_line
from appliance.cli.rotation import section as rotation
from appliance.config.accepted import in_force
from appliance.config.schema import Config, DirectorKind
from appliance.director.wanted import published as published_wants
from appliance.errors import ExitStatus, UsageError
from appliance.magazines import rekeying
from appliance.magazines.attached import published
from appliance.storage.catalog import Catalog

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_JOBS = 5  # jobs shown


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `status`."""
    parser = subparsers.add_parser("status", help="disks, magazines, drives and jobs")
    parser.add_argument("--watch", action="store_true", help="show it again every second until interrupted")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show the state of everything, once or over and over."""
    if args.watch and args.json:
        raise UsageError("--watch is for people, --json for programs", hint="Ask again and again without --watch.")
    while True:
        found = in_force(args.config)
        facts = collect(found.config) | {"configuration": found.words}
        out.document(facts)
        if args.watch:
            out.clear_screen()
            out.line(time.strftime("%Y-%m-%d %H:%M:%S"))
        show(facts, out)
        if not args.watch:
            return ExitStatus.DONE
        time.sleep(1)


def collect(config: Config) -> dict[str, Any]:
    """Disks, magazines, drives and the latest jobs as plain data."""
    told = published(config)
    # A cursory look: a person who watches must not keep idle magazines mounted.
    slots, _report = Changer(config).look(thorough=False)
    loaded = {slot.drive: slot for slot in slots if slot.drive is not None}
    drives = [
        {"drive": number, "slot": loaded[number].slot, "volume": loaded[number].volume}
        if number in loaded
        else {"drive": number, "slot": None, "volume": None}
        for number in range(config.changer.drives)
    ]
    here: dict[str, int] = {}
    for slot in slots:
        if slot.attached:
            here[slot.magazine] = here.get(slot.magazine, 0) + 1
    magazines = [magazine | {"volumes_here": here.get(magazine["name"], 0)} for magazine in describe(config)]
    return {
        "agent": told is not None,
        "disks": told or [],
        "magazines": magazines,
        "drives": drives,
        "jobs": _last_jobs(config),
        "rotation": rotation(config),
        "key_rotation": _key_rotation(config),
        "director": published_wants(config.run_dir) if config.director.kind is not DirectorKind.NONE else None,
    }


def _key_rotation(config: Config) -> dict[str, Any] | None:
    """An unfinished rotation of the key: the magazines that still need the previous one, and what is to do."""
    needed = rekeying.needed_by(config)
    return None if needed is None else {"needed_by": list(needed), "sentence": rekeying.advice(needed)}


def _last_jobs(config: Config) -> list[dict[str, Any]]:
    """The latest jobs; none when there is no catalog yet, which a look must not create."""
    if not Catalog.exists(config):
        return []
    with Catalog.of(config) as catalog:
        catalog.recover()
        jobs = catalog.jobs()[:_JOBS]
    return [
        {
            "job_id": job.job_id,
            "name": job.name,
            "status": job.status.word,
            "files": job.files,
            "bytes": job.bytes,
            "started": job.started,
            "waiting": job.waiting,
        }
        for job in jobs
    ]


def show(facts: dict[str, Any], out: Output) -> None:
    """Print *facts* for a person."""
    if facts["configuration"]:
        out.line(f"{facts['configuration'][0].upper()}{facts['configuration'][1:]}")
    _show_director(facts["director"], out)
    out.line("Magazines")
    for magazine in facts["magazines"]:
        count = f"{magazine['volumes_here']} volumes" if magazine["volumes_here"] else ""
        if magazine["space"]:
            count = f"{count + ', ' if count else ''}{human_bytes(magazine['space']['free'])} free"
        if magazine["checksums"] == OLDER:
            count += f"{', ' if count else ''}checksums {OLDER}"
        reason = f"  {magazine['reason']}" if magazine["reason"] else ""
        out.line(f"  {magazine['name']:<20} {magazine['state']:<15} {count}{reason}")
    if not facts["magazines"]:
        out.line("  none yet: 'magbay prepare DEVICE --name NAME' makes one of a blank disk")
    _show_rotation(facts["rotation"], out)
    if facts["key_rotation"]:
        out.line(f"Key rotation unfinished: {facts['key_rotation']['sentence']}")
    _show_disks([disk for disk in facts["disks"] if disk["state"] != "gone"], out)
    out.line("Drives")
    for drive in facts["drives"]:
        out.line(
            f"  {drive['drive']:<3} " + (f"slot {drive['slot']}: {drive['volume']}" if drive["volume"] else "empty")
        )
    if facts["jobs"]:
        out.line("Last jobs")
    for job in facts["jobs"]:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(job["started"]))
        counts = f"{job['files']:>8} files {human_bytes(job['bytes']):>10}"
        waiting = f"  waiting for {job['waiting']}" if job["waiting"] else ""
        out.line(f"  {job['job_id']:>5}  {one_line(job['name']):<20} {job['status']:<10} {counts}  {started}{waiting}")


def _show_rotation(sets: list[dict[str, Any]], out: Output) -> None:
    if sets:
        out.line("Rotation")
    for item in sets:
        out.line(f"  {item['sentence']}")


def _show_disks(disks: list[dict[str, Any]], out: Output) -> None:
    if disks:
        out.line("Disks")
    for disk in disks:
        whose = disk["magazine"] or "-"
        words = f"{disk['node']:<12} {as_told(disk['serial']) or '-':<20} {human_bytes(disk['size']):>9}  {whose:<16}"
        out.line(f"  {words} {disk['state']}{': ' + disk['reason'] if disk['reason'] else ''}")
        if disk.get("health") and disk["health"]["condition"] != "unknown":
            out.line(f"      health: {health_words(disk['health'])}")
        if disk["hint"]:
            out.line(f"      {disk['hint']}")


def _show_director(answer: dict[str, Any] | None, out: Output) -> None:
    """What a person has to do for the Director comes first."""
    for item in answer["wanted"] if answer else []:
        sentence = item["sentence"]
        out.line(f"{sentence[0].upper()}{sentence[1:]}")
    if answer and answer["error"]:
        out.line(f"The Director is not told of changes: {answer['error']}")
