"""The appliance in the virtual machine: the whole road, and the faults that only a kernel can show."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm import leaks
from tests.vm.conftest import running
from tests.vm.harness import Disk, Frozen, Guest, freeze
from tests.vm.story import Story

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

MIB = 1024 * 1024


@pytest.mark.complaint(9, 11)
def test_the_walking_appliance(guest: Guest, tmp_path: Path) -> None:
    """Issue 'walking appliance', steps 1 to 7."""
    story = Story(guest, print, tmp_path)
    for step in Story.STEPS:
        step(story)


class Dock:
    """A guest with one prepared magazine, m1, whose disk is on the shelf."""

    def __init__(self, guest: Guest, folder: Path, disk: Disk) -> None:
        self.guest, self.folder, self.disk = guest, folder, disk

    def node(self, disk: Disk) -> str:
        listing = self.guest.run("lsblk -dnpo NAME,SERIAL").stdout.splitlines()
        return next(line.split()[0] for line in listing if line.split()[1:] == [disk.serial])

    def plug(self, disk: Disk) -> str:
        self.guest.plug(disk)
        self.guest.wait_for(f"lsblk -dno SERIAL | grep -qxF '{disk.serial}'", timeout=60)
        return self.node(disk)

    def pull(self, disk: Disk) -> None:
        self.guest.pull(disk)
        self.guest.wait_for(f"! lsblk -dno SERIAL | grep -qxF '{disk.serial}'", timeout=60)

    def prepare(self, disk: Disk, name: str) -> None:
        node = self.plug(disk)
        self.guest.run(f"magbay prepare {node} --name {name} --wipe none --yes", timeout=180)

    def state(self, serial: str) -> dict[str, Any]:
        status = json.loads(self.guest.run("magbay --json status").stdout)
        return next((d for d in status["disks"] if d["serial"] == serial and d["state"] != "gone"), {"state": "gone"})

    def wait_state(self, serial: str, wanted: str, timeout: float = 60) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while (found := self.state(serial))["state"] != wanted:
            assert time.monotonic() < deadline, f"{serial} is {found}, not {wanted}"
            time.sleep(0.3)
        return found


@pytest.fixture(scope="module")
def prepared(frozen: Frozen) -> Iterator[tuple[Frozen, Disk]]:
    """A frozen guest in which m1 was prepared and ejected, and the disk; made once, as preparing takes its time."""
    with tempfile.TemporaryDirectory(prefix="magbay-vm-") as name, tempfile.TemporaryDirectory(prefix="m-vm-") as work:
        disk = Disk.create(Path(name) / "m1.raw", 256 * MIB, "SER-M1")
        with frozen.restore(Path(work)) as guest:
            dock = Dock(guest, Path(work), disk)
            dock.prepare(disk, "m1")
            guest.run("magbay eject m1")
            dock.pull(disk)
            made = freeze(guest, frozen.image, Path(name) / "frozen")
        yield made, disk


@pytest.fixture
def dock(
    prepared: tuple[Frozen, Disk], vm_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Dock]:
    """A running appliance that knows magazine m1, with a copy of its disk."""
    frozen, disk = prepared
    copy = tmp_path / "m1.raw"
    subprocess.run(["cp", "--sparse=always", disk.path, copy], check=True)
    with running(frozen, vm_folder, request) as guest:
        yield Dock(guest, tmp_path, Disk(copy, disk.serial))


def test_wrong_key_is_named_and_the_right_one_works_after_a_replug(dock: Dock) -> None:
    guest = dock.guest
    guest.run(
        "cp -a /etc/magbay/keys/magbay.key /root/right.key && head -c 4096 /dev/urandom > /etc/magbay/keys/magbay.key"
    )
    dock.plug(dock.disk)
    found = dock.wait_state("SER-M1", "failed")
    assert "key file does not open" in found["reason"] and found["hint"]
    slots = json.loads(guest.run("magbay --json slots").stdout)
    assert slots == []
    journal = guest.run("journalctl -t magbay STATE=failed -o json --no-pager").stdout
    assert json.loads(journal.splitlines()[-1])["MAGAZINE"] == "m1"
    dock.pull(dock.disk)
    guest.run("cp -a /root/right.key /etc/magbay/keys/magbay.key")
    dock.plug(dock.disk)
    dock.wait_state("SER-M1", "mounted")
    # A missing key file is another message than a wrong one.
    guest.run("magbay eject m1")
    dock.pull(dock.disk)
    guest.run("mv /etc/magbay/keys/magbay.key /root/away.key")
    dock.plug(dock.disk)
    assert "missing" in dock.wait_state("SER-M1", "failed")["reason"]


def test_foreign_disks_are_not_touched(dock: Dock) -> None:
    """A blank disk, one without LUKS, an unknown LUKS disk, and copies of a magazine by either UUID."""
    guest = dock.guest
    disks = {
        name: Disk.create(dock.folder / f"{name}.raw", 64 * MIB, f"F-{name}")
        for name in ("blank", "ext4", "luks", "uuid")
    }
    enrolled = json.loads(guest.run("magbay --json magazine show m1").stdout)
    for name, command in {
        "ext4": "mkfs.ext4 -q {}",
        "uuid": "mkfs.ext4 -q -U " + enrolled["filesystem_uuid"] + " {}",
        "luks": "head -c 64 /dev/urandom > /run/k && cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 "
        "--pbkdf-force-iterations 1000 --key-file /run/k --label m1 {}",
    }.items():
        node = dock.plug(disks[name])
        guest.run(command.format(node))
        dock.pull(disks[name])
    # A byte for byte copy of the magazine: same LUKS UUID, another serial.
    copy = Disk.create(dock.folder / "copy.raw", 256 * MIB, "F-copy")
    copy.path.write_bytes(dock.disk.path.read_bytes())
    disks["copy"] = copy
    before = {name: hashlib.sha256(disk.path.read_bytes()).hexdigest() for name, disk in disks.items()}

    dock.plug(dock.disk)
    dock.wait_state("SER-M1", "mounted")
    for disk in disks.values():
        dock.plug(disk)
    reasons = {
        name: dock.wait_state(disk.serial, "failed" if name == "copy" else "foreign")["reason"]
        for name, disk in disks.items()
    }
    assert "blank" in reasons["blank"]
    assert "ext4" in reasons["ext4"]
    assert "unknown LUKS" in reasons["luks"]
    assert "carries its UUID" in reasons["uuid"]
    assert "copy of magazine m1" in reasons["copy"]
    assert dock.state("SER-M1")["state"] == "mounted", "the magazine in use is not harmed"
    mounted_from = guest.run(f"findmnt -rno SOURCE -t ext4 /mnt/magbay/{enrolled['filesystem_uuid']}").stdout.strip()
    assert mounted_from.startswith("/dev/mapper/magbay-") or mounted_from.startswith("/dev/dm-")
    for name in ("ext4", "luks", "copy"):
        node = dock.node(disks[name])
        refused = guest.run(f"magbay prepare {node} --name x --wipe none --yes", check=False)
        assert refused.rc == 1 and node in refused.stderr and "Traceback" not in refused.stderr
    for disk in disks.values():
        dock.pull(disk)
    after = {name: hashlib.sha256(disk.path.read_bytes()).hexdigest() for name, disk in disks.items()}
    assert after == before, "a foreign disk was written to"
    guest.run("magbay eject m1")
    dock.pull(dock.disk)


def test_two_copies_plugged_at_once_are_both_refused(dock: Dock) -> None:
    copy = Disk.create(dock.folder / "copy.raw", 256 * MIB, "F-copy")
    copy.path.write_bytes(dock.disk.path.read_bytes())
    dock.guest.run("systemctl stop magbay-media")
    dock.plug(dock.disk)
    dock.plug(copy)
    dock.guest.run("systemctl start magbay-media")
    assert "same LUKS UUID" in dock.wait_state("SER-M1", "failed")["reason"]
    assert "same LUKS UUID" in dock.wait_state("F-copy", "failed")["reason"]
    assert dock.guest.run("ls /dev/mapper").stdout.split() == ["control"]
    dock.pull(copy)
    dock.wait_state("SER-M1", "mounted")


@pytest.mark.complaint(10)
def test_pulled_while_it_is_written(dock: Dock) -> None:
    guest = dock.guest
    dock.plug(dock.disk)
    dock.wait_state("SER-M1", "mounted")
    first = json.loads(guest.run("magbay --json backup /usr/share/doc/bash /etc/magbay/magbay.yaml").stdout)
    assert first["status"] == "done"
    guest.run("dd if=/dev/urandom of=/var/tmp/big bs=1M count=100 status=none")
    script = (
        "magbay --json backup /var/tmp/big > /var/tmp/victim.json 2> /var/tmp/victim.err\n"
        "echo $? > /var/tmp/victim.status\ndate +%s.%N > /var/tmp/victim.end\n"
    )
    guest.put("/var/tmp/victim.sh", script.encode())
    guest.run("systemd-run --unit=victim sh /var/tmp/victim.sh")
    guest.wait_for("[ $(find /mnt/magbay -type f -printf '%s\\n' | sort -n | tail -1) -gt 20000000 ]", timeout=60)
    pulled = float(guest.run("date +%s.%N").stdout)
    dock.pull(dock.disk)
    guest.wait_for("[ -s /var/tmp/victim.end ]", timeout=60)
    ended = float(guest.run("cat /var/tmp/victim.end").stdout)
    assert ended - pulled < 20, "the job must end within seconds (emulated CPU: generous)"
    assert guest.run("cat /var/tmp/victim.status").stdout.strip() == "1"
    words = guest.run("cat /var/tmp/victim.err").stdout
    assert "m1" in words and "Traceback" not in words, words
    result = json.loads(guest.run("cat /var/tmp/victim.json").stdout)
    assert result.get("status") == "failed" or "error" in result
    guest.wait_for("! ls /dev/mapper | grep -v control", timeout=30)
    guest.wait_for("! findmnt -rno TARGET -t ext4 | grep /mnt/magbay", timeout=30)
    assert guest.run("systemctl is-active magbay-media magbay-changer").stdout.split() == ["active", "active"]
    assert json.loads(guest.run("magbay --json slots").stdout) == []

    dock.plug(dock.disk)
    dock.wait_state("SER-M1", "mounted")
    jobs = {job["job_id"]: job["status"] for job in json.loads(guest.run("magbay --json jobs").stdout)["jobs"]}
    assert jobs[first["job_id"]] == "done"
    assert [status for number, status in jobs.items() if number > first["job_id"]] == ["failed"]
    guest.run(f"magbay --json restore --job {first['job_id']} --to /var/tmp/back")
    guest.run("diff -r /usr/share/doc/bash /var/tmp/back/usr/share/doc/bash")
    again = json.loads(guest.run("magbay --json backup /usr/share/doc/bash").stdout)
    assert again["status"] == "done", "the magazine takes new jobs without a command in between"
    guest.run(f"magbay --json verify --job {first['job_id']}")


@pytest.mark.complaint(10, 11)
def test_pulled_while_idle_and_replugged(dock: Dock) -> None:
    guest = dock.guest
    for _ in range(2):
        dock.plug(dock.disk)
        dock.wait_state("SER-M1", "mounted")
        dock.pull(dock.disk)
        guest.wait_for("! ls /dev/mapper | grep -v control", timeout=30)
        guest.wait_for("! findmnt -rno TARGET -t ext4 | grep /mnt/magbay", timeout=30)
        assert dock.state("SER-M1")["state"] == "gone"
    dock.plug(dock.disk)
    dock.wait_state("SER-M1", "mounted")
    # autofs lets an unused magazine go (SIGUSR1 makes it do so now); its volumes stay in their slots.
    guest.run("pkill -USR1 automount")
    dock.wait_state("SER-M1", "idle")
    assert json.loads(guest.run("magbay --json slots").stdout)
    assert dock.state("SER-M1")["state"] in ("idle", "mounted")


def test_agents_killed_and_restarted(dock: Dock) -> None:
    guest = dock.guest
    dock.plug(dock.disk)
    dock.wait_state("SER-M1", "mounted")
    slots = guest.run("magbay --json slots").stdout
    guest.run("systemctl kill -s KILL magbay-media magbay-changer")
    guest.wait_for("[ $(systemctl show -P NRestarts magbay-media) -ge 1 ]", timeout=30)
    guest.wait_for("systemctl is-active magbay-media magbay-changer", timeout=60)
    dock.wait_state("SER-M1", "mounted")
    assert guest.run("magbay --json slots").stdout == slots
    guest.run("magbay eject m1")
    guest.run("systemctl kill -s KILL magbay-media")
    guest.wait_for(
        "[ $(systemctl show -P NRestarts magbay-media) -ge 2 ] && systemctl is-active magbay-media", timeout=60
    )
    assert dock.state("SER-M1")["state"] == "safe to remove", "a restart must not unlock what was ejected"


@pytest.mark.complaint(16)
def test_busy_magazine_is_ejected_when_it_is_let_go(dock: Dock) -> None:
    guest = dock.guest
    dock.plug(dock.disk)
    dock.wait_state("SER-M1", "mounted")
    guest.run("systemd-run --unit=holder sh -c 'exec flock /mnt/magbay/*/README.txt sleep 1000'")
    guest.wait_for("grep -q FLOCK /proc/locks && pgrep -x sleep", timeout=20)
    refused = guest.run("magbay eject m1 --timeout 4", check=False)
    assert refused.rc == 1 and ("sleep" in refused.stderr or "flock" in refused.stderr), refused.stderr
    assert dock.state("SER-M1")["state"] == "ejecting"
    guest.run("systemctl stop holder")
    dock.wait_state("SER-M1", "safe to remove", timeout=30)


def test_full_magazine(dock: Dock) -> None:
    guest = dock.guest
    dock.plug(dock.disk)
    dock.wait_state("SER-M1", "mounted")
    first = json.loads(guest.run("magbay --json backup /etc/magbay/magbay.yaml").stdout)
    guest.run("dd if=/dev/urandom of=/var/tmp/huge bs=1M count=260 status=none")
    full = guest.run("magbay backup /var/tmp/huge", check=False, timeout=300)
    assert full.rc in (1, 75)
    assert "full" in full.stderr and "m1" in full.stderr and "Traceback" not in full.stderr, full.stderr
    guest.run(f"magbay --json restore --job {first['job_id']} --to /var/tmp/small")
    guest.run("cmp /etc/magbay/magbay.yaml /var/tmp/small/etc/magbay/magbay.yaml")
    guest.run("magbay eject m1")


def test_dbus_objects_and_who_may_call(dock: Dock) -> None:
    guest = dock.guest
    dock.plug(dock.disk)
    dock.wait_state("SER-M1", "mounted")
    state = guest.run("busctl get-property org.magbay.Media1 /org/magbay/magazine/m1 org.magbay.Magazine1 State").stdout
    assert state.strip() == 's "mounted"'
    assert "/org/magbay/magazine/m1" in guest.run("busctl tree --list org.magbay.Media1").stdout
    denied = guest.run("setpriv --reuid=nobody --regid=nogroup --clear-groups magbay eject m1", check=False)
    assert denied.rc != 0 and "Traceback" not in denied.stderr
    assert dock.state("SER-M1")["state"] == "mounted"
    unknown = guest.run("magbay eject nobody", check=False)
    assert unknown.rc == 4
    guest.run("magbay eject m1")
    dock.pull(dock.disk)
    assert guest.run("magbay eject m1", check=False).rc == 75


def test_keys_leave_no_trace(dock: Dock) -> None:
    """Old and new key, passphrase and recovery key are in no log, state file, unit property, command line, environment
    or core dump while the disk is plugged, gets more slots, and is re-keyed."""
    guest = dock.guest
    key = "/etc/magbay/keys/magbay.key"
    leaks.watch(guest)
    dock.plug(dock.disk)
    dock.wait_state("SER-M1", "mounted")
    assert guest.run(f"stat -c '%a %U' {key}").stdout.strip() == "400 root"
    guest.run(f"cp {key} /root/old.key")
    guest.put("/root/passphrase", b"nine correct horses")  # a shell's command line would be found
    guest.run("magbay key add m1 --passphrase --from /root/passphrase", timeout=120)
    made = json.loads(guest.run("magbay --json key add m1 --recovery", timeout=120).stdout)["recovery_key"]
    guest.put("/root/recovery", made.encode())
    guest.run(f"magbay key rotate && cp {key} /root/new.key", timeout=120)
    guest.run("magbay key add m1 --passphrase", check=False, stdin=b"short\n")
    leaks.unwatch(guest)
    leaks.search(guest, "luksAddKey,--key-slot", "old.key", "new.key", "passphrase", "recovery")
    for unit in ("magbay-unlock@x.service", "magbay-rekey@x.service"):
        assert guest.run(f"systemctl show -P LimitCORE {unit}").stdout.strip() == "0"
