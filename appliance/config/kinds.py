"""The kinds of value that a configuration key can have.

A kind reads one YAML node and gives the typed value, or raises `ConfigError` that names file, line and key.
Scalars are read as their text, never by YAML 1.1's guesses (`NO`, `22:22`, `0644` stay what was written).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import yaml

from appliance.errors import ConfigError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGTP]?)(i?)B?")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_MOST_BYTES = (1 << 63) - 1  # of a file, and of a number in the catalog
_DURATION = re.compile(r"(\d{1,6})([smhdwy])|0")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 365 * 86400}
# Names become path components, unit instances and label texts: Bacula's own alphabet, no leading dot or dash.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,126}")
_UUID = re.compile(r"[0-9A-Fa-f][0-9A-Fa-f-]{3,35}")


@dataclass(frozen=True)
class Where:
    """Where in which file a value stands: file, dotted key path, and the folder that relative paths start from."""

    file: Path
    key: str = ""

    def inside(self, key: str) -> Where:
        """The place of *key* below this one."""
        return dataclasses.replace(self, key=f"{self.key}.{key}" if self.key else key)

    def error(self, node: yaml.Node | None, text: str, hint: str = "") -> ConfigError:
        """A `ConfigError` that names file, line (1-based) and key."""
        line = f":{node.start_mark.line + 1}" if node is not None else ""
        key = f"{self.key}: " if self.key else ""
        return ConfigError(
            f"{self.file}{line}: {key}{text}", hint=hint or "Correct the file; 'magbay config check' tries it."
        )


class UnknownKeyError(ConfigError):
    """*key* is none of those that the mapping may have."""

    def __init__(self, message: str, *, hint: str, key: str) -> None:
        super().__init__(message, hint=hint)
        self.key = key


class Kind(Protocol):
    """Reads one node and describes itself (as a JSON Schema fragment)."""

    def read(self, node: yaml.Node, where: Where) -> Any: ...

    def schema(self) -> dict[str, Any]: ...


def scalar(node: yaml.Node, where: Where, wanted: str) -> str:
    """The text of a scalar *node*; *wanted* says in words what belongs here."""
    if not isinstance(node, yaml.ScalarNode):
        raise where.error(node, f"wants {wanted}, not a list or a mapping")
    return str(node.value)


@dataclass(frozen=True)
class Text:
    """A line of text, checked by *pattern*."""

    wanted: str = "a text"
    pattern: re.Pattern[str] | None = None
    convert: Callable[[str], str] | None = None

    def read(self, node: yaml.Node, where: Where) -> str:
        text = scalar(node, where, self.wanted)
        if not text or "\0" in text or "\n" in text:
            raise where.error(node, f"wants {self.wanted}, got {text!r}")
        if self.pattern is not None and not self.pattern.fullmatch(text):
            raise where.error(node, f"wants {self.wanted}, got {text!r}")
        return self.convert(text) if self.convert else text

    def schema(self) -> dict[str, Any]:
        return {"type": "string"} | ({"pattern": f"^{self.pattern.pattern}$"} if self.pattern else {})


NAME = Text("a name of 1 to 127 letters, digits and _ . : - that does not start with . or -", _NAME)
# Names of a Director's resources may have blanks inside.
RESOURCE = Text(
    "a resource's name of 1 to 127 letters, digits, blanks and _ . : -",
    re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.: -]{0,125}[A-Za-z0-9_.:-])?"),
)
UUID = Text("a UUID as blkid prints it", _UUID, str.lower)


@dataclass(frozen=True)
class Integer:
    """A whole number from *least* to *most*, both included."""

    least: int
    most: int

    def read(self, node: yaml.Node, where: Where) -> int:
        wanted = f"a whole number from {self.least} to {self.most}"
        text = scalar(node, where, wanted)
        if not re.fullmatch(r"\d{1,18}", text) or not self.least <= int(text) <= self.most:
            raise where.error(node, f"wants {wanted}, got {text!r}")
        return int(text)

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class YesNo:
    """`yes` or `no` (also true, false)."""

    def read(self, node: yaml.Node, where: Where) -> bool:
        text = scalar(node, where, "yes or no").lower()
        if text not in ("yes", "no", "true", "false"):
            raise where.error(node, f"wants yes or no, got {text!r}")
        return text in ("yes", "true")

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


def size_of(text: str) -> int | None:
    """Bytes: `10GB` (powers of 1000), `10GiB` (powers of 1024) or a bare number; None for anything else."""
    match = _SIZE.fullmatch(text)
    if not match:
        return None
    number, unit, binary = match.groups()
    size = float(number) * (1024 if binary else 1000) ** _POWERS[unit.upper()]
    return int(size) if size <= _MOST_BYTES else None


@dataclass(frozen=True)
class Size:
    """Bytes: `10GB` (powers of 1000), `10GiB` (powers of 1024) or a bare number; at least *least* bytes."""

    least: int = 0

    def read(self, node: yaml.Node, where: Where) -> int:
        text = scalar(node, where, "a size").strip()
        if not _SIZE.fullmatch(text):
            raise where.error(node, f"wants a size such as 10GB or 4GiB, got {text!r}")
        value = size_of(text)
        if value is None:
            raise where.error(node, f"wants a size that a file can have, got {text[:40]!r}")
        if value < self.least:
            raise where.error(node, f"wants at least {self.least} bytes, got {text!r}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{_SIZE.pattern}$"}


def seconds_of(text: str) -> int:
    """Seconds of a duration such as `90s`, `10m`, `2h`, `7d`, `4w`, `1y` (365 days), or `0`. Raises `ValueError`."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"wants a duration such as 30m, 2h, 7d or 1y, got {text[:40]!r}")
    return int(match[1]) * _UNITS[match[2]] if match[1] else 0


@dataclass(frozen=True)
class Duration:
    """Seconds, as `seconds_of` reads them."""

    def read(self, node: yaml.Node, where: Where) -> int:
        text = scalar(node, where, "a duration")
        try:
            return seconds_of(text)
        except ValueError as error:
            raise where.error(node, str(error)) from None

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^({_DURATION.pattern})$"}


@dataclass(frozen=True)
class PathKind:
    """A path; a relative one starts at the folder of the configuration file."""

    def read(self, node: yaml.Node, where: Where) -> Path:
        text = scalar(node, where, "a path")
        if not text or "\0" in text or "\n" in text:
            raise where.error(node, f"wants a path, got {text!r}")
        try:
            return where.file.absolute().parent / Path(text).expanduser()
        except RuntimeError:
            raise where.error(node, f"wants a path, got {text!r}, whose user is not known here") from None

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True)
class Choice:
    """One word of an enumeration, by its value."""

    of: type[Enum]

    def read(self, node: yaml.Node, where: Where) -> Enum:
        words = [str(member.value) for member in self.of]
        text = scalar(node, where, "one of " + ", ".join(words))
        for member in self.of:
            if str(member.value).lower() == text.lower():
                return member
        raise where.error(node, f"wants one of {', '.join(words)}, got {text!r}")

    def schema(self) -> dict[str, Any]:
        return {"enum": [member.value for member in self.of]}


@dataclass(frozen=True)
class ListOf:
    """A list of *least* items or more, given as a tuple."""

    item: Kind
    least: int = 0

    def read(self, node: yaml.Node, where: Where) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise where.error(node, "wants a list")
        if len(node.value) < self.least:
            raise where.error(node, "wants at least one entry")
        return tuple(self.item.read(child, where.inside(str(index))) for index, child in enumerate(node.value))

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.item.schema()} | ({"minItems": self.least} if self.least else {})


def pairs(node: yaml.Node, where: Where) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Key text to (key node, value node) of a mapping; a key given twice is an error."""
    if not isinstance(node, yaml.MappingNode):
        raise where.error(node, "wants a mapping of keys to values")
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key_node, value_node in node.value:
        key = scalar(key_node, where, "a plain key")
        if key in found:
            first = found[key][0].start_mark.line + 1
            raise where.inside(key).error(key_node, f"given twice (first in line {first})", "Keep one of the two.")
        found[key] = (key_node, value_node)
    return found


@dataclass(frozen=True)
class MapOf:
    """A mapping of names to values of one kind."""

    item: Kind

    def read(self, node: yaml.Node, where: Where) -> Mapping[str, Any]:
        found = pairs(node, where)
        for key, (key_node, _value) in found.items():
            if not _NAME.fullmatch(key):
                raise where.error(key_node, f"wants {NAME.wanted} as a key, got {key!r}")
        return {key: self.item.read(value, where.inside(key)) for key, (_key, value) in found.items()}

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.item.schema()}


@dataclass(frozen=True)
class Record:
    """A mapping with fixed keys: a frozen dataclass made of `setting` fields."""

    of: type[Any]

    def read(self, node: yaml.Node, where: Where) -> Any:
        found = pairs(node, where)
        fields = {field.name: field for field in dataclasses.fields(self.of)}
        for key, (key_node, _value) in found.items():
            if key not in fields:
                known = "Known here: " + ", ".join(sorted(fields)) + "."
                plain = where.inside(key).error(key_node, "unknown key", known)
                raise UnknownKeyError(plain.message, hint=plain.hint, key=key)
        values = {
            key: fields[key].metadata["kind"].read(value, where.inside(key)) for key, (_k, value) in found.items()
        }
        for name, field in fields.items():
            if name not in values and _required(field):
                raise where.inside(name).error(node, "is missing")
        try:
            return self.of(**values)
        except ValueError as error:
            raise where.error(node, str(error)) from None

    def schema(self) -> dict[str, Any]:
        properties = {}
        for field in dataclasses.fields(self.of):
            properties[field.name] = field.metadata["kind"].schema() | {"description": field.metadata["doc"]}
        required = [field.name for field in dataclasses.fields(self.of) if _required(field)]
        return {"type": "object", "properties": properties, "additionalProperties": False, "required": required}


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def setting(kind: Kind, doc: str, *, default: Any = dataclasses.MISSING, example: str = "") -> Any:
    """A dataclass field that is a configuration key: its kind, one sentence of documentation, default, example text."""
    metadata = {"kind": kind, "doc": doc, "example": example}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
