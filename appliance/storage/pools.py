"""Which volume a job writes on, and the labelling of new ones."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from appliance import __version__
from appliance.config.jobs import LabelDialect, PoolConfig
from appliance.config.names import Names
from appliance.config.schema import Config
from appliance.errors import AwayError, MagbayError, NotFoundError
from appliance.host import files
from appliance.magazines import attached
from appliance.magazines.attached import Magazine
from appliance.storage.catalog import Catalog, CatalogError
from appliance.storage.device import FileVolume, VolumeBusyError, VolumeFullError
from appliance.storage.joblog import JobLog
from appliance.storage.model import Media, VolumeStatus
from appliance.storage.tail import read_label, sessions_behind
from appliance.volumes.blocks import SessionIds
from appliance.volumes.labels import Dialect, VolumeLabel
from appliance.volumes.writer import label_block

MEDIA_TYPE = "File"
# Less free space than two blocks is no room.
_LEAST_ROOM = 2 * 65536
_DIALECTS = {LabelDialect.BACULA: Dialect.BACULA, LabelDialect.BAREOS: Dialect.BAREOS}


@dataclass(frozen=True)
class OpenVolume:
    """A volume ready for appending. *fresh*: it holds nothing but its label, written for this session."""

    device: FileVolume
    media: Media
    fresh: bool


def pool_config(config: Config, name: str) -> PoolConfig:
    """The pool *name* of the configuration. Raises `NotFoundError`."""
    try:
        return config.pools[name]
    except KeyError:
        raise NotFoundError(
            f"there is no pool {name}", hint=f"The configuration has: {', '.join(sorted(config.pools)) or 'none'}."
        ) from None


def dialect(pool: PoolConfig) -> Dialect:
    """Whose labels the volumes of the pool carry."""
    return _DIALECTS[pool.label_dialect]


def reachable(magazine: Magazine) -> bool:
    """Whether the directory of the magazine is really there: for a disk, mounted (autofs mounts it at this access)."""
    if magazine.path is None:
        return False
    try:
        next(magazine.path.iterdir(), None)
    except OSError:
        return False
    # The simulated machine mounts by a symbolic link, which autofs never makes.
    return magazine.identity.startswith("directory:") or magazine.path.is_mount() or magazine.path.is_symlink()


def label_new(
    catalog: Catalog, config: Config, magazine: Magazine, pool_name: str, ids: SessionIds, stream: int = 0
) -> OpenVolume:
    """Create the next volume of the magazine (`changer.volume_names` names it), label it, enter it in the catalog.

    *stream*: number of the volume in its job (0 for the first, 2, 3 …). Raises `VolumeFullError`, `MagazineLostError`.
    """
    if magazine.path is None:
        raise AwayError(f"magazine {magazine.name} is not here", hint="Plug its disk in and try again.")
    pool = pool_config(config, pool_name)
    # One process at a time chooses names, so that no two volumes of one catalog are called the same.
    with files.locked(config.state_dir / "label.lock"):
        files.adopt(config.state_dir / "label.lock", config.state_dir)
        template, changer = config.changer.volume_names, config.changer.name
        names = Names(template, magazine=magazine.name, changer=changer, pool=pool_name)
        number = max((names.number(media.name) or 0 for media in catalog.media()), default=0)
        while True:
            number += 1
            name = names.name(number)
            label = label_block(_label(name, pool_name, pool), ids, stream)
            try:
                device = FileVolume.create(magazine.path / name, magazine.name, label)
            except FileExistsError:
                continue  # a volume that this catalog does not know
            except OSError as error:
                raise _not_created(error, name, magazine) from None
            media = catalog.add_media(name, magazine.name, magazine.identity, pool_name, device.end)
            return OpenVolume(device, media, fresh=True)


def _not_created(error: OSError, name: str, magazine: Magazine) -> MagbayError:
    return MagbayError(
        f"volume {name} cannot be created on magazine {magazine.name}: {error.strerror}",
        hint=f"Look at the rights on {magazine.path}.",
    )


def _label(name: str, pool_name: str, pool: PoolConfig) -> VolumeLabel:
    now = int(time.time() * 1_000_000)
    return VolumeLabel(
        name=name,
        pool=pool_name,
        media_type=MEDIA_TYPE,
        label_time=now,
        write_time=now,
        host=socket.gethostname()[:100],
        program="magbay",
        program_version=f"Ver. {__version__}",
        program_date="",
        dialect=dialect(pool),
    )


class VolumeSource:
    """Finds one volume after the other: the same magazine as long as possible, the oldest-written volume first."""

    def __init__(self, catalog: Catalog, config: Config, pool_name: str, ids: SessionIds, log: JobLog) -> None:
        self.pool = pool_config(config, pool_name)
        self._pool_name = pool_name
        self._catalog = catalog
        self._config = config
        self._ids = ids
        self._log = log
        self._full: list[str] = []  # names of magazines that took no more in this job
        self._tried: set[int] = set()

    def magazine_is_full(self, name: str) -> None:
        """Do not choose the magazine again in this job."""
        self._full.append(name)

    def next_volume(self, current: str | None, stream: int) -> OpenVolume:
        """A volume to go on with; *current* is the magazine of the last one, *stream* the number of the new one.

        Raises `AwayError` when only a magazine that is not here could help, else `MagbayError`.
        """
        magazines = list(self._magazines(current))
        # A job stays on its magazine as long as possible; otherwise volumes that exist come before new ones.
        for group in ([m for m in magazines if m.name == current], [m for m in magazines if m.name != current]):
            opened = self._existing(group, stream) or self._labelled(group, stream)
            if opened:
                return opened
        raise self._none_left()

    def _existing(self, magazines: Sequence[Magazine], stream: int) -> OpenVolume | None:
        for magazine in magazines:
            for media in self._candidates(magazine):
                self._tried.add(media.media_id)
                opened = self._try(magazine, media, stream)
                if opened:
                    return opened
        return None

    def _labelled(self, magazines: Sequence[Magazine], stream: int) -> OpenVolume | None:
        for magazine in magazines:
            try:
                return label_new(self._catalog, self._config, magazine, self._pool_name, self._ids, stream)
            except VolumeFullError:
                self.magazine_is_full(magazine.name)
            except CatalogError:
                raise
            except MagbayError as error:
                self._log.warning(error.message, MAGAZINE=magazine.name)
        return None

    def _magazines(self, current: str | None) -> Iterator[Magazine]:
        written = {m.identity: m.last_written for m in reversed(self._by_age()) if m.last_written}
        magazines = [m for m in attached.attached(self._config) if m.writable and m.name not in self._full]
        magazines.sort(key=lambda m: (m.name != current, m.identity not in written, written.get(m.identity, 0)))
        for magazine in magazines:
            if not reachable(magazine):
                continue
            if _free_bytes(magazine.path) < _LEAST_ROOM:
                self.magazine_is_full(magazine.name)
                continue
            yield magazine

    def _by_age(self) -> list[Media]:
        usable = [m for m in self._catalog.media(pool=self._pool_name) if m.status is VolumeStatus.APPEND]
        return sorted(usable, key=lambda m: (m.last_written == 0, m.last_written, m.name))

    def _candidates(self, magazine: Magazine) -> list[Media]:
        most = self.pool.maximum_volume_bytes
        mine = [m for m in self._by_age() if m.identity == magazine.identity and m.media_id not in self._tried]
        return [m for m in mine if m.bytes < most]

    def _try(self, magazine: Magazine, media: Media, stream: int) -> OpenVolume | None:
        """The volume opened, or None (with the reason in the log) when it cannot be appended to."""
        assert magazine.path is not None
        try:
            device = FileVolume.open(magazine.path / media.name, magazine.name)
        except VolumeBusyError as busy:
            self._log.info(f"{busy.message}; another one is taken", MAGAZINE=magazine.name, VOLUME=media.name)
            return None
        except FileNotFoundError:
            self._refuse(media, "its file is gone")
            return None
        except OSError as error:
            # Rights or a mount may be wrong just now: that says nothing about the volume.
            text = f"volume {media.name} on magazine {magazine.name} cannot be opened: {error.strerror}"
            self._log.warning(text, MAGAZINE=magazine.name, VOLUME=media.name)
            return None
        try:
            # Only now, with the lock held, the catalog's word on the volume is the last one.
            media = self._catalog.media(media_id=media.media_id)[0]
            if media.status is VolumeStatus.APPEND and self._is_sound(device, media):
                return self._made_ready(device, media, stream)
        except CatalogError:
            device.close()
            raise
        except MagbayError as error:
            self._log.warning(error.message, MAGAZINE=magazine.name, VOLUME=media.name)
        device.close()
        return None

    def _is_sound(self, device: FileVolume, media: Media) -> bool:
        try:
            label = read_label(device.path)
        except MagbayError as error:
            self._refuse(media, error.message)
            return False
        if label.name != media.name:
            self._refuse(media, f"its label says {label.name}")
            return False
        if device.end < media.bytes:
            self._refuse(media, f"its file has {device.end} bytes, the catalog says {media.bytes}")
            return False
        return device.end == media.bytes or self._cut_tail(device, media)

    def _cut_tail(self, device: FileVolume, media: Media) -> bool:
        """Cut off what a job of ours that failed has left; anything else behind the end is not touched."""
        ours = self._catalog.failed_sessions(media)
        extra = device.end - media.bytes
        if not ours or sessions_behind(device.path, media.bytes) - ours:
            self._refuse(media, f"behind its end ({media.bytes}) are {extra} bytes that are not ours")
            return False
        self._log.info(
            f"volume {media.name}: {extra} bytes that a failed job left were cut off",
            VOLUME=media.name,
        )
        device.cut(media.bytes)
        return True

    def _made_ready(self, device: FileVolume, media: Media, stream: int) -> OpenVolume:
        if media.last_written:
            return OpenVolume(device, media, fresh=False)
        # Never written: as with Bacula the first job on it renews the label, with its own ids and number.
        label = label_block(_label(media.name, media.pool, self.pool), self._ids, stream)
        device.cut(0)
        device.append(memoryview(label))
        device.sync()
        media = replace(media, bytes=device.end)
        self._catalog.update_media(media)
        return OpenVolume(device, media, fresh=True)

    def _refuse(self, media: Media, reason: str) -> None:
        self._catalog.update_media(replace(media, status=VolumeStatus.ERROR))
        self._log.warning(
            f"volume {media.name} on magazine {media.magazine} is not appended to: {reason}; its status is Error now",
            MAGAZINE=media.magazine,
            VOLUME=media.name,
        )

    def _none_left(self) -> MagbayError:
        known = attached.known(self._config)
        if not known:
            return MagbayError("there is no magazine", hint="Name one under 'magazines', or run 'magbay prepare'.")
        full = f"full: {', '.join(sorted(set(self._full)))}" if self._full else "none that is here can be written"
        away = [m.name for m in known if not reachable(m)]
        text = f"no magazine has room for pool {self._pool_name} ({full})"
        if away:
            wanted = " or ".join(away)
            return AwayError(f"{text}; away: {', '.join(away)}", hint=f"Plug in {wanted} and run the job again.")
        return MagbayError(text, hint="Plug in or prepare another magazine, or make room on one.")


def _free_bytes(path: Path | None) -> int:
    if path is None:
        return 0
    try:
        space = os.statvfs(path)
    except OSError:
        return 0
    return space.f_bavail * space.f_frsize
