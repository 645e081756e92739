"""What everybody may know of an unfinished rotation of the key: which magazines still need the previous one.

Keys and records of key slots are root's alone. Root's commands leave the answer in `state_dir/key-rotation.json`, a
list of LUKS UUIDs, while a rotation is unfinished.
"""

from __future__ import annotations

import json
from pathlib import Path

from appliance.config.schema import Config
from appliance.host.files import locked, sync_directory, write_atomic
from appliance.keys import headers, records
from appliance.keys.rotation import Keys
from appliance.magazines.attached import enrolments


def note(config: Config, keys: Keys) -> None:
    """Write down how far the rotation is, or that there is none. Raises `MagbayError`, `OSError`."""
    # Several magazines may be re-keyed at the same time: who comes last has seen the records of all.
    with locked(headers.directory(config.state_dir) / "rotation.lock"):
        if not keys.rotating:
            if _file(config).exists():
                _file(config).unlink()
                sync_directory(config.state_dir)
            return
        found = {e.luks_uuid: records.read(config.state_dir, e.luks_uuid) for e in enrolments(config)}
        current = keys.key.fingerprint()
        needed = [uuid for uuid, record in found.items() if record is None or record.key != current]
        write_atomic(_file(config), json.dumps({"needed_by": needed}).encode(), mode=0o644, adopted=False)


def needed_by(config: Config) -> tuple[str, ...] | None:
    """Names of the magazines that still need the previous key; None when no rotation is unfinished, or the answer
    cannot be read."""
    try:
        uuids = set(json.loads(_file(config).read_bytes())["needed_by"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tuple(enrolment.name for enrolment in enrolments(config) if enrolment.luks_uuid in uuids)


def advice(needed: tuple[str, ...]) -> str:
    """What is to do, in a sentence."""
    if needed:
        return f"The previous key is still needed by: {', '.join(needed)}. They are re-keyed when they are plugged in."
    return "No magazine needs the previous key any more: 'magbay key rotate --finish' erases it."


def _file(config: Config) -> Path:
    return config.state_dir / "key-rotation.json"
