"""Which commands bring the Director's catalog from what it says to what is so. No input or output here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from appliance.changer.report import Slot
from appliance.director.replies import Blocked, CatalogVolume, StorageStatus, Waiting

# States in which a volume of the catalog can be chosen for writing (Bacula: "find_next_volume").
WRITABLE = frozenset({"Append", "Recycle", "Purged"})


@dataclass(frozen=True)
class Offer:
    """What the changer offers: *here* volume to slot; *known* every volume that ever had a slot; *protected* those of
    *here* that nobody can write, because their disk is write-protected."""

    here: Mapping[str, int]
    known: Collection[str]
    protected: Collection[str] = frozenset()

    @classmethod
    def of(cls, slots: Collection[Slot]) -> Offer:
        """The offer of all *slots* that were ever given."""
        here = [slot for slot in slots if slot.attached]
        protected = frozenset(slot.volume for slot in here if not slot.writable)
        return cls({slot.volume: slot.slot for slot in here}, frozenset(slot.volume for slot in slots), protected)


@dataclass(frozen=True)
class Plan:
    """*leave*: to be taken out of the changer; *disable*, *enable*: flags; *update*: `update slots` is needed;
    *unknown*: volumes in slots that the catalog does not have."""

    leave: tuple[str, ...]
    disable: tuple[str, ...]
    enable: tuple[str, ...]
    update: bool
    unknown: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Whether the catalog agrees already (volumes that it does not know aside)."""
        return not (self.leave or self.disable or self.enable or self.update)


def plan(offer: Offer, catalog: Mapping[str, CatalogVolume], disabled: Collection[str], media_type: str) -> Plan:
    """*disabled*: volumes that we disabled ourselves; what somebody else disabled stays as it is.

    *media_type*: of the volumes that are ours; others are never touched, whatever their names.
    """
    ours = {name: volume for name, volume in catalog.items() if volume.media_type == media_type}
    away = [volume for name, volume in ours.items() if name in offer.known and name not in offer.here]
    here = [volume for name, volume in ours.items() if name in offer.here]
    # What is write-protected can be restored from, disabled or not; only writing asks for the flag.
    closed = [*away, *(volume for volume in here if volume.name in offer.protected)]
    open_ = [volume for volume in here if volume.name not in offer.protected]
    return Plan(
        leave=tuple(sorted(v.name for v in away if v.in_changer or v.slot)),
        disable=tuple(sorted(v.name for v in closed if v.enabled)),
        enable=tuple(sorted(v.name for v in open_ if not v.enabled and v.name in disabled)),
        update=any(not v.in_changer or v.slot != offer.here[v.name] for v in here),
        unknown=tuple(sorted(name for name in offer.here if name not in catalog)),
    )


def commands(found: Plan, storage: str) -> tuple[str, ...]:
    """The console commands of *found*. The departures go first: what is away must not be chosen meanwhile."""
    lines = []
    for name in sorted({*found.leave, *found.disable}):
        leave = " inchanger=no slot=0" if name in found.leave else ""
        disable = " enabled=no" if name in found.disable else ""
        lines.append(f"update volume={name}{leave}{disable}")
    if found.update:
        # With drive: Bacula would ask for it. One run of the command for any number of magazines.
        lines.append(f"update slots storage={quoted(storage)} drive=0")
    lines.extend(f"update volume={name} enabled=yes" for name in found.enable)
    return tuple(lines)


def quoted(name: str) -> str:
    """*name* of a resource as a value on a console's line."""
    return f'"{name}"' if " " in name else name


def mount_slot(blocked: Blocked, offer: Offer, catalog: Mapping[str, CatalogVolume]) -> int:
    """A slot that *blocked* can go on with, 0 when there is none in the bays."""
    if blocked.waiting is Waiting.VOLUME:
        return offer.here.get(blocked.volume, 0)
    fitting = [
        offer.here[volume.name]
        for volume in catalog.values()
        if volume.name in offer.here and usable(volume, blocked.pool) and volume.enabled
    ]
    return min(fitting, default=0)


def left_in(status: StorageStatus, offer: Offer) -> dict[str, int]:
    """Device to slot, of the drives in which the storage daemon believes a volume that is not in the bays any more.

    A storage daemon that keeps volumes open keeps a magazine from being unmounted, and one that believes a drive
    loaded does not ask for the volume again when it comes back.
    """
    here = set(offer.here.values())
    return {device: slot for device, slot in status.loaded.items() if slot not in here}


def usable(volume: CatalogVolume, pool: str) -> bool:
    """Whether *volume* can be written for *pool* (empty: any), or can become so from the Scratch pool."""
    return volume.status in WRITABLE and (not pool or volume.pool in (pool, "Scratch"))
