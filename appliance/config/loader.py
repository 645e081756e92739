"""Reading configuration files, strictly: unknown, duplicate, aliased or too deep is an error with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from appliance.config import elsewhere, vchanger
from appliance.config.kinds import Record, UnknownKeyError, Where, pairs
from appliance.config.place import DEFAULT_PATH
from appliance.config.schema import Config, Enrolment
from appliance.errors import ConfigError

# Deeper nesting than any valid file has; PyYAML recurses and would exhaust the stack on hostile input.
_MOST_DEPTH = 16
_MOST_BYTES = 1_000_000


def load(path: Path = DEFAULT_PATH) -> Config:
    """The configuration in *path* and in the `*.yaml` files of the folder `<stem>.d` beside it.

    A fragment may add keys, list items and mapping entries; it may not set again what is set.
    A configuration of vchanger is read, too. Raises `ConfigError`.
    """
    if is_vchanger(path):
        return vchanger.read(path).config()
    return _read(_whole(path), path)


def load_with_text(path: Path) -> tuple[Config, str]:
    """As `load`, and all of it as the text of one file, for `load_copy`; empty for a configuration of vchanger."""
    if is_vchanger(path):
        return vchanger.read(path).config(), ""
    root = _whole(path)
    return _read(root, path), str(yaml.serialize(root, Dumper=yaml.SafeDumper))


def load_copy(copy: Path, origin: Path) -> Config:
    """The configuration in *copy*, whose relative paths start where *origin* is. Raises `ConfigError`."""
    return _read(compose(copy), origin)


def _read(root: yaml.MappingNode, path: Path) -> Config:
    try:
        config: Config = Record(Config).read(root, Where(path))
    except UnknownKeyError as error:
        if found := elsewhere.places(Config, error.key):
            error.hint += f" It belongs to {' or '.join(found)}."
        raise
    return config


def _whole(path: Path) -> yaml.MappingNode:
    root = compose(path)
    fragments = path.parent / f"{path.stem}.d"
    if fragments.is_dir():
        for fragment in sorted(fragments.glob("*.yaml")):
            _merge(root, compose(fragment), Where(fragment))
    return root


def is_vchanger(path: Path) -> bool:
    """Whether *path* is a configuration of vchanger; a file that cannot be read is none."""
    try:
        with path.open("rb") as file:
            return vchanger.looks_so(file.read(_MOST_BYTES))
    except OSError:
        return False


def load_enrolment(path: Path) -> Enrolment:
    """One enrolment file. Raises `ConfigError`."""
    enrolment: Enrolment = Record(Enrolment).read(compose(path), Where(path))
    return enrolment


def compose(path: Path, missing: str = "Give the configuration with --config FILE.") -> yaml.MappingNode:
    """The YAML document of *path* as a node tree; an empty file is an empty mapping. *missing* is said when it is not
    there."""
    where = Where(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except PermissionError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="Run as a user who may read it.") from None
    except OSError as error:
        told = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(f"{path}: {told}", hint=missing) from None
    if len(data) > _MOST_BYTES:
        raise where.error(None, f"larger than {_MOST_BYTES} bytes")
    try:
        _check_shape(data, where)
        node = yaml.compose(data, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}", hint="Correct the file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}".replace("\n", " "), hint="Correct the file.") from None
    if node is None:
        mark = yaml.Mark(str(path), 0, 0, 0, "", 0)
        return yaml.MappingNode("tag:yaml.org,2002:map", [], mark, mark)
    if not isinstance(node, yaml.MappingNode):
        raise where.error(node, "wants a mapping of keys to values")
    return node


def _check_shape(data: bytes, where: Where) -> None:
    """Refuse aliases and deep nesting before anything recursive sees them."""
    depth = 0
    for event in yaml.parse(data, Loader=yaml.BaseLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _at(event, where, "anchors and aliases (& and *) are not used here")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_DEPTH:
                raise _at(event, where, f"nested more than {_MOST_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _at(event: Any, where: Where, text: str) -> ConfigError:
    return ConfigError(f"{where.file}:{event.start_mark.line + 1}: {text}", hint="Write the values out.")


def _merge(root: yaml.MappingNode, fragment: yaml.MappingNode, where: Where) -> None:
    ours = pairs(root, where)
    for key, (key_node, value) in pairs(fragment, where).items():
        if key not in ours:
            root.value.append((key_node, value))
            continue
        mine = ours[key][1]
        both = (type(mine), type(value))
        if both in ((yaml.SequenceNode, yaml.SequenceNode), (yaml.MappingNode, yaml.MappingNode)):
            mine.value.extend(value.value)
        else:
            raise where.inside(key).error(key_node, "is set in another file already", "Keep one of the two.")
