"""Finding the volume that a job goes on with."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path

from appliance.config.schema import Config
from appliance.errors import AwayError, MagbayError
from appliance.magazines import attached, unlisted
from appliance.magazines.attached import Magazine, Presence
from appliance.storage import expiry, older, recycling
from appliance.storage.catalog import Catalog, CatalogError
from appliance.storage.device import DISK_TELLS, FileVolume, VolumeBusyError, VolumeFullError
from appliance.storage.joblog import JobLog
from appliance.storage.model import Media, VolumeStatus
from appliance.storage.pools import OpenVolume, PoolFullError, label_new, may_use, new_label, pool_config, reachable
from appliance.storage.tail import holds_at_most_its_label, read_label, sessions_behind
from appliance.storage.waiting import Patience
from appliance.volumes.blocks import SessionIds
from appliance.volumes.writer import label_block

# Less free space than two blocks is no room.
_LEAST_ROOM = 2 * 65536


class VolumeSource:
    """Finds one volume after the other: the same magazine as long as possible, the oldest-written volume first."""

    def __init__(
        self,
        catalog: Catalog,
        config: Config,
        pool_name: str,
        ids: SessionIds,
        log: JobLog,
        patience: Patience | None = None,
        avoid: Set[str] = frozenset(),
    ) -> None:
        self.pool = pool_config(config, pool_name)
        self._pool_name = pool_name
        self._catalog = catalog
        self._config = config
        self._ids = ids
        self._log = log
        self._patience = patience
        self._avoid = avoid  # names of magazines to begin on only if no other has room
        self._full: list[str] = []  # names of magazines that took no more in this job
        self._unfit: dict[str, MagbayError] = {}  # names of those on which no volume could be made, and why
        self._tried: set[int] = set()

    def magazine_is_full(self, name: str) -> None:
        """Do not choose the magazine again in this job."""
        self._full.append(name)

    def next_volume(self, current: str | None, stream: int) -> OpenVolume:
        """A volume to go on with; *current* is the magazine of the last one, *stream* the number of the new one.

        Waits for a magazine as long as the job may. Raises `AwayError` when only a magazine that is not here could
        help, else `MagbayError`; `Cancelled`.
        """
        while True:
            found = self._find(current, stream)
            if found:
                break
            away = self._away()
            trouble = self._none_left(away)
            if (
                not away
                or not self._patience
                or not self._patience.wait(trouble.message, away, begun=current is not None)
            ):
                raise trouble
        if self._patience:
            self._patience.over()
        unlisted.mark(self._config, found.media.identity)
        found.device.pulled = Presence(self._config, found.media.identity).gone
        return found

    def _find(self, current: str | None, stream: int) -> OpenVolume | None:
        here = {magazine.name for magazine in attached.attached(self._config)}
        # One that was pulled and comes back may have more room.
        self._full = [name for name in self._full if name in here]
        self._unfit = {name: why for name, why in self._unfit.items() if name in here}
        magazines = self._writable(current)
        if current is not None or not self._avoid:
            return self._room(magazines, current, stream)
        good, avoided = ([m for m in magazines if (m.name in self._avoid) is shunned] for shunned in (False, True))
        return self._room(good, current, stream) or self._room(avoided, current, stream)

    def _room(self, magazines: Sequence[Magazine], current: str | None, stream: int) -> OpenVolume | None:
        for group in self._groups(list(self._with_room(magazines)), current):
            opened = self._existing(group, stream) or self._from_scratch(group, stream) or self._labelled(group, stream)
            if opened:
                return opened
        # Only when there is no other room: what is not needed any more is given up.
        return self._recycled(magazines, stream)

    def _groups(self, magazines: Sequence[Magazine], current: str | None) -> list[list[Magazine]]:
        """A job stays on its magazine as long as possible; several jobs begin on different ones."""
        if current is not None:
            return [[m for m in magazines if m.name == current], [m for m in magazines if m.name != current]]
        busy = self._catalog.busy_magazines(self._log.job_id)
        return [[m for m in magazines if m.identity not in busy], [m for m in magazines if m.identity in busy]]

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
            except PoolFullError:
                return None
            except CatalogError:
                raise
            except MagbayError as error:
                self._log.warning(error.message, MAGAZINE=magazine.name)
                self._unfit[magazine.name] = error  # not again in this job
        return None

    def _from_scratch(self, magazines: Sequence[Magazine], stream: int) -> OpenVolume | None:
        """A volume of the scratch pool that was never used; from now on it belongs to this pool."""
        if not self.pool.scratch or self._is_complete():
            return None
        for magazine in magazines:
            for media in self._catalog.media(pool=self.pool.scratch):
                unused = media.status is VolumeStatus.APPEND and not media.last_written
                if unused and media.identity == magazine.identity and media.media_id not in self._tried:
                    self._tried.add(media.media_id)
                    opened = self._try(magazine, media, stream)
                    if opened:
                        return opened
        return None

    def _recycled(self, magazines: Sequence[Magazine], stream: int) -> OpenVolume | None:
        if not self.pool.recycle or self.pool.retention is None:
            return None
        needed = expiry.needed(self._catalog, self._config)
        written = sorted(self._catalog.media(pool=self._pool_name), key=lambda m: (m.last_written, m.name))
        for magazine in magazines:
            for media in written:
                mine = media.identity == magazine.identity and recycling.possible(self._catalog, media, needed)
                opened = self._try(magazine, media, stream, anew=True) if mine else None
                if opened:
                    return opened
        return None

    def _is_complete(self) -> bool:
        most = self.pool.maximum_volumes
        return bool(most) and len(self._catalog.media(pool=self._pool_name)) >= most

    def _writable(self, current: str | None) -> list[Magazine]:
        """The magazines that are here and that the pool may write on; *current* first, then the oldest-written."""
        written = {m.identity: m.last_written for m in reversed(self._by_age()) if m.last_written}
        magazines = [
            m for m in attached.attached(self._config) if m.writable and may_use(self._config, self._pool_name, m)
        ]
        magazines.sort(key=lambda m: (m.name != current, m.identity not in written, written.get(m.identity, 0)))
        return [magazine for magazine in magazines if reachable(magazine) and not _is_read_only(magazine.path)]

    def _with_room(self, magazines: Sequence[Magazine]) -> Iterator[Magazine]:
        for magazine in magazines:
            if magazine.name in self._full or magazine.name in self._unfit:
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
        return [m for m in mine if m.bytes < most and not self._is_used_up(m)]

    def _is_used_up(self, media: Media) -> bool:
        """Whether time or number of jobs end the use of the volume; then its status says so from now on."""
        longest, most = self.pool.use_duration, self.pool.maximum_jobs
        over = longest is not None and 0 < media.first_written <= time.time() - longest
        if not over and not (most and len(expiry.jobs_on(self._catalog, media)) >= most):
            return False
        self._catalog.mark_media(media, VolumeStatus.USED)
        return True

    def _try(self, magazine: Magazine, media: Media, stream: int, *, anew: bool = False) -> OpenVolume | None:
        """The volume opened, or None (with the reason in the log) when it cannot be appended to.

        *anew*: it is written from its beginning again, if its jobs allow.
        """
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
        opened = None
        try:
            # Only now, with the lock held, the catalog's word on the volume is the last one.
            now = self._catalog.media(media_id=media.media_id)[0]
            ready = self._emptied(device, now) if anew else self._appendable(device, now, media.pool)
            opened = self._made_ready(device, ready, stream) if ready else None
        except CatalogError:
            raise
        except MagbayError as error:
            self._log.warning(error.message, MAGAZINE=magazine.name, VOLUME=media.name)
        except OSError as error:
            text = f"volume {media.name} on magazine {magazine.name} cannot be read: {error.strerror}"
            self._log.warning(text, MAGAZINE=magazine.name, VOLUME=media.name)
        finally:
            if opened is None:
                device.close()
        return opened

    def _appendable(self, device: FileVolume, media: Media, pool: str) -> Media | None:
        """The volume, when it still is in *pool* and sound; one of the scratch pool changes to ours."""
        if media.status is not VolumeStatus.APPEND or media.pool != pool or not self._is_sound(device, media):
            return None
        if media.pool != self._pool_name:
            self._catalog.change("UPDATE Media SET Pool=? WHERE MediaId=?", (self._pool_name, media.media_id))
            media = replace(media, pool=self._pool_name)
        return media

    def _emptied(self, device: FileVolume, media: Media) -> Media | None:
        where = {"MAGAZINE": device.magazine, "VOLUME": media.name}
        if media.status is not VolumeStatus.RECYCLE and read_label(device.path).name != media.name:
            raise MagbayError(f"volume {media.name} on magazine {device.magazine} has another label: it is left alone")
        if older.ended_well(self._config, self._catalog.failed_sessions(media)):
            raise MagbayError(
                f"volume {media.name} on magazine {device.magazine} is not written anew: a job that the catalog calls "
                "failed had ended well, and 'magbay catalog restore' enters it"
            )
        jobs = expiry.jobs_on(self._catalog, media)
        clean = recycling.recycle(self._catalog, self._config, device, media, self._pool_name)
        if clean is None:
            self._log.info(
                f"volume {media.name} is not written anew: it is being read, or holds what is needed or not known",
                **where,
            )
        else:
            told = f"of job {', '.join(map(str, sorted(jobs)))} " if jobs else ""
            self._log.info(f"volume {media.name} is written anew: what it held {told}is not needed any more", **where)
        return clean

    def _is_sound(self, device: FileVolume, media: Media) -> bool:
        try:
            if not media.last_written and holds_at_most_its_label(device.path, media.name, self._catalog.sessions()):
                return True  # whatever became of the label, it is written anew now
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
        found = sessions_behind(device.path, media.bytes) if ours else set()
        if not ours or found - ours or not older.knows_the_end(self._catalog, device.path, media):
            self._refuse(media, f"behind its end ({media.bytes}) are {extra} bytes that are not ours")
            return False
        if older.ended_well(self._config, found):
            reason = (
                f"behind its end ({media.bytes}) stands a job that had ended well: the catalog is older than that, and "
                "'magbay catalog restore' enters the job"
            )
            self._refuse(media, reason)
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
        label = label_block(new_label(media.name, media.pool, self.pool), self._ids, stream)
        device.cut(0)
        device.append(memoryview(label))
        device.sync()
        device.let_readers_in()
        media = replace(media, bytes=device.end, status=VolumeStatus.APPEND)
        self._catalog.update_media(media)
        return OpenVolume(device, media, fresh=True)

    def _refuse(self, media: Media, reason: str) -> None:
        self._catalog.mark_media(media, VolumeStatus.ERROR)
        self._log.warning(
            f"volume {media.name} on magazine {media.magazine} is not appended to: {reason}; its status is Error now",
            MAGAZINE=media.magazine,
            VOLUME=media.name,
        )

    def _away(self) -> list[str]:
        """Names of the magazines that might help if they were here."""
        known = attached.known(self._config)
        return [m.name for m in known if may_use(self._config, self._pool_name, m) and not reachable(m)]

    def _none_left(self, away: Sequence[str]) -> MagbayError:
        if not attached.known(self._config):
            return MagbayError("there is no magazine", hint="Name one under 'magazines', or run 'magbay prepare'.")
        full = ", ".join(sorted(set(self._full)))
        closed = [
            *self._closed(),
            *self._unreadable(),
            *((error.message, error.hint) for error in self._unfit.values()),
        ]
        text = f"no magazine has room for pool {self._pool_name} (full: {full})"
        if self._is_complete():
            text = f"pool {self._pool_name} has its {self.pool.maximum_volumes} volumes, and none takes more"
        elif not full:
            text = f"no magazine that is here can be written for pool {self._pool_name}"
        text = "; ".join([text, *(why for why, _ in closed)])
        if away:
            wanted = " or ".join(away)
            hint = next((hint for _, hint in self._unreadable()), f"Plug in {wanted} and run the job again.")
            return AwayError(f"{text}; away: {', '.join(away)}", hint=hint)
        hints = [hint for _, hint in closed if hint]
        return MagbayError(
            text, hint=hints[0] if hints else "Plug in or prepare another magazine, or make room on one."
        )

    def _closed(self) -> Iterator[tuple[str, str]]:
        """Why magazines that are here and could be taken cannot be written on, and what to do about it."""
        for magazine in attached.attached(self._config):
            what, other = f"magazine {magazine.name}", "or plug in another magazine."
            if not may_use(self._config, self._pool_name, magazine):
                continue
            if magazine.reason:  # the media agent knows
                yield f"{what} is {magazine.reason}", f"See 'Read-only magazines' in media.md, {other}"
            elif not reachable(magazine):
                continue
            elif _is_read_only(magazine.path):
                why = f"Look in the journal why {what} ({magazine.path}) is read-only"
                hint = f"{why}; if its disk is sound, make it writable (mount -o remount,rw), {other}"
                yield f"{what} is mounted read-only", hint
            elif not magazine.writable:
                yield f"{what} cannot be written on by this user", f"Look at the rights on {magazine.path}."

    def _unreadable(self) -> Iterator[tuple[str, str]]:
        """Magazines that could be taken and whose directories cannot be read, and what to do about it."""
        for magazine in attached.known(self._config):
            if magazine.path is None and magazine.reason and may_use(self._config, self._pool_name, magazine):
                yield magazine.reason, f"{DISK_TELLS} Or plug in another magazine, and run the job again."


def _is_read_only(path: Path | None) -> bool:
    try:
        return path is not None and bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _free_bytes(path: Path | None) -> int:
    if path is None:
        return 0
    try:
        space = os.statvfs(path)
    except OSError:
        return 0
    return space.f_bavail * space.f_frsize
