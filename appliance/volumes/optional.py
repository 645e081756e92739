"""Libraries that only some volumes need: loaded when first wanted, named in the error when they are missing."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from appliance.volumes.errors import UnsupportedError

# Module -> (what it is for, name at PyPI, Debian package if there is one). The extras are in pyproject.toml.
_KNOWN = {
    "xxhash": ("block checksums and XXH digests of Bacula 15 and Bareos", "xxhash", "python3-xxhash"),
    "lz4.block": ("data compressed with LZ4 or LZ4HC", "lz4", "python3-lz4"),
    "zstandard": ("data compressed with Zstandard", "zstandard", "python3-zstandard"),
    "fastlz": ("data with LZFAST", "pyfastlz", ""),
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
        what, name, package = _KNOWN[module]
        pip = f"pip install {name}"
        raise UnsupportedError(
            f"{doing} {what} needs the Python library {name}, which is not installed",
            hint=f"Install the package {package} (or: {pip})." if package else f"Install it with '{pip}'.",
        )
    return found
