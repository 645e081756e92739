"""Verifying volumes of others that were scanned: what cannot be compared is no damage, and is said once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from appliance.errors import ExitStatus
from appliance.magazines import attached
from appliance.storage import scanning, scrub, verify
from appliance.storage.catalog import Catalog
from appliance.storage.model import VolumeStatus
from appliance.storage.scanning import ScanRequest
from appliance.storage.scrub import ScrubRequest
from appliance.storage.verify import VerifyRequest
from tests.unit.enginehelp import configuration
from tests.unit.volume_builder import sample

SAMPLES = [
    ("bacula-9.6", "a-bpipe", []),  # sizes of -1
    ("bareos-26", "a-py-local", []),
    ("bareos-26", "a-pki", ["the data are encrypted by the client: the content of 14 files is not compared"]),
]


@pytest.mark.parametrize(("corpus", "name", "warnings"), SAMPLES)
def test_what_cannot_be_compared_is_no_error(corpus: str, name: str, warnings: list[str], tmp_path: Path) -> None:
    config = configuration(tmp_path)
    attached.create_directories(config)
    paths, _ = sample(corpus, name)
    for path in paths:
        shutil.copy(path, tmp_path / "m1")
    scanning.run(config, ScanRequest((), everything=True), log=lambda text, fields: None)
    status = ExitStatus.WARNINGS if warnings else ExitStatus.DONE

    result = verify.run(config, VerifyRequest(), log=lambda text, fields: None)
    assert (result.errors, result.exit_status) == ([], status)
    assert [line.partition(": ")[2] for line in result.warnings] == warnings

    scrubbed = scrub.run(config, ScrubRequest("m1"), log=lambda text, fields: None)
    assert (scrubbed.round.errors, scrubbed.round.damaged, scrubbed.exit_status) == ([], {}, status)
    assert [line.partition(": ")[2] for line in scrubbed.round.warnings] == warnings
    with Catalog(config.state_dir) as catalog:
        assert {media.status for media in catalog.media()} == {VolumeStatus.USED}
