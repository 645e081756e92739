"""Which magazines were written to since the checksums on them were made: `state_dir/unlisted`, a file for each.

Jobs of ours leave the mark when they open a volume, the media agent when it sees that a daemon of Bacula or Bareos has
written. Making the checksums anew takes it away when it is done: killed in between, the mark is still there.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from appliance.config.schema import Config
from appliance.host.files import adopt

_BEGUN = ".begun"  # behind the name of a mark whose checksums are being made


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
    """Whether it was written to since its checksums were made."""
    path = _folder(config) / identity
    return path.exists() or path.with_name(identity + _BEGUN).exists()


def begin(config: Config, identity: str) -> None:
    """Its checksums are about to be made: what is written from now on leaves a new mark. Raises `OSError`."""
    path = _folder(config) / identity
    with contextlib.suppress(FileNotFoundError):
        path.rename(path.with_name(identity + _BEGUN))


def done(config: Config, identity: str) -> None:
    """They are made, of all that was written before `begin`. Raises `OSError`."""
    (_folder(config) / f"{identity}{_BEGUN}").unlink(missing_ok=True)


def _folder(config: Config) -> Path:
    return config.state_dir / "unlisted"
