"""Key slots of other kinds, for real: a TPM2 (swtpm), a Tang server; and what happens when they do not open any more.

For a FIDO2 token see tests/vm/test_fido2.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm import leaks
from tests.vm.conftest import collecting, running
from tests.vm.harness import Frozen, Guest, Tpm, build_package
from tests.vm.packages import install
from tests.vm.ready import Ready, enrol_in, make_key, make_magazine, owner_in, patience

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]  # cold boots, under load too

KEY = "/etc/magbay/keys/magbay.key"
TSS = ("libtss2-esys-3.0.2-0t64", "libtss2-mu-4.0.1-0t64", "libtss2-rc0t64", "libtss2-tcti-device0t64")
TANG = "127.0.0.1:7500"


class Bay:
    """A guest with one magazine, m1, and what is asked of both."""

    def __init__(self, guest: Guest, folder: Path) -> None:
        self.guest = guest
        key = make_key(folder)
        self.magazine: Ready = make_magazine(folder, "m1", key, owner_in(guest))
        enrol_in(guest, [self.magazine], key)
        guest.plug(self.magazine.disk)
        self.wait("mounted")

    def state(self) -> dict[str, Any]:
        disks = json.loads(self.guest.run("cat /run/magbay/media.json").stdout)["disks"]
        return next((disk for disk in disks if disk["magazine"] == "m1"), {"state": "gone"})

    def wait(self, state: str) -> dict[str, Any]:
        self.guest.wait_for(f'grep -q \'"state": "{state}"\' /run/magbay/media.json', timeout=90 * patience())
        return self.state()

    def replug(self) -> None:
        """Out and in again."""
        self.guest.run("magbay eject m1", timeout=120)
        self.guest.pull(self.magazine.disk)
        self.guest.wait_for("! lsblk -dno SERIAL | grep -q SER-m1")
        self.guest.plug(self.magazine.disk)

    def again(self, state: str) -> dict[str, Any]:
        """Try to unlock it once more, as it is."""
        self.guest.pull(self.magazine.disk)
        self.guest.wait_for("! lsblk -dno SERIAL | grep -q SER-m1")
        self.guest.plug(self.magazine.disk)
        return self.wait(state)

    def add(self, words: str) -> dict[str, Any]:
        done = self.guest.run(f"magbay --json key add m1 {words}", check=False, timeout=180)
        assert done.rc == 0, done
        added: dict[str, Any] = json.loads(done.stdout)["added"][0]
        return added

    def node(self) -> str:
        return str(self.state()["node"])

    def kinds(self) -> list[str]:
        slots = json.loads(self.guest.run("magbay --json key list m1", timeout=120).stdout)["slots"]
        return [slot["kind"] for slot in slots]

    def opened_by(self) -> str:
        """What the journal says opened it last."""
        told = self.guest.run("journalctl -b -t magbay-unlock -o cat --no-pager | grep 'opened by' | tail -n 1").stdout
        return told.strip()


@pytest.fixture
def with_tpm(vm_folder: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A machine with a TPM, booted cold: a frozen one cannot get a chip."""
    if shutil.which("swtpm") is None:
        pytest.skip("swtpm is not installed: run image/install-host-packages")
    quick = os.environ.get("MAGBAY_VM_QUICK") == "1"
    image = request.getfixturevalue("frozen").image if quick else request.getfixturevalue("image")
    with Tpm(vm_folder / "tpm") as tpm, Guest.boot(image, vm_folder, devices=tpm.devices) as guest:
        if quick:
            guest.put("/var/tmp/magbay.deb", build_package().read_bytes())
            guest.run("dpkg --install /var/tmp/magbay.deb", timeout=600)
        yield from collecting(guest, request)


def test_the_tpm_opens_a_magazine_when_the_key_file_does_not(with_tpm: Guest, tmp_path: Path) -> None:
    guest = with_tpm
    bay = Bay(guest, tmp_path)
    refused = guest.run("magbay key add m1 --tpm2", check=False, timeout=120)
    assert refused.rc == 1 and "libtss2-esys" in refused.stderr, refused
    install(guest, *TSS)
    leaks.watch(guest)
    assert bay.add("--tpm2")["kind"] == "TPM2"
    assert bay.kinds() == ["key file", "TPM2"]

    guest.run("echo nothing that opens it > /root/typed")
    wrong = guest.run("magbay key test m1 --from /root/typed", check=False, timeout=120)
    assert wrong.rc == 1, "the TPM must not stand in for what was typed"

    # With the key file there it is the one that opens; without it the TPM does.
    bay.replug()
    bay.wait("mounted")
    assert bay.opened_by() == ""
    guest.run(f"mv {KEY} {KEY}.away")
    bay.replug()
    bay.wait("mounted")
    assert "opened by the TPM" in bay.opened_by()
    leaks.unwatch(guest)
    guest.run(f"cp {KEY}.away /root/old.key")
    leaks.search(guest, "systemd-cryptenroll,--token-type", "old.key")
    # A key file that does not open it is no better than none.
    guest.run(f"head -c 4096 /dev/urandom > {KEY}; chmod 400 {KEY}")
    bay.replug()
    bay.wait("mounted")
    guest.run(f"rm {KEY}")

    # What the TPM has measured changes, as with other firmware: it opens nothing, and it is said what to do.
    guest.run("magbay eject m1", timeout=120)
    guest.run("SYSTEMD_FORCE_MEASURE=1 /usr/lib/systemd/systemd-pcrextend --pcr=7 'another firmware'")
    failed = bay.again("failed")
    assert "the TPM of this machine does not" in failed["reason"] and "key add --tpm2" in failed["hint"], failed
    guest.run(f"mv {KEY}.away {KEY}")
    bay.again("mounted")
    # As the hint says: the slot is made anew, for the state that is now.
    (slot,) = [s for s in json.loads(guest.run("magbay --json key list m1").stdout)["slots"] if s["kind"] == "TPM2"]
    guest.run(f"magbay key remove m1 {slot['slot']}", timeout=120)
    assert bay.kinds() == ["key file"]
    added = bay.add("--tpm2")
    guest.run(f"mv {KEY} {KEY}.away")
    bay.replug()
    bay.wait("mounted")

    # The other way: no slot of its own, but the key file sealed by the TPM.
    guest.run(f"mv {KEY}.away {KEY} && magbay key remove m1 {added['slot']}", timeout=120)
    guest.run("magbay key seal --with tpm2", timeout=120)
    assert guest.run("ls /etc/magbay/keys").stdout.split() == ["magbay.key.cred"]
    bay.replug()
    bay.wait("mounted")


@pytest.fixture
def guest(frozen: Frozen, vm_folder: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with running(frozen, vm_folder, request) as machine:
        yield machine


def test_a_tang_server_opens_a_magazine_while_it_answers(guest: Guest, tmp_path: Path) -> None:
    bay = Bay(guest, tmp_path)
    install(guest, "clevis-luks", "tang")
    guest.run("ip link set lo up; mkdir /var/tmp/tang && /usr/libexec/tangd-keygen /var/tmp/tang")
    serve = ["systemd-run", "-q", "--unit=tang", "/usr/libexec/tangd", "-p", TANG.split(":")[1], "-l", "/var/tmp/tang"]
    guest.run(serve)
    guest.wait_for(f"curl -sf http://{TANG}/adv")
    thumbprint = guest.run("tang-show-keys " + TANG.split(":")[1]).stdout.split()[-1]
    leaks.watch(guest)
    added = bay.add(f"--tang http://{TANG} --thumbprint {thumbprint}")
    assert added["kind"] == "Tang or another pin of clevis"
    guest.run(f"mv {KEY} {KEY}.away")
    bay.replug()
    bay.wait("mounted")
    assert "opened by Tang" in bay.opened_by()
    leaks.unwatch(guest)
    # The key file, and what clevis keeps with the server's help.
    guest.run(
        f"cp {KEY}.away /root/old.key; clevis luks pass -d {bay.node()} -s {added['slot']} > /root/tang.passphrase",
        timeout=120,
    )
    leaks.search(guest, "clevis,--key-slot", "old.key", "tang.passphrase")

    # The server is away: it is said, and it opens by itself when the server is back.
    guest.run("magbay eject m1 && systemctl stop tang", timeout=120)
    failed = bay.again("failed")
    assert "Tang server does not answer" in failed["reason"] and "by itself" in failed["hint"], failed
    guest.run(serve)
    bay.wait("mounted")
