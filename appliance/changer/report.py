"""What the changer tells its callers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.changer.view import Presence


@dataclass(frozen=True)
class Slot:
    """One slot that was given to a volume. *attached*: the volume can be loaded; else *presence* says why not.

    *path*: the volume's file, empty when it is not attached. *writable*: not on a magazine that cannot be written.
    """

    slot: int
    volume: str
    magazine: str
    drive: int | None
    attached: bool
    presence: Presence
    path: str = ""
    writable: bool = True


@dataclass(frozen=True)
class Report:
    """What a refresh found. *arrived*, *departed*: magazines since the last refresh of this `Changer` (to the first
    one all have arrived); *changed*: what is offered is not what it was then. Volumes read `MAGAZINE/VOLUME`."""

    arrived: tuple[str, ...] = ()
    departed: tuple[str, ...] = ()
    changed: bool = False
    emptied: tuple[int, ...] = ()  # drives whose volume went away
    slots_full: tuple[str, ...] = ()  # volumes for which there is no slot left
    beyond: tuple[int, ...] = ()  # slots that were given when more were configured
    duplicates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # volume name to its magazines
    unreadable: tuple[str, ...] = ()  # sentences
    unsaved: str = ""  # why new volumes have no slot: the slot map cannot be written

    def warnings(self) -> tuple[str, ...]:
        """Sentences for people, one for each thing that needs attention."""
        found = [*self.unreadable]
        if self.unsaved:
            found.append(f"{self.unsaved}; new volumes get no slot until it can be")
        if self.slots_full:
            full = ", ".join(self.slots_full)
            found.append(f"all slots are given, raise changer.slots in the configuration: no slot for {full}")
        if self.beyond:
            found.append(f"above changer.slots and not offered: slots {', '.join(map(str, self.beyond))}")
        for volume, magazines in self.duplicates.items():
            found.append(f"volume {volume} is on magazines {' and '.join(magazines)}: not offered from any of them")
        return tuple(found)
