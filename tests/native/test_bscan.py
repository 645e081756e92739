"""Volumes of magbay alone, without its catalog: `bscan` rebuilds Bacula's, and a Director restores from them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config.loader import load
from appliance.storage import backup
from tests.native.rig import Rig, missing
from tests.unit import enginehelp, stocktools

pytestmark = [pytest.mark.native, pytest.mark.timeout(180)]

_DIR = """
Storage {{ Name = bare; Address = 127.0.0.1; SDPort = {port}; Password = "sd-secret-8"; Device = Bare
  Media Type = File }}
"""
_SD = """
Device {{ Name = Bare; Media Type = File; Device Type = File; Archive Device = "{root}/bare"; Label Media = no
  Random Access = yes; Automatic Mount = yes; Removable Media = no; Always Open = no }}
"""
_JOBS = """
filesets:
  plain: {{paths: ["{tree}"], signature: SHA1}}
  small: {{paths: ["{tree}"], signature: SHA256, compression: gzip3}}
jobs:
  plain: {{fileset: plain}}
  small: {{fileset: small}}
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Daemons that also know a bare directory with volumes; not running yet."""
    if reason := missing():
        pytest.skip(reason)
    stocktools.find("bscan")
    (tmp_path / "rig").mkdir()
    made = Rig(tmp_path / "rig")
    (made.root / "bare").mkdir()
    port = (made.root / "bacula-sd.conf").read_text().partition("SDPort = ")[2].partition(";")[0]
    for name, text in (("bacula-dir.conf", _DIR), ("bacula-sd.conf", _SD)):
        with (made.root / name).open("a") as file:
            file.write(text.format(root=made.root, port=port))
    yield made
    made.stop()


def bscan(rig: Rig, volumes: list[str]) -> None:
    """Let `bscan` fill the Director's empty catalog."""
    argv = ["bscan", "-s", "-m", "-v", "-w", f"{rig.root}/var", "-n", "bacula", "-c", f"{rig.root}/bacula-sd.conf"]
    argv += ["-V", "|".join(volumes), "Bare"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_director_restores_from_volumes_that_bscan_found(rig: Rig, tmp_path: Path) -> None:
    """Every kind of thing, one job plain over three volumes, one compressed behind it."""
    home, tree = tmp_path / "magbay", enginehelp.rich_tree(tmp_path / "tree")
    home.mkdir()
    enginehelp.configuration(home, "maximum_volume_bytes: 2MB")
    with (home / "magbay.yaml").open("a") as file:
        file.write(_JOBS.format(tree=tree))
    config = load(home / "magbay.yaml")
    volumes: list[str] = []
    for name in ("plain", "small"):
        done = backup.run(config, backup.request_for(config, [name]), log=lambda text, fields: None)
        volumes += [volume for volume in done.volumes if volume not in volumes]
    assert len(volumes) >= 4
    for volume in volumes:
        shutil.copy(enginehelp.volume(config, volume), rig.root / "bare")

    bscan(rig, volumes)
    jobs = rig.rows("select JobId, Name, Level, JobStatus, JobFiles from Job order by JobId")
    assert [(name, level, status) for _, name, level, status, _ in jobs] == [("plain", "F", "T"), ("small", "F", "T")]
    assert [row[0] for row in rig.rows("select VolumeName from Media order by MediaId")] == volumes

    rig.start()
    for number, (job_id, name, *_rest) in enumerate(jobs, 1):
        where = tmp_path / f"back-{name}"
        rig.console(f"restore jobid={job_id} client=t-fd restoreclient=t-fd storage=bare where={where} all done yes")
        rig.wait_for(f"restore {number}", lambda: rig.log().count("Termination:") == number, 40)  # noqa: B023
        assert rig.log().count("Restore OK") == number, rig.log()
        enginehelp.assert_same(tree, enginehelp.below(where, tree))
