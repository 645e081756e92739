"""`magbay browse`."""

from __future__ import annotations

import argparse
import os
import stat
import time
from typing import TYPE_CHECKING

from appliance.cli.output import Output, as_told, human_bytes
from appliance.cli.times import AT_HELP, moment
from appliance.config.loader import load
from appliance.errors import ExitStatus, NotFoundError
from appliance.storage import plan, saved_files, searching
from appliance.storage.catalog import Catalog
from appliance.storage.model import Job, SavedFile
from appliance.storage.selection import pattern_of
from appliance.volumes.attributes import FileType
from appliance.volumes.stat64 import EncodedStat

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = (
    "Look into what was saved without any magazine: the contents of a directory as a job, with those that it builds "
    "on, has them, or all versions of a file."
)


def register(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `browse`."""
    parser = subparsers.add_parser("browse", help="look into saved directories", description=_DESCRIPTION)
    told = "a directory or file by its whole path (default: /), or the name, or a pattern of it, to look for anywhere"
    parser.add_argument("path", nargs="?", default="/", help=told)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--job", type=int, metavar="ID", help="as of this job")
    which.add_argument("--latest", metavar="NAME", help="as of the newest finished job of this name")
    which.add_argument("--versions", action="store_true", help="every saved version of the file or directory")
    parser.add_argument("--at", type=moment, metavar="TIME", help=AT_HELP)
    parser.set_defaults(run=run_browse)


def run_browse(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show a directory, or the versions of one thing."""
    path = os.fsencode(args.path.rstrip("/") or "/")
    with Catalog.of(load(args.config)) as catalog:
        catalog.recover()
        if args.versions:
            names = (path, path.rstrip(b"/") + b"/")
            found = [saved for name in names for saved in saved_files.versions(catalog, name)]
            started = {job.job_id: job.started for job in catalog.jobs()}
            places = {job_id: place for place, job_id in enumerate(started)}
            found.sort(key=lambda saved: places[saved.job_id])
        else:
            chain = plan.chain_of(catalog, plan.chosen_job(catalog, args.job, args.latest, args.at))
            if "/" in args.path.rstrip("/") or path == b"/":
                every = _entries(catalog, [one.job_id for one in chain], path)
            else:
                every = _called(catalog, chain, args.path.rstrip("/"), out)
            found = [saved for saved in every if saved.type != FileType.DELETED]
            started = {job.job_id: job.started for job in catalog.jobs()}
    if not found:
        raise NotFoundError(
            f"nothing is saved of {args.path}", hint="'magbay browse /' shows from where on something is."
        )
    out.document({"path": args.path, "entries": [_document(saved, started) for saved in found]})
    for saved in found:
        out.line(_line(saved, started))
    return ExitStatus.DONE


def _entries(catalog: Catalog, chain: list[int], path: bytes) -> list[SavedFile]:
    """What lies in the directory, by name; of anything else itself."""
    directory = path.rstrip(b"/") + b"/"
    found = sorted(saved_files.children(catalog, chain, directory), key=lambda saved: saved.path)
    return found or list(saved_files.below(catalog, chain, path))[:1]


def _called(catalog: Catalog, chain: list[Job], pattern: str, out: Output) -> list[SavedFile]:
    """What has such a name, wherever it lies, by path."""
    like = pattern_of(pattern)

    def is_called(saved: SavedFile) -> bool:
        return like.match(saved_files.text(saved.path.rstrip(b"/")).rpartition("/")[2]) is not None

    every = searching.found(catalog, chain, [pattern], out.warn)
    return sorted(filter(is_called, every), key=lambda saved: saved.path)


def _document(saved: SavedFile, started: dict[int, int]) -> dict[str, object]:
    numbers = EncodedStat.parse(saved.lstat.encode("ascii"))
    return {
        "path": saved_files.text(saved.path),
        "type": "deleted" if saved.type == FileType.DELETED else _kind(numbers.mode),
        "size": numbers.size,
        "mode": numbers.mode & 0o7777,
        "uid": numbers.uid,
        "gid": numbers.gid,
        "mtime": numbers.mtime,
        "job_id": saved.job_id,
        "saved": started.get(saved.job_id),
        "digest": saved.digest,
    }


def _kind(mode: int) -> str:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}
    return kinds.get(mode & 0o170000, "device")


def _line(saved: SavedFile, started: dict[int, int]) -> str:
    numbers = EncodedStat.parse(saved.lstat.encode("ascii"))
    mode = "deleted   " if saved.type == FileType.DELETED else stat.filemode(numbers.mode)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(numbers.mtime))
    name = as_told(saved_files.text(saved.path))
    return f"{mode} {human_bytes(numbers.size):>10} {when}  job {saved.job_id:<5} {name}"
