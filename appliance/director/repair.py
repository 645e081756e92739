"""Volumes that the Director marked Error, because a job wanted them while their disk was away.

A Director never takes that mark back, so that volume after volume is lost to a pool. Here they come back, once their
file has been looked at: one with data becomes Used (it is read and one day recycled, and nothing is appended where
something may have broken off), one with nothing but a label becomes Append.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.changer.report import Slot
from appliance.config.schema import Config
from appliance.director.console import Console, open_console
from appliance.director.newcomers import Content, content
from appliance.director.ours import media_type
from appliance.director.replies import CatalogVolume, volumes
from appliance.errors import MagbayError
from appliance.storage.tail import read_label

_ERROR = "Error"


@dataclass(frozen=True)
class Repair:
    """*sent* commands, and a sentence for each volume that stays in Error."""

    sent: tuple[str, ...]
    left: tuple[str, ...]


def repair(config: Config, slots: Sequence[Slot], console: Console | None = None) -> Repair:
    """Take the mark from the volumes of *slots* whose file is here and whole. Raises `MagbayError`."""
    talker = console or open_console(config.director)
    catalog = volumes(talker.send("list volumes"))
    ours = media_type(config.director, talker)
    lines, left = [], []
    for slot in slots:
        if not _is_marked(slot, catalog, ours):
            continue
        try:
            lines.append(f"update volume={slot.volume} volstatus={_status(slot)}")
        except (MagbayError, OSError) as error:
            left.append(f"volume {slot.volume} of magazine {slot.magazine} stays in Error: {error}")
    if lines:
        talker.send(*lines)
        now = volumes(talker.send("list volumes"))
        left += [
            f"volume {slot.volume} stays in Error: the Director did not take the command"
            for slot in slots
            if slot.attached and _is_marked(slot, now, ours)
            if any(f"volume={slot.volume} " in line for line in lines)
        ]
    return Repair(tuple(lines), tuple(left))


def _is_marked(slot: Slot, catalog: Mapping[str, CatalogVolume], ours: str) -> bool:
    volume = catalog.get(slot.volume)
    return volume is not None and volume.status == _ERROR and volume.media_type == ours


def _status(slot: Slot) -> str:
    """What *slot*'s volume can be again. Raises `MagbayError` (away, or no whole label), `OSError`."""
    if not slot.path:
        raise MagbayError(f"it cannot be looked at ({slot.presence.value})", hint="Plug that magazine in.")
    path = Path(slot.path)
    found = content(path)
    if found is Content.EMPTY:
        raise MagbayError("its file is empty", hint="Delete it in the catalog; it is labelled anew then.")
    name = read_label(path).name
    if name != slot.volume:
        raise MagbayError(f"its label says {name}")
    return "Append" if found is Content.LABEL else "Used"
