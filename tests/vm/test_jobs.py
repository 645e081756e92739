"""Jobs on the appliance: timers, limits, arrival, spanning, waiting, cancelling, a magazine that is pulled.

What a job says is read from the journal rather than asked of our commands, which would take the processor from the job
that is waited for.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.vm.harness import Guest
from tests.vm.ready import Ready, enrol_in, make_key, make_magazine, owner_in, patience

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

CONFIG = "/etc/magbay/magbay.yaml"
HEAD = """
filesets:
  first: {paths: [/srv/big/0], compression: gzip9}
  second: {paths: [/srv/big/1], compression: gzip9}
changer: {name: magbay, drives: 2}
magazines:
  - {name: d1, directory: /srv/d1}
  - {name: d2, directory: /srv/d2, create: no}
pools:
  Default: {maximum_volume_bytes: 6MB, magazines: [m1, m2]}
  Ticks: {magazines: [d1]}
  Away: {magazines: [d2]}
"""
# Before a job: until the other one has come as far. They would write one after the other where one is quick; a limit of
# bandwidth does not make it slow, as the kernel counts what it writes back for whoever wrote to the volume before.
MEET = "touch /srv/meet/{0}; until [ -e /srv/meet/one ] && [ -e /srv/meet/two ]; do sleep 0.1; done"
# A command before the job runs in the cgroup of the job.
SHOW_LIMITS = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); grep . cpu.weight cpu.max memory.max io.max io.weight"


class Jobs:
    """What the guest says of jobs."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.magazines: list[Ready] = []

    def configure(self, folder: Path, jobs: str, *magazines: str) -> None:
        """Make and enrol the magazines, take in the configuration."""
        guest = self.guest
        key, owner = make_key(folder), owner_in(guest)
        self.magazines = [make_magazine(folder, name, key, owner, volumes=0, size=20 << 20) for name in magazines]
        enrol_in(guest, self.magazines, key)
        guest.run("install -d -o magbay -g magbay /srv/d1; mkdir /srv/big")
        guest.run("for n in 0 1 2; do head -c 4000000 /dev/urandom > /srv/big/$n; done")
        guest.put(CONFIG, f"{HEAD}jobs:\n{jobs}".encode())
        guest.run("magbay reload", timeout=240)

    def plug(self, magazine: Ready) -> None:
        """Until jobs can write on it."""
        self.guest.plug(magazine.disk)
        place = f"/mnt/magbay/{magazine.filesystem_uuid}"
        self.guest.wait_for(f"grep -q ' {place} ' /proc/mounts", timeout=60 * patience())

    def of(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.guest.run(f"magbay --json jobs --name {name}").stdout)["jobs"]
        return found

    def volumes(self, name: str) -> list[str]:
        number = self.of(name)[0]["job_id"]
        found: list[str] = json.loads(self.guest.run(f"magbay --json job show {number}").stdout)["volumes"]
        return found

    def wait(self, name: str, words: str, times: int = 1, unit: str = "magbay-job") -> None:
        """Until the service of the job has said *words* so many times."""
        told = f"journalctl -b -u '{unit}@{name}.service' -o cat --no-pager"
        self.guest.wait_for(f"[ $({told} | grep -c {shlex.quote(words)}) -ge {times} ]", timeout=90 * patience())

    def moment(self, name: str, words: str) -> float:
        """When the service of the job said *words* first: seconds since the guest booted, by its own clock."""
        told = f"journalctl -b -u 'magbay-job@{name}.service' -o json --no-pager -g {shlex.quote(words)}"
        return float(json.loads(self.guest.run(told).stdout.splitlines()[0])["__MONOTONIC_TIMESTAMP"]) / 1e6


def test_timers_start_jobs_within_their_limits(guest: Guest, tmp_path: Path) -> None:
    """A timer of the generator starts the job; what the cgroup of its service says is what the configuration says."""
    limits = "{cpu_weight: 20, cpu_quota: 150, io_weight: 30, memory: 256MiB, write_bandwidth: 2MB}"
    hooks = f"{{before: [{json.dumps(SHOW_LIMITS)}], after: ['echo $MAGBAY_STATUS on $MAGBAY_VOLUMES']}}"
    jobs = Jobs(guest)
    jobs.configure(
        tmp_path,
        '  tick: {paths: [/etc/hostname], pool: Ticks, schedule: [{at: "*:*:0/10"}]}\n'
        '  yearly: {paths: [/etc/hostname], pool: Ticks, schedule: [{at: "*-01-01 04:00", level: full}]}\n'
        f"  slow: {{paths: [/srv/big], hooks: {hooks}, limits: {limits}}}\n",
        "m1",
    )
    (m1,) = jobs.magazines
    jobs.wait("tick@full", "job [0-9]* done")
    guest.run("systemctl stop magbay-schedule-tick-full.timer")
    listed = guest.run("systemctl list-timers --all --no-legend 'magbay-*'").stdout
    assert "magbay-schedule-yearly-full.timer" in listed
    schedule = json.loads(guest.run("magbay --json schedule").stdout)["schedule"]
    assert [(entry["job"], entry["last"] is None) for entry in schedule] == [("tick", False), ("yearly", True)]
    # The machine was off when it was due: it is made up for as soon as the timer is there again.
    yearly = "magbay-schedule-yearly-full.timer"
    stamp = f"/var/lib/systemd/timers/stamp-{yearly}"
    guest.run(f"systemctl stop {yearly} && touch -d '2 years ago' {stamp} && systemctl start {yearly}")
    jobs.wait("yearly@full", "job [0-9]* done")

    jobs.plug(m1)
    disk = guest.run(f"lsblk -dno MAJ:MIN {guest.device(m1.disk)}").stdout.strip()
    guest.run("systemctl start magbay-job@slow")
    jobs.wait("slow", "job [0-9]* done")
    told = guest.run("journalctl -b -u magbay-job@slow -o cat --no-pager").stdout
    for line in ("cpu.weight:20", "cpu.max:150000 100000", f"memory.max:{256 << 20}", "io.weight:default 30"):
        assert f"  {line}\n" in told, told
    assert f"  io.max:{disk} rbps=max wbps=2000000 riops=max wiops=max\n" in told, "not the disk of m1"
    assert "  done on m1-0001" in told
    took = jobs.moment("slow", "job [0-9]* done") - jobs.moment("slow", "writing on volume m1-0001")
    print(f"12 MB at 2 MB/s took {took:.1f} s")
    assert took >= 4.5, "the limit was not applied"


def test_an_edited_configuration_is_taken_in_by_itself(guest: Guest, tmp_path: Path) -> None:
    """Timers, limits and agents follow the file; while it is wrong, all goes on as before, and it is said why."""
    guest.run("systemctl is-active magbay-reload.path && install -d -o magbay -g magbay /srv/d1 /srv/d2")
    agents = guest.run("systemctl show -P MainPID magbay-media magbay-changer").stdout
    tick = '  tick: {paths: [/etc/hostname], pool: Ticks, schedule: [{at: "*:*:0/20"}], limits: {cpu_weight: 20}}\n'
    arrive = "  arrive: {paths: [/etc/hostname], pool: Away, run_on_attach: [d2], attach_interval: 0}\n"
    guest.put(CONFIG, f"{HEAD}jobs:\n{tick}{arrive}".encode())
    jobs = Jobs(guest)
    # Nothing but the edit: the timer is made and started, and the agent knows the job of a magazine that arrives.
    jobs.wait("tick@full", "job [0-9]* done")
    jobs.wait("arrive", "job [0-9]* done")
    assert guest.run("systemctl show -P CPUWeight magbay-job@tick@full").stdout.strip() == "20"
    idle = guest.run("systemctl show -P ActiveState magbay-reload").stdout.strip()
    assert idle == "inactive", "it went well, and has ended"

    # A wrong one, and everything that could ask for it: a daemon-reload, an agent that is killed, the status.
    guest.put(CONFIG, f"{HEAD}jobs:\n{tick}{arrive}  bad: {{colour: blue}}\n".encode())
    guest.wait_for("systemctl is-failed magbay-reload.service", timeout=60 * patience())
    told = guest.run("journalctl -b MESSAGE_ID=6f1f6a3f0d0b4e0bb1a4b37b7c6f9a12 -o cat --no-pager").stdout
    assert "the one before stays in force" in told and "colour" in told and f"{CONFIG}:" in told
    assert "colour" in guest.run("magbay status").stdout
    guest.run("systemctl daemon-reload && systemctl kill -s KILL magbay-changer", timeout=120)
    done = int(guest.run("journalctl -b -u 'magbay-job@tick@full' -o cat --no-pager | grep -c ' done:'").stdout)
    jobs.wait("tick@full", "job [0-9]* done:", done + 1)
    guest.wait_for("systemctl is-active magbay-changer", timeout=60 * patience())
    assert guest.run("magbay jobs", check=False).rc == 78, "a person is told"

    # Corrected, in a fragment, too; the timer that is gone does not run any more.
    guest.run("mkdir -p /etc/magbay/magbay.d")
    guest.put("/etc/magbay/magbay.d/more.yaml", b"mounts: {idle_timeout: 77}\n")
    guest.put(CONFIG, f"{HEAD}jobs:\n{arrive}".encode())
    guest.wait_for("! systemctl is-active magbay-schedule-tick-full.timer", timeout=60 * patience())
    guest.wait_for("grep ' /mnt/magbay autofs ' /proc/mounts | grep -q timeout=77", timeout=60 * patience())
    guest.wait_for("[ $(systemctl show -P ActiveState magbay-reload) = inactive ]", timeout=60 * patience())
    assert guest.run('magbay --json status | grep -c \'"configuration": ""\'').stdout.strip() == "1"
    media = guest.run("systemctl show -P MainPID magbay-media").stdout
    assert media in agents, "reloaded, not restarted"


def test_arrival_the_next_magazine_and_cancelling(guest: Guest, tmp_path: Path) -> None:
    jobs = Jobs(guest)
    jobs.configure(
        tmp_path,
        "  arrive: {paths: [/etc/magbay/magbay.yaml], run_on_attach: [m1], attach_interval: 0}\n"
        "  big: {paths: [/srv/big], wait_for_magazine: 10m}\n"
        "  stuck: {paths: [/etc/hostname], pool: Away, wait_for_magazine: 1h}\n"
        "  again: {paths: [/etc/hostname], pool: Away, retries: 5, retry_pause: 3s}\n"
        f"  one: {{fileset: first, hooks: {{before: [{json.dumps(MEET.format('one'))}]}}}}\n"
        f"  two: {{fileset: second, hooks: {{before: [{json.dumps(MEET.format('two'))}]}}}}\n",
        "m1",
        "m2",
    )
    m1, m2 = jobs.magazines
    # A job starts when its magazine arrives.
    guest.plug(m1.disk)
    jobs.wait("arrive", "job [0-9]* done")
    assert jobs.volumes("arrive") == ["m1-0001"]

    # One that fails is tried again; it goes well when its magazine is there.
    guest.run("systemctl start magbay-job@again")
    jobs.wait("again", "again failed: attempt 2 of 6 in 3 s")
    guest.run("install -d -o magbay -g magbay /srv/d2")
    jobs.wait("again", "job [0-9]* done")
    guest.run("mv /srv/d2 /srv/away")

    # Two jobs at once, on different volumes.
    guest.run("install -d -o magbay -g magbay /srv/meet; systemctl start magbay-job@one magbay-job@two")
    for name in ("one", "two"):
        jobs.wait(name, "job [0-9]* done")
    one, two = jobs.of("one")[0], jobs.of("two")[0]
    assert max(one["started"], two["started"]) <= min(one["finished"], two["finished"])
    assert not set(jobs.volumes("one")) & set(jobs.volumes("two"))

    # A job that needs another magazine asks for it, and goes on when it comes.
    guest.run("systemctl start magbay-job@big")
    jobs.wait("big", "waiting for m2")
    assert "waiting for magazine m2" in guest.run("systemctl show -P StatusText magbay-job@big").stdout
    asked = guest.run("journalctl -t magbay MAGAZINE=m2 --no-pager -o cat").stdout
    assert "waiting for m2, at most 10 min" in asked
    guest.plug(m2.disk)
    jobs.wait("big", "job [0-9]* done")
    volumes = jobs.volumes("big")
    assert volumes[0].startswith("m1-") and volumes[-1].startswith("m2-")
    guest.run(f"magbay verify --job {jobs.of('big')[0]['job_id']}", timeout=300)
    assert len(jobs.of("arrive")) == 1, "m2 is none of its magazines"

    # A job is cancelled while it waits.
    guest.run("systemctl start magbay-job@stuck")
    jobs.wait("stuck", "waiting for d2")
    guest.run("magbay cancel stuck", timeout=180)
    assert jobs.of("stuck")[0]["status"] == "cancelled"
    assert guest.run("systemctl show -P SubState magbay-job@stuck").stdout.strip() in ("dead", "failed")


def test_a_job_is_told_when_its_magazine_is_pulled(guest: Guest, tmp_path: Path) -> None:
    """Within two seconds of the moment at which the kernel knows, by the clock of the guest."""
    jobs = Jobs(guest)
    jobs.configure(tmp_path, "  slow: {paths: [/srv/big], limits: {write_bandwidth: 500kB}}\n", "m1")
    (m1,) = jobs.magazines
    jobs.plug(m1)
    # Notes the moments at which the kernel tells of disks.
    guest.run("systemd-run -q --unit=seen udevadm monitor --kernel --subsystem-match=block")
    guest.wait_for("journalctl -u seen -o cat | grep -q KERNEL")
    guest.run("systemctl start magbay-job@slow")
    jobs.wait("slow", "writing on volume m1-0001")
    guest.wait_for(f"[ $(stat -c %s /mnt/magbay/{m1.filesystem_uuid}/m1-0001) -gt 1000000 ]")
    guest.pull(m1.disk)
    jobs.wait("slow", "magazine m1 was lost")
    seen = guest.run("journalctl -u seen -o cat --no-pager").stdout
    known = min(float(moment) for moment in re.findall(r"KERNEL\[(\d+\.\d+)\] remove .*/host", seen))
    gap = jobs.moment("slow", "magazine m1 was lost") - known
    print(f"the job was told {gap:.2f} s after the kernel knew")
    assert 0 <= gap <= 2.0 * patience()
    jobs.wait("slow", "job [0-9]* failed")
    guest.wait_for("! ls /dev/mapper | grep -q magbay", timeout=60 * patience())


@pytest.mark.timeout(1200)
def test_a_verification_goes_on_when_its_magazine_is_back(guest: Guest, tmp_path: Path) -> None:
    """The unit is started; the disk is pulled in its middle and plugged again: nothing is read twice but a little."""
    jobs = Jobs(guest)
    jobs.configure(tmp_path, "  big: {paths: [/srv/big]}\n", "m1")
    (m1,) = jobs.magazines
    jobs.plug(m1)
    guest.run("systemctl start magbay-job@big")
    jobs.wait("big", "job [0-9]* done")
    assert len(jobs.volumes("big")) == 3
    # Slow enough to be pulled in its middle, and not ten minutes between two attempts; all else is the unit as it is.
    lines = ("[Service]", "ExecStart=", "ExecStart=/usr/bin/magbay verify --magazine %I --rate 200kB", "RestartSec=5")
    place = "/etc/systemd/system/magbay-verify@.service.d"
    guest.run(f"mkdir -p {place}")
    guest.put(f"{place}/slow.conf", "\n".join(lines).encode())
    guest.run("systemctl daemon-reload && systemctl enable --now magbay-verify@m1.timer", timeout=120)
    assert guest.run("systemctl show -P NextElapseUSecRealtime magbay-verify@m1.timer").stdout.strip()

    guest.run("systemctl start magbay-verify@m1.service", timeout=120)
    one_done = "tr -d ' \\n' < $(ls /var/lib/magbay/scrubs/*.json) | grep -q '\"done\":{\"m1-0001\"'"
    guest.wait_for(one_done, timeout=180 * patience())
    guest.pull(m1.disk)
    jobs.wait(
        "m1", "magazine m1 was interrupted: it goes on at address [0-9]* of volume m1-000[23]", unit="magbay-verify"
    )
    guest.wait_for("[ $(systemctl show -P ExecMainStatus magbay-verify@m1) = 75 ]", timeout=60 * patience())
    kept = json.loads(guest.run("cat /var/lib/magbay/scrubs/*.json").stdout)["round"]
    assert "m1-0001" in kept["done"] and kept["volume"] in ("m1-0002", "m1-0003")

    guest.wait_for("! ls /dev/mapper | grep -q magbay", timeout=60 * patience())
    jobs.plug(m1)
    jobs.wait("m1", f"verifying goes on at address {kept['address']} of volume {kept['volume']}", unit="magbay-verify")
    guest.wait_for("[ $(systemctl show -P ActiveState magbay-verify@m1) = inactive ]", timeout=180 * patience())
    assert guest.run("systemctl show -P Result magbay-verify@m1").stdout.strip() == "success"
    shown = json.loads(guest.run("magbay --json magazine show m1").stdout)["verified"]
    # Of the file that was open the blocks alone are checked where it began on another volume (docs/engine.md).
    assert (shown["errors"], shown["resumes_at"]) == (0, None) and shown["files"] in (3, 4)
    assert shown["bytes"] < 17_000_000, "more than the file that was open was read twice"
