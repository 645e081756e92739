"""Verifying a whole magazine: every block of every volume, every digest, every file of the catalog.

It stops and goes on: where it is is kept (`scrubs.py`), so a magazine that was pulled in the middle is verified from
there when it comes back. Reading goes on where the file begins that was open, unless that is far behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from appliance.config.schema import Config
from appliance.errors import AwayError, ExitStatus, MagbayError, NotFoundError, PermissionDeniedError
from appliance.magazines import attached
from appliance.magazines.attached import Magazine, Presence
from appliance.magazines.holders import announced_job
from appliance.storage import readers, scrubs
from appliance.storage.catalog import Catalog, CatalogError
from appliance.storage.checking import unread_lines
from appliance.storage.device import FileVolume, VolumeBusyError
from appliance.storage.joblog import LogCallback
from appliance.storage.model import Media, VolumeStatus
from appliance.storage.pools import reachable
from appliance.storage.readers import WrittenAnewError
from appliance.storage.scrub_files import Files
from appliance.storage.scrubs import Round, Scrub
from appliance.storage.volume_order import in_order_of_jobs
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.errors import UnsupportedError
from appliance.volumes.reader import Block, Damage, VolumeReader

_CHECKPOINT = 10.0  # seconds between two notes of where it is
_LOOK = 1.0  # seconds between two looks for a magazine that was pulled
_Pause = Callable[[float], None]


@dataclass(frozen=True)
class ScrubRequest:
    """Verify *magazine*: where the last verification stopped, or from the beginning with *restart*.

    *rate*: bytes a second at most. *wait*: seconds to wait for the magazine when it is not here or is pulled.
    """

    magazine: str
    restart: bool = False
    rate: int | None = None
    wait: float = 0
    keys: VolumeKeys = VolumeKeys()


@dataclass(frozen=True)
class ScrubResult:
    """How it ended. *round* counts from its beginning, also what was read on other days."""

    magazine: str
    round: Round
    volumes: int
    interrupted: bool

    @property
    def exit_status(self) -> ExitStatus:
        """What was interrupted can be tried again."""
        if self.interrupted:
            return ExitStatus.AWAY
        if self.round.error_count:
            return ExitStatus.FAILED
        return ExitStatus.WARNINGS if self.round.warnings else ExitStatus.DONE

    def document(self) -> dict[str, object]:
        """The JSON document of the command line."""
        words = {ExitStatus.DONE: "done", ExitStatus.WARNINGS: "warnings", ExitStatus.AWAY: "interrupted"}
        one = self.round
        return {
            "status": words.get(self.exit_status, "failed"),
            "magazine": self.magazine,
            "volumes": self.volumes,
            "began": one.began,
            "jobs": one.jobs,
            "files": one.files,
            "bytes": one.bytes,
            "read": one.read,
            "errors": one.errors,
            "warnings": one.warnings,
            "damaged": [
                {"volume": name, "jobs": [{"job_id": int(job), "files": names} for job, names in found.files.items()]}
                for name, found in one.damaged.items()
            ],
            "resumes_at": {"volume": one.volume, "address": one.address} if self.interrupted else None,
        }


class _Pulled(Exception):
    """The magazine went away."""


class _Stopped(Exception):
    """The caller wants it to end."""


def find(config: Config, name: str) -> Magazine:
    """The magazine. Raises `NotFoundError`, or `AwayError` when it is not here."""
    for magazine in attached.known(config):
        if magazine.name == name:
            if not reachable(magazine):
                raise AwayError(f"not here: {name}", hint=f"Plug in {name} and try again.")
            return magazine
    raise NotFoundError(f"no magazine is called {name}", hint="'magbay magazine list' shows the known ones.")


def run(
    config: Config,
    request: ScrubRequest,
    *,
    log: LogCallback,
    progress: Callable[[int], None] = lambda count: None,
    started: Callable[[int], None] = lambda total: None,
    cancelled: Callable[[], bool] = lambda: False,
    pause: _Pause = time.sleep,
) -> ScrubResult:
    """Verify in this process. *started* is told how many bytes there are still to read, each time it goes on.

    Raises `NotFoundError`, `AwayError` (not here at the beginning), `MagbayError` when another process is at it,
    `CatalogError`.
    """
    deadline = time.monotonic() + request.wait
    while True:
        try:
            magazine = find(config, request.magazine)
        except AwayError:
            if time.monotonic() >= deadline or cancelled():
                raise
            pause(_LOOK)
            continue
        result = _run(config, request, magazine, log, progress, started, cancelled, pause)
        if not result.interrupted or cancelled() or time.monotonic() >= deadline:
            return result
        request = replace(request, restart=False)
        pause(_LOOK)


def _run(
    config: Config,
    request: ScrubRequest,
    magazine: Magazine,
    log: LogCallback,
    progress: Callable[[int], None],
    started: Callable[[int], None],
    cancelled: Callable[[], bool],
    pause: _Pause,
) -> ScrubResult:
    with Catalog.of(config) as catalog, scrubs.alone(config, magazine.identity, magazine.name):
        catalog.recover()
        known = scrubs.load(config, magazine.identity, magazine.name)
        if request.restart or known.round is None:
            known.round = Round(began=int(time.time()))
        one = _Scrubbing(config, request, magazine, catalog, known, known.round, log)
        one.progress, one.cancelled, one.throttle = progress, cancelled, _Throttle(request.rate, pause)
        with announced_job(config.run_dir, 0, f"verify {magazine.name}"):
            return one.run(started)


class _Throttle:
    """Keeps reading below *rate* bytes a second."""

    def __init__(self, rate: int | None, pause: _Pause) -> None:
        self._rate = rate
        self._pause = pause
        self._began = time.monotonic()
        self._count = 0

    def take(self, count: int) -> None:
        """So many bytes were read."""
        self._count += count
        if self._rate:
            ahead = self._count / self._rate - (time.monotonic() - self._began)
            if ahead > 0.05:
                self._pause(ahead)


class _Scrubbing:
    """One run over the volumes that are left."""

    def __init__(
        self,
        config: Config,
        request: ScrubRequest,
        magazine: Magazine,
        catalog: Catalog,
        known: Scrub,
        one: Round,
        log: LogCallback,
    ) -> None:
        self._config = config
        self._request = request
        self._magazine = magazine
        self._catalog = catalog
        self._known = known
        self._round = one
        self._log = log
        self._files = Files(catalog, one, magazine.identity)
        self._gone = Presence(config, magazine.identity).gone
        self._noted = time.monotonic()
        self.progress: Callable[[int], None] = lambda count: None
        self.cancelled: Callable[[], bool] = lambda: False
        self.throttle = _Throttle(None, time.sleep)

    def run(self, started: Callable[[int], None]) -> ScrubResult:
        one = self._round
        mine = [m for m in self._catalog.media() if m.identity == self._magazine.identity and m.bytes]
        written = in_order_of_jobs(self._catalog, [m for m in mine if m.status is not VolumeStatus.RECYCLE])
        left = [media for media in written if media.name not in one.done]
        if one.volume in {media.name for media in left}:
            left.sort(key=lambda media: media.name != one.volume)  # with it, and then as before
        else:
            one.volume, one.label, one.address, one.judged = "", 0, 0, {}
        started(sum(media.bytes for media in left) - one.address)
        if one.volume:
            self._log(f"verifying goes on at address {one.address} of volume {one.volume}", self._fields(one.volume))
        interrupted = False
        try:
            for media in left:
                self._volume(media)
            for media in written:
                if media.name in one.damaged:
                    self._mark(media)
            self._finish()
        except (_Pulled, _Stopped):
            interrupted = True
            self._note()
            place = f"it goes on at address {one.address} of volume {one.volume}" if one.volume else "it goes on"
            self._log(f"verifying magazine {self._magazine.name} was interrupted: {place}", self._fields(one.volume))
        return ScrubResult(self._magazine.name, one, len(written), interrupted)

    def _fields(self, volume: str) -> dict[str, str]:
        return {"MAGAZINE": self._magazine.name, "VOLUME": volume}

    def _finish(self) -> None:
        self._files.finish()
        self._round.warnings += unread_lines(self._round.unread)
        self._known.last = asdict(self._round) | {"ended": int(time.time())}
        self._known.round = None
        scrubs.save(self._config, self._magazine.identity, self._known)

    def _note(self) -> None:
        scrubs.save(self._config, self._magazine.identity, self._known)
        self._noted = time.monotonic()

    def _volume(self, media: Media) -> None:
        assert self._magazine.path is not None  # it was found here
        path = self._magazine.path / media.name
        one = self._round
        before = one.error_count
        if one.volume != media.name:
            one.volume, one.label, one.address = media.name, 0, 0
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(readers.reading([path]))
                # Jobs write on volumes meanwhile, also anew.
                (media,) = self._catalog.media(media_id=media.media_id)
                self._read(stack.enter_context(VolumeReader(path, self._request.keys, from_disk=True)), media)
            except (PermissionDeniedError, CatalogError):
                raise
            except (UnsupportedError, WrittenAnewError) as error:
                self._not_read(media, error.message)
            except MagbayError as error:
                self._check_presence(again=True)
                if self._catalog.media(media_id=media.media_id)[0].status is VolumeStatus.RECYCLE:
                    self._not_read(media, error.message)
                else:
                    one.error(f"volume {media.name}: {error.message}")
                    self._files.unreadable(media)
        self._files.end_volume(media)
        if one.error_count > before:
            self._log(f"volume {media.name}: {one.error_count - before} errors", self._fields(media.name))
        if media.name in one.damaged:
            self._mark(media)
        one.done[media.name] = one.label
        one.volume, one.label, one.address = "", 0, 0
        self._note()

    def _not_read(self, media: Media, why: str) -> None:
        """It may be good, but this call cannot tell."""
        self._round.warnings.append(f"volume {media.name} is not verified: {why}")
        self._files.leave()

    def _read(self, volume: VolumeReader, media: Media) -> None:
        one = self._round
        label = volume.label()
        stamp = label.write_time if label else 0
        if label and label.name != media.name:
            raise MagbayError(f"its label says {label.name}")
        if one.address and stamp != one.label:
            one.address, one.judged = 0, {}  # written anew meanwhile
        one.label = stamp
        end = self._files.begin_volume(media, volume.name)
        for item in volume.blocks(one.address):
            if item.address >= end:
                break
            size = len(item.data) if isinstance(item, Block) else item.length
            if isinstance(item, Block):
                self._files.block(item)
            elif item.foreign:
                raise UnsupportedError(item.what)
            else:
                self._check_presence(again=True)
                self._files.damage(item)
            one.read += size
            one.address = self._files.resume_at(item.address + size)
            self.progress(size)
            self.throttle.take(size)
            self._between()
        if volume.size < end:
            lost = Damage(volume.name, volume.size, end - volume.size, "the volume is cut short")
            self._files.damage(lost)

    def _between(self) -> None:
        if self.cancelled():
            raise _Stopped
        self._check_presence()
        if time.monotonic() - self._noted >= _CHECKPOINT:
            self._note()

    def _check_presence(self, *, again: bool = False) -> None:
        if self._gone():
            raise _Pulled
        if again:
            try:
                find(self._config, self._magazine.name)
            except MagbayError:
                raise _Pulled from None

    def _mark(self, media: Media) -> None:
        """Nothing more is written on the volume; reading it stays possible."""
        assert self._magazine.path is not None
        (now,) = self._catalog.media(media_id=media.media_id)
        if now.status in (VolumeStatus.ERROR, VolumeStatus.RECYCLE):
            return
        with contextlib.ExitStack() as stack:
            try:
                # A job that writes there would enter its own status at its end.
                stack.callback(FileVolume.open(self._magazine.path / media.name, media.magazine).close)
            except VolumeBusyError:
                told = "is damaged, but a job writes on it: the next verification marks it"
                self._round.warnings.append(f"volume {media.name} {told}")
                return
            except OSError:
                pass  # it cannot be written: then nobody appends to it meanwhile
            (now,) = self._catalog.media(media_id=media.media_id)
            self._catalog.update_media(replace(now, status=VolumeStatus.ERROR))
        self._log(f"volume {media.name} is damaged: nothing more is written on it", self._fields(media.name))
