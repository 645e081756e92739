"""The Director told: catalog, labels, blocked jobs, with Debian's Bacula on loopback."""

from __future__ import annotations

import filecmp
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from appliance.storage.labelling import create
from tests.native.rig import Rig

pytestmark = [pytest.mark.native, pytest.mark.timeout(180)]


def media(rig: Rig) -> dict[str, tuple[object, ...]]:
    """Volume to status, slot, in changer, enabled, pool."""
    rows = rig.rows(
        "select VolumeName, VolStatus, Slot, InChanger, Media.Enabled, Pool.Name from Media join Pool using (PoolId)"
    )
    return {str(row[0]): row[1:] for row in rows}


def sync(rig: Rig, status: int = 0) -> dict[str, list[str]]:
    done = rig.magbay("--json", "director", "sync")
    assert done.returncode == status, done.stdout + done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.complaint(4)
def test_pieces_are_accepted_by_the_daemons(rig: Rig) -> None:
    for daemon in ("bacula-dir", "bacula-sd"):
        argv = [daemon, "-t", "-c", str(rig.root / f"{daemon}.conf")]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    # What the Director says of our piece, not what we wrote.
    shown = rig.console("show storage=chg", "show pool=Default", "show job=UpdateSlots")
    assert "MediaType=magbay" in shown
    assert "UpdateSlots" in shown


@pytest.mark.complaint(15, 23)
def test_swaps_backup_restore(rig: Rig) -> None:
    """Label, two jobs at once on two drives, magazines swapped, restore blocked until the right one comes.

    Complaint 15 (which disk must I insert?) and 6 (a blocked job does not resume).
    """
    first = sync(rig)
    assert first["problems"] == []
    assert [line for line in first["sent"] if line.startswith("label")] == [
        "label storage=chg pool=Default slots=1-8 drive=0 barcodes"
    ]
    assert all(row == ("Append", slot, 1, 1, "Default") for slot, row in enumerate(media(rig).values(), 1))
    assert len(media(rig)) == 8
    assert sync(rig)["sent"] == []

    rig.console("run job=one yes", "run job=two yes", "wait")
    assert rig.log().count("Termination:            Backup OK") == 2
    drives = {line.split('device "')[1].split('"')[0] for line in rig.log().splitlines() if 'on device "chg-' in line}
    assert drives == {"chg-0", "chg-1"}
    used = [name for name, row in media(rig).items() if name.startswith("m1") and row[0] != "Purged"]
    assert used

    rig.take("m1")
    told = sync(rig)
    assert sum(line.startswith("update slots") for line in told["sent"]) <= 1
    for name, row in media(rig).items():
        assert row[1:4] == ((0, 0, 0) if name.startswith("m1") else (int(name[-4:]) + 4, 1, 1)), name

    rig.console("restore client=t-fd jobid=1 all done yes")
    if "m1-" in str(rig.rows("select VolumeName from Media join JobMedia using (MediaId) where JobId = 1")):
        rig.wait_for("the restore to block", lambda: "BLOCKED" in rig.console("status storage=chg"))
        waiting = sync(rig)["wanted"]
        assert len(waiting) == 1
        assert waiting[0].startswith("insert magazine m1")
        assert "job restore" in waiting[0]
    rig.bring("m1")
    sync(rig)
    rig.wait_for("the restore to end", lambda: "Termination:            Restore OK" in rig.log(), 40)
    for file in (rig.root / "data").iterdir():
        restored = Path(f"{rig.root}/restored{file}")
        assert filecmp.cmp(file, restored, shallow=False), file


@pytest.mark.complaint(2, 3, 5, 6)
def test_last_magazine_leaves_and_a_blocked_backup_goes_on(rig: Rig) -> None:
    """Complaints 2 to 6: nothing stays in the changer, nothing absent is chosen or in Error, `mount` wakes the job."""
    sync(rig)
    rig.take("m1")
    rig.take("m2")
    sync(rig)
    assert {row[1:4] for row in media(rig).values()} == {(0, 0, 0)}
    rig.console("run job=one yes")
    rig.wait_for("the job to block", lambda: "BLOCKED" in rig.console("status storage=chg"))
    assert {row[0] for row in media(rig).values()} == {"Append"}
    waiting = sync(rig)["wanted"]
    assert "insert magazine m" in waiting[0]
    assert "pool Default" in waiting[0]
    rig.bring("m2")
    sent = sync(rig)["sent"]
    assert sent[0] == "update slots storage=chg drive=0"
    assert sent[-1].startswith("mount storage=chg drive=")
    rig.wait_for("the job to end", lambda: "Backup OK" in rig.log(), 40)
    assert {row[1:4] for name, row in media(rig).items() if name.startswith("m1")} == {(0, 0, 0)}


@pytest.mark.complaint(1)
def test_the_storage_daemon_is_the_first_to_see_a_change(rig: Rig) -> None:
    """Complaint 1: no stall of 30 s, because the Changer Command never talks to the Director."""
    sync(rig)
    rig.take("m1")
    began = time.monotonic()
    reply = rig.console("update slots storage=chg drive=0")
    assert time.monotonic() - began < 15
    assert "m2-0001" in reply and '"m1-0001" is up to date' not in reply
    assert rig.rows("select count(*) from Media where InChanger") == [(4,)]


@pytest.mark.complaint(4)
def test_volumes_that_an_absent_disk_put_in_error_come_back(rig: Rig) -> None:
    """A job marks what is away when Removable Media is no; `director repair` takes that back, once it is here."""
    sync(rig)
    rig.console("run job=one yes", "wait")
    written = {str(row[0]) for row in rig.rows("select VolumeName from Media join JobMedia using (MediaId)")}
    bad, away = (
        next(n for n in sorted(media(rig)) if n[:2] == magazine and n not in written) for magazine in ("m1", "m2")
    )
    rig.console(*(f"update volume={name} volstatus=Error" for name in (*written, bad, away)))
    (rig.root / "m1" / bad).write_bytes(b"overwritten by somebody" * 100)
    rig.take("m2")
    done = rig.magbay("director", "repair")
    assert done.returncode == 3, done.stdout + done.stderr
    assert f"volume {bad} of magazine m1 stays in Error" in done.stderr
    assert f"volume {away} of magazine m2 stays in Error: it cannot be looked at (away)" in done.stderr
    rig.bring("m2")
    rig.magbay("director", "repair")
    states = {name: row[0] for name, row in media(rig).items()}
    assert (states[away], states[bad], {states[name] for name in written}) == ("Append", "Error", {"Used"})


def test_what_an_operator_disabled_stays_disabled(rig: Rig) -> None:
    sync(rig)
    rig.console("update volume=m1-0002 enabled=no")
    rig.take("m1")
    sync(rig)
    rig.bring("m1")
    sync(rig)
    assert media(rig)["m1-0001"][3] == 1
    assert media(rig)["m1-0002"][3] == 0


def test_newcomers(rig: Rig) -> None:
    """Our own labels are taken over, files with data of another catalog are left alone and named."""
    for path in [*(rig.root / "m1").iterdir(), *(rig.root / "m2").iterdir()]:
        path.unlink()
    made = create(rig.config, magazine="m1", pool="Default", count=2)
    names = [item.name for item in made]
    data = (rig.root / "m1" / names[0]).read_bytes()
    (rig.root / "m2" / "other-0001").write_bytes(data + data)
    told = sync(rig, status=3)
    assert set(media(rig)) == set(names)
    assert len(told["problems"]) == 1
    assert "other-0001" in told["problems"][0]
    assert (rig.root / "m2" / "other-0001").read_bytes() == data + data
    rig.console("run job=one yes", "wait")
    assert "Backup OK" in rig.log()


def test_wrong_pool_and_wrong_storage_are_refused_not_replaced(rig: Rig) -> None:
    """A Director takes its only pool or storage for one that it does not know, without a word of failure."""
    text = (rig.root / "magbay.yaml").read_text()
    (rig.root / "magbay.yaml").write_text(text.replace("pool: Default", "pool: Nope"))
    told = sync(rig, status=3)
    assert media(rig) == {}
    assert "no pool Nope" in told["problems"][0]
    (rig.root / "magbay.yaml").write_text(text.replace("storage: chg", "storage: nope"))
    done = rig.magbay("director", "sync")
    assert done.returncode == 1
    assert "no storage called nope" in done.stderr


def test_the_chain_in_words(rig: Rig) -> None:
    """`director test` names the link that is broken, from the password to the daemon."""
    sync(rig)
    good = rig.magbay("director", "test")
    assert good.returncode == 0, good.stdout
    console = rig.root / "bconsole.conf"
    text = console.read_text()
    console.write_text(text.replace("console-secret-7", "wrong"))
    (rig.root / "magbay.yaml").write_text((rig.root / "magbay.yaml").read_text().replace("timeout: 20", "timeout: 3"))
    done = rig.magbay("director", "test")
    assert done.returncode == 1
    assert "refused the password" in done.stdout
    console.write_text(text)
    rig.stop("bacula-sd")
    done = rig.magbay("director", "test")
    assert "FAIL  storage daemon: the Director does not reach the storage daemon" in done.stdout
    rig.stop("bacula-dir")
    done = rig.magbay("director", "test")
    assert "FAIL  Director: talking to the Director: no answer" in done.stdout
    assert "secret" not in done.stdout + done.stderr


def test_drives_are_released_when_their_magazine_leaves(rig: Rig) -> None:
    """What the storage daemon believes loaded is corrected, once, and the next job needs nobody."""
    sync(rig)
    rig.console("run job=one yes", "wait")
    (volume,) = (str(row[0]) for row in rig.rows("select VolumeName from Media where VolBytes > 1000000 limit 1"))
    assert "was last loaded in drive" in rig.console("status storage=chg")
    for magazine in ("m1", "m2"):
        rig.take(magazine)
    sent = sync(rig)["sent"]
    assert any(line.startswith("release storage=chg drive=") for line in sent), (sent, volume)
    assert "was last loaded in drive" not in rig.console("status storage=chg")
    assert sync(rig)["sent"] == []
    for magazine in ("m1", "m2"):
        rig.bring(magazine)
    sync(rig)
    rig.console("run job=one yes", "wait")
    assert rig.log().count("Termination:            Backup OK") == 2


def test_daemons_that_hang_are_not_waited_for(rig: Rig) -> None:
    file = rig.root / "magbay.yaml"
    file.write_text(file.read_text().replace("timeout: 20", "timeout: 3"))
    silent = "no answer within 11 s to '.storage', 'list volumes', 'status storage=chg'"
    for name, words in (("bacula-sd", "does not reach the storage daemon"), ("bacula-dir", silent)):
        rig.daemons[name].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        done = rig.magbay("director", "sync")
        took = time.monotonic() - began
        rig.daemons[name].send_signal(signal.SIGCONT)
        assert done.returncode == 1 and words in done.stderr, done.stderr
        # Without a limit of our own bconsole would wait for twenty seconds, whatever it is told.
        assert took < 18, f"{name}: {took} s"
