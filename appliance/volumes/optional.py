"""Libraries that only some volumes need: loaded when first wanted, named in the error when they are missing."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from appliance.volumes.errors import UnsupportedError

# Module -> (what it reads, Debian package). The extras of the same names are in pyproject.toml.
_KNOWN = {
    "xxhash": ("block checksums and XXH digests of Bacula 15 and Bareos", "python3-xxhash"),
    "lz4.block": ("data compressed with LZ4 or LZ4HC", "python3-lz4"),
    "zstandard": ("data compressed with Zstandard", "python3-zstandard"),
}


@lru_cache(maxsize=8)
def find(module: str) -> Any:
    """The module *module*, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def need(module: str, doing: str = "reading") -> Any:
    """The module *module*; `UnsupportedError` says which package to install for what (*doing*: the verb)."""
    found = find(module)
    if found is None:
        what, package = _KNOWN[module]
        name = module.partition(".")[0]
        raise UnsupportedError(
            f"{doing} {what} needs the Python library {name}, which is not installed",
            hint=f"Install the package {package} (or: pip install {name}).",
        )
    return found
