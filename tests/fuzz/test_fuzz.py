"""Mutated volumes, records, compressed data and bootstrap files: declared errors only, no hang, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.engine import Fuzzer, replay, watched
from tests.fuzz.targets import PARSERS

PARTS = 8  # so that two processes share them evenly
VOLUMES = 100_000
EXTRACTED = 4_000
EACH_PARSER = 20_000


@pytest.fixture
def fuzzer(request: pytest.FixtureRequest) -> Iterator[Fuzzer]:
    """One with inputs of its own, the same in each run."""
    found = Fuzzer(20_261_122 + getattr(request, "param", 0))
    yield found
    found.close()


def test_kept_inputs(fuzzer: Fuzzer) -> None:
    with watched():
        assert replay(fuzzer) >= 100


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fuzzer", range(PARTS), indirect=True)
def test_mutated_volumes_are_read(fuzzer: Fuzzer) -> None:
    with watched():
        for _ in range(VOLUMES // PARTS):
            fuzzer.read_volume()


@pytest.mark.timeout(300)
def test_mutated_volumes_are_extracted_inside_their_target(fuzzer: Fuzzer) -> None:
    with watched():
        for _ in range(EXTRACTED):
            fuzzer.read_volume(extract=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", PARSERS)
def test_mutated_parts(kind: str, fuzzer: Fuzzer) -> None:
    with watched():
        for _ in range(EACH_PARSER):
            fuzzer.parse(kind)


def test_inputs_get_deep() -> None:
    """A thousand changed volumes reach most of the reader: what is fuzzed is not only the first check."""
    fuzzer = Fuzzer(3, guided=True)
    try:
        with watched():
            for _ in range(1000):
                fuzzer.read_volume()
    finally:
        fuzzer.close()
    assert fuzzer.coverage is not None
    for file in ("volumes/sessions.py", "volumes/attributes.py", "volumes/labels.py"):
        assert fuzzer.coverage.share(file) > 0.9, file
    for file in ("volumes/reader.py", "volumes/compression.py", "volumes/lzo.py"):
        assert fuzzer.coverage.share(file) > 0.8, file
