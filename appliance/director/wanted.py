"""Which magazine must be brought: from a blocked drive to the names of magazines, and the published answer.

`run_dir/director.json` is what `magbay status` shows; the changer agent replaces it after each talk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.changer.report import Slot
from appliance.changer.view import Presence
from appliance.director.plan import usable
from appliance.director.record import Sighting
from appliance.director.replies import Blocked, CatalogVolume, Waiting
from appliance.host.files import write_atomic

PUBLISHED = "director.json"


@dataclass(frozen=True)
class Wanted:
    """A job that waits. *magazines*: any of them helps; empty when none that we know would."""

    job: str
    job_id: int
    drive: int
    volume: str
    pool: str
    magazines: tuple[str, ...]
    seen: tuple[str, ...] = ()  # for each of *magazines*, when and where it last was in a bay

    def sentence(self) -> str:
        """For people."""
        who = f"job {self.job} (JobId {self.job_id})" if self.job else f"drive {self.drive}"
        what = f"volume {self.volume}" if self.volume else f"a volume of pool {self.pool} that can be written"
        if not self.magazines:
            help_ = "no magazine that is known here holds it"
            return f"{who} waits for {what}: {help_}" if self.volume else f"{who} waits for {what}: add volumes"
        last = f" (last seen {self.seen[0]})" if self.seen and self.seen[0] else ""
        others = f"; {' or '.join(self.magazines[1:])} would do too" if len(self.magazines) > 1 else ""
        return f"insert magazine {self.magazines[0]}{last}: {who} waits for {what}{others}"


def wanted(
    blocked: Blocked, slots: Iterable[Slot], catalog: Mapping[str, CatalogVolume], seen: Mapping[str, Sighting]
) -> Wanted:
    """Which magazines hold what *blocked* waits for, those that are away only, last seen first."""
    # A magazine that is here and cannot help (file deleted, name on two disks) is not worth a walk to the shelf.
    away = [slot for slot in slots if slot.presence is Presence.AWAY]
    if blocked.waiting is Waiting.VOLUME:
        names = {slot.magazine for slot in away if slot.volume == blocked.volume}
    else:
        names = {
            slot.magazine for slot in away if slot.volume in catalog and usable(catalog[slot.volume], blocked.pool)
        }
    order = sorted(names, key=lambda name: (-seen[name].when if name in seen else 0.0, name))
    told = tuple(_told(seen.get(name)) for name in order)
    return Wanted(blocked.job, blocked.job_id, blocked.drive, blocked.volume, blocked.pool, tuple(order), told)


def _told(sighting: Sighting | None) -> str:
    if sighting is None:
        return ""
    return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(sighting.when))} in {sighting.where}"


def publish(run_dir: Path, found: Iterable[Wanted], error: str, now: float) -> None:
    """Replace the published answer: what is *wanted*, and why the Director cannot be reached (*error*, if so)."""
    rows = [asdict(item) | {"sentence": item.sentence()} for item in found]
    document = {"checked": round(now), "error": error, "wanted": rows}
    write_atomic(run_dir / PUBLISHED, json.dumps(document).encode(), mode=0o644, durable=False)


def published(run_dir: Path) -> dict[str, Any] | None:
    """The published answer; None when nothing was published since the machine started."""
    try:
        document = json.loads((run_dir / PUBLISHED).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return document if isinstance(document, dict) else None
