"""Overwriting: every byte, at once or in pieces, and what a disk that fails is told to be."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import ExitStatus
from appliance.magazines import wipe
from appliance.magazines.wipe import CHUNK, BadDiskError, Wiped, WipeStopped, overwrite

SIZE = 20 * CHUNK + 4096  # more than is in flight at a time


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    node = tmp_path / "disk"
    node.write_bytes(bytes(SIZE))
    return node


def whole(
    node: Path, size: int, begun: Wiped | None = None, stop_after: int | None = None
) -> tuple[Wiped, list[Wiped], int]:
    """Overwrite *node*, stopped after so many writes; gives the end, the records and the bytes told."""
    records: list[Wiped] = []
    told: list[int] = []
    stop = (lambda: len(told) >= stop_after) if stop_after is not None else lambda: False
    end = begun or Wiped()
    try:
        end = overwrite(node, size, end, record=records.append, advance=told.append, stop=stop)
    except WipeStopped as stopped:
        assert stopped.status is ExitStatus.INTERRUPTED and "goes on from there" in stopped.hint
        end = records[-1] if records else end
    return end, records, sum(told)


def assert_random(data: bytes) -> None:
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    assert all(page.count(0) < 100 for page in pages if len(page) == 4096), "a page was left as it was"
    assert len(set(pages)) == len(pages), "the stream repeats"


@pytest.mark.parametrize("size", [SIZE, CHUNK, 4096, 2 * CHUNK + 512, CHUNK + 1000, 1])
def test_every_byte_is_overwritten_and_none_behind(tmp_path: Path, size: int) -> None:
    node = tmp_path / "disk"
    node.write_bytes(bytes(size))
    end, records, told = whole(node, size)
    assert end.done == told == size == node.stat().st_size and records[-1] == end
    assert_random(node.read_bytes()[: size // 4096 * 4096])
    assert end.holds(node)


def test_through_the_page_cache_where_direct_writes_are_refused(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: object, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return opened(path, flags, *more)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", refuse)
    assert whole(disk, SIZE)[0].done == SIZE
    assert_random(disk.read_bytes()[: SIZE // 4096 * 4096])


def test_stopped_and_gone_on_with_at_every_place(disk: Path) -> None:
    begun = Wiped()
    for round_ in itertools.count():
        end, _, told = whole(disk, SIZE, begun, stop_after=1)
        assert end.holds(disk) and begun.done < end.done == begun.done + told
        if end.done == SIZE:
            break
        assert end.done % CHUNK == 0
        before = disk.read_bytes()[: end.done]
        assert_random(before)
        begun = end
        again, _, _ = whole(disk, SIZE, begun, stop_after=0) if round_ == 0 else (begun, [], 0)
        assert again == begun or round_
    assert disk.read_bytes()[: len(before)] == before, "what was done is not done again"
    assert_random(disk.read_bytes()[: SIZE // 4096 * 4096])


def test_a_record_tells_another_disk_from_this_one(disk: Path, tmp_path: Path) -> None:
    end, _, _ = whole(disk, SIZE)
    other = tmp_path / "other"
    other.write_bytes(bytes(SIZE))
    assert end.holds(disk) and not end.holds(other)
    assert not Wiped().holds(disk), "nothing to tell by"
    with disk.open("r+b") as file:
        file.write(b"a header")
    assert not end.holds(disk)
    assert end.holds(disk, header=True), "a header may have been begun, the rest is as it was"


def test_samples_stay_few_on_a_large_disk(tmp_path: Path) -> None:
    writer = wipe._Writer(tmp_path, 20 << 40, Wiped(), lambda wiped: None, lambda: False)
    for position in range(0, 200 << 30, CHUNK):
        writer._keep(position, "x")
    assert len(writer._samples) <= 3 and (200 << 30) - CHUNK in writer._samples and 0 in writer._samples


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel itself refuses writes behind 6 MiB (RLIMIT_FSIZE): a disk that fails there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_places_that_cannot_be_written_are_named(disk: Path, small_files: None) -> None:
    with pytest.raises(BadDiskError) as caught:
        whole(disk, SIZE)
    first = (6 << 20) // 512
    assert f"at sector {first}, {first + 8}," in caught.value.message and "perhaps more" in caught.value.message
    assert str(disk) in caught.value.message and "another disk" in caught.value.hint


def test_killed_at_any_moment_the_record_is_true(tmp_path: Path) -> None:
    """SIGKILL in the middle: what was recorded is on the disk."""
    node, record = tmp_path / "disk", tmp_path / "record"
    size = 1 << 30
    with node.open("wb") as file:
        file.truncate(size)
    script = (
        "import json,sys;from pathlib import Path;from appliance.magazines import wipe\n"
        "wipe._FLUSH_SECONDS=0.0\n"
        "def keep(w):\n"
        "    Path(sys.argv[2]+'.new').write_text(json.dumps([w.done,dict(w.samples)]))\n"
        "    Path(sys.argv[2]+'.new').replace(sys.argv[2])\n"
        "    print('.',flush=True)\n"
        f"wipe.overwrite(Path(sys.argv[1]),{size},wipe.Wiped(),record=keep,advance=lambda n:None,stop=lambda:False)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, node, record], stdout=subprocess.PIPE)
    assert child.stdout is not None
    for _ in range(3):
        assert child.stdout.readline() == b".\n"
    child.kill()
    child.wait()
    child.stdout.close()
    done, samples = json.loads(record.read_text())
    begun = Wiped(done, {int(at): digest for at, digest in samples.items()})
    assert 3 * CHUNK <= done < size and begun.holds(node)
    end, _, told = whole(node, done + 3 * CHUNK, begun)
    assert told == 3 * CHUNK and end.done == done + told
    with node.open("rb") as file:
        assert_random(file.read(min(end.done, 64 << 20)))
