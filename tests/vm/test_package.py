"""The package installs on an existing Debian 13."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.vm.harness.image import CHECKOUT


@pytest.mark.complaint(24)
def test_installs_on_a_plain_debian_13() -> None:
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        pytest.skip("entering a Debian 13 tree needs root and mmdebstrap (image/install-host-packages)")
    result = subprocess.run([CHECKOUT / "image/deb-check"], stdout=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert result.stdout.endswith("all is well\n")
