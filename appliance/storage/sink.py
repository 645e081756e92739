"""Where a job's blocks go: one volume, then the next; keeps account of what is where."""

from __future__ import annotations

import time
from dataclasses import replace

from appliance.errors import MagbayError
from appliance.storage.catalog import Catalog
from appliance.storage.device import VolumeFullError
from appliance.storage.joblog import JobLog
from appliance.storage.model import Media, Stretch, VolumeStatus
from appliance.storage.pools import OpenVolume
from appliance.storage.source import VolumeSource
from appliance.volumes.streams import ATTRIBUTES, TYPE_MASK

# A new JobMedia row after so many bytes, so that restoring one file reads little more than it.
STRETCH_BYTES = 128 << 20


class SpanningSink:
    """The `BlockSink` of one job. Volumes change where a block does not fit (volume format, 11.3 and 11.4)."""

    def __init__(self, catalog: Catalog, source: VolumeSource, job_id: int, log: JobLog) -> None:
        self.volumes: list[str] = []
        self._catalog = catalog
        self._source = source
        self._job_id = job_id
        self._log = log
        self._open: OpenVolume | None = None
        self._magazine: str | None = None
        self._stretches: list[Stretch] = []
        self._start = self._first = self._last = 0
        self._job_start = self._start_of_data = 0

    def begin(self) -> bool:
        """Open the first volume; gives whether it is fresh. Raises `AwayError`, `MagbayError`."""
        return self._next().fresh

    def write_block(self, block: memoryview, first_index: int, last_index: int) -> None:
        """Append the block to the volume, or to the next one when it is full."""
        size = len(block)
        most = self._source.pool.maximum_volume_bytes
        while True:
            volume = self._open or self._next()
            used = volume.device.end
            if used + size >= most and used > self._start_of_data:
                self._leave(VolumeStatus.FULL)
                continue
            try:
                address = volume.device.append(block)
            except VolumeFullError as full:
                self._full(full)
                continue
            break
        if not self._first:
            self._first = first_index
        self._last = last_index or self._last
        if address + size - self._start >= STRETCH_BYTES:
            self._end_stretch()

    @property
    def position(self) -> tuple[int, int]:
        """Addresses on the open volume: where the job begins there, and where its next block will stand."""
        return self._job_start, self._open.device.end if self._open else 0

    def _next(self) -> OpenVolume:
        stream = len(self.volumes) + 1 if self.volumes else 0
        if stream & TYPE_MASK in ATTRIBUTES:
            stream = 0  # as Bareos writes always; stock `bls` would list the label of the fifth volume as a file
        try:
            volume = self._source.next_volume(self._magazine, stream)
        except OSError as error:
            raise MagbayError(f"no volume to write on: {error.filename or 'magbay'}: {error.strerror}") from None
        self._open = volume
        self._magazine = volume.device.magazine
        self.volumes.append(volume.device.name)
        self._start = self._job_start = volume.device.end
        self._first = self._last = 0
        self._start_of_data = volume.device.end if volume.fresh else 0
        self._catalog.touch_media(self._job_id, volume.media)
        self._log.info(
            f"writing on volume {volume.device.name} of magazine {self._magazine} from byte {volume.device.end}",
            MAGAZINE=self._magazine,
            VOLUME=volume.device.name,
        )
        volume.device.start_syncing()
        return volume

    def _full(self, full: VolumeFullError) -> None:
        assert self._magazine is not None and self._open is not None
        self._log.info(full.message, MAGAZINE=self._magazine, VOLUME=self._open.device.name)
        if full.magazine_full:
            self._source.magazine_is_full(self._magazine)
        self._leave(VolumeStatus.FULL)

    def _end_stretch(self) -> None:
        volume = self._open
        if volume and self._first:
            end = volume.device.end - 1
            self._stretches.append(Stretch(volume.media.media_id, self._first, self._last, self._start, end))
        if volume:
            self._start = volume.device.end
        self._first = self._last = 0

    def _media_now(self, volume: OpenVolume, status: VolumeStatus) -> Media:
        now = int(time.time())
        media = volume.media
        if volume.device.end == media.bytes:  # nothing was written
            return replace(media, status=status)
        return replace(
            media, bytes=volume.device.end, status=status, first_written=media.first_written or now, last_written=now
        )

    def _leave(self, status: VolumeStatus) -> None:
        """Make this volume durable, then the catalog, then let it go."""
        volume = self._open
        assert volume is not None
        self._end_stretch()
        volume.device.sync()
        self._catalog.leave_media(self._job_id, self._media_now(volume, status), self._stretches)
        self._stretches = []
        volume.device.close()
        self._open = None

    def sync(self) -> tuple[list[Stretch], list[Media]]:
        """Make the last volume durable; gives the rows the catalog does not have yet. Raises `MagazineLostError`."""
        if self._open is None:
            return [], []
        self._end_stretch()
        self._open.device.sync()
        return self._stretches, [self._media_now(self._open, self._open.media.status)]

    def rescue(self) -> tuple[list[Stretch], list[Media]]:
        """As `sync`, after a failure: what cannot be made durable is left out of the account."""
        try:
            return self.sync()
        except MagbayError as error:
            self._log.info(f"what was written last is not counted: {error.message}")
            return [], []

    def close(self) -> None:
        """Let the volume go."""
        if self._open:
            self._open.device.close()
            self._open = None
