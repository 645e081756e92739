"""Which magazines were written to since the lists of volumes on them were made: `state_dir/unlisted`, a file for each.

Jobs of ours leave the mark when they open a volume, and making the lists anew takes it away. What a daemon of Bacula or
Bareos writes leaves none.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from appliance.config.schema import Config
from appliance.host.files import adopt


def mark(config: Config, identity: str) -> None:
    """The magazine *identity* is written to. Directories have no lists."""
    if identity.startswith("directory:"):
        return
    with contextlib.suppress(OSError):  # the job matters more
        folder = _folder(config)
        if not folder.exists():
            folder.mkdir()
            adopt(folder, config.state_dir)
        path = folder / identity
        path.touch()
        adopt(path, folder)


def marked(config: Config, identity: str) -> bool:
    """Whether it was written to since its lists were made."""
    return (_folder(config) / identity).exists()


def clear(config: Config, identity: str) -> None:
    """Its lists are about to be made: what is written from now on leaves a new mark. Raises `OSError`."""
    (_folder(config) / identity).unlink(missing_ok=True)


def _folder(config: Config) -> Path:
    return config.state_dir / "unlisted"
