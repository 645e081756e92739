"""From plugging a disk to its volumes being in slots, next to bare `cryptsetup open` + `mount` of the same disk.

Both run in the same guest, in turn. Zero is the moment before QEMU is told `device_add`, read from the guest's clock;
the end is read by a loop in the guest that looks every 20 ms: for us, until the changer has published the slot; for the
peer, until its `mount` has returned.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from tests.vm.harness import Disk, Guest, image_path

_OURS = "until grep -q 'in bay' /run/magbay/changer.json 2>/dev/null; do sleep 0.02; done; date +%s.%N"
_BARE = (
    "until [ -e /dev/disk/by-uuid/{luks} ]; do sleep 0.02; done; "
    "cryptsetup open --key-file /etc/magbay/keys/magbay.key /dev/disk/by-uuid/{luks} bare && "
    "mount /dev/mapper/bare /mnt && date +%s.%N"
)


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


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=5, help="rounds (default 5)")
    rounds = parser.parse_args().n
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as folder, Guest.boot(image_path(), Path(folder)) as guest:
        disk = Disk.create(Path(folder) / "bench.raw", 256 * 1024 * 1024, "BENCH")
        guest.plug(disk)
        guest.wait_for("lsblk -dno SERIAL | grep -qw BENCH", timeout=30)
        node = guest.run("lsblk -dnpo NAME,SERIAL | awk '$2 == \"BENCH\" { print $1 }'").stdout.strip()
        guest.run(f"magbay prepare {node} --name bench --wipe none --yes", timeout=180)
        luks = json.loads(guest.run("magbay --json magazine show bench").stdout)["luks_uuid"]
        guest.run("magbay eject bench")
        guest.pull(disk)
        for _ in range(rounds):
            guest.wait_for("! grep -q 'in bay' /run/magbay/changer.json", timeout=30)
            ours.append(measure(guest, disk, _OURS))
            guest.run("magbay eject bench")
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
    ):
        print(f"{name:<44} {statistics.median(values):>7.2f} s {min(values):>7.2f} s {max(values):>7.2f} s")
    print(f"{'ratio (median of pairs)':<44} {statistics.median(ratios):>9.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
