"""Backup and restore of large files beside `cp -a` + `sync` of the same tree, in one run, interleaved.

    python bench/engine.py [-n ROUNDS] [--size MIB] [--scratch DIR]

Prints a table of medians. Needs three times the size of the tree in the scratch directory.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_FILES = 8
_CONFIG = """\
state_dir: state
run_dir: run
changer: {name: c0, drives: 2}
magazines:
  - {name: m1, directory: m1}
pools:
  Default: {maximum_volume_bytes: 100GB, signature: MD5}
  Sha: {maximum_volume_bytes: 100GB, signature: SHA256}
"""


def make_tree(tree: Path, size: int) -> int:
    """Random files of together *size* bytes, which no disk can compress."""
    tree.mkdir()
    for number in range(_FILES):
        with open(tree / f"large-{number}.bin", "wb") as file:
            left = size // _FILES
            while left:
                left -= file.write(os.urandom(min(left, 1 << 20)))
    subprocess.run(["sync"], check=True)
    return size // _FILES * _FILES


def timed(action: Callable[[], object]) -> float:
    """Seconds that *action* takes, on a system that has nothing left to write when it begins."""
    subprocess.run(["sync"], check=True)
    began = time.monotonic()
    action()
    return time.monotonic() - began


def magbay(config: Path, *words: str) -> None:
    """Run the command line; fails loudly."""
    subprocess.run(
        [sys.executable, "-m", "appliance", "--config", str(config), *words], check=True, stdout=subprocess.DEVNULL
    )


def one_round(scratch: Path, tree: Path) -> dict[str, float]:
    """Each way once; leaves only the tree."""
    copy, out = scratch / "copy", scratch / "out"
    config = scratch / "magbay.yaml"
    config.write_text(_CONFIG)

    def copied() -> None:
        subprocess.run(["cp", "-a", str(tree), str(copy)], check=True)
        subprocess.run(["sync"], check=True)

    def restored() -> None:
        magbay(config, "restore", "--to", str(out))
        subprocess.run(["sync"], check=True)

    seconds = {"cp -a + sync": timed(copied)}
    shutil.rmtree(copy)
    seconds["backup (SHA256)"] = timed(lambda: magbay(config, "backup", "--pool", "Sha", str(tree)))
    shutil.rmtree(scratch / "m1")
    shutil.rmtree(scratch / "state")
    seconds["backup (MD5)"] = timed(lambda: magbay(config, "backup", str(tree)))
    seconds["restore + sync"] = timed(restored)
    subprocess.run(["diff", "-r", str(tree), str(out / tree.relative_to("/"))], check=True)
    for name in ("out", "m1", "state"):
        shutil.rmtree(scratch / name)
    return seconds


def digest_speeds() -> dict[str, float]:
    """Bytes a second of one digest on one processor: no backup with that signature can be faster."""
    data = memoryview(os.urandom(1 << 20))
    speeds = {}
    for name in ("SHA256", "MD5"):
        began = time.monotonic()
        for _ in range(256):
            hashlib.new(name, data, usedforsecurity=False)
        speeds[name] = len(data) * 256 / (time.monotonic() - began)
    return speeds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=3, metavar="ROUNDS", help="median of so many rounds (default: 3)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="size of the tree (default: 1024)")
    parser.add_argument("--scratch", type=Path, help="where to work (default: the temporary directory)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="magbay-bench-", dir=args.scratch) as name:
        scratch = Path(name).resolve()
        size = make_tree(scratch / "tree", args.size << 20)
        rounds = [one_round(scratch, scratch / "tree") for _ in range(args.n)]
    medians = {what: statistics.median(one[what] for one in rounds) for what in rounds[0]}
    medians |= {f"{name} alone, in memory": size / speed for name, speed in digest_speeds().items()}
    base = medians["cp -a + sync"]
    print(f"{'':26}{'seconds':>9}{'MB/s':>9}{'of cp':>8}   ({size / 1e6:.0f} MB in {_FILES} files, median of {args.n})")
    for what, seconds in medians.items():
        print(f"{what:26}{seconds:9.2f}{size / 1e6 / seconds:9.0f}{base / seconds:8.2f}")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
