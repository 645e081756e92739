"""Faults of the disk: an operation of the engine is tried again and again, and each time another call of it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.power.faults import TRIED
from tests.power.recording import run_below
from tests.power.test_power_cut import folder

__all__ = ["folder"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("operation", "place"), list(TRIED))
def test_every_call_fails_once(folder: Path, operation: str, place: str) -> None:
    found = json.loads(run_below(folder, "tests.power.faults", operation, place, str(folder)))
    assert found["wrong"] == []
    assert found["runs"] >= 3 * len(TRIED[operation, place][2])
    assert found["good"] and found["declared"] and found["good"] + found["declared"] == found["runs"]
