"""The image and the package, built on demand by image/build."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]


def cache_directory() -> Path:
    """The cache that image/build uses, too; made when missing."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(os.environ.get("MAGBAY_CACHE") or base / "magbay").absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _build(*options: str) -> Path:
    command = [str(CHECKOUT / "image/build"), *options]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with status {result.returncode}; what it said is above.")
    return Path(result.stdout.strip().splitlines()[-1])


def image_path() -> Path:
    """The image of this checkout: from the cache, or built now."""
    return _build()


def build_package() -> Path:
    """The Debian package of this checkout: from the cache, or built now."""
    return _build("--deb")
