"""Two drives at work, magazines swapped beside a writing one, and names with blanks."""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.rig import Rig, missing
from tests.native.test_director import media, sync

pytestmark = [pytest.mark.native, pytest.mark.timeout(180)]


def made(tmp_path: Path, size: int, **how: object) -> Iterator[Rig]:
    if reason := missing():
        pytest.skip(reason)
    rig = Rig(tmp_path, **how)  # type: ignore[arg-type]
    for number in range(6):
        (tmp_path / "data" / f"file {number}").write_bytes(os.urandom(size))
    try:
        rig.start()
        yield rig
    finally:
        rig.stop()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Rig]:
    yield from made(tmp_path, 500_000, magazines=3, volumes=3)


@pytest.fixture
def blanks(tmp_path: Path) -> Iterator[Rig]:
    yield from made(tmp_path, 500_000, storage="My Changer", pool="Off Site")


def writing(rig: Rig) -> dict[str, str]:
    """Device to volume, of the jobs that write at this moment."""
    status = rig.console("status storage=chg")
    running = status.partition("Running Jobs:")[2].partition("====")[0]
    found = re.findall(r'Writing: .*?Volume="(\S+?)"\s+pool="\S+?" device="(\S+?)"', running, re.DOTALL)
    return {device: volume for volume, device in found}


@pytest.mark.complaint(17)
def test_the_other_magazine_is_swapped_under_two_writing_drives(three: Rig) -> None:
    rig = three
    sync(rig)
    rig.take("m3")
    sync(rig)
    rig.console("run job=slow-one yes", "run job=slow-two yes")
    # Both at once, in one answer of the storage daemon.
    rig.wait_for("both drives to write", lambda: set(writing(rig)) == {"chg-0", "chg-1"})
    assert {volume[:2] for volume in writing(rig).values()} == {"m1"}
    rig.take("m2")
    rig.bring("m3")
    sent = sync(rig)["sent"]
    assert "update volume=m2-0001 inchanger=no slot=0 enabled=no" in sent and sent[-1].endswith("enabled=yes")
    assert set(writing(rig)) == {"chg-0", "chg-1"}, "the swap came too late to be one under a writing drive"
    rig.console("wait")
    assert rig.log().count("Termination:            Backup OK") == 2, rig.log()
    times = rig.rows("select StartTime, EndTime from Job where Type = 'B'")
    assert max(str(start) for start, _end in times) < min(str(end) for _start, end in times)
    used = {str(row[0]) for row in rig.rows("select VolumeName from Media join JobMedia using (MediaId)")}
    assert len(used) > 3 and {name[:2] for name in used} == {"m1", "m3"}
    assert not [name for name, row in media(rig).items() if row[0] == "Error"]
    rig.console("restore client=t-fd jobid=1 all done yes", "wait")
    for file in (rig.root / "data").iterdir():
        assert filecmp.cmp(file, Path(f"{rig.root}/restored{file}"), shallow=False), file


def test_names_with_blanks(blanks: Rig) -> None:
    """Storage, pool, configuration, run directory and magazines have blanks in their names."""
    rig = blanks
    assert sync(rig)["sent"] == ['label storage="My Changer" pool="Off Site" slots=1-8 drive=0 barcodes']
    (rig.root / "magazine m2").rename(rig.root / "away" / "m2")
    assert "update volume=m2-0001 inchanger=no slot=0 enabled=no" in sync(rig)["sent"]
    (rig.root / "away" / "m2").rename(rig.root / "magazine m2")
    assert sync(rig)["sent"][0] == 'update slots storage="My Changer" drive=0'
    rig.console("run job=one yes", "wait")
    assert "Termination:            Backup OK" in rig.log()
    rig.console("restore client=t-fd jobid=1 all done yes", "wait")
    for file in (rig.root / "data").iterdir():
        assert filecmp.cmp(file, Path(f"{rig.root}/restored{file}"), shallow=False), file
    checked = rig.magbay("director", "test")
    assert checked.returncode == 0, checked.stdout
    assert rig.rows("select distinct MediaType from Media") == [("My-Changer",)]
