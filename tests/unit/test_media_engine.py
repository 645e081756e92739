"""What the engine hears of magazines: that one was pulled, that one is read-only and why."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from appliance.cli.eject import cancel_jobs
from appliance.cli.output import Output
from appliance.config.schema import Enrolment
from appliance.errors import ExitStatus
from appliance.magazines.attached import MEDIA_ANSWER, find
from appliance.magazines.prepare import enrol
from appliance.storage.device import FileVolume, MagazineLostError
from tests.unit.enginehelp import configuration, save


def test_a_job_hears_of_the_pull_before_a_flush_fails(tmp_path: Path) -> None:
    volume = FileVolume.create(tmp_path / "v", "m1", b"label")
    pulled = False
    volume.pulled = lambda: pulled
    volume.start_syncing()
    try:
        volume.append(memoryview(b"x" * 100))
        pulled = True
        with pytest.raises(MagazineLostError, match=r"m1 was lost.*pulled"):
            while True:
                volume.append(memoryview(b"x"))
                time.sleep(0.01)
    finally:
        volume.close()


def test_a_read_only_magazine_is_not_written_and_the_reason_is_told(tmp_path: Path) -> None:
    config = configuration(tmp_path, magazines="")
    enrol(config, Enrolment("red", "f5f5", "77ac", serial="S"))
    config.run_dir.mkdir()
    (config.mount_dir / "f5f5").mkdir(parents=True)
    disk: dict[str, object] = dict.fromkeys(("hint", "node", "serial", "size"), "")
    disk |= {"magazine": "red", "filesystem_uuid": "f5f5", "state": "mounted", "read_only": True}
    disk["reason"] = "read-only: e2fsck finds damage"
    (config.run_dir / MEDIA_ANSWER).write_text(json.dumps({"disks": [disk]}))
    red = find(config, "red")
    assert (red.attached, red.writable) == (True, False)
    result = save(config, Path(__file__))
    assert result.exit_status is not ExitStatus.DONE
    assert "magazine red is read-only: e2fsck finds damage" in result.errors[0]
    assert not list((config.mount_dir / "f5f5").iterdir())


def test_an_eject_ends_jobs_of_ours_and_nobody_else(capsys: pytest.CaptureFixture[str]) -> None:
    job, other = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    asked: set[int] = set()
    holders = [{"pid": job.pid, "job": 7, "job_name": "nightly"}, {"pid": other.pid, "job": 0, "job_name": ""}]
    try:
        cancel_jobs(holders, asked, Output())
        assert job.wait(20) == -signal.SIGTERM
        cancel_jobs(holders, asked, Output())  # it is gone, and was asked already
        cancel_jobs([{"pid": job.pid, "job": 8, "job_name": "late"}], set(), Output())
        assert other.poll() is None
    finally:
        for process in (job, other):
            process.kill()
            process.wait()
    assert capsys.readouterr().err == "job 7 (nightly) is cancelled\n"
