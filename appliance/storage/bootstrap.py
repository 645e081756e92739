"""Restore by a bootstrap file: the volumes are found by their names, with the catalog or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.config.schema import Config
from appliance.errors import AwayError, NotFoundError
from appliance.magazines import attached
from appliance.magazines.holders import announced_job
from appliance.storage import readers
from appliance.storage.catalog import Catalog, CatalogError
from appliance.storage.extract import Extractor
from appliance.storage.joblog import LogCallback
from appliance.storage.model import Media
from appliance.storage.outcome import Replace, Summary
from appliance.storage.output import Cancelled
from appliance.storage.plan import away_error
from appliance.storage.pools import reachable
from appliance.storage.renaming import Renaming
from appliance.storage.restore import RestoreResult
from appliance.storage.selection import link_aliases, path_filter
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.blocks import SessionIds
from appliance.volumes.bsr import Bootstrap, load_bsr
from appliance.volumes.errors import VolumeError
from appliance.volumes.events import Event, FileStart
from appliance.volumes.reading import read_volumes


@dataclass(frozen=True)
class BootstrapRequest:
    """Restore below *to* what the bootstrap file selects and *globs* match. The rest as in `RestoreRequest`."""

    to: Path
    bootstrap: Path
    globs: tuple[str, ...] = ()
    replace: Replace = Replace.ALWAYS
    renaming: Renaming = Renaming()
    keys: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a volume is. *magazine* is empty and *path* None as far as that is not known or it is away."""

    volume: str
    magazine: str
    path: Path | None


def places(config: Config, names: Sequence[str]) -> list[Place]:
    """Where the volumes are: what the catalog says, if there is one, else in which magazine that is here they lie.

    Raises `VolumeError` for what is no volume's name.
    """
    known = _catalogued(config)
    here = [magazine for magazine in attached.known(config) if reachable(magazine)]
    found = []
    for name in names:
        if "/" in name or name in ("", ".", ".."):
            raise VolumeError(f"the bootstrap file names the volume {name!r}, and no volume is called so")
        media = known.get(name)
        mine = [m for m in here if m.path and (m.identity == media.identity if media else (m.path / name).is_file())]
        path = mine[0].path if mine else None
        found.append(Place(name, mine[0].name if mine else media.magazine if media else "", path and path / name))
    return found


def _catalogued(config: Config) -> dict[str, Media]:
    """The volumes of the catalog by name; none where there is no catalog, or none that can be read."""
    if not Catalog.exists(config):
        return {}
    try:
        with Catalog.of(config) as catalog:
            return {media.name: media for media in catalog.media()}
    except CatalogError:
        return {}


def run(
    config: Config,
    request: BootstrapRequest,
    *,
    log: LogCallback,
    progress: Callable[[int], None] = lambda count: None,
    started: Callable[[int], None] = lambda total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> RestoreResult:
    """Restore in this process, as `restore.run`. *started* is told the size of the volumes.

    Raises `NotFoundError` (no such file, nothing that it selects), `AwayError` before anything is written,
    `VolumeError`, `MagbayError` when the target fails. Damage does not end a restore; it is in the result.
    """
    bootstrap = load_bsr(request.bootstrap)
    paths = _here(places(config, bootstrap.volumes))
    log(f"restoring by {request.bootstrap.name} from {', '.join(path.name for path in paths)}", {})
    with readers.reading(paths), announced_job(config.run_dir, 0, "restore"):
        total = sum(path.stat().st_size for path in paths)
        started(total * (2 if request.globs else 1))
        return _Restore(request, bootstrap, paths).run(progress, cancelled)


def _here(found: Sequence[Place]) -> list[Path]:
    nowhere = [place.volume for place in found if not place.magazine]
    if nowhere:
        hint = "Plug in the magazine that holds them; 'magbay slots' shows the volumes that are here."
        raise AwayError(f"on no magazine that is known or here: volumes {', '.join(nowhere)}", hint=hint)
    away = [(place.magazine, place.volume) for place in found if place.path is None]
    if away:
        raise away_error(away)
    return [place.path for place in found if place.path]


class _Restore:
    """One running restore."""

    def __init__(self, request: BootstrapRequest, bootstrap: Bootstrap, paths: Sequence[Path]) -> None:
        self._request = request
        self._bootstrap = bootstrap
        self._paths = paths
        self._keys = VolumeKeys(request.keys)
        self._seen: dict[SessionIds, list[tuple[int, int]]] = {}
        self._job_id = 0

    def run(self, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> RestoreResult:
        request = self._request
        select = path_filter(request.globs) if request.globs else None
        summary, stopped = Summary(), False
        try:
            aliases = link_aliases(self._read(progress, cancelled), select) if select else None
            extractor = Extractor(
                request.to,
                select=select,
                aliases=aliases,
                replace=request.replace,
                renaming=request.renaming,
                versions=True,
            )
            summary = extractor.summary
            extractor.run(self._events(progress, cancelled))
        except Cancelled:
            stopped = True
        if not (stopped or summary.files or summary.skipped or summary.failed):
            what = " or ".join(request.globs) if request.globs else "what the bootstrap file selects"
            hint = "Its volumes may have been written anew since; 'magbay volume show' tells what is on them."
            raise NotFoundError(f"nothing on the volumes matches {what}", hint=hint)
        if stopped:
            summary.fail("the restore was cancelled: what is there is not all")
        else:
            self._name_missing(summary)
        return self._result(summary, stopped)

    def _read(self, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> Iterator[Event]:
        for event in read_volumes(self._paths, select=self._bootstrap, advance=progress, keys=self._keys, go_on=True):
            if cancelled():
                raise Cancelled
            yield event

    def _events(self, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> Iterator[Event]:
        for event in self._read(progress, cancelled):
            if isinstance(event, FileStart):
                self._note(self._seen.setdefault(event.entry.ids, []), event.entry.file_index)
                self._job_id = self._job_id or event.entry.job_id
            yield event

    def _note(self, ranges: list[tuple[int, int]], index: int) -> None:
        if ranges and ranges[-1][1] + 1 == index:
            ranges[-1] = (ranges[-1][0], index)
        else:
            ranges.append((index, index))

    def _name_missing(self, summary: Summary) -> None:
        """What the bootstrap file counts up and the volumes do not have."""
        for ids, wanted in (self._bootstrap.files() or {}).items():
            for low, high in _without(wanted, self._seen.get(ids, [])):
                which = f"file {low}" if low == high else f"files {low} to {high}"
                summary.fail(f"{which} of session {ids}: not restored, not found on the volumes")

    def _result(self, summary: Summary, stopped: bool) -> RestoreResult:
        return RestoreResult(
            job_id=self._job_id,
            to=self._request.to,
            files=summary.files,
            bytes=summary.bytes,
            volumes=tuple(path.name for path in self._paths),
            exit_status=summary.status,
            warnings=tuple(summary.warnings),
            errors=tuple(summary.errors),
            cancelled=stopped,
            skipped=summary.skipped,
        )


def _without(ranges: list[tuple[int, int]], others: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of the *ranges* lies in none of the *others*, in order and without overlap."""
    rest = sorted(others)
    at = 0  # the first of the others that may reach so far
    done = 0  # everything up to here is told
    for low, high in sorted(ranges):
        low = max(low, done + 1)
        while low <= high:
            while at < len(rest) and rest[at][1] < low:
                at += 1
            begin, end = rest[at] if at < len(rest) else (high + 1, high + 1)
            if low < begin:
                yield low, min(high, begin - 1)
            low = max(low, end + 1)
        done = max(done, high)
