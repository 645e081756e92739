"""What has to be remembered between two talks with the Director.

`state_dir/director.json`: `{"format": 1, "disabled": [VOLUME, …]}`, the volumes whose Enabled flag we took away, so
that one that an operator disabled stays disabled when its magazine comes back.
`state_dir/seen.json`: `{"format": 1, "magazines": {NAME: {"when": UNIX SECONDS, "where": TEXT}}}`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import MagbayError
from appliance.host.files import make_directory, write_atomic

DISABLED = "director.json"
SEEN = "seen.json"
_FORMAT = 1


@dataclass(frozen=True)
class Sighting:
    """When (Unix seconds) and where a magazine was last in a bay."""

    when: float
    where: str


def disabled(state_dir: Path) -> frozenset[str]:
    """The volumes that we disabled. Raises `MagbayError` for a damaged record."""
    document = _read(state_dir / DISABLED)
    try:
        names = document.get("disabled", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError
        return frozenset(names)
    except (TypeError, AttributeError):
        raise _damaged(state_dir / DISABLED) from None


def keep_disabled(state_dir: Path, names: Collection[str]) -> None:
    """Remember, durably, that *names* are disabled by us. Raises `OSError`."""
    _write(state_dir / DISABLED, {"format": _FORMAT, "disabled": sorted(names)})


def sightings(state_dir: Path) -> dict[str, Sighting]:
    """Magazine name to where it was last seen. A damaged record is an empty one: it only helps people search."""
    try:
        found = _read(state_dir / SEEN).get("magazines", {})
        return {name: Sighting(float(item["when"]), str(item["where"])) for name, item in found.items()}
    except (MagbayError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def keep_sightings(state_dir: Path, seen: Mapping[str, Sighting]) -> None:
    """Remember *seen*. Raises `OSError`."""
    magazines = {name: {"when": round(item.when), "where": item.where} for name, item in sorted(seen.items())}
    _write(state_dir / SEEN, {"format": _FORMAT, "magazines": magazines})


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise _damaged(path) from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise _damaged(path)
    return document


def _damaged(path: Path) -> MagbayError:
    return MagbayError(
        f"{path}: this record is damaged",
        hint="Remove it. Volumes that are disabled in the catalog then stay so until 'update volume=V enabled=yes'.",
    )


def _write(path: Path, document: dict[str, Any]) -> None:
    make_directory(path.parent)
    write_atomic(path, json.dumps(document, indent=1).encode() + b"\n", mode=0o644)
