"""How fast a disk is overwritten, next to `dd` of zeros and of /dev/urandom on the same target in the same run.

By default the target is a file, written once before the first round so that its blocks exist; a block device can be
named instead and loses its contents. All three end with the data flushed to the disk.
"""

from __future__ import annotations

import argparse
import os
import resource
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from appliance.magazines.wipe import Wiped, overwrite

_MIB = 1024 * 1024


def ours(target: Path, size: int) -> None:
    """The code of `magbay prepare --wipe random`, with its records of progress."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record"

        def keep(wiped: Wiped) -> None:
            record.write_text(repr(wiped))

        overwrite(
            target,
            size,
            Wiped(),
            record=keep,
            advance=lambda count: None,
            stop=lambda: False,
        )


def dd(source: str) -> Callable[[Path, int], None]:
    """`dd` from *source*, as the issue of speed is usually judged."""

    def run(target: Path, size: int) -> None:
        words = [f"if={source}", f"of={target}", "bs=4M", f"count={size // (4 * _MIB)}", "conv=fsync,notrunc"]
        subprocess.run(["dd", *words, "status=none"], check=True)

    return run


WAYS: dict[str, Callable[[Path, int], None]] = {
    "dd if=/dev/zero conv=fsync": dd("/dev/zero"),
    "magbay prepare --wipe random": ours,
    "dd if=/dev/urandom conv=fsync": dd("/dev/urandom"),
}


def processor() -> float:
    """Seconds that this process and its children have computed."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(facts.ru_utime + facts.ru_stime for facts in used)


def _forget(target: Path) -> None:
    """A disk that is plugged in has nothing in the page cache; what the round before has left takes time to drop."""
    os.sync()
    with target.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(target: Path, size: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Bytes a second, and seconds of a processor for each GB, of each way in each round, in turn."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            _forget(target)
            before, began = processor(), time.monotonic()
            way(target, size)
            rates[name].append((size / (time.monotonic() - began), (processor() - before) * 1e9 / size))
    return rates


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--target", type=Path, help="a file (made and removed), or a block device (OVERWRITTEN)")
    parser.add_argument("--size", type=int, default=1024, help="MiB of a file (default 1024)")
    args = parser.parse_args()
    size = args.size * _MIB // (4 * _MIB) * 4 * _MIB
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        target = args.target or Path(folder) / "target"
        block = target.exists() and stat.S_ISBLK(target.stat().st_mode)
        existed = target.exists()
        if block:
            with target.open("rb") as device:
                size = min(size, device.seek(0, os.SEEK_END) // (4 * _MIB) * 4 * _MIB)
        else:
            dd("/dev/urandom")(target, size)
        try:
            rates = measure(target, size, args.n)
        finally:
            if not block and not existed:
                target.unlink()
    what = f"the block device {target}" if block else "a file of the file system below, no disk of its own"
    print(f"overwriting {size // _MIB} MiB of {what}; {args.n} rounds, the three in turn")
    print("(zeros are flattered where the storage below compresses or skips them)")
    for name, values in rates.items():
        speeds = [speed / 1e6 for speed, _ in values]
        computed = statistics.median(seconds for _, seconds in values)
        spread = f"min {min(speeds):>6.0f}   max {max(speeds):>6.0f}"
        print(f"{name:<30} median {statistics.median(speeds):>6.0f} MB/s   {spread}   CPU {computed:.2f} s/GB")
    mine = rates["magbay prepare --wipe random"]
    for name in ("dd if=/dev/zero conv=fsync", "dd if=/dev/urandom conv=fsync"):
        ratio = statistics.median(a[0] / b[0] for a, b in zip(mine, rates[name], strict=True))
        print(f"ratio to {name:<31} {ratio:>6.2f} (median of rounds)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
