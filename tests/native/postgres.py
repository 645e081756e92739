"""A PostgreSQL server of our own: on a socket in a directory of its own, gone with the tests.

It does not run as root: as the user postgres where there is one, else as nobody.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


class Server:
    """A running server; `address` gives a schema of its own to each name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers. Nothing is synced: power cuts are not what is tried here."""
        options = ["-D", str(self.data), "-k", str(self.folder), "-c", "listen_addresses=", "-c", "fsync=off"]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen([*_as_postgres(), str(_BINARIES[-1] / "postgres"), *options], stderr=log)
        deadline = time.monotonic() + 60
        ready = [str(_BINARIES[-1] / "pg_isready"), "-q", "-U", "postgres", "-h", str(self.folder)]
        while subprocess.run(ready).returncode:
            assert self._process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT at once but orderly, SIGQUIT as a crash does."""
        if self._process:
            leader = int((self.data / "postmaster.pid").read_text().split()[0])
            os.kill(leader, how)
            self._process.wait(30)
            self._process = None

    def address(self, schema: str) -> str:
        """For `catalog.database`; the schema is made new and empty."""
        self.sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}")
        return f"postgresql://postgres@/postgres?host={quote(str(self.folder))}&options=-csearch_path%3D{schema}"

    def sql(self, statements: str) -> str:
        """Run them; gives what is printed."""
        command = ["psql", "-h", str(self.folder), "-U", "postgres", "-qtA", "-v", "ON_ERROR_STOP=1", "-c", statements]
        environment = os.environ | {"PGOPTIONS": "--client-min-messages=warning"}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _as_postgres() -> list[str]:
    one = _user()
    words = ["setpriv", f"--reuid={one.pw_uid}", f"--regid={one.pw_gid}", "--clear-groups", "--"]
    return words if os.geteuid() == 0 else []


@contextmanager
def server() -> Iterator[Server]:
    """A server with an empty database. Skips where there is none (Debian package postgresql)."""
    if not _BINARIES or not shutil.which("psql"):
        pytest.skip("no PostgreSQL server here (Debian package postgresql)")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="magbay-pg-", dir="/tmp"))  # names of sockets are short
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _user().pw_uid, _user().pw_gid)
        options = ["-U", "postgres", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8"]
        command = [*_as_postgres(), str(_BINARIES[-1] / "initdb"), "-D", str(folder / "data"), *options]
        subprocess.run(command, check=True, capture_output=True, cwd="/")
        one = Server(folder)
        one.start()
        try:
            yield one
        finally:
            one.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
