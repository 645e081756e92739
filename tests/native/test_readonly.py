"""Write-protected magazines: restores read them, nothing chooses them for writing."""

from __future__ import annotations

import filecmp
import subprocess
from pathlib import Path

import pytest

from tests.native.rig import Rig
from tests.native.test_director import media, sync

pytestmark = [pytest.mark.native, pytest.mark.timeout(180)]


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


@pytest.mark.complaint(14)
def test_a_write_protected_magazine_is_restored_from_and_not_written(rig: Rig) -> None:
    for number in range(2, 6):
        (rig.root / "data" / f"file {number}").unlink()  # what is left fits one volume
    sync(rig)
    rig.console("run job=one yes", "wait")
    assert "Backup OK" in rig.log()
    (used,) = {str(row[0])[:2] for row in rig.rows("select VolumeName from Media join JobMedia using (MediaId)")}
    other = "m2" if used == "m1" else "m1"
    before = {path.name: path.read_bytes() for path in (rig.root / used).iterdir()}
    path = str(rig.root / used)
    mount("--bind", path, path)
    try:
        mount("-o", "remount,bind,ro", path)
        sent = sync(rig)["sent"]
        assert sent == [f"update volume={name} enabled=no" for name in sorted(before)]
        assert all(row[2:4] == (1, 0 if name.startswith(used) else 1) for name, row in media(rig).items())
        assert sync(rig)["sent"] == []
        # Restores go on through the storage daemon.
        rig.console("restore client=t-fd jobid=1 all done yes", "wait")
        assert "Restore OK" in rig.log()
        for file in (rig.root / "data").iterdir():
            assert filecmp.cmp(file, Path(f"{rig.root}/restored{file}"), shallow=False)
        # A backup takes the other magazine.
        rig.console("run job=two yes", "wait")
        assert rig.log().count("Backup OK") == 2
        wrote = rig.rows("select VolumeName from Media join JobMedia using (MediaId) where JobId = 3")
        assert wrote and all(str(row[0]).startswith(other) for row in wrote)
        # Who asks for a write is told plainly.
        command = ["createvols", used, "1"]
        done = subprocess.run([rig.changer, rig.root / "magbay.yaml", *command], capture_output=True, text=True)
        assert done.returncode == 1 and "Read-only file system" in done.stderr, done
        assert f"{used}-0001" in rig.magbay("slots").stdout and "read-only" in rig.magbay("slots").stdout
    finally:
        subprocess.run(["umount", path], check=False)
    assert {path.name: path.read_bytes() for path in (rig.root / used).iterdir()} == before
    sent = sync(rig)["sent"]
    assert sent == [f"update volume={name} enabled=yes" for name in sorted(before)]
    assert {row[3] for row in media(rig).values()} == {1}
