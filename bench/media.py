"""From plugging a disk to its volumes being in slots, next to bare `cryptsetup open` + `mount` of the same disk.

Both run in the same guest, in turn. Zero is the moment before QEMU is told `device_add`, read from the guest's clock;
the end is read by a loop in the guest that looks every 20 ms: for us, until the changer has published the slot; for the
peer, until its `mount` has returned. The same is done for an eject of the idle magazine, from the request until it is
safe to remove, and for the command that asks for it.

The guest is the frozen one of the scenarios (MAGBAY_VM_QUICK=1: see docs/vm-testing.md).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from tests.vm.harness import Disk, Guest, frozen_guest, image_path, upgraded_guest
from tests.vm.ready import enrol_in, make_key, make_magazine, owner_in

_OURS = "until grep -q 'in bay' /run/magbay/changer.json 2>/dev/null; do sleep 0.02; done; date +%s.%N"
_BARE = (
    "until [ -e /dev/disk/by-uuid/{luks} ]; do sleep 0.02; done; "
    "cryptsetup open --key-file /etc/magbay/keys/magbay.key /dev/disk/by-uuid/{luks} bare && "
    "mount /dev/mapper/bare /mnt && date +%s.%N"
)


_EMPTY = "! grep -q 'in bay' /run/magbay/changer.json"
_SAFE = "until grep -q 'safe to remove' /run/magbay/media.json; do sleep 0.02; done; date +%s.%N"
_EJECT = "busctl --system call org.magbay.Media1 /org/magbay/Media1 org.magbay.Media1 Eject s bench"


def background(guest: Guest, script: str) -> None:
    """Start *script* in the guest; its output goes to /run/bench.out."""
    guest.put("/run/bench.sh", f"({script}) > /run/bench.tmp; mv /run/bench.tmp /run/bench.out".encode())
    guest.run("rm -f /run/bench.out; systemd-run --quiet --collect --unit=bench sh /run/bench.sh")


def measure(guest: Guest, disk: Disk, script: str) -> float:
    """Seconds of the guest from plugging *disk* to the end of *script*."""
    background(guest, script)
    began = float(guest.run("date +%s.%N").stdout)
    guest.plug(disk)
    guest.wait_for("[ -s /run/bench.out ]", timeout=120)
    return float(guest.run("cat /run/bench.out").stdout) - began


def eject(guest: Guest) -> float:
    """Seconds of the guest from asking for an eject to its end."""
    background(guest, _SAFE)
    began = float(guest.run(f"date +%s.%N; {_EJECT}").stdout)
    guest.wait_for("[ -s /run/bench.out ]", timeout=120)
    return float(guest.run("cat /run/bench.out").stdout) - began


def eject_command(guest: Guest) -> float:
    """The same of `magbay eject`, its start and end included."""
    began, ended = guest.run("date +%s.%N; magbay eject bench >/dev/null; date +%s.%N").stdout.split()
    return float(ended) - float(began)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=5, help="rounds (default 5)")
    rounds = parser.parse_args().n
    ours, bare, ejects, commands = [], [], [], []
    quick = os.environ.get("MAGBAY_VM_QUICK") == "1"
    frozen = upgraded_guest() if quick else frozen_guest(image_path())
    with tempfile.TemporaryDirectory() as folder, frozen.restore(Path(folder) / "guest") as guest:
        key = make_key(Path(folder))
        magazine = make_magazine(Path(folder), "bench", key, owner_in(guest), size=64 << 20)
        enrol_in(guest, [magazine], key)
        disk, luks = magazine.disk, magazine.luks_uuid
        for _ in range(rounds):
            guest.wait_for(_EMPTY, timeout=30)
            ours.append(measure(guest, disk, _OURS))
            ejects.append(eject(guest))
            guest.pull(disk)
            guest.wait_for(_EMPTY, timeout=30)
            measure(guest, disk, _OURS)
            commands.append(eject_command(guest))
            guest.pull(disk)
            guest.run("systemctl stop magbay-media")
            bare.append(measure(guest, disk, _BARE.format(luks=luks)))
            guest.run("umount /mnt && cryptsetup close bare")
            guest.pull(disk)
            guest.run("systemctl start magbay-media")
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    print(f"{'plug to ready, emulated CPU':<44} {'median':>9} {'min':>9} {'max':>9}")
    for name, values in (
        ("magbay: device_add to volumes in slots", ours),
        ("bare: device_add to cryptsetup open + mount", bare),
        ("eject: asked to safe to remove", ejects),
        ("eject: the command", commands),
    ):
        print(f"{name:<44} {statistics.median(values):>7.2f} s {min(values):>7.2f} s {max(values):>7.2f} s")
    print(f"{'ratio (median of pairs)':<44} {statistics.median(ratios):>9.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
