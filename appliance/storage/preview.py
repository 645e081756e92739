"""What a restore would do: its files, and the volumes and magazines that it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.config.schema import Config
from appliance.magazines import attached
from appliance.storage import bootstrap
from appliance.storage.catalog import Catalog
from appliance.storage.model import SavedFile
from appliance.storage.plan import chain_of, chosen_job, runs_for
from appliance.storage.pools import reachable
from appliance.storage.restore import RestoreRequest
from appliance.storage.searching import wanted_files
from appliance.volumes.attributes import FileType
from appliance.volumes.bsr import load_bsr
from appliance.volumes.stat64 import EncodedStat

_WITH_DATA = {FileType.REGULAR, FileType.PLUGIN, FileType.RAW, FileType.FIFO}


@dataclass(frozen=True)
class Needed:
    """A volume that must be read. *magazine* is empty when not known. *bytes* to read of it, 0 when not known.

    *gone*: the magazine is here, and the volume's file is not on it.
    """

    volume: str
    magazine: str
    here: bool
    bytes: int
    gone: bool = False


@dataclass(frozen=True)
class Preview:
    """*jobs* that are read, oldest first; *files* and *bytes* of data, None when only the volumes could tell."""

    jobs: tuple[int, ...]
    files: int | None
    bytes: int | None
    volumes: tuple[Needed, ...]

    @property
    def away(self) -> tuple[str, ...]:
        """The magazines to plug in, in the order in which they are needed."""
        return tuple(dict.fromkeys(one.magazine or "(unknown)" for one in self.volumes if not one.here))

    @property
    def gone(self) -> tuple[str, ...]:
        """The volumes that nobody can plug in."""
        return tuple(one.volume for one in self.volumes if one.gone)

    def magazines(self) -> list[dict[str, object]]:
        """The plug list for JSON: each magazine with its volumes."""
        found: dict[str, list[Needed]] = {}
        for one in self.volumes:
            found.setdefault(one.magazine, []).append(one)
        return [
            {
                "magazine": name,
                "here": all(one.here for one in mine),
                "volumes": [{"volume": one.volume, "bytes": one.bytes, "gone": one.gone} for one in mine],
            }
            for name, mine in found.items()
        ]


class _Count:
    def __init__(self, seen: Callable[[SavedFile], None]) -> None:
        self.bytes = 0
        self._seen = seen

    def __call__(self, saved: SavedFile) -> None:
        if saved.type in _WITH_DATA:
            self.bytes += max(0, EncodedStat.parse(saved.lstat.encode("ascii")).size)
        self._seen(saved)


def of_job(config: Config, request: RestoreRequest, seen: Callable[[SavedFile], None]) -> Preview:
    """What `restore.run` would do; *seen* is told each file. Raises `NotFoundError`, `CatalogError`."""
    count = _Count(seen)
    here = {magazine.identity: magazine.path for magazine in attached.known(config) if reachable(magazine)}
    with Catalog.of(config) as catalog:
        catalog.recover()
        job = chosen_job(catalog, request.job, request.latest, request.before)
        wanted = [one for one in wanted_files(catalog, chain_of(catalog, job), request.globs, count) if one.count]
        sizes: dict[str, Needed] = {}
        for item in wanted:
            for media, runs in runs_for(catalog, item.job, wanted=item):
                size = sum(run.end - run.start + 1 for run in runs)
                before = sizes[media.name].bytes if media.name in sizes else 0
                place = here.get(media.identity)
                gone = place is not None and not (place / media.name).exists()
                sizes[media.name] = Needed(media.name, media.magazine, media.identity in here, before + size, gone)
    jobs = tuple(one.job.job_id for one in wanted) or (job.job_id,)
    return Preview(jobs, sum(one.count for one in wanted), count.bytes, tuple(sizes.values()))


def of_bootstrap(config: Config, request: bootstrap.BootstrapRequest) -> Preview:
    """The volumes that a bootstrap file needs. Raises `NotFoundError`, `VolumeError`."""
    found: Sequence[bootstrap.Place] = bootstrap.places(config, load_bsr(request.bootstrap).volumes)
    return Preview((), None, None, tuple(Needed(one.volume, one.magazine, one.path is not None, 0) for one in found))
