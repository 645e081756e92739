"""Copies of the catalog on the magazines: one file for each job, beside the volumes that it lies on.

A copy holds what the catalog knows of its job: the job, where it is, its files. So it costs in proportion to the job
and not to the catalog, and every magazine brings along what is needed to restore from it. Its directory and file begin
with a dot or have a name that no volume can have.

The file is gzip: a line of JSON, then for each file five fields with a NUL behind each: FileIndex, type, LStat, digest,
path. Its name is the job's session, which nothing else has.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.config.schema import Config
from appliance.errors import MagbayError, NotFoundError
from appliance.host import files
from appliance.magazines import attached
from appliance.magazines.attached import Magazine
from appliance.storage import copy_heads
from appliance.storage.catalog import Catalog
from appliance.storage.model import Job, JobStatus, Media, SavedFile
from appliance.storage.pools import reachable
from appliance.volumes.blocks import SessionIds

FOLDER = ".magbay-catalog"
_KIND = "magbay: catalog of one job"
_VERSION = 1
_SUFFIX = ".job.gz"
_LEVEL = 1  # of zlib: the digests do not become smaller, and time matters more
_CHUNK = 1 << 20
_ROWS = 5000  # packed at once
_LONGEST_LINE = 64 << 20
_FIELDS = 5
_LONGEST_FIELD = 1 << 20  # bytes; paths are shorter than 64 KiB
_MOST = 1 << 31  # of FileIndexes and types
_HINT = "It is left out; 'magbay volume scan' enters what is on the volumes."


class CopyError(MagbayError):
    """A copy cannot be used."""


def path_of(magazine: Path, ids: SessionIds) -> Path:
    """Where the copy of a session's job is on a magazine."""
    return magazine / FOLDER / f"{ids.session_time}-{ids.session_id}{_SUFFIX}"


def on_magazine(directory: Path) -> list[Path]:
    """The copies on a magazine (or in such a folder itself), by the time of their sessions. Raises `OSError`."""
    folder = directory / FOLDER if (directory / FOLDER).is_dir() else directory
    found = [path for path in folder.glob(f"*{_SUFFIX}") if path.is_file() and _ids_of(path)]
    return sorted(found, key=lambda path: _ids_of(path) or (0, 0))


def _ids_of(path: Path) -> tuple[int, int] | None:
    """(VolSessionTime, VolSessionId) by the name of a copy."""
    when, _, number = path.name.removesuffix(_SUFFIX).partition("-")
    return (int(when), int(number)) if when.isdecimal() and number.isdecimal() else None


# -- writing ---------------------------------------------------------------------------------------------------------


def write(catalog: Catalog, config: Config, job_id: int) -> tuple[list[str], int]:
    """Put a copy of the good job on each magazine that it lies on and that can be written.

    Gives which magazine got none, and why, and how many got one. Copies of jobs that were purged are removed.
    Never raises for trouble with a magazine; `CatalogError`.
    """
    job = catalog.job(job_id)
    ids = SessionIds(job.session_id, job.session_time)
    media = [catalog.media(media_id=s.media_id)[0] for s in catalog.stretches(job_id)]
    identities = {item.identity for item in media}
    here = [m for m in attached.attached(config) if m.identity in identities and m.writable and reachable(m)]
    troubles = []
    done = 0
    for magazine in here:
        assert magazine.path is not None
        try:
            _write_one(path_of(magazine.path, ids), header(catalog, job), _records(catalog, job_id))
            done += 1
            _forget_purged(catalog, magazine.path)
        except OSError as error:
            troubles.append(f"magazine {magazine.name} got no copy of the catalog of job {job_id}: {error.strerror}")
    return troubles, done


def _write_one(path: Path, head: dict[str, Any], records: Iterator[bytes]) -> None:
    """Raises `OSError`; then nothing is left."""
    magazine = path.parent.parent
    if not path.parent.is_dir():
        path.parent.mkdir(exist_ok=True)  # another job may just have made it
        files.adopt(path.parent, magazine)
        path.parent.chmod(0o750 | (magazine.stat().st_mode & 0o2020))
        files.sync_directory(magazine)
    with files.replacing(path, mode=files.mode_in(path.parent)) as file:
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        file.write(packer.compress(json.dumps(head).encode("ascii") + b"\n"))
        for piece in records:
            file.write(packer.compress(piece))
        file.write(packer.flush())


def header(catalog: Catalog, job: Job) -> dict[str, Any]:
    """What a copy says of its job besides the files."""
    stretches = catalog.stretches(job.job_id)
    media = {s.media_id: catalog.media(media_id=s.media_id)[0] for s in stretches}
    base = catalog.job(job.base) if job.base is not None else None
    sessions: set[tuple[int, int]] = set()
    for media_id in media:
        query = "SELECT DISTINCT VolSessionId, VolSessionTime FROM Job JOIN JobMedia USING(JobId) WHERE MediaId=?"
        sessions.update((one, when) for one, when in catalog.rows(query, (media_id,)))
    ((count,),) = catalog.rows("SELECT count(*) FROM File WHERE JobId=?", (job.job_id,))
    return {
        "kind": _KIND,
        "version": _VERSION,
        "job": asdict(job) | {"level": job.level.value, "status": job.status.value},
        "base": [base.session_id, base.session_time, base.job_id, base.name] if base else None,
        "media": [asdict(item) | {"status": item.status.value} for item in media.values()],
        "stretches": [[media[s.media_id].name, s.first_index, s.last_index, s.start, s.end] for s in stretches],
        "sessions": sorted(sessions),  # of all jobs on these volumes, failed ones too: the ids are not given out again
        "log": catalog.log_lines(job.job_id)[:1000],
        "files": count,
    }


def _records(catalog: Catalog, job_id: int) -> Iterator[bytes]:
    query = (
        "SELECT FileIndex, Type, LStat, Digest, Path, Name FROM File JOIN Path USING(PathId) "
        "WHERE JobId=? ORDER BY FileIndex"
    )
    waiting: list[bytes] = []
    with contextlib.closing(catalog.rows(query, (job_id,), many=True)) as rows:
        for index, kind, lstat, digest, path, name in rows:
            numbers = f"{index}\0{kind}\0{lstat}\0{digest}\0"
            waiting.append(b"%s%s%s\0" % (numbers.encode("ascii"), path, name))
            if len(waiting) >= _ROWS:
                yield b"".join(waiting)
                waiting.clear()
    yield b"".join(waiting)


def _forget_purged(catalog: Catalog, magazine: Path) -> None:
    purged = {(job.session_time, job.session_id) for job in catalog.jobs(status=JobStatus.PURGED)}
    for path in on_magazine(magazine):
        if _ids_of(path) in purged:
            path.unlink(missing_ok=True)


def missing(catalog: Catalog, config: Config) -> list[int]:
    """JobIds of the good jobs without a copy on a magazine that is here and that they lie on, oldest first."""
    here = [magazine for magazine in attached.attached(config) if magazine.writable and reachable(magazine)]
    found = []
    for job in reversed(catalog.jobs()):
        ids = SessionIds(job.session_id, job.session_time)
        if not job.status.good:
            continue
        media = {s.media_id for s in catalog.stretches(job.job_id)}
        identities = {catalog.media(media_id=one)[0].identity for one in media}
        if any(m.path and m.identity in identities and not path_of(m.path, ids).exists() for m in here):
            found.append(job.job_id)
    return found


# -- reading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """The head of a copy that was read. *base*: session, JobId and name of the job that it builds on."""

    path: Path
    job: dict[str, Any]
    ids: SessionIds
    base: tuple[SessionIds, int, str] | None
    media: tuple[Media, ...]
    stretches: tuple[tuple[str, int, int, int, int], ...]
    sessions: tuple[SessionIds, ...]
    log: tuple[tuple[int, str, str], ...]
    files: int


def read_head(path: Path) -> Copy:
    """Raises `CopyError` for a file that is no copy, or damaged, or of a newer magbay; `NotFoundError`."""
    try:
        with gzip.open(path, "rb") as file:
            line = file.readline(_LONGEST_LINE)
        found = json.loads(line)
        if found["kind"] != _KIND:
            raise ValueError
        if found["version"] > _VERSION:
            raise CopyError(f"{path}: a copy of the catalog by a newer magbay", hint="Use that one, or scan.")
        return _parsed(path, found)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file", hint="Name a magazine's directory, or a copy in it.") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, RecursionError, zlib.error):
        raise CopyError(f"{path}: is no copy of a job's catalog, or damaged", hint=_HINT) from None


def _parsed(path: Path, found: dict[str, Any]) -> Copy:
    job = copy_heads.job(found["job"])
    base = found["base"]
    media = [copy_heads.media(one) for one in found["media"]]
    volumes = {item.name for item in media}
    number, text = copy_heads.number, copy_heads.text
    return Copy(
        path=path,
        job=job,
        ids=SessionIds(job["session_id"], job["session_time"]),
        base=(SessionIds(number(base[0]), number(base[1])), number(base[2]), text(base[3])) if base else None,
        media=tuple(media),
        stretches=tuple(copy_heads.stretch(one, volumes) for one in found["stretches"]),
        sessions=tuple(SessionIds(number(one), number(when)) for one, when in found["sessions"]),
        log=tuple((number(when), text(kind), text(line)) for when, kind, line in found["log"]),
        files=number(found["files"]),
    )


def records(copy: Copy, job_id: int) -> Iterator[SavedFile]:
    """The files of a copy as those of job *job_id*. Raises `CopyError` for damage, also one at its end."""
    count = 0
    try:
        with gzip.open(copy.path, "rb") as file:
            file.readline(_LONGEST_LINE)
            rest: list[bytes] = [b""]
            while chunk := file.read(_CHUNK):
                fields = (rest[-1] + chunk).split(b"\0")
                fields[:0] = rest[:-1]
                whole = (len(fields) - 1) // _FIELDS * _FIELDS
                for at in range(0, whole, _FIELDS):
                    yield _saved(job_id, fields[at : at + _FIELDS])
                    count += 1
                rest = fields[whole:]
                if len(rest[-1]) > _LONGEST_FIELD:
                    raise ValueError
    except (OSError, EOFError, ValueError, zlib.error):
        raise CopyError(f"{copy.path}: is damaged", hint=_HINT) from None
    if rest != [b""] or count != copy.files:
        raise CopyError(f"{copy.path}: is cut short", hint=_HINT)


def _saved(job_id: int, fields: Sequence[bytes]) -> SavedFile:
    index, kind, lstat, digest, path = fields
    numbers = int(index), int(kind)
    if not (0 < numbers[0] < _MOST and 0 <= numbers[1] < _MOST):
        raise ValueError
    return SavedFile(job_id, *numbers, path, lstat.decode("ascii"), digest.decode("ascii"))


def sources(config: Config, paths: Sequence[Path]) -> list[tuple[Path, Magazine | None]]:
    """The copies in *paths* (magazines' directories, or copies), or else on all magazines that are here, oldest first.

    With each the magazine that it is on. Raises `NotFoundError`.
    """
    here = [magazine for magazine in attached.attached(config) if reachable(magazine)]
    folders = {magazine.path.resolve(): magazine for magazine in here if magazine.path}
    found: dict[Path, Magazine | None] = {}
    for path in paths or [magazine.path for magazine in here if magazine.path]:
        if not path.exists():
            raise NotFoundError(f"{path}: no such file", hint="Name a magazine's directory, or a copy in it.")
        for one in on_magazine(path) if path.is_dir() else [path]:
            found[one] = folders.get(one.resolve().parent.parent)
    return sorted(found.items(), key=lambda pair: pair[0].name)
