"""Reading whole volumes, one after the other, as one stream of events; and the order of volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from appliance.errors import MagbayError, UsageError
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.blocks import RECORD_HEADER
from appliance.volumes.bsr import Bootstrap
from appliance.volumes.events import Event, VolumeStart
from appliance.volumes.labels import LabelKind
from appliance.volumes.reader import Block, Damage, VolumeReader
from appliance.volumes.sessions import SessionReader


def read_volumes(
    paths: Sequence[Path],
    *,
    select: Bootstrap | None = None,
    advance: Callable[[int], None] | None = None,
    keys: VolumeKeys | None = None,
    go_on: bool = False,
    from_disk: bool = False,
) -> Iterator[Event]:
    """The events of the volumes *paths*, in that order (see `in_order`).

    *select*: only what a bootstrap file wants. *advance* is told the number of bytes read, block by block. *keys*: of
    enciphered volumes. *go_on*: a volume that cannot be read is damage, too, and the next one is read. *from_disk*: as
    for `VolumeReader`.
    Raises `NotFoundError` for a missing file, `VolumeError` for one that is no volume or of an unknown kind; damage
    comes as an event.
    """
    sessions = SessionReader(select)
    for path in paths:
        try:
            with VolumeReader(path, keys, from_disk=from_disk) as volume:
                label = volume.label()
                sessions.begin_volume(volume.name)
                yield VolumeStart(volume.name, label)
                name = label.name if label else path.name
                yield from _read_volume(volume, name, sessions, select, advance)
        except MagbayError as error:
            if not go_on:
                raise
            yield from sessions.damage(Damage(str(path), 0, 0, error.message.removeprefix(f"{path}: ")))
    yield from sessions.finish()


def _read_volume(
    volume: VolumeReader,
    name: str,
    sessions: SessionReader,
    select: Bootstrap | None,
    advance: Callable[[int], None] | None,
) -> Iterator[Event]:
    start, last = select.span(name) if select else (0, None)
    if start and not volume.is_block(start):
        start = 0  # an address off a block's border: find the blocks from the front
    for item in volume.blocks(start):
        if last is not None and item.address > last:
            break
        if isinstance(item, Block):
            if select is None or select.wants_block(name, item.ids, item.address + len(item.data) - 1):
                yield from sessions.block(item)
            else:
                sessions.skip(item.ids)
            if advance:
                advance(len(item.data))
        else:
            yield from sessions.damage(item)
            if advance:
                advance(item.length)


def in_order(paths: Sequence[Path], keys: VolumeKeys | None = None) -> list[Path]:
    """The order in which to read *paths*: as given, unless a volume that goes on with another one's job comes too soon.

    Then by the time at which their labels were written. Raises as `read_volumes`; `UsageError` for one given twice.
    """
    seen: set[Path] = set()
    facts: list[tuple[int, bool]] = []
    for path in paths:
        with VolumeReader(path, keys) as volume:
            label = volume.label()
            facts.append((label.write_time if label else 0, _goes_on(volume)))
        if path.resolve() in seen:
            raise UsageError(f"{path}: the volume is given twice", hint="Name each volume once.")
        seen.add(path.resolve())
    times = [time for time, _ in facts]
    ordered = all(times) and times != sorted(times)
    if not ordered or not any(goes_on for _, goes_on in facts[:-1]):
        return list(paths)
    return [path for _, path in sorted(zip(times, paths, strict=True), key=lambda pair: pair[0])]


def _goes_on(volume: VolumeReader) -> bool:
    """Whether the first block behind the label goes on with a session that began on another volume."""
    for item in volume.blocks():
        if not isinstance(item, Block):
            return False
        first = RECORD_HEADER.unpack_from(item.data, item.begin)[0]
        if first not in (LabelKind.PRE_LABEL, LabelKind.VOL_LABEL):
            return bool(first > 0)
    return False
