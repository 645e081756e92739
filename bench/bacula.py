"""Debian's Bacula (Director, storage daemon, file daemon on loopback) as a peer of the engine."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.native.rig import PROGRAMS, Rig, missing

_SD = """
Storage {{ Name = bench-sd; Working Directory = "{work}"; Pid Directory = "{work}"; Plugin Directory = "{work}" }}
Director {{ Name = bench-dir; Password = "x" }}
Device {{ Name = FileDev; Media Type = File; Device Type = File; Archive Device = "{volumes}"; Label Media = yes
  Random Access = yes; Automatic Mount = yes; Removable Media = no; Always Open = no }}
Messages {{ Name = Standard; director = bench-dir = all }}
"""
__all__ = ["PROGRAMS", "Bacula", "extract", "missing"]


class Bacula:
    """One job on one volume, below *root*, which is made; *tree* becomes what it saves."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self._rig = Rig(root, magazines=1, volumes=1, volume_bytes="100GB")
        (root / "data").rmdir()
        self.tree = root / "data"
        self.volume = root / "m1" / "m1-0001"

    def start(self) -> None:
        """The daemons, and a labelled volume."""
        self._rig.start()
        said = self._rig.magbay("director", "sync")
        if said.returncode:
            raise RuntimeError(said.stderr)

    def backup(self) -> None:
        """Run the job; returns when the catalog says that it is done."""
        before = len(self._ended())
        self._rig.console("run job=one yes")
        while len(ended := self._ended()) == before:
            time.sleep(0.02)
        if ended[-1] != "T":
            raise RuntimeError(self._rig.log()[-2000:])

    def _ended(self) -> list[object]:
        query = "select JobStatus from Job where JobStatus not in ('R', 'C') order by JobId"
        return [status for (status,) in self._rig.rows(query)]

    def forget(self) -> None:
        """An empty volume again, so that every round begins alike."""
        self._rig.console("purge volume=m1-0001 yes", "truncate volume allpools storage=chg drive=0 yes")

    def stop(self) -> None:
        """End the daemons and remove all but the tree."""
        self._rig.stop()


def extract(volume: Path, to: Path) -> None:
    """Stock `bextract` of the whole volume."""
    program = shutil.which("bextract") or "/usr/sbin/bextract"
    with tempfile.TemporaryDirectory() as work:
        config = Path(work, "sd.conf")
        config.write_text(_SD.format(work=work, volumes=volume.parent))
        words = [program, "-c", str(config), "-V", volume.name, "FileDev", str(to)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=work)
