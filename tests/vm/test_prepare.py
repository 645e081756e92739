"""Preparing and taking over disks in the virtual machine: every way, and going on after every kind of interruption."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vm.harness import Disk, Guest
from tests.vm.ready import patience

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

MIB = 1024 * 1024
LONG = 352 * MIB
# Starts a preparation and kills it when it says STEP, DELAY seconds later.
_KILLER = """
import subprocess, sys, time
step, delay, *words = sys.argv[1:]
child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
for line in child.stdout:
    if step in line:
        time.sleep(float(delay))
        child.kill()
        break
else:
    sys.exit(f"{step} was never said")
child.wait()
"""
_QUIET = "! ls /dev/mapper | grep prepare && ! findmnt -rno TARGET | grep preparing"


def plug(guest: Guest, disk: Disk) -> str:
    guest.plug(disk)
    return guest.device(disk)


def prepare(guest: Guest, node: str, words: str, **more: Any) -> Any:
    return json.loads(guest.run(f"magbay --json prepare {node} {words} --yes", timeout=240, **more).stdout)


def recorded(guest: Guest) -> int:
    """Bytes that the only record says are overwritten."""
    found = guest.run("cat /var/lib/magbay/preparing/*.json", check=False).stdout
    return int(json.loads(found)["wiped"]["done"]) if found else 0


def wait_recorded(guest: Guest, least: int) -> int:
    end = time.monotonic() + 120
    while (done := recorded(guest)) < least:
        assert time.monotonic() < end, f"only {done} bytes are recorded"
        time.sleep(0.2)
    return done


def slow_down(guest: Guest, disk: Disk) -> None:
    """Have the plugged *disk* take 12 MiB in a second at most, so that there is time to interrupt."""
    limits = f"0 0 {12 * MIB} 0 0 0"  # bytes in a second: all, read, written; the same of operations
    said = guest.machine.qmp.execute(
        "human-monitor-command", command_line=f"block_set_io_throttle {disk.device} {limits}"
    )
    assert said == "", said


def digest(disk: Disk, first: int = 0, last: int | None = None) -> str:
    with disk.path.open("rb") as file:
        file.seek(first)
        return hashlib.sha256(file.read() if last is None else file.read(last - first)).hexdigest()


def wait_slots(guest: Guest, magazine: str) -> None:
    guest.wait_for(f"magbay slots | grep -qw {magazine}", timeout=60 * patience())


def test_every_wipe_and_file_system(guest: Guest, tmp_path: Path) -> None:
    """A dry run, each way to wipe with another file system, a used disk by its serial, and what lies on a magazine."""
    small = Disk.create(tmp_path / "small.raw", 160 * MIB, "P-small")
    node = plug(guest, small)
    plan = json.loads(guest.run(f"magbay --json prepare {node} --name small --dry-run").stdout)
    assert plan["done"] is False and any("random" in step for step in plan["steps"])
    assert small.path.stat().st_blocks == 0, "a dry run writes nothing"
    asked = guest.run(f"magbay prepare {node} --name small", check=False)
    assert asked.rc == 2 and "--yes" in asked.stderr
    made = prepare(guest, node, "--name small --filesystem btrfs --volumes 3")
    assert made["done"] and made["volumes"] == ["small-0001", "small-0002", "small-0003"]
    assert small.path.stat().st_blocks * 512 > 150 * MIB, "the random wipe reaches the whole disk"
    header = guest.run(f"cryptsetup luksDump {node}").stdout
    assert "pbkdf2" in header and "Iterations: 1000" in header and "argon2" not in header
    assert "sector: 4096" in header and "Label:         \tsmall" in header
    place = f"/mnt/magbay/{made['filesystem_uuid']}"
    rights = guest.run(f"stat -c '%U:%G %a' {place} {place}/small-0001").stdout.split()
    assert rights == ["magbay:tape", "2770", "magbay:tape", "660"]
    guest.run(f"cd {place} && sha256sum -c volumes.sha256 && grep -q small-0003 volumes.txt && cat README.txt")
    guest.run(f"setpriv --reuid=bacula --regid=tape --clear-groups test -w {place}/small-0002")
    backup = f"/var/lib/magbay/headers/{made['luks_uuid']}.img"
    assert guest.run(f"cryptsetup luksUUID {backup}").stdout.strip() == made["luks_uuid"]
    assert guest.run("ls /var/lib/magbay/preparing/*.json", check=False).rc != 0, "nothing is left to remember"
    refused = guest.run(f"magbay prepare {node} --name again --overwrite-serial P-small --yes", check=False)
    assert refused.rc == 1 and "magazine small" in refused.stderr

    large = Disk.create(tmp_path / "large.raw", 400 * MIB, "P-large")
    node = plug(guest, large)
    guest.run(f"mkfs.ext4 -q {node}")
    guest.wait_for(f"udevadm info -q property {node} | grep -q ID_FS_TYPE=ext4", timeout=30)
    words = "--name large --filesystem xfs --wipe none"
    refused = guest.run(f"magbay prepare {node} {words} --yes", check=False)
    assert refused.rc == 1 and "is not blank: it holds ext4" in refused.stderr
    assert guest.run(f"magbay prepare {node} {words} --yes --overwrite-serial P-smal", check=False).rc == 1
    prepare(guest, node, f"{words} --overwrite-serial P-large")

    third = Disk.create(tmp_path / "third.raw", 96 * MIB, "P-third")
    node = plug(guest, third)
    guest.run(f"dd if=/dev/urandom of={node} bs=1M count=90 status=none conv=fsync")
    assert third.path.stat().st_blocks * 512 > 80 * MIB
    prepare(guest, node, "--name third --wipe discard --volumes 1")
    assert third.path.stat().st_blocks * 512 < 60 * MIB, "the blocks were dropped"
    result = json.loads(guest.run("magbay --json backup /etc/magbay/magbay.yaml").stdout)
    assert result["status"] == "done" and result["volumes"][0].startswith(("small", "large", "third"))
    guest.run("magbay eject third")
    refused = guest.run(f"magbay prepare {node} --name fourth --wipe none --yes", check=False)
    assert refused.rc == 1 and "it is magazine third" in refused.stderr
    # By its exact serial an ejected magazine is made another one, and the old one is forgotten.
    prepare(guest, node, "--name fourth --wipe none --volumes 0 --overwrite-serial P-third")
    names = [magazine["name"] for magazine in json.loads(guest.run("magbay --json magazine list").stdout)]
    assert sorted(names) == ["fourth", "large", "small"]


def test_goes_on_after_a_kill_and_after_a_pull(guest: Guest, tmp_path: Path) -> None:
    disk = Disk.create(tmp_path / "disk.raw", LONG, "P-long")
    node = plug(guest, disk)
    slow_down(guest, disk)
    words = "--name long --volumes 1 --yes"
    guest.run(f"systemd-run --quiet --unit=first magbay prepare {node} {words}")
    done = wait_recorded(guest, 48 * MIB)
    other = guest.run(f"magbay prepare {node} --name other --yes", check=False)
    assert other.rc == 1 and ("in use" in other.stderr or "another process" in other.stderr), other.stderr
    guest.run("systemctl kill -s KILL first; systemctl reset-failed first", check=False)
    done = recorded(guest)
    before = digest(disk, 0, done)
    again = json.loads(guest.run(f"magbay --json prepare {node} --name long --dry-run").stdout)
    assert again["goes_on"] and any(f"going on at {done}" in step for step in again["steps"]), again
    script = f"magbay prepare {node} {words} > /run/second.out 2>&1; echo $? > /run/second.rc"
    guest.run(["systemd-run", "--quiet", "--unit=second", "sh", "-c", script])
    further = wait_recorded(guest, done + 16 * MIB)
    guest.pull(disk)
    guest.wait_for("[ -s /run/second.rc ]", timeout=60)
    said = guest.run("cat /run/second.rc /run/second.out").stdout
    assert said.startswith("75\n") and "was pulled" in said and "goes on from there" in said, said
    assert digest(disk, 0, done) == before, "what was done is not done again"
    reached = recorded(guest)
    assert further <= reached < LONG
    node = plug(guest, disk)
    slow_down(guest, disk)
    # Stopped in good order, too: Ctrl-C.
    guest.run(f"systemd-run --quiet --unit=third magbay prepare {node} {words}")
    wait_recorded(guest, reached + 8 * MIB)
    guest.run("systemctl kill -s INT third")
    guest.wait_for("systemctl is-failed third", timeout=60)
    said = guest.run("systemctl show -P ExecMainStatus third; journalctl -u third -o cat").stdout
    assert said.startswith("130\n") and "goes on from there" in said, said
    guest.run("systemctl reset-failed third")
    guest.pull(disk)
    made = prepare(guest, plug(guest, disk), "--name long --volumes 1")
    assert made["volumes"] == ["long-0001"]
    assert disk.path.stat().st_blocks * 512 > LONG - 10 * MIB
    with disk.path.open("rb") as file:
        for at in range(20 * MIB, LONG, 20 * MIB):
            file.seek(at)
            assert len(set(file.read(4096))) > 200, f"nothing random at {at}"


def test_killed_at_every_step_the_same_command_goes_on(guest: Guest, tmp_path: Path) -> None:
    disk = Disk.create(tmp_path / "disk.raw", 96 * MIB, "P-kill")
    node = plug(guest, disk)
    guest.put("/var/tmp/killer.py", _KILLER.encode())
    command = f"magbay prepare {node} --name kill --wipe none --volumes 2 --yes"
    kills = [
        ("removing old", 0.0),
        ("LUKS2 container", 0.5),
        ("making the file system", 0.1),
        ("testing it", 0.7),
        ("reading it back", 0.6),
        ("saving its LUKS", 0.1),
        ("enrolling it", 0.1),
    ]
    for step, delay in kills:
        guest.run(f"python3 /var/tmp/killer.py '{step}' {delay} {command}", timeout=120)
    guest.run(f"python3 /var/tmp/killer.py 'creating 2' 0.3 {command}", check=False, timeout=240)
    done = json.loads(guest.run(command.replace("magbay", "magbay --json", 1), timeout=120).stdout)
    assert done["done"] and len(done["volumes"]) == 2
    guest.run(_QUIET)
    wait_slots(guest, "kill")
    guest.run(f"cd /mnt/magbay/{done['filesystem_uuid']} && sha256sum -c volumes.sha256")
    guest.run("magbay eject kill")
    assert guest.run("systemctl --failed --no-legend").stdout.strip() == ""


def test_two_at_once_and_a_disk_that_is_bad(guest: Guest, tmp_path: Path) -> None:
    disks = [Disk.create(tmp_path / f"{name}.raw", 96 * MIB, f"P-{name}") for name in ("one", "two")]
    for disk in disks:
        node = plug(guest, disk)
        result = f"/run/{disk.serial}"
        script = f"magbay prepare {node} --name {disk.serial} --yes > {result}.out 2>&1; echo $? > {result}.rc"
        guest.run(["systemd-run", "--quiet", f"--unit={disk.serial}", "sh", "-c", script])
    # A disk with one bad sector.
    bad = Disk.create(tmp_path / "bad.raw", 160 * MIB, "P-bad")
    guest.machine.qmp.execute(
        "blockdev-add",
        node_name="node-bad",
        driver="raw",
        file={
            "driver": "blkdebug",
            "inject-error": [{"event": "write_aio", "iotype": "write", "errno": 5, "sector": 100_001}],
            "image": {"driver": "file", "filename": str(bad.path)},
        },
    )
    guest.machine.qmp.execute(
        "device_add", driver="scsi-hd", bus="dock.0", drive="node-bad", id="disk-bad", serial="P-bad", werror="report"
    )
    failed = guest.run(f"magbay prepare {guest.device(bad)} --name bad --yes", check=False, timeout=120)
    assert failed.rc == 1 and "cannot be written at sector 100000 " in failed.stderr, failed.stderr
    assert "another disk" in failed.stderr and "Traceback" not in failed.stderr
    for disk in disks:
        guest.wait_for(f"[ -s /run/{disk.serial}.rc ]", timeout=180)
        said = guest.run(f"cat /run/{disk.serial}.rc /run/{disk.serial}.out").stdout
        assert said.startswith("0\n"), said
        wait_slots(guest, disk.serial)
    assert "bad" not in guest.run("magbay magazine list").stdout


def test_older_disks_are_taken_over_untouched(guest: Guest, tmp_path: Path) -> None:
    """LUKS1 with the key file in slot 1."""
    first = Disk.create(tmp_path / "first.raw", 160 * MIB, "P-prep")
    made = prepare(guest, plug(guest, first), "--name own --wipe none --volumes 2")
    fast = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000"
    old = Disk.create(tmp_path / "old.raw", 96 * MIB, "P-old")
    node = plug(guest, old)
    guest.run(
        f"head -c 40 /dev/urandom > /run/passphrase\n"
        f"cryptsetup luksFormat -q --type luks1 {fast} --key-file /run/passphrase {node}\n"
        f"cryptsetup luksAddKey {fast} --key-file /run/passphrase {node} /etc/magbay/keys/magbay.key\n"
        f"cryptsetup open --key-file /run/passphrase {node} x && mkfs.ext4 -q -L vc0 /dev/mapper/x\n"
        "mkdir /run/m && mount /dev/mapper/x /run/m\n"
        f"cp -p /mnt/magbay/{made['filesystem_uuid']}/own-0001 /run/m/vc0_0000_0001\n"
        "chown -R bacula:tape /run/m && chmod 0750 /run/m && umount /run/m && cryptsetup close x",
        timeout=120,
    )
    guest.pull(old)
    before = digest(old)
    node = plug(guest, old)
    found = json.loads(guest.run(f"magbay --json magazine import {node} --leave-closed").stdout)
    assert found["name"] == "vc0" and found["volumes"] == ["vc0_0000_0001"] and found["key_fits"], found
    assert found["notes"] == [] and found["filesystem"] == "ext4"
    again = guest.run(f"magbay magazine import {node}", check=False)
    assert again.rc == 1 and "is magazine vc0 already" in again.stderr
    guest.wait_for("magbay status | grep -w vc0 | grep -q 'safe to remove'", timeout=40 * patience())
    guest.pull(old)
    assert digest(old) == before, "the disk was written to"
    guest.run(f"cryptsetup luksUUID /var/lib/magbay/headers/{found['luks_uuid']}.img")
    plug(guest, old)
    wait_slots(guest, "vc0")

    # Enrolments travel without secrets.
    guest.run("magbay magazine export vc0 > /run/list.yaml && magbay eject vc0")
    guest.run("magbay magazine forget vc0 && magbay magazine import --from /run/list.yaml")
    guest.pull(old)
    plug(guest, old)
    wait_slots(guest, "vc0")


def test_a_disk_that_only_another_key_opens_gets_ours(guest: Guest, tmp_path: Path) -> None:
    guest.run("magbay key create && head -c 4096 /dev/urandom > /run/other.key", timeout=60 * patience())
    fast = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000"
    strange = Disk.create(tmp_path / "strange.raw", 64 * MIB, "P-strange")
    node = plug(guest, strange)
    guest.run(
        f"cryptsetup luksFormat -q --type luks2 {fast} --key-file /run/other.key {node}\n"
        f"cryptsetup open --key-file /run/other.key {node} x && mkfs.ext4 -q /dev/mapper/x && cryptsetup close x",
        timeout=120 * patience(),
    )
    guest.run("udevadm settle", timeout=60 * patience())
    refused = guest.run(f"magbay magazine import {node} --name s", check=False, timeout=60 * patience())
    assert refused.rc == 1 and "does not open" in refused.stderr and "--key-file" in refused.stderr
    taken = guest.run(
        f"magbay magazine import {node} --name s --key-file /run/other.key", check=False, timeout=60 * patience()
    )
    assert taken.rc == 3 and "magbay key add s --own-key --key-file /run/other.key" in taken.stderr
    guest.run("magbay key add s --own-key --key-file /run/other.key", timeout=120 * patience())
    guest.wait_for("magbay status | grep -w s | grep -q mounted", timeout=120 * patience())
    assert guest.run("ls /dev/mapper | grep import", check=False).rc == 1
