"""The tutorial's size: six magazines of twelve volumes in one dock of two, jobs across volumes and drives, swaps."""

from __future__ import annotations

import filecmp
import json
import os
from pathlib import Path

import pytest

from tests.native.rig import Rig, missing

pytestmark = [pytest.mark.native, pytest.mark.timeout(300)]

MAGAZINES = [f"m{number}" for number in range(1, 7)]


def sync(rig: Rig) -> dict[str, list[str]]:
    done = rig.magbay("--json", "director", "sync")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def in_changer(rig: Rig) -> set[str]:
    return {str(row[0]).split("-")[0] for row in rig.rows("select VolumeName from Media where InChanger and Enabled")}


@pytest.mark.complaint(3, 4, 17)
def test_six_magazines(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    rig = Rig(tmp_path, magazines=6, volumes=12)
    for number in range(10):
        (tmp_path / "data" / f"file {number}").write_bytes(os.urandom(500_000))
    try:
        rig.start()
        _story(rig)
    finally:
        rig.stop()


def _story(rig: Rig) -> None:
    told = sync(rig)
    assert [line.split()[3] for line in told["sent"] if line.startswith("label")] == [
        "slots=1-20",
        "slots=21-40",
        "slots=41-60",
        "slots=61-72",
    ]
    slots = dict(rig.rows("select VolumeName, Slot from Media"))
    assert sorted(slots.values()) == list(range(1, 73))

    for name in MAGAZINES[2:]:
        rig.take(name)
    sync(rig)
    assert in_changer(rig) == {"m1", "m2"}
    for round_, (out, back) in enumerate(zip(("m1", "m2", "m3"), ("m3", "m4", "m5"), strict=True), 1):
        rig.console("run job=one yes", "run job=two yes", "wait")
        assert rig.log().count("Termination:            Backup OK") == 2 * round_
        rig.take(out)
        rig.bring(back)
        sent = sync(rig)["sent"]
        assert sum(line.startswith("update slots") for line in sent) == 1
        assert in_changer(rig) == {path.name for path in rig.root.iterdir() if path.name in MAGAZINES}

    # Every volume has the slot that it had on the first day, whatever came and went.
    for name, slot in rig.rows("select VolumeName, Slot from Media where InChanger"):
        assert slots[name] == slot
    jobs = rig.rows("select JobId, count(distinct MediaId) from JobMedia group by JobId")
    assert len(jobs) == 6 and all(count > 1 for _job, count in jobs)
    assert {f'on device "chg-{drive}"' in rig.log() for drive in (0, 1)} == {True}
    # What job 1 is on is away by now: the restore asks for it, magazine after magazine, and gets it.
    rig.console("restore client=t-fd jobid=1 all done yes")
    asked = []

    def ended() -> bool:
        for sentence in sync(rig)["wanted"]:
            name = sentence.split()[2].rstrip(":")
            asked.append(name)
            rig.bring(name)
        return "Termination:            Restore OK" in rig.log()

    rig.wait_for("the restore to end", ended, 60)
    assert asked
    for file in (rig.root / "data").iterdir():
        assert filecmp.cmp(file, Path(f"{rig.root}/restored{file}"), shallow=False), file
    assert not rig.rows("select VolumeName from Media where VolStatus = 'Error'")
