"""The changer for agents and commands: looks at the magazines, keeps the slot map, publishes the view."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from appliance.changer import drives, plain, slotmap
from appliance.changer import transfer as moving
from appliance.changer.lock import lock
from appliance.changer.look import Look, Seen, home, look, reachable, recall, remember
from appliance.changer.report import Report, Slot
from appliance.changer.slotmap import Key, SlotMap
from appliance.changer.view import PUBLISHED, Entry, Presence, Stamps, View, stamp
from appliance.config import vchanger
from appliance.config.accepted import in_force
from appliance.config.loader import is_vchanger
from appliance.config.schema import Config
from appliance.errors import MagbayError, NotFoundError, PermissionDeniedError
from appliance.host.files import make_directory, write_atomic
from appliance.magazines.attached import MEDIA_ANSWER, Magazine, create_directories, known

__all__ = ["Changer", "Report", "Slot"]


class Changer:
    """The virtual autochanger of one configuration. Several processes may use it at once."""

    def __init__(self, config: Config, source: str = "", stamps: Stamps | None = None) -> None:
        """*source*, *stamps*: see `open`. Without them the view is not published, and commands compute it anew."""
        self._config, self._source, self._stamps = config, source, stamps
        self._offered = ""
        self._attached: dict[str, str] = {}
        self._magazines: tuple[Magazine, ...] = ()  # of the last refresh

    @classmethod
    def open(cls, path: Path) -> Changer:
        """The changer of the configuration file *path*. Raises `ConfigError`."""
        stamps = _config_stamps(path.absolute())  # before reading: a change in between must show
        return cls(in_force(path).config, str(path.absolute()), stamps)

    def refresh(self, *, thorough: bool = True) -> Report:
        """Look at the magazines, give new volumes slots, empty the drives whose volume is away, publish the view.

        *thorough* False does not look at disks that have not come since the last look: an agent that looked at all
        of them at every tick would keep autofs from ever finding one idle. Raises `MagbayError`.
        """
        with self._locked():
            return self._refresh(thorough)[1]

    def slots(self) -> tuple[Slot, ...]:
        """Every slot that was ever given to a volume, in order, on attached and absent magazines."""
        return self.look()[0]

    def look(self, *, thorough: bool = True) -> tuple[tuple[Slot, ...], Report]:
        """`slots`, and the `Report` of the `refresh` that goes with it. Raises `MagbayError`."""
        with self._locked():
            view, report = self._refresh(thorough)
            holders = view.holders()
        protected = {magazine.name for magazine in self._magazines if _is_protected(magazine)}
        return tuple(_slot(entry, holders, protected) for entry in view.entries), report

    def view(self) -> View:
        """The slots as they are now, for the Changer Command. Raises `MagbayError`."""
        with self._locked():
            return self._refresh(True)[0]

    def load(self, slot: int, drive: int, device: str = "") -> None:
        """Load the volume of *slot* into *drive*; what is done already succeeds. Parameters, errors: `View.load`."""
        with self._locked():
            self._refresh(True)[0].load(slot, drive, device)

    def unload(self, drive: int) -> bool:
        """Empty *drive*; whether something was loaded. Raises `UsageError` for a drive that is not there."""
        with self._locked():
            return self._empty_view().unload(drive)

    def transfer(self, source: int, target: int, seconds: float = moving.WAIT_SECONDS) -> str:
        """Move the volume of slot *source* to slot *target*; gives a sentence about it. Raises as `transfer.plan`, and
        `MagbayError` as soon as it shows that a copy takes more than *seconds*.

        The lock of the changer is not held while bytes are copied, so that drives can be loaded meanwhile.
        """
        move = self._plan(source, target)
        if not move.copies:
            return self._commit(move, source, None)
        try:
            with moving.copied(move, seconds) as copy:
                return self._commit(move, source, copy)
        except OSError as error:
            raise MagbayError(f"volume {move.volume} stays in slot {source}: {error.strerror}") from None

    def _plan(self, source: int, target: int) -> moving.Move:
        with self._locked():
            view = self._refresh(True)[0]
            slot_map = slotmap.read(self._config.state_dir / slotmap.SLOT_MAP)
            return moving.plan(view, slot_map, self._known(), source, target)

    def _commit(self, move: moving.Move, source: int, copy: Path | None) -> str:
        path = self._config.state_dir / slotmap.SLOT_MAP
        with self._locked():
            view, slot_map = self._refresh(True)[0], slotmap.read(path)
            if moving.plan(view, slot_map, self._known(), source, move.slot) != move:
                raise MagbayError(f"slot {source} or {move.slot} changed meanwhile", hint="Try again.")
            names = {magazine.identity: magazine.name for magazine in self._known()}
            home, there = names[move.source[0]], names[move.target[0]]
            # The new number is on disk before the file is there, so that no other can be given to it.
            slot_map = slot_map.give(move.target, move.slot, there)
            slotmap.write(path, slot_map)
            moving.commit(move, copy)
            if move.source != move.target:
                slotmap.write(path, slot_map.without(move.source))
            self._refresh(True)
        where = f"from magazine {home} to {there}" if home != there else f"on magazine {home}"
        return f"volume {move.volume} {where}: slot {source} is now slot {move.slot}"

    def release(self, magazine: str) -> tuple[int, ...]:
        """Empty every drive that holds a volume of *magazine*; gives these drives. Raises `NotFoundError`."""
        drive_dir = str(self._config.drive_dir)
        with self._locked():
            found = next((item for item in self._known() if item.name == magazine), None)
            if found is None:
                hint = "'magbay magazine list' shows the known ones."
                raise NotFoundError(f"no magazine is called {magazine}", hint=hint)
            inside = str(home(self._config, found)) + "/"
            here = [n for n in range(self._config.changer.drives) if drives.target(drive_dir, n).startswith(inside)]
            return tuple(drive for drive in here if drives.clear(drive_dir, drive))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the changer's lock; trouble with files becomes a `MagbayError`."""
        try:
            with lock(self._config.run_dir):
                yield
        except PermissionError as error:
            raise PermissionDeniedError(
                f"user {os.geteuid()} may not use {error.filename}",
                hint=f"Run as the owner of {self._config.state_dir} and {self._config.run_dir}, or join their group.",
            ) from None
        except OSError as error:
            raise MagbayError(f"{error.filename or self._config.run_dir}: {error.strerror}") from None

    def _refresh(self, thorough: bool) -> tuple[View, Report]:
        config = self._config
        create_directories(config)
        _check_readable(config.state_dir)
        _check_readable(config.enrolment_dir)
        map_path = config.state_dir / slotmap.SLOT_MAP
        stamps: Stamps = [
            (str(config.run_dir / MEDIA_ANSWER), stamp(str(config.run_dir / MEDIA_ANSWER))),
            (str(config.enrolment_dir), stamp(str(config.enrolment_dir), settled=True)),
        ]
        magazines = self._magazines = self._known()
        old_map, before = slotmap.read(map_path), recall(config.run_dir)
        seen = look(config, magazines, old_map, before, thorough)
        slot_map, left, unsaved = self._place(seen, old_map, map_path)
        view = self._view(seen, slot_map)
        # The drives of a magazine that cannot be read stay: it may be on its way out, or come back.
        keep = {entry.path for entry in view.entries if entry.path}
        emptied = drives.sweep(view.drive_dir, view.drives, keep)
        view.stamps = [*stamps, *seen.stamps, (str(map_path), stamp(str(map_path)))]
        self._publish(view, seen, before, complete=not (view.unreadable or unsaved))
        return view, self._report(seen, view, slot_map, emptied, left, unsaved)

    def _known(self) -> tuple[Magazine, ...]:
        try:
            return known(self._config)
        except (ValueError, KeyError, TypeError) as error:
            raise MagbayError(
                f"{self._config.run_dir / MEDIA_ANSWER}: cannot be understood ({error!r})",
                hint="Restart magbay-media.service; it writes the file anew.",
            ) from None

    def _place(self, seen: Look, old: SlotMap, path: Path) -> tuple[SlotMap, tuple[Key, ...], str]:
        """The map with the new volumes, those left without a slot, and why it cannot be written if so.

        A slot is given only once that is on disk: a number that a crash could give again is worth nothing.
        """
        double = seen.duplicates()
        names = {magazine.identity: magazine.name for magazine in seen.magazines}
        volumes = [
            (magazine.identity, volume)
            for magazine in seen.magazines
            for volume in seen.volumes(magazine)
            if volume not in double
        ]
        changer = self._config.changer
        ranges = {f"directory:{item.name}": item.slot_range for item in self._config.magazines}
        new, left = old.place(volumes, names, changer.slots, ranges, changer.numbered)
        if new == old:
            return old, left, ""
        try:
            make_directory(path.parent)
            slotmap.write(path, new)
        except OSError as error:
            return old, (), f"{path} cannot be written ({error.strerror})"
        return new, left, ""

    def _view(self, seen: Look, slot_map: SlotMap) -> View:
        config = self._config
        magazines = {magazine.identity: magazine for magazine in seen.magazines}
        volumes = {magazine.identity: frozenset(seen.volumes(magazine)) for magazine in seen.magazines}
        double = seen.duplicates()

        def presence(identity: str, volume: str) -> Presence:
            if identity not in magazines or not magazines[identity].attached:
                return Presence.AWAY
            if identity in seen.unreadable:
                return Presence.UNREADABLE
            if volume not in volumes[identity]:
                return Presence.MISSING
            return Presence.DUPLICATE if volume in double else Presence.HERE

        entries = []
        for (identity, volume), slot in sorted(slot_map.slots.items(), key=lambda item: item[1]):
            if slot <= config.changer.slots:
                where, magazine = presence(identity, volume), magazines.get(identity)
                here = magazine is not None and where in (Presence.HERE, Presence.UNREADABLE)
                path = f"{magazine.path}/{volume}" if magazine is not None and here else ""
                name = magazine.name if magazine is not None else slot_map.names[identity]
                entries.append(Entry(slot, volume, name, path, where))
        view = self._empty_view()
        view.entries, view.unreadable = entries, list(seen.unreadable.values())
        return view

    def _empty_view(self) -> View:
        config, changer = self._config, self._config.changer
        view = View(self._source, str(config.run_dir), changer.drives, changer.slots, [], [])
        view.drive_dir, view.folders = str(config.drive_dir), changer.drive_folders
        view.listed = min(changer.drives, changer.drives_listed or changer.drives)
        return view

    def _publish(self, view: View, seen: Look, before: Mapping[str, Seen], complete: bool) -> None:
        # A caller that may not publish only costs the next one the time to look for itself.
        with contextlib.suppress(PermissionError):
            drives.make_directory(view.drive_dir)
            if seen.seen != before:
                remember(self._config.run_dir, seen.seen)
            if self._stamps is not None and complete:
                view.stamps = [*self._stamps, *view.stamps]
                data = json.dumps(view.document(), separators=(",", ":")).encode()
                write_atomic(self._config.run_dir / PUBLISHED, data, mode=0o644, durable=False)
                plain.publish(view)

    def _report(
        self, seen: Look, view: View, slot_map: SlotMap, emptied: tuple[int, ...], left: tuple[Key, ...], unsaved: str
    ) -> Report:
        names = {magazine.identity: magazine.name for magazine in seen.magazines}
        before, now = self._attached, reachable(seen.magazines)
        was, offered = self._offered, "".join(f"{e.slot}:{e.volume}:{e.presence.value}\n" for e in view.entries)
        self._attached, self._offered = now, offered
        return Report(
            arrived=tuple(name for identity, name in now.items() if identity not in before),
            departed=tuple(name for identity, name in before.items() if identity not in now),
            changed=offered != was,
            emptied=emptied,
            slots_full=tuple(f"{names[identity]}/{volume}" for identity, volume in left),
            beyond=tuple(sorted(slot for slot in slot_map.slots.values() if slot > view.slots)),
            duplicates=seen.duplicates(),
            unreadable=tuple(view.unreadable),
            unsaved=unsaved,
        )


def _slot(entry: Entry, holders: Mapping[int, int], protected: Collection[str]) -> Slot:
    here, drive = entry.presence is Presence.HERE, holders.get(entry.slot)
    path, writable = (entry.path if here else ""), entry.magazine not in protected
    return Slot(entry.slot, entry.volume, entry.magazine, drive, here, entry.presence, path, writable)


def _is_protected(magazine: Magazine) -> bool:
    """Whether nobody can write on it. Rights do not count: the daemon's user may have others than this one."""
    if magazine.path is None or not magazine.identity.startswith("directory:"):
        return magazine.attached and not magazine.writable
    with contextlib.suppress(OSError):
        return bool(os.statvfs(magazine.path).f_flag & os.ST_RDONLY)
    return False


def _check_readable(directory: Path) -> None:
    """Raise `OSError` unless *directory* can be listed or is not there yet: a glob in it would just find nothing,
    and every disk would seem to be away."""
    with contextlib.suppress(FileNotFoundError), os.scandir(directory):
        pass


def _config_stamps(path: Path) -> Stamps:
    """Of the configuration file *path* and of the files that belong to it, as `appliance.config.loader` finds them."""
    if is_vchanger(path):
        others = vchanger.read(path).files()
        return [(str(file), stamp(str(file), settled=True)) for file in (path, *others)]
    fragments = path.parent / f"{path.stem}.d"
    files = [path, fragments, *(sorted(fragments.glob("*.yaml")) if fragments.is_dir() else ())]
    return [(str(file), stamp(str(file), settled=True)) for file in files]
