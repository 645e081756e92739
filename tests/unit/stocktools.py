"""Debian's own bls, bextract (package bacula-sd) and bscan (bacula-bscan) as judges of the volumes in tests.

Every function makes the small storage daemon configuration that the tools insist on in a temporary directory; no
daemon runs. When a tool is missing, the test is skipped with the package's name.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

_CONFIG = """
Storage {{ Name = stock-sd; Working Directory = "{work}"; Pid Directory = "{work}"; Plugin Directory = "{work}" }}
Director {{ Name = stock-dir; Password = "x" }}
Device {{ Name = FileDev; Media Type = File; Device Type = File; Archive Device = "{volumes}"; Label Media = yes
  Random Access = yes; Automatic Mount = yes; Removable Media = no; Always Open = no }}
Messages {{ Name = Standard; director = stock-dir = all }}
"""
# The empty catalog that bscan fills; of package bacula-director-sqlite3, whose daemon need not run.
_SCHEMA = Path("/usr/share/dbconfig-common/data/bacula-director-sqlite3/install/sqlite3")
_PACKAGES = {"bscan": "bacula-bscan with bacula-common-sqlite3"}
_TROUBLE = ("Error:", "error", "ERROR", "Fatal", "checksum mismatch", "Wanted ID", "shouldn't happen")


class StockToolError(AssertionError):
    """A stock tool failed or complained."""


def find(tool: str) -> str:
    """The path of *tool*; skips the test when it is not installed."""
    path = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{tool} is not installed (Debian package {_PACKAGES.get(tool, 'bacula-sd')})")
    return path


def _run(tool: str, volumes: Sequence[Path], options: Sequence[str], rest: Sequence[str], *, strict: bool) -> str:
    directories = {volume.parent.resolve() for volume in volumes}
    if len(directories) != 1:
        raise ValueError("the stock tools want all volumes in one directory")
    program = find(tool)
    with tempfile.TemporaryDirectory() as work:
        config = Path(work, "sd.conf")
        config.write_text(_CONFIG.format(work=work, volumes=directories.pop()))
        names = "|".join(volume.name for volume in volumes)
        command = [program, *options, "-c", str(config), "-V", names, "FileDev", *rest]
        done = subprocess.run(command, capture_output=True, timeout=60, cwd=work)
    text = (done.stdout + done.stderr).decode("utf-8", "surrogateescape")
    if done.returncode:
        raise StockToolError(f"{tool} ended with {done.returncode}:\n{text}")
    if strict and any(word in line for line in text.splitlines() for word in _TROUBLE if not line.startswith("-")):
        raise StockToolError(f"{tool} complained:\n{text}")
    return text


def _listed(volumes: Path | Sequence[Path]) -> Sequence[Path]:
    return [volumes] if isinstance(volumes, Path) else volumes


def bls(volumes: Path | Sequence[Path], *options: str, strict: bool = True) -> str:
    """What `bls` prints (without options: a line for each file). *strict*: any complaint fails the test."""
    return _run("bls", _listed(volumes), options, [], strict=strict)


def bls_blocks(volumes: Path | Sequence[Path]) -> str:
    """`bls -k -v`: a line for each block, checksums checked."""
    return bls(volumes, "-k", "-v")


def bls_jobs(volumes: Path | Sequence[Path]) -> str:
    """`bls -j`: volume and session labels. Error counts in them are not complaints."""
    return bls(volumes, "-j", strict=False)


def bextract(volumes: Path | Sequence[Path], target: Path, *, bsr: Path | None = None, strict: bool = True) -> str:
    """Extract into the directory *target* (made if missing); gives what the tool prints.

    Not strict where ACL, xattr or deleted entries are on the volume: 9.6 calls them unknown and goes on.
    """
    target.mkdir(exist_ok=True)
    options = ["-b", str(bsr)] if bsr else []
    return _run("bextract", _listed(volumes), options, [str(target)], strict=strict)


def bscan(volumes: Path | Sequence[Path], *queries: str) -> list[list[tuple[object, ...]]]:
    """Have `bscan` build a catalog (SQLite) out of *volumes*; gives the rows of each of the *queries* on it.

    The environment variable BACULA_SQLITE_SCHEMA names the schema where its package is not installed.
    """
    find("bscan")
    schema = Path(os.environ.get("BACULA_SQLITE_SCHEMA", _SCHEMA))
    if not schema.exists():
        pytest.skip(f"{schema} is not there (Debian package bacula-director-sqlite3)")
    with tempfile.TemporaryDirectory() as work:
        catalog = sqlite3.connect(Path(work, "catalog.db"))
        catalog.executescript(schema.read_text())
        catalog.close()
        _run("bscan", _listed(volumes), ["-s", "-m", "-w", work, "-n", "catalog"], [], strict=True)
        catalog = sqlite3.connect(Path(work, "catalog.db"))
        try:
            return [catalog.execute(query).fetchall() for query in queries]
        finally:
            catalog.close()
