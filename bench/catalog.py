"""The catalog by itself: entering files as the engine does, and finding them again among millions.

    python -m bench.catalog [-n FILES] [--database postgresql://…] [--scratch DIR]

One full job of the files and their directories, and ten incremental ones of a hundredth each. -n 10000000 needs 6 GB
and some minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import NotFoundError
from appliance.storage import copies, expiry, plan, recovering, saved_files, searching
from appliance.storage.catalog import Catalog
from appliance.storage.model import Job, JobStatus, Level, NewJob, Outcome, Stretch
from appliance.storage.saved_files import FileWriter

_IN_ONE = 20  # files in a directory
_INCREMENTALS = 10
_LOOKS = 21  # of which the median is told
_CONFIG = """\
state_dir: state
run_dir: run
changer: {{name: c0, drives: 2}}
magazines:
  - {{name: m1, directory: m1}}
pools:
  Default: {{maximum_volume_bytes: 100GB, retention: 1d, keep_newest: no}}
{catalog}
"""


def path_of(number: int) -> bytes:
    """The whole name of a file: a tree of directories as people have them, twenty files in each.

    Names come in no order, so that an index on them gets its rows in random places.
    """
    folder = number // _IN_ONE
    return b"/srv/data/department-%03d/project-%05d/part-%02d/report-%08x.odt" % (
        folder // 5000, folder // 25, folder % 25, number * 2654435761 % (1 << 32),
    )  # fmt: skip


def digest_of(number: int) -> str:
    """Something as long and as random as an MD5 in base64."""
    pick = random.Random(number)  # noqa: S311 - no secret
    return "".join(pick.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=22))


_DIGESTS = [digest_of(number) for number in range(4096)]
_LSTAT = "P4A {:X} IGk B Po Po A {:d}Qx BAA {:d}o BpHv{:02d} BpHv{:02d} BpHv{:02d} A A C"


def _rows(numbers: Sequence[int]) -> Iterator[tuple[bytes, str, str]]:
    """Path, attributes and digest of files, and of directories behind what lies in them, as they are walked."""
    for n in numbers:
        lstat = _LSTAT.format(n, n % 10, n % 8, n % 90, n % 80, n % 70)
        path = path_of(n)
        yield path, lstat, _DIGESTS[n % 4096][:18] + f"{n % 9999:04d}"
        parts = path.split(b"/")
        for depth, many in ((6, _IN_ONE), (5, _IN_ONE * 25), (4, _IN_ONE * 5000)):
            if n % many == many - 1:
                yield b"/".join(parts[:depth]) + b"/", lstat, ""


class Spent:
    """Seconds of the clock and of processors."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Count the block."""
        wall, cpu = time.monotonic(), time.process_time()
        yield
        self.wall += time.monotonic() - wall
        self.cpu += time.process_time() - cpu

    def rate(self, count: int) -> str:
        """*count* a second."""
        return f"{count / self.wall:10.0f} files/s, {self.wall:.1f} s ({self.cpu:.1f} s of a processor)"


def enter(catalog: Catalog, new: NewJob, numbers: range, media_id: int, spent: Spent) -> Job:
    """Enter a job of these files as a backup does; *spent* counts what the catalog took."""
    # The words are made before, in parts: what is measured is the catalog.
    job = catalog.start_job(new)
    rows = FileWriter(catalog, job.job_id)
    index = 0
    for start in range(0, len(numbers), 100_000):
        part = list(_rows(numbers[start : start + 100_000]))
        with spent.here():
            for path, lstat, digest in part:
                index += 1
                rows.add(index, 3, path, lstat, digest)
            rows.flush()
    outcome = Outcome(JobStatus.DONE, index, index * 1000, index * 1200, 0, 0)
    with spent.here():
        catalog.finish_job(job.job_id, outcome, [Stretch(media_id, 1, index, 200, 1000)], [])
    return catalog.job(job.job_id)


def median(action: Callable[[random.Random], object]) -> str:
    """Milliseconds of *action*, the median and the longest of some, and what a processor took."""
    pick = random.Random(3)  # noqa: S311 - no secret
    looks = []
    for _ in range(_LOOKS):
        looks.append(Spent())
        with looks[-1].here():
            action(pick)
    wall, cpu = [one.wall * 1000 for one in looks], [one.cpu * 1000 for one in looks]
    longest = f"longest of {_LOOKS}: {max(wall):.1f} ms"
    return f"{statistics.median(wall):10.1f} ms   ({longest}; of a processor: {statistics.median(cpu):.1f} ms)"


def once(action: Callable[[], object]) -> str:
    """Seconds of *action*."""
    began = time.monotonic()
    action()
    return f"{time.monotonic() - began:10.2f} s"


def tell(what: str, figure: str) -> None:
    """One line."""
    print(f"{what:58} {figure}", flush=True)


def find(catalog: Catalog, job: Job, chain: list[Job], count: int) -> None:
    """One file, a directory, a point in time, a pattern."""

    def one(pick: random.Random) -> None:
        path = os.fsdecode(path_of(pick.randrange(count)))
        wanted = searching.wanted_files(catalog, plan.chain_of(catalog, plan.chosen_job(catalog, None, None)), [path])
        assert sum(item.count for item in wanted) == 1

    def full(pick: random.Random) -> None:
        wanted = searching.wanted_files(catalog, [chain[0]], [os.fsdecode(path_of(pick.randrange(count)))])
        assert wanted[0].count == 1

    def directory(pick: random.Random) -> None:
        folder = path_of(pick.randrange(count)).rpartition(b"/")[0] + b"/"
        assert list(saved_files.children(catalog, [item.job_id for item in chain], folder))

    def moment(pick: random.Random) -> None:
        then = plan.chosen_job(catalog, None, "job", job.started)
        folder = os.fsdecode(path_of(pick.randrange(count)).rpartition(b"/")[0])
        searching.wanted_files(catalog, plan.chain_of(catalog, then), [folder])

    def versions(pick: random.Random) -> None:
        assert list(saved_files.versions(catalog, path_of(pick.randrange(count))))

    def named(pick: random.Random) -> None:
        name = path_of(pick.randrange(count)).rpartition(b"/")[2]
        assert sum(w.count for w in searching.wanted_files(catalog, chain, [os.fsdecode(name)])) == 1

    def begins(pick: random.Random) -> None:
        name = os.fsdecode(path_of(pick.randrange(count)).rpartition(b"/")[2])
        assert sum(w.count for w in searching.wanted_files(catalog, chain, [name[:14] + "*"])) >= 1

    def folder_named(pick: random.Random) -> None:
        name = os.fsdecode(path_of(pick.randrange(count)).split(b"/")[4])
        assert sum(w.count for w in searching.wanted_files(catalog, chain, [name])) >= _IN_ONE

    tell("restore: one file by its bare name", median(named))
    tell("restore: files by the beginning of their names", median(begins))
    tell("restore: a directory of 500 files by its bare name", median(folder_named))
    tell("restore: one file by its path, newest state", median(one))
    tell("restore: one file by its path, in the full job alone", median(full))
    tell("restore: a directory as of a point in time", median(moment))
    tell("browse: a directory of 20 files", median(directory))
    tell("browse: versions of one file", median(versions))
    glob = os.fsdecode(path_of(count // 2).rpartition(b"/")[0]) + "/report-*[05].odt"
    tell("restore: a pattern below a directory", once(lambda: searching.wanted_files(catalog, chain, [glob])))
    for what, pattern in (
        ("a pattern with letters at its end (reads all names)", "*99.odt"),
        ("a pattern without letters (compares all names)", "*[9]"),
    ):
        tell(f"restore: {what}", once(lambda pattern=pattern: _search(catalog, chain, pattern)))


def _search(catalog: Catalog, chain: list[Job], pattern: str) -> None:
    with contextlib.suppress(NotFoundError):
        searching.wanted_files(catalog, chain, [pattern])


def keep(catalog: Catalog, config: Config, job: Job, folder: Path) -> None:
    """The copy of a job on its magazine, and what it takes to read it."""
    began = time.monotonic()
    troubles, done = copies.write(catalog, config, job.job_id)
    assert done and not troubles
    seconds = time.monotonic() - began
    (path,) = copies.on_magazine(folder / "m1")
    size = path.stat().st_size
    tell(
        f"copy of a job of {job.files} files onto its magazine", f"{job.files / seconds:10.0f} files/s, {seconds:.1f} s"
    )
    tell("its size", f"{size / job.files:10.1f} bytes a file, {size / 1e6:.0f} MB")


def run(config: Config, folder: Path, count: int) -> None:
    """All measurements on one catalog."""
    with Catalog.of(config) as catalog:
        media = catalog.add_media("m1-0001", "m1", "directory:m1", "Default", 1000)
        full, more_of_it = Spent(), Spent()
        new = NewJob("job", Level.FULL, "Default", "[]", "md5")
        chain = [enter(catalog, new, range(count), media.media_id, full)]
        tell(f"insert: a full job of {count} files", full.rate(chain[0].files))
        share = max(1, count // 100)
        for number in range(_INCREMENTALS):
            new = NewJob("job", Level.INCREMENTAL, "Default", "[]", "md5", chain[-1].job_id)
            start = number * count // _INCREMENTALS
            chain.append(enter(catalog, new, range(start, start + share), media.media_id, more_of_it))
        more = sum(job.files for job in chain[1:])
        tell(f"insert: {_INCREMENTALS} incrementals of {share} files", more_of_it.rate(more))
        if not config.catalog.database:
            size = sum(path.stat().st_size for path in (folder / "state").glob("catalog.db*"))
            tell("size on disk", f"{size / (chain[0].files + more):10.1f} bytes a file, {size / 1e6:.0f} MB")
        find(catalog, chain[len(chain) // 2], chain, count)
        keep(catalog, config, chain[-1], folder)
        keep_all(catalog, config, chain[0], folder)
        catalog.change("UPDATE Job SET Finished=Finished-200000")
        tell("prune: all of it", once(lambda: expiry.prune(catalog, config)))


def keep_all(catalog: Catalog, config: Config, job: Job, folder: Path) -> None:
    """The copy of the full job, and a new catalog made from it."""
    for path in copies.on_magazine(folder / "m1"):
        path.unlink()
    keep(catalog, config, job, folder)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    # Where the magazine is away, so that no volume is looked at.
    (elsewhere / "magbay.yaml").write_text(_CONFIG.format(catalog="").replace("m1", "other"))
    (path,) = copies.on_magazine(folder / "m1")
    began = time.monotonic()
    back = recovering.run(load(elsewhere / "magbay.yaml"), [path], scan=False, log=lambda text, fields: None)
    seconds = time.monotonic() - began
    assert len(back.jobs) == 1, back
    tell("catalog restore: from that copy", f"{job.files / seconds:10.0f} files/s, {seconds:.1f} s")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=1_000_000, metavar="FILES", help="in the full job (default: 1000000)")
    parser.add_argument("--database", default="", metavar="ADDRESS", help="an empty PostgreSQL database instead")
    parser.add_argument("--scratch", type=Path, help="where the catalog is made")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="magbay-catalog-", dir=args.scratch) as name:
        folder = Path(name)
        line = f'catalog: {{database: "{args.database}"}}' if args.database else ""
        (folder / "magbay.yaml").write_text(_CONFIG.format(catalog=line))
        (folder / "m1").mkdir()
        (folder / "m1" / "m1-0001").touch()
        run(load(folder / "magbay.yaml"), folder, max(1000, args.n))
    return 0


if __name__ == "__main__":
    sys.exit(main())
