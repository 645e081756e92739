"""Where in the configuration a key belongs that was written in another place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from appliance.config.kinds import Kind, ListOf, MapOf, Record

_MOST = 4  # places in a hint; `name` and the like are nearly everywhere


def places(of: type[Any], key: str) -> list[str]:
    """Dotted places below the record *of* that have *key*, as `filesets.NAME.options[]`; none when there are many."""
    found = list(_places(Record(of), key, ""))
    return found if len(found) <= _MOST else []


def _places(kind: Kind, key: str, path: str) -> Iterator[str]:
    if isinstance(kind, MapOf):
        yield from _places(kind.item, key, f"{path}.NAME")
    elif isinstance(kind, ListOf):
        yield from _places(kind.item, key, f"{path}[]")
    elif isinstance(kind, Record):
        for field in dataclasses.fields(kind.of):
            if field.name == key:
                yield path or "the top level"
            yield from _places(field.metadata["kind"], key, f"{path}.{field.name}".lstrip("."))
