"""docs/recovery.md as it stands, with its Director: Bacula alone restores from magbay's volumes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.native.rig import missing
from tests.unit import recoverypage, stocktools
from tests.unit.enginehelp import assert_same, below, configuration, rich_tree, save

pytestmark = [pytest.mark.native, pytest.mark.timeout(180)]


def test_a_director_restores_as_the_page_says(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    stocktools.find("bscan")
    if not shutil.which("sqlite3"):
        pytest.skip("sqlite3 is not installed (Debian package sqlite3)")
    config = configuration(tmp_path, "maximum_volume_bytes: 200000", "magazines: [{name: m1, directory: m1}]\n")
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    try:
        told = recoverypage.run(tmp_path / "m1", tmp_path, *recoverypage.blocks("sh", "director"), timeout=120)
    finally:
        pids = tmp_path / "work" / "pids"
        for pid in pids.read_text().split() if pids.exists() else ():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
    assert "Restore OK" in told
    assert_same(tree, below(tmp_path / "out" / "director", tree))
