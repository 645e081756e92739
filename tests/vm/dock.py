"""A guest with ready magazines that are plugged and pulled, and a watch that notes what came and went when.

Times are measured in the guest, by its clock. A host that is busy with other things makes everything there slower, so
limits are those of the product times how busy the host is.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.vm.harness import Guest, Result
from tests.vm.ready import Ready, enrol_in, make_key, make_magazine, owner_in, patience

RUN = "/run/yank"  # where the helpers in the guest leave what they saw
# Writes on a magazine and forces to the disk, until that fails; new blocks each time, which the journal has to note.
_WRITER = """cd /mnt/magbay/$1 || exit 1
while dd if=/dev/zero of=data bs=16k count=8 oflag=dsync status=none; do echo round >> /run/yank/$1; done
date +%s.%N > /run/yank/$1.end
"""
# Notes each 50 ms what has changed: a line with the time, whether it came or went, and a LUKS UUID, whose mapping, or
# the UUID of a file system, which is mounted below /mnt/magbay.
_WATCH = """
import os, time
before = set()
with open("/run/yank/watch", "a", buffering=1) as log:
    while True:
        now = {name[7:] for name in os.listdir("/dev/mapper") if name.startswith("magbay-")}
        with open("/proc/self/mountinfo") as table:
            paths = [line.split()[4] for line in table]
        now |= {path[12:] for path in paths if path.startswith("/mnt/magbay/")}
        moment = time.time()
        for what in before ^ now:
            log.write(f"{moment} {'came' if what in now else 'gone'} {what}\\n")
        before = now
        time.sleep(0.05)
"""


def run(guest: Guest, command: str | list[str], *, check: bool = True, timeout: float = 60) -> Result:
    """Run a command there, with as much patience as the host needs now."""
    return guest.run(command, check=check, timeout=timeout * patience())


def wait(guest: Guest, condition: str) -> None:
    """Wait until a condition there comes true, as long as the host needs now."""
    guest.wait_for(condition, timeout=60 * patience())


class Dock:
    """A guest that knows some magazines, *names*, with file systems of *size* MiB."""

    def __init__(self, guest: Guest, folder: Path, names: list[str], size: int = 7) -> None:
        self.guest = guest
        key, owner = make_key(folder), owner_in(guest)
        self.magazines = [make_magazine(folder, name, key, owner, size=size << 20) for name in names]
        run(guest, f"mkdir -p {RUN}")
        guest.put(f"{RUN}/writer.sh", _WRITER.encode())
        guest.put(f"{RUN}/watch.py", _WATCH.encode())
        enrol_in(guest, self.magazines, key)

    def now(self) -> float:
        """The time there, in Unix seconds."""
        return float(run(self.guest, "date +%s.%N").stdout)

    def plug(self, *magazines: Ready) -> None:
        for magazine in magazines:
            self.guest.plug(magazine.disk)

    def pull(self, *magazines: Ready) -> None:
        for magazine in magazines:
            self.guest.pull(magazine.disk)

    def mounted(self, *magazines: Ready) -> None:
        """Wait until they are mounted."""
        paths = " && ".join(f"grep -q ' /mnt/magbay/{m.filesystem_uuid} ' /proc/mounts" for m in magazines)
        wait(self.guest, paths)

    def state(self, magazine: Ready) -> dict[str, Any]:
        """What the agent publishes."""
        disks = json.loads(run(self.guest, "cat /run/magbay/media.json").stdout)["disks"]
        return next((disk for disk in disks if disk["magazine"] == magazine.name), {"state": ""})

    def wait_state(self, magazine: Ready, *wanted: str) -> dict[str, Any]:
        """Wait for one of the states; gives what is published then."""
        end = time.monotonic() + 60 * patience()
        while (found := self.state(magazine))["state"] not in wanted:
            assert time.monotonic() < end, f"{found} is not {wanted}"
            time.sleep(0.2)
        return found

    def journal(self, match: str) -> list[dict[str, Any]]:
        """The records of the agents that match."""
        text = run(self.guest, f"journalctl -b -t magbay {match} -o json --no-pager").stdout
        return [json.loads(line) for line in text.splitlines()]

    # Yanks ------------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Begin to note when mappings and mounts come and go."""
        run(self.guest, ["systemd-run", "--collect", "-q", "python3", f"{RUN}/watch.py"])
        wait(self.guest, f"[ -e {RUN}/watch ]")

    def cleared(self, magazine: Ready, since: float) -> float:
        """Wait until neither a mapping nor a mount is left of *magazine*, which was pulled at *since* (time there);
        gives the seconds that took, as the watch saw it."""
        uuids = (magazine.luks_uuid, magazine.filesystem_uuid)
        end = time.monotonic() + 60 * patience()
        while True:
            words = run(self.guest, f"cat {RUN}/watch").stdout.splitlines()
            last = {what: (float(at), change) for at, change, what in map(str.split, words)}
            seen = [last.get(uuid, (0.0, "gone")) for uuid in uuids]
            if all(change == "gone" for _at, change in seen):
                return max(0.0, max(at for at, _change in seen) - since)
            assert time.monotonic() < end, f"{magazine.name} is not cleared away: {seen}"
            time.sleep(0.5)  # a command there takes the time of what is measured

    def write(self, *uuids: str) -> None:
        """Have the magazines with these file systems written to, forced to the disk in pieces of 16 KiB."""
        for uuid in uuids:
            words = ["systemd-run", "--collect", "-q", "sh", f"{RUN}/writer.sh", uuid]
            run(self.guest, f"rm -f {RUN}/{uuid}*; {' '.join(words)}")
        wait(self.guest, " && ".join(f"[ -s {RUN}/{uuid} ]" for uuid in uuids))

    def writers_told(self, *uuids: str) -> list[float]:
        """Wait until these writers have failed; gives the times (there) at which they did."""
        wait(self.guest, " && ".join(f"[ -s {RUN}/{uuid}.end ]" for uuid in uuids))
        files = " ".join(f"{RUN}/{uuid}.end" for uuid in uuids)
        return [float(line) for line in run(self.guest, f"cat {files}").stdout.split()]
