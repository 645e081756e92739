"""Writing to the disk while a restore runs, and what becomes of what could not be written."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.storage import extract
from appliance.storage.writeout import WRITEOUT_BYTES, Writeout
from tests.unit.enginehelp import assert_same, below, bring_back, save

_LONG = 60  # seconds; nothing waits for them unless it fails


def test_it_syncs_as_much_as_is_done_and_no_more() -> None:
    done, synced = [0, 0], threading.Semaphore(0)
    one = Writeout(synced.release, lambda: (done[0], done[1]))
    done[1] = WRITEOUT_BYTES
    assert synced.acquire(timeout=_LONG)
    done[0] = WRITEOUT_BYTES // 1024  # many files, if empty, are work too
    assert synced.acquire(timeout=_LONG)
    one.stop()
    assert one.trouble is None and not synced.acquire(blocking=False)


def test_little_is_left_to_the_end() -> None:
    synced: list[int] = []
    one = Writeout(lambda: synced.append(1), lambda: (1, WRITEOUT_BYTES // 2))
    threading.Event().wait(0.5)
    one.stop()
    assert not synced


def test_trouble_ends_it_and_is_kept() -> None:
    count, met = [0], threading.Event()

    def fails() -> None:
        met.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def more() -> tuple[int, int]:
        count[0] += 1
        return 0, count[0] * WRITEOUT_BYTES

    one = Writeout(fails, more)
    assert met.wait(_LONG)
    one.stop()
    assert one.trouble is not None and one.trouble.errno == errno.EIO and count == [1]


def test_a_restore_is_not_done_when_something_did_not_reach_the_disk_on_the_way(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells that once: a sync at the end would know nothing of it."""

    class Met(Writeout):
        def __init__(self, sync: Callable[[], None], done: Callable[[], tuple[int, int]]) -> None:
            super().__init__(sync, done)
            self.trouble = OSError(errno.EIO, os.strerror(errno.EIO))

    tree = tmp_path / "source"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    save(config, tree)
    monkeypatch.setattr(extract, "Writeout", Met)
    with pytest.raises(MagbayError, match="may not be on the disk"):
        bring_back(config, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))
