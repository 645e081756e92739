"""What all unit tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from appliance.config.loader import load
from appliance.config.schema import Config
from tests.unit.leaks import pytest_runtest_makereport, watch_for_keys

__all__ = ["pytest_runtest_makereport", "watch_for_keys"]

# A machine with other work is no defect.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The smallest configuration of the design: two directory magazines, everything below one folder."""
    file = tmp_path / "magbay.yaml"
    file.write_text(
        "state_dir: state\nrun_dir: run\nmount_dir: mnt\nkey_file: key\nchanger: {name: c0, drives: 2}\n"
        "magazines:\n  - {name: m1, directory: m1}\n  - {name: m2, directory: m2}\n"
        "pools:\n  Default: {maximum_volume_bytes: 10GB, signature: MD5}\n"
    )
    return load(file)
