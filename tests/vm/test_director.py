"""Debian's Director, storage daemon and file daemon as services on the appliance, set up as docs/director.md says."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.conftest import running
from tests.vm.harness import Disk, Frozen, Guest, freeze
from tests.vm.harness.image import CHECKOUT

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

MIB = 1024 * 1024
PAGE = CHECKOUT / "docs/director.md"
DIRECTOR = "director: {kind: bacula, media_type: magbay, pool: Magbay, pools: {m2: Archive}}\nprepare: {volumes: 2}\n"
JOBS = """
FileSet { Name = little; Ignore FileSet Changes = yes
  Include { Options { signature = MD5 } File = /usr/share/doc/bash } }
FileSet { Name = big; Include { Options { signature = MD5 } File = /var/tmp/big } }
Job { Name = nightly; JobDefs = DefaultJob; Level = Full; FileSet = little; Storage = magbay; Pool = Magbay }
Job { Name = long; JobDefs = DefaultJob; Level = Full; FileSet = big; Storage = magbay; Pool = Magbay }
"""


HERE, AWAY = (1, 1, 1), (0, 0, 0)
# Arguments: query, wanted rows as JSON or null, seconds. Waits in the guest, where starting a Python takes a second.
_CATALOG = """
import json, sqlite3, sys, time
query, wanted, end = sys.argv[1], json.loads(sys.argv[2]), time.monotonic() + float(sys.argv[3])
while True:
    catalog = sqlite3.connect("file:/var/lib/bacula/bacula.db?mode=ro", uri=True, timeout=20)
    rows = [list(row) for row in catalog.execute(query)]
    catalog.close()
    if wanted is None or rows == wanted or time.monotonic() > end:
        break
    time.sleep(0.3)
print(json.dumps(rows))
"""


def steps() -> list[str]:
    """The shell blocks of the page's section 'Setting it up'."""
    section = PAGE.read_text().split("## Setting it up")[1].split("\n## ")[0]
    return [textwrap.dedent(block) for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]


class Office:
    """The appliance with a Director, and a shelf with the disks of m1 and m2."""

    def __init__(self, guest: Guest, disks: dict[str, Disk]) -> None:
        self.guest, self.disks = guest, disks

    def plug(self, name: str, *media: Any) -> None:
        """Push the disk of magazine *name* in and wait until the Director's catalog has *media* of it."""
        self.guest.plug(self.disks[name])
        self.wait_media(name, *media)

    def pull(self, name: str) -> None:
        """Pull it out, whatever it is doing."""
        self.guest.pull(self.disks[name])
        self.guest.wait_for(f"! lsblk -dno SERIAL | grep -qw {self.disks[name].serial}", timeout=30)

    def console(self, *lines: str) -> str:
        """What the Director answers."""
        text = "".join(f"{line}\n" for line in lines).encode()
        return self.guest.run("bconsole -n -u 60", stdin=text, timeout=180).stdout

    def catalog(self, query: str, wanted: list[list[Any]] | None = None, seconds: float = 90) -> list[list[Any]]:
        """Rows of the Director's catalog, read beside it; with *wanted* it is waited until they are these."""
        words = [_CATALOG, query, json.dumps(wanted), str(seconds)]
        rows: list[list[Any]] = json.loads(self.guest.run(["python3", "-c", *words], timeout=seconds + 60).stdout)
        if wanted is not None and rows != wanted:
            logs = "journalctl -t magbay -n 20 -o cat --no-pager; tail -n 40 /var/log/bacula/bacula.log"
            raise AssertionError(f"not {wanted} but {rows} after {seconds} s\n{self.guest.run(logs).stdout}")
        return rows

    def wait_media(self, magazine: str, *wanted: Any) -> None:
        """Wait until Enabled, InChanger, whether a slot is set, and pool are *wanted* for each volume of *magazine*."""
        self.catalog(
            "select distinct Media.Enabled, InChanger, Slot > 0, Name from Media join Pool using (PoolId) "
            f"where VolumeName like '{magazine}-%'",
            [list(wanted)],
        )

    def wait_job(self, number: int) -> None:
        """Wait until the job is done well."""
        self.catalog(f"select JobStatus from Job where JobId = {number}", [["T"]])

    def wait_console(self, command: str, pattern: str, seconds: float = 240) -> None:
        """Wait until the Director's answer to *command* has *pattern* in it."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, said := self.console(command)):
            if time.monotonic() > deadline:
                logs = "date; journalctl -n 60 --no-pager; tail -n 60 /var/log/bacula/bacula.log"
                more = self.console("status dir running", "list jobs", "llist joblog jobid=2")
                raise AssertionError(f"{said}\n{more}\n{self.guest.run(logs).stdout}")
            time.sleep(0.4)

    def run_job(self, command: str) -> int:
        """Start what the console's *command* says; gives the JobId."""
        match = re.search(r"JobId=(\d+)", self.console(command))
        assert match is not None, command
        return int(match[1])


def set_up(office: Office) -> None:
    """What the page says, word for word, and two disks; each magazine's volumes come into the pool that is theirs."""
    guest = office.guest
    guest.put("/root/director.yaml", DIRECTOR.encode())
    guest.run("cat /root/director.yaml >> /etc/magbay/magbay.yaml")
    files, ours, start = steps()
    guest.run(files)
    guest.run(ours)
    guest.put("/etc/bacula/jobs.conf", JOBS.encode())
    guest.run("echo @/etc/bacula/jobs.conf >> /etc/bacula/bacula-dir.conf")
    # Without Debian's links for System V init, which take half a minute here.
    told = guest.run(f"set -e; export SYSTEMCTL_SKIP_SYSV=1\n{start}", timeout=240).stdout
    assert told.count("ok    ") == 8 and "ok    rights: user bacula may use" in told, told
    units = "bacula-sd bacula-fd bacula-director"
    assert guest.run(f"systemctl is-active {units} && systemctl is-enabled {units}").stdout.split().count("active") == 3
    assert guest.run("ps -o user= -C bacula-sd,bacula-dir").stdout.split() == ["bacula", "bacula"]

    nodes = {}
    for name, disk in office.disks.items():
        guest.plug(disk)
        nodes[name] = guest.device(disk)
    for name, node in nodes.items():
        guest.run(f"magbay prepare {node} --name {name} --wipe none --yes", timeout=180)
    guest.run("magbay-changer /etc/magbay/magbay.yaml createvols m2 1 -l m2-e")
    # Two that magbay labelled on each, and an empty one, which only the Director can label; nobody typed a command.
    office.wait_media("m1", *HERE, "Magbay")
    office.catalog("select count(*) from Media where VolumeName like 'm2-%'", [[3]])
    office.wait_media("m2", *HERE, "Archive")


@pytest.fixture(scope="module")
def opened(frozen: Frozen) -> Iterator[tuple[Frozen, dict[str, Disk]]]:
    """A frozen guest that was set up, with both disks ejected and pulled; job 1 is on m1."""
    with tempfile.TemporaryDirectory(prefix="magbay-vm-") as name, tempfile.TemporaryDirectory(prefix="d-vm-") as work:
        disks = {n: Disk.create(Path(name) / f"{n}.raw", 128 * MIB, f"DIR-{n}") for n in ("m1", "m2")}
        with frozen.restore(Path(work)) as guest:
            office = Office(guest, disks)
            try:
                set_up(office)
                assert office.run_job("run job=nightly yes") == 1
                office.wait_job(1)
                guest.run("magbay eject m1 & magbay eject m2 && wait $!", timeout=120)
                for magazine in disks:
                    office.pull(magazine)
                office.catalog("select count(*) from Media where Enabled or InChanger or Slot", [[0]])
            except BaseException:
                print(f"journal and state of the guest: {guest.collect('test_director-set_up')}")
                raise
            made = freeze(guest, frozen.image, Path(name) / "frozen")
        yield made, disks


@pytest.fixture
def office(
    opened: tuple[Frozen, dict[str, Disk]], vm_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Office]:
    """A running appliance from there, with copies of the disks."""
    made, disks = opened
    copies = {}
    for name, disk in disks.items():
        copies[name] = Disk(tmp_path / f"{name}.raw", disk.serial)
        subprocess.run(["cp", "--sparse=always", disk.path, copies[name].path], check=True)
    with running(made, vm_folder, request) as guest:
        yield Office(guest, copies)


def test_a_job_waits_for_its_magazine_and_goes_on(office: Office) -> None:
    """m2 is in the bay and is torn out; a restore wants m1: told by status, journal and D-Bus; it ends by itself."""
    guest = office.guest
    guest.run("systemd-run --unit=listen sh -c 'exec busctl --json=short monitor org.magbay.Changer1 > /run/bus.json'")
    office.plug("m2", *HERE, "Archive")
    office.wait_media("m1", *AWAY, "Magbay")
    slots = dict(office.catalog("select VolumeName, Slot from Media where Slot"))
    assert slots == {s["volume"]: s["slot"] for s in json.loads(guest.run("magbay --json slots").stdout)}

    restore = office.run_job(
        "restore jobid=1 client=magbay-fd restorejob=RestoreFiles where=/var/tmp/back all done yes"
    )
    office.wait_console("status storage=magbay", 'BLOCKED waiting for mount of volume "m1-')
    office.pull("m2")
    office.wait_media("m2", *AWAY, "Archive")
    wanted = "journalctl -t magbay MAGAZINE=m1 JOB=RestoreFiles -o json --no-pager"
    guest.wait_for(f"{wanted} | grep -q .", timeout=60)
    record = json.loads(guest.run(wanted).stdout.splitlines()[-1])
    volume, message = record["VOLUME"], record["MESSAGE"]
    assert re.fullmatch(r"m1-\d{4}", volume) and "insert magazine m1 (last seen" in message, record
    assert "serial DIR-m1" in message and f"JobId {restore}" in message
    assert (
        "Subject: Magazine @MAGAZINE@ is wanted"
        in guest.run(f"journalctl --dump-catalog {record['MESSAGE_ID']}").stdout
    )
    status = guest.run("magbay status").stdout
    assert status.startswith("Insert magazine m1 (last seen") and volume in status.splitlines()[0], status
    signals = [json.loads(line) for line in guest.get("/run/bus.json").decode().splitlines()]
    told = [signal["payload"]["data"] for signal in signals if signal.get("member") == "MagazineWanted"]
    assert told == [["m1", volume, "RestoreFiles"]], signals

    office.plug("m1", *HERE, "Magbay")
    office.wait_job(restore)
    guest.run("diff -r /usr/share/doc/bash /var/tmp/back/usr/share/doc/bash")
    guest.wait_for("! magbay status | grep -q 'nsert magazine'", timeout=60)


def test_eject_waits_for_the_job_and_frees_the_drive(office: Office) -> None:
    """Nobody sends `unmount`: the job ends well, the drive is released, and is mounted again when the disk is back."""
    guest = office.guest
    guest.run("dd if=/dev/urandom of=/var/tmp/big bs=1M count=60 status=none")
    office.plug("m1", *HERE, "Magbay")
    job = office.run_job("run job=long yes")
    guest.wait_for("[ $(find /mnt/magbay -name 'm1-*' -printf '%s\n' | sort -n | tail -1) -gt 3000000 ]", timeout=60)
    assert "safe to remove" in guest.run("magbay eject m1", timeout=120).stdout
    office.wait_job(job)
    office.wait_console("status storage=magbay", r"(?s)^(?!.*Slot \d+).*Drive 0 is not loaded")
    office.wait_media("m1", *AWAY, "Magbay")
    office.pull("m1")

    # What a person mounted holds the drive, not the disk; and the drive is not left waiting for the person.
    office.plug("m1", *HERE, "Magbay")
    assert "is mounted" in office.console("mount storage=magbay drive=1 slot=1")
    assert "safe to remove" in guest.run("magbay eject m1", timeout=120).stdout
    office.wait_console("status storage=magbay", r"(?s)^(?!.*(?:Slot \d+|BLOCKED)).*Drive 1 is not loaded")


def test_the_broken_link_is_named(office: Office) -> None:
    guest = office.guest

    def broken(how: str, back: str) -> str:
        guest.run(how)
        done = guest.run("magbay director test", check=False, timeout=120)
        guest.run(back)
        assert done.rc == 1, done.stdout
        return next(line for line in done.stdout.splitlines() if line.startswith("FAIL"))

    console, drives = "/etc/magbay/bconsole.conf", "/run/magbay/drives"
    assert "cannot be read by the user of the changer agent" in broken(
        f"chgrp root {console}", f"chgrp magbay {console}"
    )
    rights = broken(f"chmod g-w {drives}", f"chmod g+w {drives}")
    assert "user bacula" in rights and f"may not write {drives} (of magbay:tape" in rights, rights
    assert "does not reach the storage daemon" in broken("systemctl stop bacula-sd", "true")
    bareos = broken("sed -i 's/kind: bacula/kind: bareos/' /etc/magbay/magbay.yaml", "true")
    assert "python-bareos is not installed" in bareos, bareos


def test_torn_out_while_a_job_writes(office: Office) -> None:
    """The job fails and says so, nothing of the disk stays behind, and the next job takes the next volume."""
    guest = office.guest
    guest.run("dd if=/dev/urandom of=/var/tmp/big bs=1M count=60 status=none")
    office.plug("m1", *HERE, "Magbay")
    job = office.run_job("run job=long yes")
    guest.wait_for("[ $(find /mnt/magbay -name 'm1-*' -printf '%s\n' | sort -n | tail -1) -gt 3000000 ]", timeout=60)
    office.pull("m1")
    office.catalog(f"select JobStatus from Job where JobId = {job}", [["f"]])
    office.wait_media("m1", *AWAY, "Magbay")
    assert office.catalog("select count(*) from Media where VolStatus = 'Error'") == [[0]]
    guest.wait_for("! ls /dev/mapper | grep -v control", timeout=30)
    guest.run("! ls -l /proc/$(pidof bacula-sd)/fd | grep /mnt/magbay")

    office.plug("m1", *HERE, "Magbay")
    office.wait_job(office.run_job("run job=nightly yes"))
