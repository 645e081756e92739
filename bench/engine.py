"""The engine beside its peers, in one run, interleaved: medians and ratios.

    python -m bench.engine [-n ROUNDS] [--size MIB] [--files COUNT] [--scratch DIR] [large|small|list …]

large: backup of large files beside `cp -a` + `sync`, `md5sum` and Bacula's whole job; restore beside `bextract`.
small: many files of 1 to 16 KiB beside `tar c | cat > file` and Bacula's whole job.
list: listing a volume beside reading its file.
Needs five times the size of the tree in the scratch directory.
"""

from __future__ import annotations

import argparse
import compileall
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from bench.bacula import Bacula, extract, missing
from bench.disk import fresh

_LARGE_FILES = 8
_CONFIG = """\
state_dir: state
run_dir: run
changer: {name: c0, drives: 2}
magazines:
  - {name: m1, directory: m1}
pools:
  Default: {maximum_volume_bytes: 100GB, signature: MD5}
  Plain: {maximum_volume_bytes: 100GB, signature: none}
  Sha: {maximum_volume_bytes: 100GB, signature: SHA256}
"""
Seconds = dict[str, float]


def large_tree(tree: Path, size: int) -> int:
    """Random files of together *size* bytes, which no disk can compress."""
    tree.mkdir()
    for number in range(_LARGE_FILES):
        with open(tree / f"large-{number}.bin", "wb") as file:
            left = size // _LARGE_FILES
            while left:
                left -= file.write(os.urandom(min(left, 1 << 20)))
    return size // _LARGE_FILES * _LARGE_FILES


def small_tree(tree: Path, count: int) -> int:
    """*count* random files of 1 to 16 KiB, 500 in a directory; gives their bytes."""
    pick, blob, total = random.Random(7), os.urandom(1 << 20), 0  # noqa: S311 - no secret
    for number in range(count):
        folder = tree / f"{number // 500:04}"
        if number % 500 == 0:
            folder.mkdir(parents=True)
        size, at = pick.randint(1 << 10, 16 << 10), pick.randrange(1 << 19)
        (folder / f"file-{number:06}.dat").write_bytes(blob[at : at + size])
        total += size
    return total


def timed(action: Callable[[], object]) -> float:
    """Seconds that *action* takes, on a system that has nothing left to write when it begins."""
    subprocess.run(["sync"], check=True)
    began = time.monotonic()
    action()
    return time.monotonic() - began


def warm(tree: Path) -> None:
    """Have the tree in the page cache: Bacula's file daemon drops what it has read, which harms who comes next."""
    shell('tar cf - "$1" 2> /dev/null | cat > /dev/null', tree)


def shell(command: str, *words: Path) -> None:
    """Run a line of shell, *words* are $1 and so on."""
    subprocess.run(["sh", "-c", command, "sh", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


class Engine:
    """Our side: a configuration with one magazine in *scratch*."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._config = scratch / "magbay.yaml"
        self._config.write_text(_CONFIG)
        self.volume = scratch / "m1" / "m1-0001"

    def run(self, *words: str | Path) -> None:
        """Run the command line; fails loudly."""
        subprocess.run(self._command(words), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def memory(self, *words: str | Path) -> int:
        """Run the command line; gives the most bytes that its processes have together (shared ones in equal parts)."""
        running = psutil.Popen(self._command(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        most = 0
        while running.poll() is None:
            with suppress(psutil.NoSuchProcess):
                most = max(
                    most, sum(one.memory_full_info().pss for one in [running, *running.children(recursive=True)])
                )
            time.sleep(0.02)
        if running.returncode:
            raise subprocess.CalledProcessError(running.returncode, "magbay")
        return most

    def _command(self, words: tuple[str | Path, ...]) -> list[str]:
        return [str(word) for word in (sys.executable, "-m", "appliance", "--config", self._config, *words)]

    def forget(self) -> None:
        """Volumes and catalog away."""
        for name in ("m1", "state", "run"):
            shutil.rmtree(self.scratch / name, ignore_errors=True)


@contextmanager
def peer(scratch: Path, make: Callable[[Path], int]) -> Iterator[tuple[Bacula, int]]:
    """A running Bacula and the bytes of its tree."""
    bacula = Bacula(scratch / "bacula")
    try:
        size = make(bacula.tree)
        bacula.start()
        yield bacula, size
    finally:
        bacula.stop()


def large_round(scratch: Path, bacula: Bacula, size: int, number: int) -> Seconds:
    """Each way once; leaves only the tree, of *size* bytes."""
    tree, copy = bacula.tree, scratch / "copy"
    engine = Engine(scratch)
    took: Seconds = {}
    took["cp -a + sync"] = timed(lambda: shell('cp -a "$1" "$2" && sync', tree, copy))
    shutil.rmtree(copy)
    took["md5sum"] = timed(lambda: shell('md5sum "$1"/*', tree))
    took["Bacula, MD5"] = timed(bacula.backup)
    for pool, what in (("Plain", "backup, no digest"), ("Sha", "backup, SHA256"), ("Default", "backup, MD5")):
        engine.forget()
        warm(tree)
        took[what] = timed(lambda pool=pool: engine.run("backup", "--pool", pool, tree))  # type: ignore[misc]
    took |= restores(engine, tree, size, ours_first=number % 2 == 1)
    engine.forget()
    bacula.forget()
    return took


def restores(engine: Engine, tree: Path, size: int, *, ours_first: bool) -> Seconds:
    """bextract and we, each onto a file system of its own, synced at the end; what comes back is compared."""
    ways: list[tuple[str, Callable[[Path], None]]] = [
        ("bextract + sync", lambda out: extract(engine.volume, out)),
        ("restore + sync", lambda out: engine.run("restore", "--to", out)),
    ]
    took: Seconds = {}
    for what, way in reversed(ways) if ours_first else ways:
        with fresh(engine.scratch, 2 * size + (1 << 30)) as place:
            out = place / "out"
            out.mkdir()
            warm(engine.volume)
            took[what] = timed(lambda way=way, out=out: (way(out), shell("sync")))  # type: ignore[misc]
            shell('diff -r "$1" "$2"', tree, out / tree.relative_to("/"))
    return {what: took[what] for what, _ in ways}


def small_round(scratch: Path, bacula: Bacula, size: int, number: int) -> Seconds:
    """Each way once. *size*: of the tree in bytes."""
    tree = bacula.tree
    scratch = Path(tempfile.mkdtemp(dir=scratch))
    engine = Engine(scratch)
    took: Seconds = {}
    took["tar c | cat > file"] = timed(lambda: shell('tar cf - "$1" 2> /dev/null | cat > "$2"', tree, scratch / "tar"))
    (scratch / "tar").unlink()
    took["Bacula, MD5"] = timed(bacula.backup)
    warm(tree)
    took["backup, MD5"] = timed(lambda: engine.run("backup", tree))
    took |= restores(engine, tree, size, ours_first=number % 2 == 1)
    engine.forget()
    bacula.forget()
    return took


def memory(scratch: Path, tree: Path) -> str:
    """A line about the memory that a backup and a restore of *tree* take."""
    engine = Engine(Path(tempfile.mkdtemp(dir=scratch)))
    saving = engine.memory("backup", tree)
    restoring = engine.memory("restore", "--to", engine.scratch / "out")
    shutil.rmtree(engine.scratch)
    return f"memory of all processes: backup {saving >> 20} MiB, restore {restoring >> 20} MiB"


def list_round(scratch: Path, tree: Path) -> Seconds:
    """Listing of one volume beside reading it, both from cache."""
    engine = Engine(scratch)
    if not engine.volume.exists():
        engine.run("backup", tree)
    shell('cat "$1" > /dev/null', engine.volume)
    took = {"cat > /dev/null": timed(lambda: shell('cat "$1" > /dev/null', engine.volume))}
    took["volume list"] = timed(lambda: engine.run("volume", "list", engine.volume))
    return took


def median(rounds: list[Seconds]) -> Seconds:
    """Of each row."""
    return {what: statistics.median(one[what] for one in rounds) for what in rounds[0]}


def table(title: str, seconds: Seconds, size: int, files: int, peers: dict[str, tuple[str, float]]) -> None:
    """*peers*: row to what it is compared with and the time (seconds) of that."""
    print(f"\n{title} ({size / 1e6:.0f} MB in {files} files)")
    print(f"{'':28}{'seconds':>9}{'MB/s':>9}{'files/s':>9}")
    for what, took in seconds.items():
        print(f"{what:28}{took:9.2f}{size / 1e6 / took:9.0f}{files / took:9.0f}")
    for what, (name, goal) in peers.items():
        print(f"{what} is {goal / seconds[what]:.2f} times as fast as {name}")


def large(scratch: Path, rounds: int, size: int) -> None:
    """Large files."""
    with peer(scratch, lambda tree: large_tree(tree, size)) as (bacula, total):
        took = median([large_round(scratch, bacula, total, number) for number in range(rounds)])
        most = memory(scratch, bacula.tree)
    slower = max(took["cp -a + sync"], took["md5sum"])
    table("large files", took, total, _LARGE_FILES, {
        "backup, MD5": ("the slower of cp + sync and md5sum", slower),
        "backup, no digest": ("cp + sync", took["cp -a + sync"]),
        "restore + sync": ("bextract", took["bextract + sync"]),
    })  # fmt: skip
    print(f"backup, MD5 is {took['Bacula, MD5'] / took['backup, MD5']:.2f} times as fast as Bacula")
    print(most)


def small(scratch: Path, rounds: int, count: int) -> None:
    """Small files."""
    with peer(scratch, lambda tree: small_tree(tree, count)) as (bacula, total):
        took = median([small_round(scratch, bacula, total, number) for number in range(rounds)])
        most = memory(scratch, bacula.tree)
    table("small files", took, total, count, {
        "backup, MD5": ("Bacula", took["Bacula, MD5"]),
        "restore + sync": ("bextract", took["bextract + sync"]),
    })  # fmt: skip
    print(f"backup, MD5 takes {took['backup, MD5'] / took['tar c | cat > file']:.2f} times as long as tar")
    print(most)


def listing(scratch: Path, rounds: int, size: int) -> None:
    """Listing."""
    tree = scratch / "tree"
    total = large_tree(tree, size)
    took = median([list_round(scratch, tree) for _ in range(rounds)])
    table("listing a volume", took, total, _LARGE_FILES, {"volume list": ("cat", took["cat > /dev/null"])})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="large, small, list (default: all)")
    parser.add_argument("-n", type=int, default=5, metavar="ROUNDS", help="median of so many rounds (default: 5)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the large files (default: 1024)")
    parser.add_argument("--files", type=int, default=100_000, metavar="COUNT", help="small ones (default: 100000)")
    parser.add_argument("--scratch", type=Path, help="where to work (default: the temporary directory)")
    args = parser.parse_args()
    if absent := missing():
        sys.exit(absent)
    # As the package's installation does; where PYTHONDONTWRITEBYTECODE is set each command would do it again.
    compileall.compile_dir(Path(__file__).parents[1] / "appliance", quiet=1)
    work: dict[str, Callable[[Path], None]] = {
        "large": lambda scratch: large(scratch, args.n, args.size << 20),
        "small": lambda scratch: small(scratch, args.n, args.files),
        "list": lambda scratch: listing(scratch, args.n, args.size << 20),
    }
    for part in args.parts or work:
        with tempfile.TemporaryDirectory(prefix="magbay-bench-", dir=args.scratch) as name:
            work[part](Path(name).resolve())
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
