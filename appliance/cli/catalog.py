"""`magbay catalog prune`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from appliance.cli.output import Output
from appliance.config.loader import load
from appliance.errors import ExitStatus
from appliance.storage import expiry
from appliance.storage.catalog import Catalog

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_PRUNE = (
    "Forget the files of jobs that are beyond their retention and that nothing needed builds on. Volumes are not "
    "touched: what is on them can still be read with 'magbay volume', until a job writes on them anew."
)


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `catalog`."""
    verbs = subparsers.add_parser("catalog", help="the catalog: prune").add_subparsers(metavar="VERB", required=True)
    prune = verbs.add_parser("prune", help="forget jobs beyond their retention", description=_PRUNE)
    prune.add_argument("--dry-run", action="store_true", help="only show them")
    prune.set_defaults(run=run_prune)


def run_prune(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Forget what may be forgotten."""
    config = load(args.config)
    with Catalog(config.state_dir) as catalog:
        catalog.recover()
        gone = expiry.prune(catalog, config, dry_run=args.dry_run)
    out.document({"pruned": [job.job_id for job in gone], "dry_run": args.dry_run})
    for job in gone:
        out.line(f"job {job.job_id} {job.name}: {job.files} files{' would be' if args.dry_run else ''} forgotten")
    if not gone:
        out.line("every job is still needed")
    return ExitStatus.DONE
