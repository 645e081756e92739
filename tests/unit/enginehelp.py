"""What the tests of the storage engine share: a rich tree, comparing trees, running jobs and the command line."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.host import workers
from appliance.storage import backup, restore, tables
from appliance.storage.database import SQLite
from appliance.storage.model import Level

ROOT = Path(__file__).parents[2]
PREFIX = "state_dir: state\nrun_dir: run\nmount_dir: mnt\nkey_file: key\nchanger: {name: c0, drives: 2}\n"
MAGAZINES = "magazines:\n  - {name: m1, directory: m1}\n  - {name: m2, directory: m2}\n"


def configuration(folder: Path, pool: str = "maximum_volume_bytes: 10GB", magazines: str = MAGAZINES) -> Config:
    """A configuration in *folder* with one pool."""
    file = folder / "magbay.yaml"
    file.write_text(f"{PREFIX}{magazines}pools:\n  Default: {{{pool}}}\n")
    return load(file)


def save(config: Config, *paths: Path, **options: Any) -> backup.JobResult:
    """Run a backup; its log lines are left out."""
    return backup.run(config, backup.BackupRequest(paths, **options), log=lambda text, fields: None)


def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have backups read in this process, so that what a test puts in the place of system calls counts."""
    monkeypatch.setattr(workers, "worthwhile", lambda: False)


def sessions_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have new catalogs count their sessions from 1, as those that were made by older versions did."""
    monkeypatch.setattr(tables, "SESSIONS", 1)


def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with what is asked of SQLite from now on."""
    asked: list[str] = []
    really = SQLite.execute

    def execute(self: SQLite, query: str, *more: Any) -> Any:
        asked.append(query)
        return really(self, query, *more)

    monkeypatch.setattr(SQLite, "execute", execute)
    return asked


def bring_back(config: Config, to: Path, **options: Any) -> restore.RestoreResult:
    """Run a restore."""
    return restore.run(config, restore.RestoreRequest(to, **options), log=lambda text, fields: None)


@dataclass(frozen=True)
class Done:
    """How a command line ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)


def magbay(folder: Path, *words: str, json_output: bool = False) -> Done:
    """Run `python -m appliance` as a user does; a traceback fails the test."""
    options = ["--json"] if json_output else []
    command = [sys.executable, "-m", "appliance", "--config", str(folder / "magbay.yaml"), *options, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def rich_tree(top: Path) -> Path:
    """Every kind of thing that can be saved. Device nodes only for root."""
    top.mkdir(parents=True)
    base = os.fsencode(top)
    (top / "plain.txt").write_bytes(b"hello\n")
    (top / "empty").touch()
    (top / "big.bin").write_bytes(os.urandom(3_000_017))
    (top / "exact").write_bytes(os.urandom(1 << 20))
    (top / "setuid").write_bytes(b"x")
    (top / "setuid").chmod(0o4755)
    (top / "sticky").mkdir(mode=0o700)
    (top / "sticky").chmod(0o1777)
    (top / "no-rights").write_bytes(b"secret")
    (top / "no-rights").chmod(0)
    (top / "past").write_bytes(b"old")
    os.utime(top / "past", (-86400, -259200))
    (top / "future").write_bytes(b"new")
    os.utime(top / "future", (2**32 + 5, 2**32 + 7))
    (top / "links").mkdir()
    (top / "links" / "relative").symlink_to("../plain.txt")
    (top / "links" / "dangling").symlink_to("/nowhere/at all")
    os.link(top / "plain.txt", top / "links" / "hard")
    os.link(top / "plain.txt", top / "hard-2")
    os.mkfifo(top / "fifo")
    if os.geteuid() == 0:
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(top / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 250))
        os.chown(top / "empty", 12345, 54321)
    for name in (b"odd\xff\xfe bytes", b"new\nline", b"blank  blanks ", "ümläut".encode(), b"n" * 204):
        with open(base + b"/" + name, "wb") as file:
            file.write(name)
    sparse_file(top / "sparse", 5_000_000, {0: b"start", 2_000_000: b"middle" * 1000})
    sparse_file(top / "sparse-end", 4_000_000, {3_999_990: b"0123456789"})
    sparse_file(top / "all-hole", 1_000_000, {})
    sparse_file(top / "many-holes", 1_000_000, {at: b"d" * 100 for at in range(0, 900_000, 30_000)})
    deep = top / "deep"
    for number in range(30):
        deep = deep / f"level-{number:02}-{'x' * 60}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"deep down")
    set_xattr(top / "plain.txt", "user.colour", b"green\0blue")
    set_xattr(top / "links", "user.kind", b"")
    os.utime(top / "links", (1_000_000_000, 1_000_000_001))
    listener = socket.socket(socket.AF_UNIX)
    here = os.open(top, os.O_RDONLY)
    try:
        listener.bind(f"/proc/self/fd/{here}/socket")
    finally:
        os.close(here)
        listener.close()
    return top


def sparse_file(path: Path, size: int, data: dict[int, bytes]) -> None:
    """A file of *size* bytes with *data* at offsets and holes between."""
    with open(path, "wb") as file:
        for offset, piece in data.items():
            file.seek(offset)
            file.write(piece)
        file.truncate(size)


def set_xattr(path: Path, name: str, value: bytes) -> None:
    """Set an extended attribute where the file system has them."""
    try:
        os.setxattr(path, name, value)
    except OSError:
        return


def facts(top: Path, *, times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """What makes up each thing below *top*, by its name from there; sockets are left out."""
    found: dict[bytes, tuple[object, ...]] = {}
    names: dict[int, list[bytes]] = {}
    base = os.fsencode(top)
    for folder, folders, files in os.walk(base):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISSOCK(status.st_mode):
                continue
            key = os.path.relpath(path, base)
            names.setdefault(status.st_ino, []).append(key)
            found[key] = _facts(path, status, times)
    for same in names.values():
        for key in same:
            found[key] += (tuple(sorted(same)),)
    return found


def _facts(path: bytes, status: os.stat_result, times: bool) -> tuple[object, ...]:
    content: object = None
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = (status.st_size, hashlib.sha256(file.read()).hexdigest())
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif not stat.S_ISDIR(status.st_mode):
        content = status.st_rdev
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    when = int(status.st_mtime_ns // 10**9) if times else 0
    return (status.st_mode, status.st_uid, status.st_gid, when, content, tuple(sorted(xattrs.items())))


def assert_same(source: Path, restored: Path) -> None:
    """The two trees are equal: names, types, modes, owners, times, links, contents, extended attributes."""
    wanted, got = facts(source), facts(restored)
    assert got.keys() == wanted.keys()
    assert {k: v for k, v in got.items() if v != wanted[k]} == {k: v for k, v in wanted.items() if v != got[k]}


def below(target: Path, path: Path) -> Path:
    """Where *path* is restored to below *target*."""
    return target / path.relative_to("/")


def volume(config: Config, name: str) -> Path:
    """The file of a volume."""
    for magazine in config.magazines:
        if (magazine.directory / name).exists():
            return magazine.directory / name
    raise AssertionError(f"no volume {name}")


LEVELS = {level.word: level for level in Level}
