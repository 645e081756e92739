"""The commands that vchanger has for people: `listmags`, `createvols`, `refresh`. No daemon sends them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance.changer.inventory import legal_name
from appliance.changer.report import Slot
from appliance.changer.service import Changer
from appliance.config import vchanger
from appliance.config.loader import is_vchanger, load
from appliance.config.names import Names
from appliance.config.schema import Config
from appliance.config.vchanger import VchangerFile
from appliance.errors import AwayError, MagbayError, NotFoundError, UsageError
from appliance.host.files import adopt, mode_in, sync_directory
from appliance.magazines.attached import Magazine, create_directories, known

_MOST = 9999  # volumes made at once; the number in a name has four digits


def refresh(path: Path) -> str:
    """Look at the magazines and publish what is there; nothing to print. Raises `MagbayError` as `Changer.refresh`."""
    Changer.open(path).refresh()
    return ""


def listmags(path: Path) -> str:
    """One line for each bay, in the form of the vchanger that the configuration *path* is for, of 1.0 if it is ours.

    1.0: `BAY:VOLUMES:FIRST SLOT:DIRECTORY` from bay 0, the last three empty while the magazine is away.
    0.8: `BAY:CHANGER:MAGAZINE:DIRECTORY` from bay 1, `BAY::0:` while nothing is in it.
    """
    slots, _report = Changer.open(path).look()
    config = load(path)
    old = vchanger.read(path) if is_vchanger(path) else None
    magazines = known(config)
    if old is not None and old.old:
        return _old_lines(config, old, magazines)
    lines = []
    for bay, magazine in enumerate(magazines):
        mine = [slot.slot for slot in slots if slot.magazine == magazine.name and slot.attached]
        here = f"{len(mine)}:{min(mine, default=0)}:{magazine.path}" if magazine.attached else "::"
        lines.append(f"{bay}:{here}\n")
    return "".join(lines)


def createvols(path: Path, words: Sequence[str], options: Mapping[str, str]) -> str:
    """Make empty volumes: *words* are bay (or name of a magazine), number of volumes and, if given, the first number.

    *options*: `-l` is the beginning of the names, `--pool` the pool that is named in the advice at the end. Gives what
    is to be said. Raises `UsageError`, `AwayError`, `MagbayError`, `OSError`.
    """
    if len(words) < 2:
        raise UsageError("createvols needs bay and number of volumes")
    count = _number("number of volumes", words[1], 1, _MOST)
    start = _number("first number", words[2], 0, _MOST) if len(words) > 2 else None
    config = load(path)
    create_directories(config)
    bay, magazine = _magazine(known(config), words[0], is_vchanger(path) and vchanger.read(path).old)
    if magazine.path is None:
        raise AwayError(f"magazine {magazine.name} is not here", hint="Plug it in and try again.")
    old = config.changer.numbered
    changer = Changer.open(path)
    names = _naming(config, magazine, options, f"{config.changer.name}_{bay + old:04d}_" if is_vchanger(path) else "")
    made = _free(names, count, start, int(old), _taken(changer, magazine))
    _make(magazine, made)
    return _told(changer, config, magazine, bay + old, made, options.get("--pool"))


def initmag(path: Path, words: Sequence[str], options: Mapping[str, str]) -> str:
    """Fill an empty magazine with volumes, as vchanger 0.8 does; *words*: the bay. Gives what is to be said.

    *options*: `-m` is the number of the magazine that the names have; without it the first that no name has. Raises
    `UsageError` for configurations that are not of vchanger 0.8, `AwayError`, `MagbayError`, `OSError`.
    """
    file = vchanger.read(path) if is_vchanger(path) else None
    if file is None or not file.old:
        raise UsageError(
            "initmag is for configurations of vchanger 0.8; others need no preparation of a magazine",
            hint="createvols BAY COUNT makes volumes, 'magbay prepare' makes a magazine of a blank disk.",
        )
    if not words:
        raise UsageError("initmag needs the bay", hint="initmag BAY [-m NUMBER]")
    config = load(path)
    bay, magazine = _magazine(known(config), words[0], True)
    if magazine.path is None:
        raise AwayError(f"magazine {magazine.name} is not here", hint="Plug it in and try again.")
    changer = Changer.open(path)
    taken = _taken(changer, magazine)
    if any(slot.magazine == magazine.name and slot.attached for slot in changer.slots()):
        raise MagbayError(f"magazine {magazine.name} has volumes already", hint="createvols adds more.")
    used = {int(match[1]) for name in taken if (match := re.match(rf"{re.escape(file.name)}_(\d{{4}})_", name))}
    wish = options.get("-m")
    number = (
        _number("number of the magazine", wish, 1, _MOST)
        if wish
        else next(n for n in range(1, _MOST + 1) if n not in used)
    )
    made = _free(Names(f"{file.name}_{number:04d}_{{number:4}}"), file.slots_per_magazine, 1, 1, taken)
    _make(magazine, made)
    _told(changer, config, magazine, bay + 1, made, None)
    return f"created magazine {number} in bay {bay + 1} [{magazine.path}]\n"


def _naming(config: Config, magazine: Magazine, options: Mapping[str, str], prefix: str) -> Names:
    """How createvols calls what it makes; *prefix* is vchanger's, empty for a configuration of ours."""
    prefix = options.get("-l") or prefix
    if not prefix:
        pool = options.get("--pool") or config.director.pool
        return Names(config.changer.volume_names, magazine=magazine.name, changer=config.changer.name, pool=pool)
    if not legal_name(f"{prefix}0000"):
        raise UsageError(f"{prefix[:40]!r} cannot begin the name of a volume")
    return Names(f"{prefix}{{number:4}}")


def _taken(changer: Changer, magazine: Magazine) -> set[str]:
    """Names that are given: every slot's, and what lies on *magazine*, which is here."""
    assert magazine.path is not None
    return {slot.volume for slot in changer.slots()} | set(os.listdir(magazine.path))  # noqa: PTH208


def _make(magazine: Magazine, names: Sequence[str]) -> None:
    assert magazine.path is not None
    for name in names:
        _create(magazine.path, name)
    sync_directory(magazine.path)


def _told(changer: Changer, config: Config, magazine: Magazine, bay: int, made: Sequence[str], pool: str | None) -> str:
    slots, report = changer.look()
    left = {f"{magazine.name}/{name}" for name in made} & set(report.slots_full)
    if left:
        raise MagbayError(
            f"no slot is left for {len(left)} of the volumes that were made on {magazine.name}",
            hint="Raise the number of slots in the configuration.",
        )
    lines = [f"creating label '{name}'\n" for name in made]
    lines.append(f"Created {len(made)} volume files on magazine {bay}\n")
    if pool:
        numbers = sorted(slot.slot for slot in slots if _is_made(slot, magazine, made))
        storage, range_text = config.changer.name, f"{numbers[0]}-{numbers[-1]}"
        lines.append(f'To label them: label storage="{storage}" pool="{pool}" slots={range_text} barcodes\n')
    return "".join(lines)


def _is_made(slot: Slot, magazine: Magazine, made: Sequence[str]) -> bool:
    return slot.magazine == magazine.name and slot.volume in made


def _old_lines(config: Config, old: VchangerFile, magazines: tuple[Magazine, ...]) -> str:
    lines = []
    for index in range(max(old.bays, len(magazines))):
        magazine = magazines[index] if index < len(magazines) else None
        here = magazine is not None and magazine.attached
        what = f"{config.changer.name}:{index + 1}:{magazine.path}" if here and magazine is not None else ":0:"
        lines.append(f"{index + 1}:{what}\n")
    return "".join(lines)


def _magazine(magazines: tuple[Magazine, ...], word: str, from_one: bool) -> tuple[int, Magazine]:
    """Index and magazine of a bay number or of a name."""
    for index, magazine in enumerate(magazines):
        if word in (magazine.name, str(index + from_one)):
            return index, magazine
    last = len(magazines) - 1 + from_one
    raise NotFoundError(f"there is no bay or magazine {word[:40]!r}", hint=f"Bays are {int(from_one)} to {last}.")


def _free(names: Names, count: int, start: int | None, least: int, taken: set[str]) -> list[str]:
    """*count* names that are not *taken*, from the number *start*, or from behind the last one taken."""
    last = max((number for name in taken if (number := names.number(name)) is not None), default=least - 1)
    first = start if start is not None else last + 1
    free = [name for number in range(first, _MOST + 1) if (name := names.name(number)) not in taken]
    if len(free) < count:
        raise UsageError(f"only {len(free)} names are left like {names.name(first)}", hint="Give another with -l.")
    return free[:count]


def _create(directory: Path, name: str) -> None:
    fd = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        os.fchmod(fd, mode_in(directory))
        adopt(fd, directory)
        os.fsync(fd)
    finally:
        os.close(fd)


def _number(what: str, word: str, least: int, most: int) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 9 and least <= int(word) <= most):
        raise UsageError(f"the {what} must be a whole number from {least} to {most}, not {word[:40]!r}")
    return int(word)
