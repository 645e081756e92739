"""An old vchanger 0.8 installation whose Changer Command is replaced by ours, and nothing else."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.rig import Rig, missing

pytestmark = [pytest.mark.native, pytest.mark.timeout(180)]

TUTORIAL = """changer_name = c1
work_dir = {root}/vchanger
logfile = vchanger.log
log_level = LOG_INFO
Virtual_Drives = 2
slots_per_magazine = 10
magazine_bays = 2
magazine = "{root}/m1"
magazine = "{root}/m2"
"""


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Rig]:
    """Daemons whose configuration was written for vchanger 0.8."""
    if reason := missing():
        pytest.skip(reason)
    rig = Rig(tmp_path)
    for number in range(5):
        (tmp_path / "data" / f"file {number}").write_bytes(bytes([number]) * 700_000)
    (tmp_path / "vchanger.conf").write_text(TUTORIAL.format(root=tmp_path))
    (tmp_path / "vchanger").mkdir()
    piece = tmp_path / "bacula-sd-magbay.conf"
    text = piece.read_text().replace(f"{tmp_path}/magbay.yaml", f"{tmp_path}/vchanger.conf")
    piece.write_text(re.sub(rf"{tmp_path}/run/drives/(\d)", rf"{tmp_path}/vchanger/\1/drive\1", text))
    assert "vchanger/1/drive1" in piece.read_text()
    try:
        rig.start()
        yield rig
    finally:
        rig.stop()


def test_label_backup_and_restore_through_the_old_paths(old: Rig) -> None:
    old.console("update slots storage=chg drive=0", "label storage=chg pool=Default slots=1-20 drive=0 barcodes", "yes")
    labelled = old.rows("select VolumeName, Slot from Media where InChanger = 1 order by Slot")
    # The number in the name is the place in the magazine's slots, as with 0.8.
    assert labelled == [(f"m{bay}-{n:04d}", 10 * (bay - 1) + n) for bay in (1, 2) for n in range(1, 5)]
    old.console("run job=one yes", "wait")
    assert old.log().count("Termination:            Backup OK") == 1, old.log()
    links = [path.readlink().parent.name for path in (old.root / "vchanger").glob("?/drive?") if path.is_symlink()]
    assert links and set(links) <= {"m1", "m2"}
    old.console("restore client=t-fd select all done yes", "wait")
    for path in (old.root / "data").iterdir():
        assert filecmp.cmp(path, f"{old.root}/restored{path}", shallow=False)
