"""`magbay volume list|show|extract|check`: bare volume files, without catalog, daemon or configuration.

`volume scan` is in `appliance.cli.scan`.
"""

from __future__ import annotations

import argparse
import contextlib
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import placing, scan
from appliance.cli.output import Output, human_bytes, one_line
from appliance.cli.volume_report import Report, iso_time
from appliance.config.kinds import size_of
from appliance.errors import ExitStatus, NotFoundError
from appliance.storage.extract import Extractor
from appliance.storage.outcome import Replace
from appliance.storage.selection import link_aliases, path_filter
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.bsr import load_bsr
from appliance.volumes.events import Data, Digest, Event, FileEnd, FileEntry, FileStart
from appliance.volumes.reading import in_order, read_volumes
from appliance.volumes.streams import is_encrypted
from appliance.volumes.verify import ContentCheck

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_TYPE_LETTERS = {
    "file": "-", "directory": "d", "symlink": "l", "hardlink": "h", "fifo": "p", "character-device": "c",
    "block-device": "b", "deleted": "D", "plugin": "P",
}  # fmt: skip


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `volume`."""
    noun = subparsers.add_parser("volume", help="bare volume files: list, show, extract, check, scan")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="the files on volumes, with their digests")
    show = verbs.add_parser("show", help="labels and jobs of volumes")
    extract = verbs.add_parser("extract", help="restore files below a directory")
    check = verbs.add_parser("check", help="read everything and compare it with checksums and digests")
    for parser, run in ((listing, run_list), (show, run_show), (extract, run_extract), (check, run_check)):
        parser.add_argument("volumes", nargs="+", type=Path, metavar="VOLUME", help="volume files, in their order")
        placing.add_keys(parser)
        parser.set_defaults(run=run)
    scan.register(verbs)
    for parser in (listing, extract, check):
        parser.add_argument("--bsr", type=Path, metavar="FILE", help="only what this bootstrap file selects")
    for parser in (listing, extract):
        parser.add_argument(
            "--file", action="append", default=[], metavar="GLOB", help="only matching files and what lies below them"
        )
    extract.add_argument("--to", type=Path, required=True, metavar="DIR", help="directory to restore below")
    placing.add_options(extract)
    extract.add_argument(
        "--untrusted", action="store_true", help="no owners, set-ID bits, device nodes, privileged attributes"
    )
    extract.add_argument("--limit", type=_size, metavar="SIZE", help="stop when more data would be written, e.g. 50GB")


def _size(text: str) -> int:
    found = size_of(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 10GB or 4GiB")
    return found


class _Reading:
    """The volumes of one command: their order, size, selection."""

    def __init__(self, args: argparse.Namespace, out: Output) -> None:
        self.out = out
        self.report = Report()
        self.bootstrap = load_bsr(args.bsr) if getattr(args, "bsr", None) else None
        self.keys = VolumeKeys(args.volume_key)
        self.paths = in_order(args.volumes, self.keys)
        self.total = sum(path.stat().st_size for path in self.paths)
        if self.paths != args.volumes:
            out.warn("magbay: the volumes are read in the order of their labels: " + _names(self.paths))

    def events(self, label: str, *, from_disk: bool = False) -> Iterator[Event]:
        """All events, with progress. *from_disk*: as for `VolumeReader`."""
        with self.out.progress(label, self.total) as display:
            for event in self.read(display.advance, from_disk=from_disk):
                self.report.take(event)
                yield event

    def read(self, advance: Callable[[int], None] | None = None, *, from_disk: bool = False) -> Iterator[Event]:
        """All events, unseen by the report."""
        return read_volumes(self.paths, select=self.bootstrap, advance=advance, keys=self.keys, from_disk=from_disk)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _file_document(entry: FileEntry) -> dict[str, Any]:
    saved = entry.attributes.stat
    return {
        "path": entry.path,
        "type": entry.attributes.kind,
        "size": saved.size,
        "mode": saved.mode,
        "uid": saved.uid,
        "gid": saved.gid,
        "mtime": saved.mtime,
        "link": entry.link or None,
        "file_index": entry.file_index,
        "job_id": entry.job_id,
        "digest": None,
        "volume": Path(entry.volume).name,
        "encrypted": False,
        "state": "whole",
    }


def _file_line(entry: FileEntry) -> str:
    saved = entry.attributes.stat
    letter = _TYPE_LETTERS.get(entry.attributes.kind, "?")
    link = f" -> {one_line(entry.link)}" if entry.link else ""
    mode = stat.filemode(saved.mode & 0o7777)[1:]
    name = one_line(entry.path)
    return f"{letter}{mode} {saved.uid:>5} {saved.gid:>5} {saved.size:>12} {iso_time(saved.mtime)} {name}{link}"


def run_list(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print every file; damage and jobs below."""
    reading = _Reading(args, out)
    wanted = path_filter(args.file) if args.file else None
    files: dict[tuple[Any, int], dict[str, Any]] = {}
    documents: list[dict[str, Any]] = []
    count = encrypted = 0
    counted: dict[Any, int] = {}  # session to the FileIndex of the last one of those
    for event in reading.events("list"):
        if isinstance(event, Data) and is_encrypted(event.stream):
            encrypted += counted.get(event.entry.ids) != event.entry.file_index
            counted[event.entry.ids] = event.entry.file_index
        if isinstance(event, FileStart) and (wanted is None or wanted(event.entry)):
            count += 1
            out.line(_file_line(event.entry))
            if out.json:
                documents.append(_file_document(event.entry))
                files[event.entry.ids, event.entry.file_index] = documents[-1]
        elif out.json:
            _complete(files, event)
    if wanted and not count:
        raise _nothing(args.file)
    out.document({"files": documents, **reading.report.document()})
    told = f", {encrypted} of them encrypted by the client" if encrypted else ""
    out.line(f"{count} files{told}")
    return reading.report.print(out)


def _complete(files: dict[tuple[Any, int], dict[str, Any]], event: Event) -> None:
    """Add what comes behind the attributes to the file's document."""
    entry = getattr(event, "entry", None)
    document = files.get((entry.ids, entry.file_index)) if entry else None
    if document is None:
        return
    if isinstance(event, Digest):
        document["digest"] = {"algorithm": event.algorithm, "hex": event.value.hex()}
    elif isinstance(event, Data):
        document["encrypted"] = is_encrypted(event.stream)
    elif isinstance(event, FileEnd):
        document["state"] = event.state.value
        del files[event.entry.ids, event.entry.file_index]


def _nothing(globs: Sequence[str]) -> NotFoundError:
    return NotFoundError(
        f"no file on the volumes matches {' or '.join(globs)}", hint="'magbay volume list' shows the names as saved."
    )


def run_show(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print the labels of the volumes and the jobs on them."""
    reading = _Reading(args, out)
    for _ in reading.events("show"):
        pass
    report = reading.report
    out.document({"volumes": report.volumes_document(), **report.document()})
    report.print_volumes(out)
    report.print_jobs(out)
    return report.print(out)


def run_check(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Check every block, every record, every digest."""
    reading = _Reading(args, out)
    check = ContentCheck()
    with contextlib.closing(check):
        for event in reading.events("check", from_disk=True):
            check.take(event)
    counts = {name: getattr(check, name) for name in ("files", "bytes", "verified", "unverified")}
    lists = {"mismatches": check.mismatches, "unreadable": check.unreadable}
    out.document({"counts": counts, **lists, **reading.report.document()})
    reading.report.print_jobs(out)
    out.line(
        f"{check.files} files, {human_bytes(check.bytes)} of data; digests: {check.verified} match, "
        f"{len(check.mismatches)} do not, {check.unverified} of a kind that is not checked"
    )
    for text in (*check.mismatches, *check.unreadable):
        out.warn(f"magbay: {text}")
    status = reading.report.print(out)
    if check.mismatches:
        return ExitStatus.FAILED
    unsure = reading.report.open_ended or check.unreadable
    return ExitStatus.WARNINGS if status is ExitStatus.DONE and unsure else status


def run_extract(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Restore below --to."""
    reading = _Reading(args, out)
    wanted = path_filter(args.file) if args.file else None
    aliases = link_aliases(reading.read(), wanted) if wanted else None
    renaming = placing.renaming_of(args)
    extractor = Extractor(
        args.to,
        select=wanted,
        aliases=aliases,
        replace=args.replace,
        renaming=renaming,
        trusted=not args.untrusted,
        limit=args.limit,
        versions=len(reading.paths) > 1 or args.replace is not Replace.ALWAYS or bool(renaming),
    )
    summary = extractor.run(reading.events("extract"))
    if wanted and not (summary.files or summary.skipped or summary.failed or summary.warned):
        raise _nothing(args.file)
    out.document(
        {
            "target": str(args.to),
            "files": summary.files,
            "bytes": summary.bytes,
            "skipped": summary.skipped,
            "unverified": summary.unverified,
            "warnings": summary.warnings,
            "errors": summary.errors,
            **reading.report.document(),
        }
    )
    for text in (*summary.warnings, *summary.errors):
        out.warn(f"magbay: {text}")
    skipped = f", {summary.skipped} left as they are" if summary.skipped else ""
    unverified = f", {summary.unverified} with a digest of a kind that is not checked" if summary.unverified else ""
    out.line(f"{summary.files} files, {human_bytes(summary.bytes)} to {args.to}{skipped}{unverified}")
    if reading.report.damages:
        out.warn(f"        {reading.report.hint()}")
    return summary.status
