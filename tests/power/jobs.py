"""The runs of the engine that the tests of durability record: `python -m tests.power.jobs NAME FOLDER`, with the layer.

FOLDER has `magbay.yaml`, the directory `disk` (catalog and magazines) and `source`. A mark in the log says when the
caller was told that something is done: `job ID`, `volume NAME`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.storage import backup, device, labelling
from appliance.storage.model import Level

POOLS = {
    "faults-backup": "maximum_volume_bytes: 70000",
    "faults-recycle": "retention: 1y, keep_newest: no, maximum_volume_bytes: 70000, maximum_volumes: 3",
    "recycle": "retention: 1y, keep_newest: no, maximum_volume_bytes: 150000, maximum_volumes: 3",
    "scratch": "scratch: Spare",
    "spanning": "maximum_volume_bytes: 150000",
}


class Layer:
    """The library that is preloaded into this process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)

    def watch(self, root: Path, log: Path | None = None) -> None:
        """Record what is done below *root*."""
        if self._library.layer_watch(os.fsencode(root), os.fsencode(log) if log else None):
            raise OSError(f"{log} cannot be written")

    def mark(self, text: str) -> None:
        """Say in the log that something is acknowledged."""
        self._library.layer_mark(text.encode())

    def arm(self, kinds: int, where: Path, n: int, action: int, *, stays: bool = False) -> None:
        """Let the *n*-th call of the *kinds* below *where* fail; see `layer.c`."""
        self._library.layer_arm(kinds, os.fsencode(where), ctypes.c_long(n), action, int(stays))

    @property
    def count(self) -> int:
        """Calls of the kinds that are armed, so far."""
        return int(self._library.layer_count())

    @property
    def hits(self) -> int:
        """How many of them were made to fail."""
        return int(self._library.layer_hits())

    @property
    def stalled(self) -> int:
        """Seconds that the calls have taken beyond what they take."""
        return int(self._library.layer_stalled())


def configure(folder: Path, name: str) -> Config:
    """The configuration of the run *name*, made once. The run directory is on no disk."""
    file = folder / "magbay.yaml"
    if not file.exists():
        pool = POOLS.get(name, "maximum_volume_bytes: 10GB")
        file.write_text(
            "state_dir: disk/state\nrun_dir: run\nmount_dir: mnt\nkey_file: key\nchanger: {name: c0, drives: 2}\n"
            "magazines:\n  - {name: m1, directory: disk/m1}\n  - {name: m2, directory: disk/m2}\n"
            f"pools:\n  Default: {{{pool}}}\n  Spare: {{maximum_volume_bytes: 10GB}}\n"
        )
        (folder / "disk").mkdir(exist_ok=True)
        make_sources(folder / "source")
    return load(file)


def make_sources(top: Path) -> None:
    """Small trees: `small` (some files, not a block), `large` (four blocks), `more` (one block)."""
    chance = random.Random(5)
    for name, sizes in (("small", (0, 1, 700, 9000)), ("large", (130_000, 5, 90_000)), ("more", (60_000, 40))):
        (top / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            (top / name / f"file-{number}").write_bytes(chance.randbytes(size))


def save(config: Config, layer: Layer, *trees: str, **options: object) -> backup.JobResult:
    """Run a backup; it is marked when its caller was told that it is good."""
    progress = options.pop("progress", lambda count: None)
    cancelled = options.pop("cancelled", lambda: False)
    source = config.state_dir.parent.parent / "source"
    request = backup.BackupRequest(tuple(source / tree for tree in trees), **options)  # type: ignore[arg-type]
    done = backup.run(config, request, log=lambda text, fields: None, progress=progress, cancelled=cancelled)  # type: ignore[arg-type]
    if done.status.good:
        layer.mark(f"job {done.job_id}")
    return done


def first(config: Config, layer: Layer) -> None:
    """A new installation: the first job, an incremental one, another full one."""
    save(config, layer, "large", name="one")
    source = config.state_dir.parent.parent / "source" / "large"
    (source / "added").write_bytes(b"added")
    save(config, layer, "large", name="one", level=Level.INCREMENTAL)
    save(config, layer, "small", "more", name="two")


def spanning(config: Config, layer: Layer) -> None:
    """Jobs over several volumes, the next one behind it."""
    save(config, layer, "large", "more", name="one")
    save(config, layer, "small", name="two")
    save(config, layer, "large", "more", name="three")


def two(config: Config, layer: Layer) -> None:
    """A job begins and is acknowledged while another one is in its middle; then that one ends, too."""
    begun = []

    def progress(_count: int) -> None:
        if not begun:
            begun.append(True)
            save(config, layer, "more", "small", name="inner")

    save(config, layer, "large", name="outer", progress=progress)
    save(config, layer, "small", name="after")


def failed(config: Config, layer: Layer) -> None:
    """Behind a good job one is cancelled and one killed; what they left is cut off, and the next job stands there."""
    save(config, layer, "more", name="one")
    seen: list[int] = []
    save(config, layer, "large", name="two", progress=seen.append, cancelled=lambda: sum(seen) > 60_000)
    child = os.fork()
    if not child:
        signal.alarm(60)
        save(config, layer, "large", name="three", progress=_kill)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    save(config, layer, "small", name="four")
    save(config, layer, "large", name="five")


def _kill(count: int) -> None:
    if count > 50_000:
        os.kill(os.getpid(), signal.SIGKILL)


def scratch(config: Config, layer: Layer) -> None:
    """Volumes are labelled ahead; a job takes one out of the scratch pool."""
    for media in labelling.create(config, magazine="m1", pool="Spare", count=2):
        layer.mark(f"volume {media.name}")
    save(config, layer, "large", name="one")
    save(config, layer, "more", name="two", pool="Spare")


def recycle(config: Config, layer: Layer) -> None:
    """Volumes whose jobs are expired are written anew, by jobs that span them."""
    save(config, layer, "more", name="old-1")
    save(config, layer, "large", name="old-2")
    with contextlib.closing(sqlite3.connect(config.state_dir / "catalog.db")) as db, db:
        db.execute("UPDATE Job SET Started=1000, Finished=1000")
    save(config, layer, "large", name="new-1")
    save(config, layer, "small", name="new-2")


def flushing(config: Config, layer: Layer) -> None:
    """The thread that flushes while a job runs has something to do."""
    device.WRITEOUT_BYTES, device.SYNC_SECONDS = 60_000, 0.0
    save(config, layer, "large", "more", name="one")
    save(config, layer, "large", name="two")


RUNS: dict[str, Callable[[Config, Layer], None]] = {
    run.__name__: run for run in (first, spanning, two, failed, scratch, recycle, flushing)
}


def main() -> None:
    """Do the run that is named; the calls go to FOLDER/log."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    layer = Layer()
    config = configure(folder, name)
    layer.watch(folder / "disk", folder / "log")
    RUNS[name](config, layer)
    layer.watch(Path("/nowhere"))


if __name__ == "__main__":
    main()
