"""Disks that are pulled at the worst moment: what only a kernel can show."""

from __future__ import annotations

import json
import re
import statistics
import time
from pathlib import Path

import pytest

from tests.vm.dock import RUN, Dock, run, wait
from tests.vm.harness import Disk, Guest
from tests.vm.ready import Ready, patience

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

CLEARED = 5.0  # seconds in which mounts and mappings of a pulled disk are gone
TOLD = 2.0  # seconds in which a job hears of it
_CHECKED = "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a11"  # a file system was checked (systemd/catalog)
_MOUNTED = "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a01"
_ROUNDS = 10


def _says(what: str, seconds: list[float]) -> None:
    print(
        f"{what}: median {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s "
        f"({len(seconds)} times, busy host: x{patience():.1f})"
    )


def test_thirty_yanks_while_writing(guest: Guest, tmp_path: Path) -> None:
    """Three magazines, pulled one after the other ten times while all are written: nothing of them is left, whoever
    writes is told, the one beside them goes on, and each is repaired before it is mounted again, without a command."""
    dock = Dock(guest, tmp_path, ["beside", "y1", "y2", "y3"])
    beside, *victims = dock.magazines
    dock.watch()
    dock.plug(beside, *victims)
    dock.mounted(beside, *victims)
    dock.write(beside.filesystem_uuid)
    cleared, told = [], []
    for _ in range(_ROUNDS):
        dock.write(*(magazine.filesystem_uuid for magazine in victims))
        pulled = []
        for magazine in victims:
            pulled.append(dock.now())
            dock.pull(magazine)
        cleared += [dock.cleared(magazine, at) for magazine, at in zip(victims, pulled, strict=True)]
        ended = dock.writers_told(*(magazine.filesystem_uuid for magazine in victims))
        told += [end - at for end, at in zip(ended, pulled, strict=True)]
        dock.plug(*victims)
        dock.mounted(*victims)
    _says("pulled while written, cleared away", cleared)
    _says("the writer was told", told)
    assert len(cleared) == len(told) == 30
    assert max(cleared) <= CLEARED * patience() and max(told) <= TOLD * patience()
    for magazine in victims:
        dock.wait_state(magazine, "mounted")
    found = [record for record in dock.journal(f"MESSAGE_ID={_CHECKED}") if record["CHECKED"] != "clean"]
    # "its journal was recovered, no damage", or, where a truncation was cut, "e2fsck repaired it".
    assert len(found) == 30 and all(re.search("recovered|repaired", record["CHECKED"]) for record in found), found
    assert {record["MAGAZINE"] for record in found} == {magazine.name for magazine in victims}
    assert len(dock.journal(f"MESSAGE_ID={_MOUNTED} MAGAZINE=beside")) == 1, "the magazine beside them did not notice"
    rounds = run(guest, f"wc -l < {RUN}/{beside.filesystem_uuid}; [ ! -e {RUN}/{beside.filesystem_uuid}.end ]").stdout
    assert int(rounds) > 30, "whoever writes beside them goes on"


def test_jobs_hear_of_an_eject_and_of_a_pull(guest: Guest, tmp_path: Path) -> None:
    """An eject waits for a job and names it, or ends it when asked; a pull ends it within seconds."""
    dock = Dock(guest, tmp_path, ["y1", "y2", "y3"], size=160)
    script = (
        f"magbay --json backup /usr/lib/x86_64-linux-gnu > {RUN}/job.json 2> {RUN}/job.err\n"
        f"echo $? > {RUN}/job.status; touch {RUN}/job.end\n"
    )
    guest.put(f"{RUN}/job.sh", script.encode())

    def writing(magazine: Ready) -> None:
        """A job that writes on the magazine, which is plugged in for it."""
        dock.plug(magazine)
        dock.wait_state(magazine, "mounted")
        run(guest, f"rm -f {RUN}/job.*[!h]; systemd-run --collect -q -- sh {RUN}/job.sh")
        wait(
            guest, f"journalctl -b -t magbay MAGAZINE={magazine.name} -o cat --no-pager | grep -q '^writing on volume'"
        )

    ejected, *pulled_ones = dock.magazines
    writing(ejected)
    words = run(guest, "magbay eject y1 --cancel-jobs", timeout=120).stderr
    assert re.search(r"waits for job \d+ \(backup, process", words), words
    assert re.search(r"job \d+ \(backup\) is cancelled", words), words
    wait(guest, f"[ -e {RUN}/job.end ]")
    assert json.loads(run(guest, f"cat {RUN}/job.json").stdout)["status"] == "cancelled"
    dock.pull(ejected)

    told, ended = [], []
    for magazine in pulled_ones:
        writing(magazine)
        pulled = dock.now()
        dock.pull(magazine)
        wait(guest, f"[ -e {RUN}/job.end ]")
        # What it says is the last that it does but for the end of Python.
        times = run(guest, f"stat -c %.9Y {RUN}/job.err {RUN}/job.end").stdout.split()
        told.append(float(times[0]) - pulled)
        ended.append(float(times[1]) - pulled)
        assert run(guest, f"cat {RUN}/job.status").stdout.strip() == "1"
        words = run(guest, f"cat {RUN}/job.err").stdout
        assert f"{magazine.name} was lost" in words and "Traceback" not in words, words
    _says("the job was told of the pull", told)
    _says("its process had ended", ended)
    assert statistics.median(told) <= TOLD * patience()


def test_pulled_on_its_way(guest: Guest, tmp_path: Path) -> None:
    """While it is probed, unlocked, checked, mounted, used and unmounted, at moments that are spread over all of it."""
    dock = Dock(guest, tmp_path, ["y1"])
    (magazine,) = dock.magazines
    dock.watch()
    seen, took = set(), []
    for turn in range(12):
        dock.plug(magazine)
        if turn < 8:
            wanted = ("locked", "unlocking", "checking", "unlocked", "mounted")[turn % 5]
            states = {wanted, "mounted"}
        else:
            dock.wait_state(magazine, "mounted")
            run(guest, "busctl call org.magbay.Media1 /org/magbay/Media1 org.magbay.Media1 Eject s y1")
            states = {("ejecting", "safe to remove")[turn % 2], "safe to remove"}
        end = time.monotonic() + 60 * patience()
        while (state := dock.state(magazine)["state"]) not in states:
            assert time.monotonic() < end, f"{state}, not {states}"
        seen.add(state)
        pulled = dock.now()
        dock.pull(magazine)
        dock.wait_state(magazine, "gone")
        took.append(dock.cleared(magazine, pulled))
        print(f"pulled while {state}: cleared away after {took[-1]:.2f} s")
    _says("pulled on its way, cleared away", took)
    assert max(took) <= CLEARED * patience()
    assert len(seen) >= 4, seen
    left = "systemctl list-units --all --plain --no-legend 'magbay-*@*' | grep -v health"
    wait(guest, f"! {left}")
    dock.plug(magazine)
    assert not dock.wait_state(magazine, "mounted", "failed")["reason"], "no command was needed"


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_other_file_systems(guest: Guest, tmp_path: Path, kind: str) -> None:
    """Pulled while it is written; the log is replayed before the next mount, without a command."""
    dock = Dock(guest, tmp_path, [])
    disk = Disk.create(tmp_path / "disk.raw", "400M", "SER-OTHER")
    guest.plug(disk)
    node = guest.device(disk)
    run(guest, f"magbay prepare {node} --name other --wipe none --filesystem {kind} --yes", timeout=120)
    uuid = json.loads(run(guest, "magbay --json magazine show other").stdout)["filesystem_uuid"]
    for _ in range(2):
        dock.write(uuid)
        pulled = dock.now()
        guest.pull(disk)
        (told,) = dock.writers_told(uuid)
        wait(guest, f"! ls /dev/mapper | grep magbay- && ! grep {uuid} /proc/self/mountinfo")
        print(f"{kind}: the writer was told after {told - pulled:.2f} s")
        guest.plug(disk)
        wait(guest, f"grep -q ' /mnt/magbay/{uuid} {kind} rw' /proc/mounts")
    wait(guest, f"[ $(journalctl -b MESSAGE_ID={_CHECKED} -o cat --no-pager | grep -c 'log was replayed') -ge 2 ]")
