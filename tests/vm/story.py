"""The seven steps of the walking appliance, on a booted guest: told by `make demo`, checked by the VM suite."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vm.harness import Disk, Guest

SOURCE = "/usr/share/doc"
COMPARE = Path(__file__).with_name("compare.py")
_DISK_BYTES = 512 * 1024 * 1024
_GONE = "! lsblk -dno SERIAL | grep -qw {serial}"


class Story:
    """Runs the steps; *say* is told what a person would see."""

    def __init__(self, guest: Guest, say: Callable[[str], None], folder: Path) -> None:
        self.guest, self.say = guest, say
        self.disks = {
            name: Disk.create(folder / f"{name}.raw", _DISK_BYTES, f"DEMO-{name}") for name in ("red", "blue")
        }
        self.jobs: dict[str, int] = {}
        self.files = 0

    # Helpers ----------------------------------------------------------------------------------------------------

    def command(self, text: str, *, quiet: bool = False, timeout: float = 300) -> str:
        """Type *text* in the guest, show it and what it prints. A failure raises with its output."""
        self.say(f"guest# {text}")
        output = self.guest.run(text, timeout=timeout).stdout
        if not quiet:
            for line in output.rstrip().splitlines():
                self.say(f"       {line}")
        return output

    def document(self, text: str, *, timeout: float = 600) -> Any:
        """Type a command with --json and give its document."""
        self.say(f"guest# {text}")
        return json.loads(self.guest.run(text, timeout=timeout).stdout)

    def plug(self, name: str) -> None:
        """Plug a disk and wait until its magazine is mounted and in the slots."""
        self.say(f"(the disk of magazine {name} is plugged in)")
        began = time.monotonic()
        self.guest.plug(self.disks[name])
        self.guest.wait_for(f"magbay slots | grep -qw {name}", timeout=90)
        self.say(f"(in the slots after {time.monotonic() - began:.1f} s)")

    def pull(self, name: str) -> None:
        """Pull a disk and wait until the guest has noticed."""
        self.say(f"(the disk of magazine {name} is pulled out)")
        self.guest.pull(self.disks[name])
        self.guest.wait_for(_GONE.format(serial=self.disks[name].serial), timeout=30)
        self.guest.wait_for(f"! magbay slots | grep -qw {name}", timeout=30)

    def backup(self, name: str) -> None:
        """Back up SOURCE onto magazine *name*, the only one that is in a bay."""
        result = self.document(f"magbay --json backup {SOURCE}")
        assert result["status"] in ("done", "warnings"), result
        assert result["files"] > 1000, result
        self.files = result["files"]
        self.jobs[name] = result["job_id"]
        rate = f"{result['files']} files, {result['bytes'] / 1e6:.1f} MB"
        self.say(f"       job {result['job_id']}: {result['status']}, {rate}, on {', '.join(result['volumes'])}")

    # The steps --------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """1. Two blank disks are plugged in; each becomes a magazine."""
        for name, disk in self.disks.items():
            self.say(f"(a blank disk with the serial {disk.serial} is plugged in)")
            self.guest.plug(disk)
            self.guest.wait_for(f"lsblk -dno SERIAL | grep -qw {disk.serial}", timeout=30)
            node = self.guest.run(
                f"lsblk -dnpo NAME,SERIAL | awk '$2 == \"{disk.serial}\" {{ print $1 }}'"
            ).stdout.strip()
            self.command(f"magbay prepare {node} --name {name} --wipe none --yes")
        self.command("magbay magazine list")

    def recognise(self) -> None:
        """2. Both are pulled, one comes back: recognised, unlocked, mounted, in the slots, without a command."""
        for name in self.disks:
            self.command(f"magbay eject {name}")
            self.pull(name)
        self.plug("red")
        self.command("magbay status")
        slots = self.document("magbay --json slots")
        assert {slot["magazine"] for slot in slots} == {"red"}, slots
        self.command("magbay slots")
        status = self.command("systemctl status 'magbay-*' --no-pager -n 0")
        assert "red mounted" in status, status
        journal = self.command("journalctl -t magbay -o json --no-pager -n 200", quiet=True)
        records = [json.loads(line) for line in journal.splitlines()]
        assert any(r.get("MAGAZINE") == "red" and r.get("STATE") == "mounted" for r in records)
        assert any(r.get("MAGAZINE") == "red" and r.get("SLOT") for r in records)
        self.command("journalctl -t magbay --no-pager -n 8 -o cat")

    def save(self) -> None:
        """3. A backup writes a volume on it."""
        self.backup("red")

    def eject(self, name: str = "red") -> None:
        """4. Eject says that it is safe to remove; the disk is pulled; the slots are empty."""
        assert "safe to remove" in self.command(f"magbay eject {name}")
        self.pull(name)
        assert self.document("magbay --json slots") == []

    def rotate(self) -> None:
        """5. The second magazine, then the first again."""
        self.plug("blue")
        self.backup("blue")
        self.eject("blue")
        self.plug("red")
        self.backup("red again")

    def restore(self) -> None:
        """6. Restore from the first and compare file by file."""
        self.command("rm -rf /var/tmp/restored")
        result = self.document(f"magbay --json restore --job {self.jobs['red']} --to /var/tmp/restored")
        assert result["status"] == "done", result
        self.guest.put("/var/tmp/compare.py", COMPARE.read_bytes())
        self.command(f"python3 /var/tmp/compare.py {SOURCE} /var/tmp/restored{SOURCE}")

    def stock_tools(self) -> None:
        """7. Debian's own bls and bextract list and extract the same volume."""
        volume = self.document(f"magbay --json job show {self.jobs['red']}")["volumes"][0]
        path = self.guest.run(f"find /mnt/magbay/*/ -name {volume}").stdout.strip()
        folder, name = path.rsplit("/", 1)
        self.guest.put("/var/tmp/sd.conf", _SD_CONF.replace("@DIR@", folder).encode())
        self.command(f"magbay volume show {path}")
        self.guest.put("/var/tmp/job.bsr", self._bootstrap(name).encode())
        count = int(self.command(f"bls -b /var/tmp/job.bsr -c /var/tmp/sd.conf -V {name} File | grep -c ' {SOURCE}'"))
        assert count == self.files, f"bls lists {count} names, the job saved {self.files}"
        self.command("rm -rf /var/tmp/stock && mkdir /var/tmp/stock")
        output = self.command(
            f"bextract -b /var/tmp/job.bsr -c /var/tmp/sd.conf -V {name} File /var/tmp/stock", quiet=True
        )
        self.say("       " + output.strip().splitlines()[-1])
        self.command(f"python3 /var/tmp/compare.py {SOURCE} /var/tmp/stock{SOURCE}")

    def _bootstrap(self, volume: str) -> str:
        job = self.document(f"magbay --json job show {self.jobs['red']}")
        return f'Volume="{volume}"\nVolSessionId={job["session_id"]}\nVolSessionTime={job["session_time"]}\n'

    STEPS = (prepare, recognise, save, eject, rotate, restore, stock_tools)


_SD_CONF = """
Storage { Name = sd; WorkingDirectory = /var/tmp; Pid Directory = /var/tmp; Plugin Directory = /var/tmp }
Director { Name = dir; Password = x }
Messages { Name = Standard; director = dir = all }
Device { Name = File; Media Type = File; Archive Device = "@DIR@"; Device Type = File; Random Access = yes;
  AutomaticMount = yes; RemovableMedia = no; AlwaysOpen = no; LabelMedia = no }
"""


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the virtual disks, removed afterwards."""
    return tempfile.TemporaryDirectory(prefix="magbay-story-")
