"""A real Bacula for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.rig import Rig, missing


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Running daemons, two magazines with four empty volumes each, 3 MB of files to save."""
    if reason := missing():
        pytest.skip(reason)
    made = Rig(tmp_path)
    for number in range(6):
        (tmp_path / "data" / f"file {number}").write_bytes(os.urandom(500_000))
    try:
        made.start()
        yield made
    finally:
        made.stop()
