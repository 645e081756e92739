"""The search for keys itself: a test that lets one out fails, whatever way it went."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_TESTS = """
import base64, os, sys
from pathlib import Path
import pytest
import appliance.host.commands as commands
from appliance.keys.secret import Secret

@pytest.fixture
def key():
    return Secret(os.urandom(64))

def test_quiet(key): print(key, key.fingerprint())
def test_print(key): print(base64.b64encode(key.reveal()).decode())
def test_raw(key): sys.stderr.buffer.write(key.reveal())
def test_hex_in_traceback(key): raise ValueError(key.reveal().hex())
def test_word(key): commands.run(["true", key.reveal().hex()], "x")
def test_file(key, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "log").write_bytes(base64.b32encode(key.reveal()))
def test_read_away(key, capsys):
    print(key.reveal().hex())
    capsys.readouterr()
@pytest.mark.shows_key
def test_allowed(key): print(key.reveal().hex())
"""


def test_a_key_that_shows_fails_the_test(tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(_TESTS)
    hooks = "from tests.unit.leaks import pytest_runtest_makereport, watch_for_keys\n"
    (tmp_path / "conftest.py").write_text(hooks)
    root = Path(__file__).parents[2]
    words = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider"]
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = shows_key\n")
    done = subprocess.run(
        [*words, "--rootdir", str(tmp_path), str(tmp_path / "test_sample.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    results = dict(reversed(line.split()[:2]) for line in done.stdout.splitlines() if line.startswith(("PASS", "FAIL")))
    told = {name.split("::")[1]: result for name, result in results.items()}
    assert {name for name, result in told.items() if result == "PASSED"} == {"test_quiet", "test_allowed"}, done
    assert len(told) == 8 and "a key shows in a command line" in done.stdout
