"""What the schema says of itself: an example file, a JSON Schema, and the values in force."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from appliance.config.kinds import ListOf, MapOf, Record
from appliance.config.schema import Config


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the configuration file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "magbay.yaml"} | Record(Config).schema()


def example() -> str:
    """A commented example of every key, valid as it stands."""
    return "\n".join(_record(Config, 0)) + "\n"


def _record(of: type[Any], indent: int) -> list[str]:
    lines: list[str] = []
    for field in dataclasses.fields(of):
        pad = " " * indent
        lines.append(f"{pad}# {field.metadata['doc']}")
        lines.extend(_entry(field.name, field.metadata["kind"], field.metadata["example"], indent))
    return lines


def _entry(name: str, kind: Any, text: str, indent: int) -> list[str]:
    pad = " " * indent
    if isinstance(kind, Record):
        return [f"{pad}{name}:", *_record(kind.of, indent + 2)]
    if isinstance(kind, ListOf) and isinstance(kind.item, Record):
        body = _record(kind.item.of, indent + 4)
        body[1] = body[1][: indent + 2] + "- " + body[1].lstrip()
        return [f"{pad}{name}:", *body]
    if isinstance(kind, MapOf) and isinstance(kind.item, Record):
        return [f"{pad}{name}:", f"{pad}  Default:", *_record(kind.item.of, indent + 4)]
    return [f"{pad}{name}: {text}"]


def plain(value: Any) -> Any:
    """*value* (a configuration or a part of one) as plain dicts, lists and texts for printing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
