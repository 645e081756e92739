"""Keys in the virtual machine: rotation with one magazine here and one away, other slots, seal, header backup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vm.harness import Disk, Guest
from tests.vm.ready import enrol_in, make_key, make_magazine, owner_in
from tests.vm.test_appliance import Dock

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

KEY = "/etc/magbay/keys/magbay.key"
# Runs `magbay key rekey` and kills it with SIGKILL right after its N-th command.
KILLER = """
import os, sys
sys.path.insert(0, "/usr/lib/magbay")
import appliance.host.commands as commands
from appliance.cli.main import main
left, real = int(sys.argv[1]), commands.subprocess.run
def counting(*args, **kwargs):
    global left
    done = real(*args, **kwargs)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    return done
commands.subprocess.run = counting
sys.exit(main(["key", "rekey", sys.argv[2]]))
"""


class Keys:
    """What the scenarios ask the guest about keys."""

    def __init__(self, dock: Dock, m1: Disk, m2: Disk) -> None:
        self.dock, self.guest, self.m1, self.m2 = dock, dock.guest, m1, m2

    def document(self, words: str, rc: int = 0) -> Any:
        done = self.guest.run(f"magbay --json key {words}", check=False, timeout=180)
        assert done.rc == rc, (words, done)
        return json.loads(done.stdout)

    def stock(self, disk: Disk, key_file: str) -> bool:
        """Whether stock cryptsetup opens *disk* with the bytes of a file."""
        node = self.dock.node(disk)
        words = f"cryptsetup open --test-passphrase --key-file {key_file} {node}"
        return self.guest.run(words, check=False, timeout=120).rc == 0

    def check(self) -> dict[str, dict[str, Any]]:
        done = self.guest.run("magbay --json key check", check=False, timeout=180)
        assert done.rc in (0, 3), done
        return {facts["magazine"]: facts for facts in json.loads(done.stdout)["magazines"]}


@pytest.fixture
def keys(guest: Guest, tmp_path: Path) -> Keys:
    """An appliance with the magazines m1 and m2, both in bays."""
    key, owner = make_key(tmp_path), owner_in(guest)
    made = [make_magazine(tmp_path, name, key, owner) for name in ("m1", "m2")]
    enrol_in(guest, made, key)
    dock = Dock(guest, tmp_path, made[0].disk)
    for magazine in made:
        dock.plug(magazine.disk)
    for magazine in made:
        dock.wait_state(magazine.disk.serial, "mounted")
    return Keys(dock, made[0].disk, made[1].disk)


def test_rotation_with_one_magazine_here_and_one_away_killed_at_its_steps(keys: Keys) -> None:
    guest, dock = keys.guest, keys.dock
    m1, m2 = keys.m1, keys.m2
    guest.run("magbay eject m2")
    dock.pull(m2)
    guest.run(f"cp {KEY} /root/old.key")

    rotated = keys.document("rotate")
    assert rotated["rotating"] and rotated["previous_key_needed_by"] == ["m2"]
    guest.run(f"cmp -s /root/old.key {KEY}.previous")
    assert guest.run(f"stat -c '%a:%U' {KEY} {KEY}.previous").stdout.split() == ["400:root"] * 2
    assert keys.stock(m1, KEY) and not keys.stock(m1, "/root/old.key")
    assert "still needed by m2" in keys.document("rotate --finish", rc=1)["error"]

    # m2 comes by; its re-keying is killed when it has the new slot, when the old one is wiped, and before the backup is
    # in its place; then it goes on by itself at the next plug.
    guest.put("/var/tmp/killer.py", KILLER.encode())
    guest.run("systemctl mask --runtime magbay-rekey@.service")
    dock.plug(m2)
    dock.wait_state("SER-m2", "mounted")
    assert keys.stock(m2, "/root/old.key") and not keys.stock(m2, KEY)
    facts = keys.check()
    assert [facts[name]["needs_previous_key"] for name in ("m1", "m2")] == [False, True]
    uuid = facts["m2"]["luks_uuid"]
    states = []
    for step in (6, 7, 10):
        killed = guest.run(f"python3 /var/tmp/killer.py {step} {uuid}", check=False, timeout=180)
        assert killed.rc == 128 + 9, killed
        opened = [keys.stock(m2, key) for key in ("/root/old.key", KEY)]
        assert any(opened), f"killed after {step} commands: no key opens it"
        states.append(opened)
    assert states == [[True, True], [False, True], [False, True]]
    guest.run("systemctl unmask --runtime magbay-rekey@.service && magbay eject m2")
    dock.pull(m2)
    dock.plug(m2)
    dock.wait_state("SER-m2", "mounted")
    guest.wait_for("magbay --json key check | grep -c '\"needs_previous_key\": false' | grep -qx 2", timeout=180)
    assert keys.stock(m2, KEY) and not keys.stock(m2, "/root/old.key")
    assert {facts["header_backup"] for facts in keys.check().values()} == {"current"}
    assert keys.document("rotate --finish")["finished"]
    assert guest.run("ls /etc/magbay/keys").stdout.split() == ["magbay.key"]
    guest.run(f"systemctl start 'magbay-rekey@{uuid.replace('-', chr(92) + 'x2d')}.service'")
    assert "unmet condition" in guest.run("journalctl -b -o cat --no-pager _PID=1 | grep rekey | tail -1").stdout


def test_other_ways_to_open_and_a_sealed_key_and_a_lost_header(keys: Keys) -> None:
    guest, dock = keys.guest, keys.dock
    m1, m2 = keys.m1, keys.m2
    guest.run("printf 'nine correct horses' > /root/passphrase")
    added = keys.document("add m1 --passphrase --from /root/passphrase")["added"]
    assert [slot["kind"] for slot in added] == ["passphrase"]
    made = keys.document("add m1 --recovery")
    guest.put("/root/recovery", made["recovery_key"].encode(), mode=0o600)
    assert keys.stock(m1, "/root/passphrase") and keys.stock(m1, "/root/recovery")
    dump = guest.run(f"cryptsetup luksDump {dock.node(m1)}").stdout
    assert dump.count("argon2id") == 2 and dump.count("Iterations: 1000") >= 1 and "systemd-recovery" in dump
    guest.run("tr -d - < /root/recovery | tr a-z A-Z > /root/shouted && magbay key test m1 --from /root/shouted")
    assert "TPM" in guest.run("magbay key add m1 --tpm2", check=False).stderr
    assert "clevis is not installed" in guest.run("magbay key add m1 --tang http://tang", check=False).stderr
    assert keys.document(f"remove m1 {added[0]['slot']}")["kind"] == "passphrase"
    assert not keys.stock(m1, "/root/passphrase")
    held = {slot["kind"]: slot["slot"] for slot in keys.document("list m1")["slots"]}
    assert set(held) == {"key file", "recovery key"}
    assert "key file" in guest.run(f"magbay key remove m1 {held['key file']}", check=False).stderr

    # The sealed key unlocks; without either form the reason is named.
    sealed = keys.document("seal --with host")
    assert sealed["form"] == "sealed" and guest.run("ls /etc/magbay/keys").stdout.split() == ["magbay.key.cred"]
    guest.run("magbay eject m1")
    dock.pull(m1)
    dock.plug(m1)
    dock.wait_state("SER-m1", "mounted")
    assert keys.document("rotate")["previous_key_needed_by"] == []
    assert keys.document("rotate --finish")["form"] == "sealed"
    guest.run("magbay eject m1 && mv /etc/magbay/keys/magbay.key.cred /root/")
    dock.pull(m1)
    dock.plug(m1)
    assert "missing" in dock.wait_state("SER-m1", "failed")["reason"]
    guest.run("mv /root/magbay.key.cred /etc/magbay/keys/ && magbay key unseal")
    dock.pull(m1)

    # The header of m2 is overwritten; its backup brings the magazine back.
    guest.run("magbay eject m2")
    node = dock.node(m2)
    refused = keys.document(f"header-restore {node} --yes", rc=1)
    assert "header is there" in refused["error"]
    guest.run(f"dd if=/dev/zero of={node} bs=1M count=3 conv=fsync status=none && udevadm settle")
    assert keys.check()["m2"]["opens_with"] == "new"  # as it was when it was seen last
    assert keys.document(f"header-restore {node} --yes")["opens_with"] == "new"
    dock.pull(m2)
    dock.plug(m2)
    dock.wait_state("SER-m2", "mounted")
