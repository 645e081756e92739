"""`magbay catalog prune|backup|restore|copy`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.cli import scan as scan_cli
from appliance.cli.output import Output, one_line
from appliance.cli.running import log_to, refresh_changer, stoppable, warn_of
from appliance.config.loader import load
from appliance.config.schema import CatalogConfig
from appliance.errors import ExitStatus, UsageError
from appliance.storage import copies, expiry, moving, recovering
from appliance.storage.catalog import Catalog

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_PRUNE = (
    "Forget the files of jobs that are beyond their retention and that nothing needed builds on. Volumes are not "
    "touched: what is on them can still be read with 'magbay volume', until a job writes on them anew."
)
_BACKUP = (
    "Put a copy of what the catalog knows of each job on the magazines that it lies on, where there is none. Each job "
    "does that for itself at its end, unless catalog.copies is off."
)
_RESTORE = (
    "Bring the catalog back from the copies on magazines: on all that are here, or on those named. What the catalog "
    "has already is left as it is. Volumes that are newer than the copies are scanned."
)
_COPY = (
    "Copy the whole catalog into an empty PostgreSQL database, or into a new file. Then let catalog.database name it "
    "(or put the file in the place of state_dir/catalog.db)."
)


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `catalog`."""
    noun = subparsers.add_parser("catalog", help="the catalog: prune, backup, restore, copy")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    prune = verbs.add_parser("prune", help="forget jobs beyond their retention", description=_PRUNE)
    prune.add_argument("--dry-run", action="store_true", help="only show them")
    prune.set_defaults(run=run_prune)
    backup = verbs.add_parser("backup", help="copies of the catalog onto the magazines", description=_BACKUP)
    backup.set_defaults(run=run_backup)
    restore = verbs.add_parser("restore", help="the catalog back from copies on magazines", description=_RESTORE)
    restore.add_argument("source", nargs="*", type=Path, metavar="FROM", help="directory of a magazine, or a copy")
    restore.add_argument(
        "--force", action="store_true", help="set the present catalog aside and begin a new one (its file stays)"
    )
    restore.add_argument("--no-scan", action="store_true", help="leave volumes that are newer unscanned")
    restore.set_defaults(run=run_restore)
    copy = verbs.add_parser("copy", help="the catalog into another database", description=_COPY)
    copy.add_argument("target", metavar="TO", help="postgresql://… (without a password), or a new file for SQLite")
    copy.set_defaults(run=run_copy)


def run_prune(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Forget what may be forgotten."""
    config = load(args.config)
    with Catalog.of(config) as catalog:
        catalog.recover()
        gone = expiry.prune(catalog, config, dry_run=args.dry_run)
    out.document({"pruned": [job.job_id for job in gone], "dry_run": args.dry_run})
    for job in gone:
        out.line(
            f"job {job.job_id} {one_line(job.name)}: {job.files} files{' would be' if args.dry_run else ''} forgotten"
        )
    if not gone:
        out.line("every job is still needed")
    return ExitStatus.DONE


def run_backup(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Write the copies that are missing."""
    config = load(args.config)
    troubles: list[str] = []
    with Catalog.of(config) as catalog:
        catalog.recover()
        jobs = copies.missing(catalog, config)
        for job_id in jobs:
            found, _ = copies.write(catalog, config, job_id)
            troubles += found
    out.document({"jobs": jobs, "errors": troubles})
    warn_of(out, troubles)
    out.line(f"copies of {len(jobs)} jobs written" if jobs else "every magazine here has the copies of its jobs")
    return ExitStatus.FAILED if troubles else ExitStatus.DONE


def run_restore(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Bring the catalog back."""
    config = load(args.config)
    if args.force:
        name = recovering.set_aside(config)
        if name:
            out.line(f"the present catalog is {name} now")
    with stoppable() as asked, out.progress("scan") as display:

        def started(total: int) -> None:
            display.total = total

        result = recovering.run(
            config,
            [path.absolute() for path in args.source],
            scan=not args.no_scan,
            log=log_to(out, args.config),
            progress=display.advance,
            started=started,
            cancelled=asked.is_set,
        )
    refresh_changer(args.config, out)
    scanned = scan_cli.document(result.scan, dry_run=False) if result.scan else None
    out.document(
        {
            "jobs": result.jobs,
            "known": result.known,
            "left_out": result.left_out,
            "errors": result.errors,
            "scan": scanned,
        }
    )
    warn_of(out, result.left_out, result.errors)
    out.line(f"{len(result.jobs)} jobs from copies, {len(result.known)} were known")
    if result.scan:
        warn_of(out, result.scan.warnings, result.scan.errors)
        new = [job for job in result.scan.jobs.values() if job.new]
        out.line(f"{len(new)} more from {len(result.scan.volumes)} volumes that are newer")
    if result.errors:
        return ExitStatus.FAILED
    return result.scan.exit_status if result.scan else ExitStatus.DONE


def run_copy(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Copy it."""
    config = load(args.config)
    address = args.target if "://" in args.target else ""
    if address:
        try:
            CatalogConfig(database=address)
        except ValueError as error:
            hint = "The command line, too, is read by others."
            raise UsageError(str(error).partition(": ")[2], hint=hint) from None
        target = Catalog(config.state_dir, database=address)
    else:
        target = Catalog.in_file(Path(args.target).absolute())
    with Catalog.of(config) as source, target:
        files = moving.copy(source, target, out.line)
    out.document({"files": files})
    out.line(f"{files} files copied")
    return ExitStatus.DONE
