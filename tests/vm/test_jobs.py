"""Jobs on the appliance: timers, arrival, spanning to a magazine that comes later, cancelling, several at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.vm.harness import Disk, Guest

MIB = 1024 * 1024
CONFIG = """
changer: {name: magbay, drives: 2}
prepare: {volumes: 0}
magazines:
  - {name: d1, directory: /srv/d1}
  - {name: d2, directory: /srv/d2, create: no}
pools:
  Default: {maximum_volume_bytes: 12MB, magazines: [m1, m2]}
  Ticks: {magazines: [d1]}
  Away: {magazines: [d2]}
jobs:
  tick: {paths: [/etc/hostname], pool: Ticks, schedule: [{at: "*:*:0/20"}], limits: {cpu_weight: 20}}
  yearly: {paths: [/etc/hostname], pool: Ticks, schedule: [{at: "*-01-01 04:00", level: full}]}
  arrive: {paths: [/etc/magbay], run_on_attach: [m1], attach_interval: 0}
  big: {paths: [/srv/big], wait_for_magazine: 10m}
  stuck: {paths: [/etc/hostname], pool: Away, wait_for_magazine: 1h}
  one: {paths: [/srv/big/0, /srv/big/1]}
  two: {paths: [/srv/big/0, /srv/big/1]}
"""


class Jobs:
    """What the guest says of jobs."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def of(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.guest.run(f"magbay --json jobs --name {name}").stdout)["jobs"]
        return found

    def wait(self, name: str, words: str, timeout: float = 300) -> None:
        """By the journal: our own commands would take the processor from the job that is waited for."""
        told = f"journalctl -u 'magbay-job@{name}*' -o cat --no-pager"
        self.guest.wait_for(f"{told} | grep -q '{words}'", timeout=timeout)

    def volumes(self, name: str) -> list[str]:
        number = self.of(name)[0]["job_id"]
        found: list[str] = json.loads(self.guest.run(f"magbay --json job show {number}").stdout)["volumes"]
        return found


def test_jobs_run_by_themselves(guest: Guest, tmp_path: Path) -> None:
    jobs = Jobs(guest)
    guest.put("/etc/magbay/magbay.yaml", CONFIG.encode())
    guest.run("install -d -o magbay -g magbay /srv/d1 && mkdir /srv/big")
    guest.run("for n in 0 1 2 3 4 5; do head -c 9000000 /dev/urandom > /srv/big/$n; done", timeout=120)
    guest.run("systemctl daemon-reload && systemctl start timers.target", timeout=240)
    guest.run("systemctl restart magbay-changer", timeout=120)
    # Timers that the generator made.
    listed = guest.run("systemctl list-timers --all --no-legend", timeout=120).stdout
    assert "magbay-schedule-tick-full.timer" in listed and "magbay-schedule-yearly-full.timer" in listed
    assert guest.run("systemctl show -P CPUWeight magbay-job@tick@full.service").stdout.strip() == "20"
    schedule = json.loads(guest.run("magbay --json schedule").stdout)["schedule"]
    assert {entry["job"] for entry in schedule} == {"tick", "yearly", "arrive"} and schedule[0]["job"] == "tick"
    guest.wait_for("journalctl -u magbay-job@tick@full.service | grep -q Started", timeout=300)
    guest.run("systemctl stop magbay-schedule-tick-full.timer")
    jobs.wait("tick", "job [0-9]* done")

    disks = {name: Disk.create(tmp_path / f"{name}.raw", 76 * MIB, f"JOBS-{name}") for name in ("m1", "m2")}
    for name, disk in disks.items():
        guest.plug(disk)
        guest.run(f"magbay prepare {guest.device(disk)} --name {name} --wipe none --yes", timeout=180)
        guest.run(f"magbay eject {name}", timeout=180)
        guest.pull(disk)
        guest.wait_for(f"! lsblk -dno SERIAL | grep -q {disk.serial}", timeout=30)
    ended = "journalctl -u magbay-job@arrive -o cat --no-pager | grep -c 'job [0-9]* done:'"
    before = int(guest.run(ended, check=False).stdout)  # a new magazine arrives when it is prepared, too

    # A job starts when its magazine arrives.
    guest.plug(disks["m1"])
    guest.wait_for(f"test $({ended}) -eq {before + 1}", timeout=300)
    assert jobs.volumes("arrive")[0].startswith("m1-")

    # A job that needs another magazine asks for it, and goes on when it comes.
    guest.run("systemctl start magbay-job@big")
    jobs.wait("big", "waiting for m2")
    assert "waiting for magazine m2" in guest.run("systemctl show -P StatusText magbay-job@big").stdout
    asked = guest.run("journalctl -t magbay MAGAZINE=m2 --no-pager -o cat").stdout
    assert "waiting for m2, at most 10 min" in asked
    assert len(jobs.of("arrive")) == before + 1
    guest.plug(disks["m2"])
    jobs.wait("big", "job [0-9]* done")
    volumes = jobs.volumes("big")
    assert volumes[0].startswith("m1-") and volumes[-1].startswith("m2-")
    guest.run(f"magbay verify --job {jobs.of('big')[0]['job_id']}", timeout=300)

    # A job is cancelled while it waits.
    guest.run("systemctl start magbay-job@stuck")
    jobs.wait("stuck", "waiting for d2")
    guest.run("magbay cancel stuck", timeout=180)
    assert jobs.of("stuck")[0]["status"] == "cancelled"

    # Two jobs at once, on different volumes.
    guest.run("systemctl start magbay-job@one magbay-job@two", timeout=120)
    for name in ("one", "two"):
        jobs.wait(name, "job [0-9]* \\(done\\|failed\\|cancelled\\):")
    one, two = jobs.of("one")[0], jobs.of("two")[0]
    assert (one["status"], two["status"]) == ("done", "done")
    assert max(one["started"], two["started"]) <= min(one["finished"], two["finished"])
    assert not set(jobs.volumes("one")) & set(jobs.volumes("two"))
