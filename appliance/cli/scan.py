"""`magbay volume scan`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.cli import placing
from appliance.cli.output import Output, one_line
from appliance.cli.running import log_to, refresh_changer, run_reading, stoppable, warn_of
from appliance.errors import ExitStatus
from appliance.storage import scanning
from appliance.storage.catalog import Catalog
from appliance.storage.scanning import ScannedJob, ScanRequest, ScanResult
from appliance.volumes.bb03 import VolumeKeys

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = (
    "Enter what is on volumes in the catalog: jobs, their files, and where they are. Rebuilds a catalog that is lost, "
    "and adds what is missing to one that exists; what it has already stays. Volumes of one job may be scanned in any "
    "order and at different times. Volumes of Bacula and Bareos can be scanned too; they are never written on."
)


def register(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `scan`."""
    scan = verbs.add_parser("scan", help="rebuild or complete the catalog from volumes", description=_DESCRIPTION)
    scan.add_argument("volumes", nargs="*", type=Path, metavar="VOLUME", help="volume files, or directories of volumes")
    scan.add_argument("--magazine", metavar="NAME", help="all volumes of this magazine")
    scan.add_argument("--all", action="store_true", help="all volumes of all magazines that are here")
    scan.add_argument("--dry-run", action="store_true", help="only show what would be entered")
    scan.add_argument(
        "--catalog", type=Path, metavar="FILE", help="another catalog (made when missing); needs no configuration"
    )
    placing.add_keys(scan)
    scan.set_defaults(run=run_scan)


def run_scan(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Scan and tell what was found."""
    keys = VolumeKeys(args.volume_key)
    request = ScanRequest(tuple(args.volumes), args.magazine, args.all, dry_run=args.dry_run, keys=keys)
    if args.catalog:
        result = _into_file(args, request, out)
    else:
        result = run_reading(scanning.run, "scan", args.config, request, out)
        if not args.dry_run:
            refresh_changer(args.config, out)
    tell(result, out, dry_run=args.dry_run)
    return result.exit_status


def _into_file(args: argparse.Namespace, request: ScanRequest, out: Output) -> ScanResult:
    path: Path = args.catalog.absolute()
    with stoppable() as asked, out.progress("scan") as display, Catalog.in_file(path) as catalog:

        def started(total: int) -> None:
            display.total = total

        return scanning.scan(
            catalog,
            None,
            request,
            (),
            log=log_to(out, args.config),
            progress=display.advance,
            started=started,
            cancelled=asked.is_set,
        )


def document(result: ScanResult, *, dry_run: bool) -> dict[str, object]:
    """The JSON document."""
    return {
        "dry_run": dry_run,
        "cancelled": result.cancelled,
        "volumes": result.volumes,
        "jobs": [
            {
                "job_id": job.job_id,
                "name": job.name,
                "status": job.status,
                "new": job.new,
                "files": job.files,
                "volumes": job.volumes,
                "missing": job.missing or None,
            }
            for job in result.jobs.values()
        ],
        "errors": result.errors,
        "warnings": result.warnings,
    }


def tell(result: ScanResult, out: Output, *, dry_run: bool) -> None:
    """For people and programs."""
    out.document(document(result, dry_run=dry_run))
    for job in result.jobs.values():
        out.line(_line(job, dry_run=dry_run))
        if job.missing:
            out.warn(f"note: job {job.job_id} {job.name}: {job.missing}")
    warn_of(out, result.warnings, result.errors)
    new = sum(job.new for job in result.jobs.values())
    told = "would be entered" if dry_run else "entered"
    out.line(f"{len(result.volumes)} volumes with {len(result.jobs)} jobs, {new} of them {told}")
    if result.cancelled:
        out.warn("magbay: the scan was stopped: run it again to enter the rest")


def _line(job: ScannedJob, *, dry_run: bool) -> str:
    state = "known" if not job.new else "new" if dry_run else job.status
    volumes = ", ".join(dict.fromkeys(job.volumes))
    return f"{job.job_id:6} {one_line(job.name):20} {state:10} {job.files:9} files  {volumes}"
