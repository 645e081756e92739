"""Disks of strangers, pushed into a dock in which a magazine is in use: nothing of theirs is touched."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.strangers import Ours, Stranger, strangers
from tests.strangers.kinds import tool
from tests.vm.harness import Disk, Guest
from tests.vm.ready import enrol_in, make_key, make_magazine, owner_in, patience

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_BATCH = 20
_FIRST_TARGET = 100  # of the SCSI targets: no other host of the guest has so many
# Tells every device node that somebody closes after having had it open for writing (inotify(7)).
_WATCHER = """
import ctypes, os, struct
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
assert libc.inotify_add_watch(fd, b"/dev", 0x8) >= 0
out = open("/run/written", "ab", buffering=0)
out.write(b"watching\\n")
while True:
    data = os.read(fd, 65536)
    while data:
        length = struct.unpack_from("iIII", data)[3]
        out.write(data[16:16 + length].rstrip(b"\\0") + b"\\n")
        data = data[16 + length:]
"""
# Target to name of the disk, and what the kernel counted of it: stat of Documentation/block/stat.rst.
_COUNTS = "grep -H . /sys/bus/scsi/devices/*:0:*:0/block/*/stat 2>/dev/null || :"
_UNITS = "systemctl list-units --all --plain --no-legend --no-pager | awk '{print $1}'"


class Dock:
    """The guest with magazine m1 mounted, and what was true of it before strangers came."""

    def __init__(self, guest: Guest, folder: Path) -> None:
        self.guest, self.folder = guest, folder
        key = make_key(folder)
        magazine = make_magazine(folder, "m1", key, owner_in(guest))
        enrol_in(guest, [magazine], key)
        self.magazine, image = magazine.disk, folder / "m1-copy.raw"
        tool("cp", "--sparse=always", self.magazine.path, image)
        self.ours = Ours("m1", magazine.luks_uuid, magazine.filesystem_uuid, key, image)
        guest.plug(self.magazine)
        self.wait(lambda: self.disks().get("SER-m1", {}).get("state") == "mounted", "m1 is mounted")
        guest.put("/run/watcher.py", _WATCHER.encode())
        guest.run("systemd-run --unit=watcher python3 /run/watcher.py")
        guest.wait_for("grep -q watching /run/written")
        guest.run("udevadm settle; journalctl --sync; journalctl -n 0 --show-cursor --no-pager > /run/cursor")
        self.before = self.standing()

    @staticmethod
    def wait(condition: Any, what: str, timeout: float = 60) -> None:
        """Wait until *condition* holds."""
        end = time.monotonic() + timeout * patience()
        while not condition():
            assert time.monotonic() < end, f"it did not come true: {what}"
            time.sleep(0.5)

    def disks(self) -> dict[str, dict[str, Any]]:
        """What is published, by node and by serial."""
        found = json.loads(self.guest.get("/run/magbay/media.json"))["disks"]
        return {disk["node"]: disk for disk in found} | {disk["serial"]: disk for disk in found}

    def standing(self) -> dict[str, str]:
        """All that a plugged disk must not change, apart from device units and sessions."""
        words = {
            "units": f"{_UNITS} | grep -Ev '[.](device|scope)$|^(user|session|systemd-tmpfiles|magbay-health)'",
            "mappings": "ls /dev/mapper",
            "mounts": "findmnt -rno TARGET,SOURCE,FSTYPE",
            "swaps": "cat /proc/swaps",
            "RAID": "ls -d /dev/md* /sys/block/md* /sys/block/bcache* /dev/zvol /dev/drbd* 2>/dev/null || :",
        }
        text = self.guest.run("".join(f"echo '== {name}'; {command}\n" for name, command in words.items())).stdout
        parts = re.split(r"^== (.*)\n", text, flags=re.MULTILINE)[1:]
        return dict(zip(parts[::2], parts[1::2], strict=True))

    def counts(self) -> dict[int, tuple[str, list[int]]]:
        """SCSI target to kernel name and the kernel's counters."""
        found = {}
        for line in self.guest.run(_COUNTS).stdout.splitlines():
            path, _, numbers = line.partition("stat:")
            words = path.split("/")
            found[int(words[5].split(":")[2])] = (words[7], [int(word) for word in numbers.split()])
        return found


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_words(dock: Dock, nodes: set[str]) -> None:
    """What is told of disks with odd names stays in form."""
    guest = dock.guest
    shown = json.loads(guest.run("magbay --json status").stdout)["disks"]
    assert {disk["node"]: disk["reason"] for disk in shown} == {
        disk["node"]: disk["reason"] for disk in dock.disks().values()
    }
    text = guest.run("magbay status").stdout
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text), "names give orders to the terminal"
    told = [line.split()[0] for line in text.splitlines() if line.startswith("  /dev/sd")]
    assert nodes <= set(told), text
    properties = guest.run(
        "busctl --json=short get-property org.magbay.Media1 /org/magbay/magazine/m1 org.magbay.Magazine1 State Serial"
    ).stdout
    assert [json.loads(line)["data"] for line in properties.splitlines()] == ["mounted", "SER-m1"]


def _check_batch(dock: Dock, batch: dict[Disk, Stranger]) -> None:
    """Plug the disks together, look, pull them."""
    guest = dock.guest
    for disk in batch:
        guest.plug(disk)
    dock.wait(lambda: {disk.target for disk in batch} <= set(dock.counts()), "the kernel has all disks")
    names = {disk: dock.counts()[disk.target or 0][0] for disk in batch}
    guest.run("udevadm settle", timeout=60 * patience())
    dock.wait(lambda: {f"/dev/{name}" for name in names.values()} <= set(dock.disks()), "all disks are known")
    found = dock.disks()
    for disk, stranger in batch.items():
        facts = found[f"/dev/{names[disk]}"]
        told = f"{stranger.name}: {facts}"
        assert facts["state"] == ("failed" if stranger.claims else "foreign"), told
        assert stranger.says in facts["reason"], told
        assert facts["filesystem_uuid"] == "", told
    assert found["SER-m1"]["state"] == "mounted", "the magazine in use is not harmed"
    if any(stranger.serial for stranger in batch.values()):
        _check_words(dock, {f"/dev/{name}" for name in names.values()})
    for disk, (name, numbers) in {d: dock.counts()[d.target or 0] for d in batch}.items():
        writes, sectors, discards, flushes = numbers[4], numbers[6], numbers[11], numbers[15]
        assert (writes, sectors, discards, flushes) == (0, 0, 0, 0), f"{batch[disk].name} ({name}): {numbers}"
    assert dock.standing() == dock.before
    for disk in batch:
        guest.pull(disk)
    dock.wait(lambda: not {disk.target for disk in batch} & set(dock.counts()), "the kernel has let go of all")


def test_strangers_are_left_alone(guest: Guest, tmp_path: Path) -> None:
    """Eighty kinds: state and reason in words; no write, no open for writing, no unit, no mapping, no mount."""
    dock = Dock(guest, tmp_path)
    folder = tmp_path / "strangers"
    folder.mkdir()
    kinds = strangers(folder, dock.ours)
    assert len(kinds) >= 40
    hashes = {kind.name: _hash(kind.path) for kind in kinds}
    disks = {
        Disk(
            kind.path,
            kind.serial or f"S-{kind.name}"[:36],
            kind.vendor,
            kind.product,
            name=f"s{number}",
            target=_FIRST_TARGET + number,
        ): kind
        for number, kind in enumerate(kinds)
    }
    rows = list(disks.items())
    for start in range(0, len(rows), _BATCH):
        began = time.monotonic()
        _check_batch(dock, dict(rows[start : start + _BATCH]))
        print(f"{len(rows[start : start + _BATCH])} disks in {time.monotonic() - began:.1f} s")

    written = set(guest.run("cat /run/written").stdout.split())
    assert not {name for name in written if re.match(r"sd[b-z]", name)}, "opened for writing"
    journal = guest.run('journalctl -o json --no-pager --after-cursor="$(sed -n "s/^-- cursor: //p" /run/cursor)"')
    records = [json.loads(line) for line in journal.stdout.splitlines()]
    started = {
        record["UNIT"]
        for record in records
        if record.get("JOB_TYPE") == "start" and not str(record["UNIT"]).endswith((".device", ".scope"))
    }
    expected = re.compile("user|session|systemd-(tmpfiles|journal)|magbay-health")
    assert not {unit for unit in started if not expected.match(unit)}, started
    ours = [record for record in records if record.get("SYSLOG_IDENTIFIER") == "magbay"]
    assert len([r for r in ours if r.get("STATE") == "foreign"]) >= len([k for k in kinds if not k.claims])
    assert all(set(record.get("MAGAZINE", "m1")) <= set("m1") for record in ours), "a name became a field"
    assert not guest.run("ls /tmp/pwned", check=False).stdout
    # The watcher does see who opens a disk for writing.
    guest.plug(rows[0][0])
    dock.wait(lambda: _FIRST_TARGET in dock.counts(), "a disk")
    name = dock.counts()[_FIRST_TARGET][0]
    guest.run(f'python3 -c \'open("/dev/{name}", "r+b").close()\'')
    guest.wait_for(f"grep -qx {name} /run/written", timeout=10)
    guest.pull(rows[0][0])
    assert {kind.name: _hash(kind.path) for kind in kinds} == hashes, "a disk of a stranger was written to"

    # Even when the agent does not see it: a container is not opened while two disks carry its UUID.
    guest.run("magbay eject m1", timeout=120)
    guest.run("systemctl stop magbay-media")
    copy = next(disk for disk, kind in disks.items() if kind.name == "copy")
    guest.plug(copy)
    dock.wait(lambda: copy.target in dock.counts(), "the copy")
    guest.run("udevadm settle", timeout=60 * patience())
    unit = f"magbay-unlock@{dock.ours.luks_uuid.replace('-', chr(92) + 'x2d')}.service"
    assert guest.run(["/usr/bin/systemctl", "start", unit], check=False).rc != 0
    assert guest.run("ls /dev/mapper").stdout.split() == ["control"]
    guest.pull(copy)
    guest.run(["/usr/bin/systemctl", "start", unit])
    assert len(guest.run("ls /dev/mapper").stdout.split()) == 2
