"""How far the verification of each magazine has come, and how the last whole one ended: `state_dir/scrubs/*.json`.

Written durably every few seconds and whenever a verification stops, so that it goes on there another day.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.host import files

_MOST_KEPT = 1000  # lines, and files of each volume


@dataclass
class Damaged:
    """What damage on one volume touches: names of files by JobId (0: of jobs that the catalog does not know)."""

    files: dict[str, list[str]] = field(default_factory=dict)

    def add(self, job_id: int, name: str) -> None:
        """A file is touched."""
        names = self.files.setdefault(str(job_id), [])
        if len(names) < _MOST_KEPT and name not in names[-1:]:
            names.append(name)


@dataclass
class Round:
    """A verification that is not at its end. Times in Unix seconds, addresses in bytes.

    *done*: volumes that are read, with the time of their labels (microseconds). *volume* and *address*: where reading
    goes on. *judged*: of each session on that volume the last file that is judged.
    """

    began: int = 0
    done: dict[str, int] = field(default_factory=dict)
    volume: str = ""
    label: int = 0
    address: int = 0
    judged: dict[str, int] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0
    read: int = 0
    error_count: int = 0
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    jobs: list[int] = field(default_factory=list)
    damaged: dict[str, Damaged] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)

    def is_unread(self, what: str) -> None:
        """The data of a file cannot be compared."""
        self.unread[what] = self.unread.get(what, 0) + 1

    def error(self, line: str) -> None:
        """Something is not as it was saved."""
        self.error_count += 1
        if len(self.errors) < _MOST_KEPT:
            self.errors.append(line)


@dataclass
class Scrub:
    """What is known of one magazine: the running *round*, if any, and the *last* whole one (a `Round` with *ended*)."""

    magazine: str
    round: Round | None = None
    last: dict[str, Any] | None = None


def file_of(config: Config, identity: str) -> Path:
    """The file of a magazine."""
    return config.state_dir / "scrubs" / f"{identity.replace('/', '_')}.json"


@contextlib.contextmanager
def alone(config: Config, identity: str, magazine: str) -> Iterator[None]:
    """Nobody else verifies the magazine meanwhile. Raises `MagbayError` when somebody does already, `OSError`."""
    place = file_of(config, identity)
    if not place.parent.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        files.adopt(place.parent, config.state_dir)
    try:
        with files.locked(place.with_suffix(".lock"), seconds=0):
            files.adopt(place.with_suffix(".lock"), config.state_dir)
            yield
    except TimeoutError:
        hint = "'magbay magazine show' tells how far it is."
        raise MagbayError(f"magazine {magazine} is being verified already", hint=hint) from None


def load(config: Config, identity: str, magazine: str) -> Scrub:
    """What is known; nothing where there is no file, or a damaged one: then everything is verified anew."""
    try:
        kept = json.loads(file_of(config, identity).read_bytes())
        running = kept["round"]
        if running is not None:
            running["damaged"] = {name: Damaged(**one) for name, one in running["damaged"].items()}
            running = Round(**running)
        return Scrub(magazine, running, kept["last"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Scrub(magazine)


def save(config: Config, identity: str, scrub: Scrub) -> None:
    """Keep it durably. Raises `OSError`."""
    files.write_atomic(file_of(config, identity), json.dumps(asdict(scrub)).encode("ascii"))


def describe(config: Config, identity: str, magazine: str) -> dict[str, Any]:
    """For `magazine show` and `status`: when it was last verified, with which result, and where a round goes on."""
    known = load(config, identity, magazine)
    last = known.last or {}
    running = known.round
    return {
        "last": last.get("ended"),
        "errors": last.get("error_count"),
        "files": last.get("files"),
        "bytes": last.get("read"),
        "began": running.began if running else None,
        "resumes_at": {"volume": running.volume, "address": running.address} if running and running.volume else None,
        "errors_so_far": running.error_count if running else None,
    }
