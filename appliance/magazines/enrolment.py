"""The enrolment files: written, ended, and carried from one machine to another. They hold no secrets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from appliance.config.document import plain
from appliance.config.kinds import Record, Where
from appliance.config.loader import compose, load_enrolment
from appliance.config.schema import Config, Enrolment, EnrolmentList
from appliance.errors import ConfigError, MagbayError, NotFoundError
from appliance.host.files import locked, make_directory, sync_directory, write_atomic
from appliance.magazines.attached import enrolments
from appliance.magazines.disks import MAPPING_PREFIX

_MAPPINGS = Path("/dev/mapper")


def printable(text: str) -> str:
    """Serial numbers and models come from the disk and may hold anything."""
    return "".join(char if char.isprintable() else "?" for char in text)


def check_name(config: Config, name: str, filesystem_uuid: str = "") -> None:
    """Refuse a *name* that another magazine has than the one with *filesystem_uuid*. Raises `MagbayError`."""
    used = {item.name for item in enrolments(config) if item.filesystem_uuid != filesystem_uuid}
    if name in used | {magazine.name for magazine in config.magazines}:
        raise MagbayError(f"a magazine is called {name} already", hint="Choose another name.")


def enrol(config: Config, enrolment: Enrolment, *, replaces: str = "") -> None:
    """Write the enrolment file, durably; the enrolment of the file system *replaces* ends in the same step.

    Raises `MagbayError` when another magazine has its name; `OSError`.
    """
    with _changing(config):
        check_name(config, enrolment.name, replaces or enrolment.filesystem_uuid)
        values = {key: value for key, value in vars(enrolment).items() if value}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        # In the place of the old one: with two files a power cut between two steps would leave neither, or both.
        write_atomic(_file(config, replaces or enrolment.filesystem_uuid), text.encode(), mode=0o644)
        _name_files(config)


def forget(config: Config, name: str) -> Enrolment:
    """End the enrolment of *name*; its disk is not touched. Raises `NotFoundError`, `MagbayError` while it is open."""
    with _changing(config):
        enrolment = _named(config, name)
        if (_MAPPINGS / f"{MAPPING_PREFIX}{enrolment.luks_uuid}").exists():
            raise MagbayError(f"magazine {name} is in use", hint=f"'magbay eject {name}' first.")
        _file(config, enrolment.filesystem_uuid).unlink()
        sync_directory(config.enrolment_dir)
    return enrolment


def export(config: Config, names: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """The enrolments of *names* (none: all) as a YAML document for `take_over`, and as plain dicts.

    Raises `NotFoundError`.
    """
    chosen = [_named(config, name) for name in names] or list(enrolments(config))
    values = [{key: value for key, value in plain(item).items() if value} for item in chosen]
    return yaml.safe_dump({"enrolments": values}, sort_keys=False, allow_unicode=True), values


def take_over(config: Config, file: Path) -> tuple[list[str], list[str]]:
    """Enrol what `export` wrote; gives the names that are new and those that were known already.

    All or none: raises `ConfigError` for a file that is no such list, `MagbayError` for one that contradicts ours.
    """
    document = compose(file, "Name a file that 'magbay magazine export' has written.")
    found: EnrolmentList = Record(EnrolmentList).read(document, Where(file))
    new, known = [], []
    ours = {item.filesystem_uuid: item for item in enrolments(config)}
    for item in found.enrolments:
        mine = ours.get(item.filesystem_uuid)
        if mine is None:
            check_name(config, item.name)
            new.append(item)
        elif (mine.name, mine.luks_uuid) == (item.name, item.luks_uuid):
            known.append(item.name)
        else:
            raise MagbayError(
                f"magazine {item.name} of {file} is enrolled here as {mine.name}", hint="Forget one, or take it out."
            )
    for item in new:
        enrol(config, item)
    return [item.name for item in new], known


def _named(config: Config, name: str) -> Enrolment:
    for enrolment in enrolments(config):
        if enrolment.name == name:
            return enrolment
    raise NotFoundError(f"no enrolled magazine is called {name}", hint="'magbay magazine list' shows the known ones.")


def _file(config: Config, filesystem_uuid: str) -> Path:
    return config.enrolment_dir / f"{filesystem_uuid}.yaml"


def keep_named(config: Config, ours: Sequence[Enrolment]) -> None:
    """Finish what a cut between the two steps of `enrol` left: autofs goes by the names of the files. *ours*: what was
    read of them."""
    if not all(_file(config, item.filesystem_uuid).exists() for item in ours):
        with contextlib.suppress(OSError):
            _name_files(config)


def _name_files(config: Config) -> None:
    """Give each file the name of its file system. Raises `OSError`."""
    for path in sorted(config.enrolment_dir.glob("*.yaml")):
        with contextlib.suppress(ConfigError, FileNotFoundError):  # or it is forgotten, or named, at this moment
            proper = _file(config, load_enrolment(path).filesystem_uuid)
            if path != proper and not proper.exists():
                path.rename(proper)
                sync_directory(config.enrolment_dir)


@contextlib.contextmanager
def _changing(config: Config) -> Iterator[None]:
    """One process at a time, so that no two magazines get one name."""
    make_directory(config.enrolment_dir)
    with locked(config.enrolment_dir / ".lock"):
        _name_files(config)
        yield
