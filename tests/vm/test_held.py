"""Disks that somebody holds, and disks that are damaged: what only a kernel can show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.dock import Dock, run, wait
from tests.vm.harness import Guest
from tests.vm.ready import patience

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_CHECKED = "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a11"  # a file system was checked (systemd/catalog)
# Seconds in which a magazine that nobody uses is safe to remove: three on a machine; here it is emulated.
EJECTED = 4 * 3.0


def test_somebody_holds_it(guest: Guest, tmp_path: Path) -> None:
    """The eject names process and file, goes on by itself, ends with the motor stopped; lamp, console, replug."""
    dock = Dock(guest, tmp_path, ["y1"])
    (magazine,) = dock.magazines
    settings = (
        "mounts: {idle_timeout: 5}\n"
        "hooks:\n  safe_to_remove: [/bin/sh, -c, 'echo lamp for $MAGBAY_MAGAZINE as $(id -u)']\n"
    )
    run(guest, f"cat >> /etc/magbay/magbay.yaml <<'END'\n{settings}END\nsystemctl restart magbay-media")
    dock.plug(magazine)
    dock.wait_state(magazine, "mounted", "idle")
    wait(guest, "grep ' /mnt/magbay autofs ' /proc/mounts | grep -q timeout=5")
    assert "safe to pull" in dock.wait_state(magazine, "idle")["reason"]
    assert "safe to pull" in run(guest, "magbay status").stdout

    place = f"/mnt/magbay/{magazine.filesystem_uuid}"
    run(guest, f"chmod 755 {place}; chmod 644 {place}/y1-0001")
    hold = f"exec 7<{place}/y1-0001; touch /run/yank/held; exec sleep 1000"
    run(guest, "chmod 777 /run/yank")
    run(guest, ["systemd-run", "--collect", "-q", "--unit=holder", "--uid=nobody", "sh", "-c", hold])
    wait(guest, "[ -e /run/yank/held ]")
    run(guest, "busctl call org.magbay.Media1 /org/magbay/Media1 org.magbay.Media1 Eject s y1")
    wait(guest, "grep -q 'waits for sleep' /run/magbay/media.json")
    refused = run(guest, "magbay eject y1 --timeout 1", check=False)
    assert refused.rc == 1, refused
    assert "sleep (process" in refused.stderr and "of nobody)" in refused.stderr, refused.stderr
    assert f"{place}/y1-0001" in refused.stderr
    # A restart of the agent forgets no eject.
    run(guest, "systemctl kill -s KILL magbay-media; systemctl stop holder")
    dock.wait_state(magazine, "safe to remove")
    # The user of the hook is none that exists: systemd takes one from 61184 to 65519.
    wait(guest, "journalctl -t magbay-hook -o cat --no-pager | grep -q 'lamp for y1 as 6'")
    assert "magazine y1 is safe to remove" in guest.console()
    assert "waits for sleep" in guest.console()
    words = run(guest, "journalctl -t magbay-eject -o cat --no-pager").stdout
    assert "does not stop its motor" not in words

    times = []
    for _ in range(3):
        dock.pull(magazine)
        dock.plug(magazine)
        dock.wait_state(magazine, "mounted")
        took = run(guest, "date +%s.%N; magbay eject y1 >/dev/null; date +%s.%N", timeout=60).stdout.split()
        times.append(float(took[1]) - float(took[0]))
    print(f"ejected within {', '.join(f'{t:.1f}' for t in times)} s, the command's own start included")
    assert min(times) <= EJECTED * patience()


def test_damage_makes_a_magazine_read_only(guest: Guest, tmp_path: Path) -> None:
    """What e2fsck does not repair by itself: restores work, jobs say why they do not write."""
    dock = Dock(guest, tmp_path, ["y1"])
    (magazine,) = dock.magazines
    run(guest, "systemctl stop magbay-media")
    dock.plug(magazine)
    unit = f"magbay-unlock@$(systemd-escape {magazine.luks_uuid}).service"
    mapping = f"/dev/mapper/magbay-{magazine.luks_uuid}"
    wait(guest, f"[ -e /dev/disk/by-uuid/{magazine.luks_uuid} ]")
    # The link count of a file is wrong, and the file system says that it has errors.
    harm = f"debugfs -w -R 'set_inode_field y1-0002 links_count 7' {mapping}; "
    harm += f"debugfs -w -R 'set_super_value state 2' {mapping}"
    run(guest, f"systemctl start {unit}; {harm}; systemctl stop {unit}; systemctl start magbay-media")
    found = dock.wait_state(magazine, "mounted", "failed")
    if found["read_only"]:
        pytest.fail(f"e2fsck repairs a link count by itself: {found}")
    assert found["checked"] == "e2fsck repaired it"
    run(guest, "magbay eject y1")
    dock.pull(magazine)
    run(guest, "systemctl stop magbay-media")
    dock.plug(magazine)
    wait(guest, f"[ -e /dev/disk/by-uuid/{magazine.luks_uuid} ]")
    # Two files have the same blocks.
    blocks = f"$(debugfs -R 'blocks y1-0001' {mapping} 2>/dev/null | cut -d' ' -f1)"
    harm = f'debugfs -w -R "set_inode_field y1-0002 block[5] {blocks}" {mapping}; '
    harm += f"debugfs -w -R 'set_super_value state 2' {mapping}"
    run(guest, f"systemctl start {unit}; {harm}; systemctl stop {unit}; systemctl start magbay-media")
    found = dock.wait_state(magazine, "mounted", "failed")
    assert found["state"] == "mounted" and found["read_only"], found
    assert "e2fsck finds damage" in found["reason"] and found["hint"]
    record = dock.journal(f"MESSAGE_ID={_CHECKED}")[-1]
    assert record["MAGAZINE"] == "y1" and record["CHECKED"] in found["reason"]
    assert " ro," in run(guest, f"grep /mnt/magbay/{magazine.filesystem_uuid} /proc/mounts").stdout
    refused = run(guest, "magbay backup /etc/magbay/magbay.yaml", check=False)
    assert refused.rc != 0 and "magazine y1 is read-only: e2fsck finds damage" in refused.stderr, refused
    assert run(guest, f"head -c 8 /mnt/magbay/{magazine.filesystem_uuid}/y1-0001").rc == 0


def test_the_list_of_volumes_is_true_at_each_eject_whoever_has_written(guest: Guest, tmp_path: Path) -> None:
    """What a daemon appends until the moment it lets go is on the list; nobody is told that it was read."""
    dock = Dock(guest, tmp_path, ["y1"])
    (magazine,) = dock.magazines
    place = f"/mnt/magbay/{magazine.filesystem_uuid}"
    dock.plug(magazine)
    dock.wait_state(magazine, "mounted")
    run(guest, "magbay magazine checksums y1", timeout=120)
    assert '"checksums": "current"' in run(guest, "magbay --json magazine show y1").stdout
    # As a storage daemon does it: the volume stays open, and grows while the eject waits.
    daemon = f"exec 7>>{place}/y1-0001; touch /run/yank/open"
    daemon += "; while [ ! -e /run/yank/end ]; do echo more >&7; sleep 0.3; done"
    run(guest, "chgrp tape /run/yank && chmod 2770 /run/yank")
    words = ["systemd-run", "--collect", "-q", "--unit=daemon", "--uid=bacula", "--gid=tape", "sh", "-c", daemon]
    run(guest, f"chgrp tape {place}/y1-*; chmod g+w {place}/y1-*")
    run(guest, words)
    wait(guest, "[ -e /run/yank/open ]")
    run(guest, "busctl call org.magbay.Media1 /org/magbay/Media1 org.magbay.Media1 Eject s y1")
    wait(guest, "grep -q 'waits for sh' /run/magbay/media.json")
    run(guest, "touch /run/yank/end")
    dock.wait_state(magazine, "safe to remove")
    told = run(guest, "magbay eject y1")
    assert "checksums on it are older than the volumes" in told.stderr, told
    assert "checksums older than the volumes" in run(guest, "magbay status").stdout

    run(guest, f"cryptsetup open --readonly --key-file /etc/magbay/keys/magbay.key {dock.state(magazine)['node']} mine")
    run(guest, "mkdir /run/mine && mount -o ro /dev/mapper/mine /run/mine")
    rows = [line.split("\t") for line in run(guest, "cat /run/mine/volumes.txt").stdout.splitlines() if line[0] != "#"]
    sizes = run(guest, "stat -c %s /run/mine/y1-0001 /run/mine/y1-0002").stdout.split()
    assert [(row[0], row[3]) for row in rows] == list(zip(sizes, ("y1-0001", "y1-0002"), strict=True))
    assert rows[0][2] == "-" and len(rows[1][2]) == 64
    assert run(guest, "cd /run/mine && sha256sum -c volumes.sha256").stdout == "y1-0002: OK\n"
    owner = run(guest, "stat -c %U:%G /run/mine /run/mine/volumes.txt").stdout.split()
    assert owner[0] == owner[1], owner
    run(guest, "umount /run/mine && cryptsetup close mine")

    # Back again, the checksums are made by themselves.
    run(guest, "magbay eject y1 --undo", timeout=120)
    rescan = "busctl call org.magbay.Media1 /org/magbay/Media1 org.magbay.Media1 Rescan"
    run(guest, f"{rescan}; sleep 1; date -s '+61 seconds'; {rescan}")
    wait(guest, f"cd {place} && [ $(sha256sum -c volumes.sha256 | grep -c OK) = 2 ]")
    wait(guest, "! systemctl is-active -q 'magbay-lists@*'")
    # A daemon writes, and goes away: that is seen without an eject.
    run(
        guest,
        ["setpriv", "--reuid=bacula", "--regid=tape", "--clear-groups", "sh", "-c", f"echo >>{place}/y1-0002; sync"],
    )
    run(guest, f"{rescan}; sleep 1; {rescan}; sleep 1; date -s '+61 seconds'; {rescan}")
    wait(guest, f"cd {place} && [ $(sha256sum -c volumes.sha256 | grep -c OK) = 2 ]")
    wait(guest, "! systemctl is-active -q 'magbay-lists@*'")
    assert '"checksums": "current"' in run(guest, "magbay --json magazine show y1").stdout
    assert run(guest, "magbay eject y1", timeout=120).stderr == ""


def test_an_eject_is_called_off_and_the_lists_follow_a_job(guest: Guest, tmp_path: Path) -> None:
    """Used again without a replug; the checksums on the disk are true some time after a job, or an eject says not."""
    dock = Dock(guest, tmp_path, ["y1"])
    (magazine,) = dock.magazines
    place = f"/mnt/magbay/{magazine.filesystem_uuid}"
    rescan = "busctl call org.magbay.Media1 /org/magbay/Media1 org.magbay.Media1 Rescan"
    dock.plug(magazine)
    dock.wait_state(magazine, "mounted")
    run(guest, "magbay backup /etc/magbay/magbay.yaml")
    told = run(guest, "magbay eject y1", timeout=120)
    assert "safe to remove" in told.stdout and "checksums on it are older than the volumes" in told.stderr, told
    told = run(guest, "magbay eject y1 --undo", timeout=120)
    assert "is in use again" in told.stdout
    # A minute after the last writer; the clock is put on, so that nobody has to wait for it.
    run(guest, f"{rescan}; sleep 1; date -s '+61 seconds'; {rescan}")
    wait(guest, f"cd {place} && sha256sum -c volumes.sha256 && grep -q y1-0003 volumes.txt")
    wait(guest, "! systemctl is-active -q 'magbay-lists@*'")
    assert run(guest, "magbay eject y1", timeout=120).stderr == ""
