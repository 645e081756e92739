"""How often the agents look."""

from __future__ import annotations

import pytest

from appliance.agents.loop import Pace


def _looks(cost: float, seconds: float) -> list[float]:
    """The moments of looks that take *cost* seconds of a processor each, while hints come without end."""
    now, pace, moments = 100.0, Pace(100.0), []
    while now < 100.0 + seconds:
        moments.append(now - 100.0)
        now += cost
        now += pace.settle(cost, now)
    return moments


@pytest.mark.parametrize("cost", [0.004, 0.08, 0.3])
def test_looking_takes_a_tenth_of_a_processor_when_hints_do_not_end(cost: float) -> None:
    # More than a second apart they would be late for a disk that is pulled.
    allowed = max(0.1, cost / (1.0 + cost)) * 1.05
    assert cost * len(_looks(cost, 1000.0)) <= 1.0 + allowed * 1000.0


def test_one_disk_is_looked_at_after_each_hint() -> None:
    assert _looks(0.08, 1.2)[:12] == pytest.approx([0.1 * number for number in range(12)])


def test_a_quiet_time_pays_the_debt_off() -> None:
    pace = Pace(0.0)
    for second in range(20):
        pace.settle(0.5, float(second))
    assert pace.settle(0.5, 20.0) == 1.0
    assert pace.settle(0.01, 200.0) == 0.02
