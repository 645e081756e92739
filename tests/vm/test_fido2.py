"""A FIDO2 token opens a magazine. The token is one of our own, in software (tests/vm/authenticator); the kernel's HID,
libfido2, systemd-cryptenroll and cryptsetup see a device on USB."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import running
from tests.vm.harness import Frozen, Guest
from tests.vm.ready import patience
from tests.vm.test_slots import Bay

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

PIN = "8-more-than-4"
# Runs a command on a terminal; each time it has said the first argument, one of the lines of standard input is typed:
# when the terminal has ceased to show what is typed, which comes a moment behind the words.
TYPIST = """
import os, pty, sys, termios, time
prompt, words, answers, seen = sys.argv[1].encode(), sys.argv[2:], sys.stdin.read().splitlines(), b""
child, terminal = pty.fork()
if child == 0:
    os.execvp(words[0], words)
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:
        break
    sys.stdout.buffer.write(data)
    seen += data
    if prompt in seen and answers:
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.01)
        os.write(terminal, answers.pop(0).encode() + b"\\n")
        seen = b""
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Token:
    """The software token in a guest, and somebody who touches it."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        for file in (Path(__file__).parent / "authenticator").glob("*.py"):
            guest.run("mkdir -p /var/tmp/authenticator")
            guest.put(f"/var/tmp/authenticator/{file.name}", file.read_bytes())
        guest.put("/var/tmp/typist.py", TYPIST.encode())
        guest.run("head -c 32 /dev/urandom > /root/seed; head -c 32 /dev/urandom > /root/other-seed; modprobe uhid")

    def plug(self, seed: str = "seed", pin: str = "") -> None:
        words = f"python3 -m authenticator /root/{seed} --touch /run/touch"
        if pin:
            self.guest.put("/root/pin", pin.encode(), mode=0o600)
            words += " --pin /root/pin"
        self.guest.run(f"systemd-run -q --collect --unit=token -p WorkingDirectory=/var/tmp {words}")
        self.guest.wait_for("[ -e /dev/hidraw0 ] && udevadm settle", timeout=60 * patience())

    def pull(self) -> None:
        self.guest.run("systemctl stop token")
        self.guest.wait_for("[ ! -e /dev/hidraw0 ]")

    def asked(self) -> list[str]:
        """What it wanted to be touched for."""
        told = self.guest.run("journalctl -b -u token -o cat --no-pager").stdout.splitlines()
        return [line.removeprefix("touch: ") for line in told if line.startswith("touch: ")]

    def keep_touching(self) -> None:
        self.guest.run(["systemd-run", "-q", "--unit=finger", "sh", "-c", "while sleep 1; do touch /run/touch; done"])

    def type(self, prompt: str, answers: str, command: str) -> tuple[int, str]:
        """Run *command* on a terminal, where *answers* are typed."""
        done = self.guest.run(
            ["python3", "/var/tmp/typist.py", prompt, *command.split()],
            check=False,
            timeout=180 * patience(),
            stdin=answers.encode(),
        )
        return done.rc, done.stdout


@pytest.fixture
def guest(frozen: Frozen, vm_folder: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with running(frozen, vm_folder, request) as machine:
        yield machine


def opens(guest: Guest, node: str) -> bool:
    """Whether the token alone opens it, so that the README on it can be read."""
    words = f"cryptsetup open --readonly --token-only --token-type systemd-fido2 {node} mine </dev/null"
    if guest.run(words, check=False, timeout=120 * patience()).rc != 0:
        return False
    guest.run("mkdir -p /run/mine && mount -o ro /dev/mapper/mine /run/mine && [ -s /run/mine/m1-0001 ]")
    guest.run("umount /run/mine && cryptsetup close mine")
    return True


def test_a_fido2_token_opens_a_magazine_when_it_is_touched(guest: Guest, tmp_path: Path) -> None:
    bay, token = Bay(guest, tmp_path), Token(guest)
    refused = guest.run("magbay key add m1 --fido2", check=False, timeout=120)
    assert refused.rc == 1 and "one token" in refused.stderr, refused
    assert bay.kinds() == ["key file"]

    # Nothing happens before somebody touches it.
    token.plug()
    adding = "systemd-run -q --unit=adding -p StandardOutput=file:/root/added -p StandardError=journal"
    adding += " magbay --json key add m1 --fido2"
    guest.run(adding)
    guest.wait_for("journalctl -b -u token -o cat | grep -q '^touch: make'", timeout=90 * patience())
    assert guest.run("systemctl is-active adding", check=False).stdout.strip() == "active"
    assert bay.kinds() == ["key file"] and token.asked() == ["make a credential for io.systemd.cryptsetup"]
    token.keep_touching()
    guest.wait_for("[ -s /root/added ]", timeout=180 * patience())
    (added,) = json.loads(guest.run("cat /root/added").stdout)["added"]
    assert added["kind"] == "FIDO2" and bay.kinds() == ["key file", "FIDO2"]

    # By the token alone; not by another, nor by none. The appliance goes on by its key file.
    node = bay.node()
    guest.run("magbay eject m1", timeout=120)
    assert opens(guest, node)
    guest.run(f"systemd-cryptsetup attach mine {node} - fido2-device=auto", timeout=120 * patience())
    guest.run("systemd-cryptsetup detach mine")
    token.pull()
    assert not opens(guest, node)
    token.plug("other-seed")
    assert not opens(guest, node)
    token.pull()
    bay.replug()
    bay.wait("mounted")
    assert bay.opened_by() == ""

    # Removed, it opens nothing any more.
    guest.run(f"magbay key remove m1 {added['slot']}", timeout=120)
    assert bay.kinds() == ["key file"]
    token.plug()
    guest.run("magbay eject m1", timeout=120)
    assert not opens(guest, bay.node())


def test_a_fido2_token_with_a_pin(guest: Guest, tmp_path: Path) -> None:
    bay, token = Bay(guest, tmp_path), Token(guest)
    token.plug(pin=PIN)
    token.keep_touching()
    status, said = token.type("enter security token PIN", f"not it\n{PIN}\n", "magbay key add m1 --fido2")
    assert status == 0 and "incorrect" in said and PIN not in said, said
    assert bay.kinds() == ["key file", "FIDO2"]
    guest.run("magbay eject m1", timeout=120)
    assert not opens(guest, bay.node()), "without its PIN"
    command = f"cryptsetup open --readonly --token-only --token-type systemd-fido2 {bay.node()} mine"
    status, said = token.type("token PIN", f"{PIN}\n", command)
    assert status == 0 and guest.run("cryptsetup close mine").rc == 0, said
