"""The head of a copy of a job's catalog, as JSON gives it: whether all in it is what `copies.header` writes.

A magazine may be anybody's: what a copy claims is looked at before any of it is used.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from appliance.changer import inventory
from appliance.storage.model import JobStatus, Level, Media, VolumeStatus

_MOST = 1 << 62  # sums of two fit into the numbers of a database
_TEXTS = ("name", "pool", "fileset", "fileset_md5", "client", "type")
_NUMBERS = (
    "job_id", "session_id", "session_time", "started", "finished", "files", "bytes", "job_bytes", "errors", "warnings",
)  # fmt: skip


def number(value: Any) -> int:
    """A count, id, address or time. Raises `ValueError`."""
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError(value)
    return value


def text(value: Any) -> str:
    """Words that any database can hold. Raises `ValueError`."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(value)
    value.encode("utf-8")
    return value


def job(found: Any) -> dict[str, Any]:
    """The fields of a job that ended well. Raises `ValueError`, `KeyError`, `TypeError`, as all below."""
    values: dict[str, Any] = {name: text(found[name]) for name in _TEXTS}
    values |= {name: number(found[name]) for name in _NUMBERS}
    if not JobStatus(found["status"]).good:
        raise ValueError(found["status"])
    return values | {"level": Level(found["level"]).value, "status": found["status"]}


def media(found: Any) -> Media:
    """A volume."""
    if not inventory.legal_name(text(found["name"])):
        raise ValueError(found["name"])
    values: dict[str, Any] = {name: text(found[name]) for name in ("name", "magazine", "identity", "pool")}
    values |= {name: number(found[name]) for name in ("media_id", "bytes", "first_written", "last_written")}
    return Media(**values, status=VolumeStatus(found["status"]))


def stretch(found: Any, volumes: Container[str]) -> tuple[str, int, int, int, int]:
    """A volume's name, one of *volumes*, FileIndexes and addresses."""
    name, first, last, start, end = found
    if name not in volumes:
        raise ValueError(name)
    return name, number(first), number(last), number(start), number(end)
