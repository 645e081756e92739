"""A real Bacula (Director, storage daemon, file daemon of Debian) on loopback, with our changer, below one folder."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from appliance.changer.inventory import legal_name
from appliance.config.loader import load
from appliance.config.schema import Config, DirectorKind
from appliance.director.pieces import OtherSide, pieces

SCHEMA = Path("/usr/share/dbconfig-common/data/bacula-director-sqlite3/install/sqlite3")
PROGRAMS = {
    "bacula-dir": "bacula-director",
    "bacula-sd": "bacula-sd",
    "bacula-fd": "bacula-fd",
    "bconsole": "bacula-console",
}
CHANGER = Path(sys.executable).with_name("magbay-changer")

_MAGBAY = """\
state_dir: state
run_dir: {run}
mount_dir: mnt
changer: {{name: c0, drives: 2, slots: 200}}
magazines:
{magazines}
pools:
  Default: {{maximum_volume_bytes: {volume_bytes}}}
director:
  kind: bacula
  console_config: bconsole.conf
  storage: {storage}
  pool: {pool}
  media_type: magbay
  timeout: 20
"""

_DIR = """\
Director {{
  Name = t-dir; DirAddress = 127.0.0.1; DirPort = {dir_port}; QueryFile = /dev/null
  Working Directory = "{root}/var"; Pid Directory = "{root}/var"; Maximum Concurrent Jobs = 20
  Password = "console-secret-7"; Messages = Standard
}}
Catalog {{ Name = Cat; dbname = "bacula"; dbuser = ""; dbpassword = "" }}
Client {{ Name = t-fd; Address = 127.0.0.1; FDPort = {fd_port}; Catalog = Cat; Password = "fd-pw"
  Maximum Concurrent Jobs = 20; AutoPrune = no }}
Messages {{ Name = Standard; append = "{root}/var/log" = all, !skipped; console = all, !skipped, !saved
  catalog = all, !skipped, !saved }}
FileSet {{ Name = data; Ignore FileSet Changes = yes
  Include {{ Options {{ signature = MD5; sparse = yes }} File = "{root}/data" }} }}
JobDefs {{ Name = defaults; Type = Backup; Level = Full; Client = t-fd; FileSet = data; Storage = "{storage}"
  Pool = "{pool}"; Messages = Standard; Allow Duplicate Jobs = yes; Maximum Concurrent Jobs = 5
  Spool Attributes = no }}
Job {{ Name = one; JobDefs = defaults }}
Job {{ Name = two; JobDefs = defaults }}
Job {{ Name = slow-one; JobDefs = defaults; Maximum Bandwidth = 300kb/s
}}
Job {{ Name = slow-two; JobDefs = defaults; Maximum Bandwidth = 300kb/s
}}
Job {{ Name = restore; Type = Restore; Client = t-fd; FileSet = data; Storage = "{storage}"; Pool = "{pool}"
  Messages = Standard; Where = "{root}/restored" }}
@{root}/bacula-dir-magbay.conf
"""

_SD = """\
Storage {{ Name = t-sd; SDAddress = 127.0.0.1; SDPort = {sd_port}; Working Directory = "{root}/var"
  Pid Directory = "{root}/var"; Maximum Concurrent Jobs = 20 }}
Director {{ Name = t-dir; Password = "sd-secret-8" }}
Messages {{ Name = Standard; director = t-dir = all }}
@{root}/bacula-sd-magbay.conf
"""

_FD = """\
FileDaemon {{ Name = t-fd; FDAddress = 127.0.0.1; FDPort = {fd_port}; Working Directory = "{root}/var"
  Pid Directory = "{root}/var"; Maximum Concurrent Jobs = 20 }}
Director {{ Name = t-dir; Password = "fd-pw" }}
Messages {{ Name = Standard; director = t-dir = all, !skipped, !restored, !saved }}
"""

_CONSOLE = """\
Director {{ Name = t-dir; DIRport = {dir_port}; address = 127.0.0.1; Password = "console-secret-7" }}
"""


def missing() -> str:
    """Why the rig cannot run here; empty when it can."""
    absent = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if not SCHEMA.exists():
        absent.append("bacula-director-sqlite3")
    return f"Debian packages are missing: {' '.join(absent)}" if absent else ""


def _ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Rig:
    """Daemons and magazines below *root*. `stop` ends every process that was started."""

    def __init__(
        self,
        root: Path,
        magazines: int = 2,
        volumes: int = 4,
        storage: str = "chg",
        pool: str = "Default",
        volume_bytes: str = "2MB",
    ) -> None:
        """Where *storage* has blanks, the paths have some too."""
        self.root, self.changer = root, CHANGER
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("var", "data", "away"):
            (root / name).mkdir()
        names = [f"m{number}" for number in range(1, magazines + 1)]
        blank = " " in storage
        self.file = root / ("magbay conf.yaml" if blank else "magbay.yaml")
        folders = {name: f"magazine {name}" if blank else name for name in names}
        lines = "\n".join(f"  - {{name: {name}, directory: {folder}}}" for name, folder in folders.items())
        run = "my run" if blank else "run"
        text = _MAGBAY.format(magazines=lines, run=run, storage=storage, pool=pool, volume_bytes=volume_bytes)
        # Then the Media Type is the storage's name, and the Director is asked for it.
        self.file.write_text(text.replace("  media_type: magbay\n", "") if blank else text)
        for name, folder in folders.items():
            (root / folder).mkdir()
            for number in range(1, volumes + 1):
                volume = f"{name}-{number:04d}"
                assert legal_name(volume)
                (root / folder / volume).touch()
        self.config: Config = load(self.file)
        dir_port, sd_port, fd_port = _ports(3)
        self._listens = {"bacula-dir": dir_port, "bacula-sd": sd_port, "bacula-fd": fd_port}
        values = {
            "storage": storage,
            "pool": pool,
            "root": root,
            "dir_port": dir_port,
            "sd_port": sd_port,
            "fd_port": fd_port,
        }
        texts = {"bacula-dir": _DIR, "bacula-sd": _SD, "bacula-fd": _FD, "bconsole": _CONSOLE}
        for name, text in texts.items():
            (root / f"{name}.conf").write_text(text.format(**values))
        (root / "bconsole.conf").chmod(0o640)
        (root / "sd-password").write_text('"sd-secret-8"\n')
        other = OtherSide(port=sd_port, password_file=root / "sd-password", client="t-fd", changer_command=str(CHANGER))
        for name, text in pieces(self.config, self.file, other, DirectorKind.BACULA).items():
            (root / name).write_text(text)
        catalog = sqlite3.connect(root / "var" / "bacula.db")
        catalog.executescript(SCHEMA.read_text())
        catalog.close()

    def start(self, *names: str) -> None:
        """Start daemons (default: all) in the foreground and wait until they answer."""
        for name in names or ("bacula-sd", "bacula-fd", "bacula-dir"):
            log = (self.root / "var" / f"{name}.out").open("ab")
            argv = [str(shutil.which(name)), "-f", "-P", "-c", str(self.root / f"{name}.conf")]
            self.daemons[name] = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            log.close()
            self._wait_for_port(name)

    def _wait_for_port(self, name: str) -> None:
        def listening() -> bool:
            assert self.daemons[name].poll() is None, (self.root / "var" / f"{name}.out").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self._listens[name])) == 0

        self.wait_for(f"{name} to listen", listening)

    def stop(self, *names: str) -> None:
        """Stop daemons (default: all)."""
        for name in names or tuple(self.daemons):
            process = self.daemons.pop(name)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def console(self, *commands: str) -> str:
        """What the Director answers."""
        argv = ["bconsole", "-n", "-u", "20", "-c", str(self.root / "bconsole.conf")]
        text = "".join(line + "\n" for line in commands)
        return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60).stdout

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """Rows of the Director's catalog, read beside it."""
        catalog = sqlite3.connect(f"file:{self.root}/var/bacula.db?mode=ro", uri=True, timeout=10)
        try:
            return catalog.execute(query).fetchall()
        finally:
            catalog.close()

    def take(self, magazine: str) -> None:
        """Somebody pulls *magazine*."""
        (self.root / magazine).rename(self.root / "away" / magazine)

    def bring(self, magazine: str) -> None:
        """Somebody puts *magazine* back."""
        (self.root / "away" / magazine).rename(self.root / magazine)

    def magbay(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the product's command."""
        argv = [sys.executable, "-m", "appliance", "--config", str(self.file), *words]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(argv, capture_output=True, text=True, timeout=180, env=environment)

    def log(self) -> str:
        """The Director's message log."""
        path = self.root / "var" / "log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, what: str, done: Callable[[], bool], seconds: float = 20) -> None:
        """Wait until *done*; fails with the log when it takes longer than *seconds*."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{self.log()[-4000:]}"
            time.sleep(0.2)
