"""The image boots under both firmwares, and the harness does what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.harness import CommandFailed, Disk, Firmware, Frozen, Guest, GuestTimeout


def assert_healthy(guest: Guest) -> None:
    failed = guest.run("systemctl list-units --failed --plain --no-legend").stdout
    assert failed == "", failed + guest.run("journalctl -b -p warning --no-pager -n 60").stdout
    assert guest.run("systemctl is-system-running", check=False).stdout.strip() == "running"
    units = ["multi-user.target", "autofs.service", "magbay-media.service", "magbay-changer.service"]
    assert guest.run(["systemctl", "is-active", *units], check=False).stdout.split() == ["active"] * len(units)


def test_bios_boot(frozen: Frozen, guest: Guest) -> None:
    """The frozen guest was booted through SeaBIOS and GRUB from the disk."""
    assert "magbay login:" in frozen.console
    assert guest.run("[ -e /sys/firmware/efi ]", check=False).rc == 1
    assert "BOOT_IMAGE=/vmlinuz" in guest.run("cat /proc/cmdline").stdout
    assert_healthy(guest)


def test_uefi_boot_on_a_larger_disk(image: Path, vm_folder: Path) -> None:
    """The root file system grows to the end of the disk."""
    with Guest.boot(image, vm_folder, firmware=Firmware.UEFI, size="5G") as guest:
        assert guest.run("[ -d /sys/firmware/efi/efivars ]").rc == 0
        assert "magbay login:" in guest.console()
        assert int(guest.run("df -B1 --output=size / | tail -1").stdout) > 4.5e9
        assert_healthy(guest)


def test_nobody_has_a_password_and_ssh_is_off(guest: Guest) -> None:
    hashes = [line.split(":")[1] for line in guest.run("cat /etc/shadow").stdout.splitlines()]
    assert hashes and set(hashes) <= {"*", "!", "!*", "!!"}
    assert guest.run("systemctl is-enabled ssh.service ssh.socket", check=False).stdout.split() == ["disabled"] * 2
    assert guest.run("ss -Hltn 'sport = :22'").stdout == ""
    assert "autologin" not in guest.run("systemctl cat serial-getty@ttyS0 getty@tty1").stdout
    guest.run("mkdir -p /run/sshd && ssh-keygen -q -t ed25519 -N '' -f /run/key")
    settings = guest.run("sshd -T -h /run/key -C user=root,host=h,addr=192.0.2.1").stdout
    assert "passwordauthentication no" in settings and "kbdinteractiveauthentication no" in settings


def test_no_secret_is_shared_by_all_copies_of_the_image(guest: Guest) -> None:
    assert guest.run("ls /etc/ssh/ssh_host_*", check=False).stdout == ""
    assert guest.run("grep -rIl 'Password *=' /etc/bacula", check=False).stdout == ""
    assert guest.run("ls -A /etc/magbay/keys").stdout == ""


def test_a_key_on_the_efi_system_partition_opens_ssh(guest: Guest) -> None:
    guest.run("systemctl start magbay-authorized-keys && [ ! -e /root/.ssh/authorized_keys ]")
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0bcPuhBbQ4eXqYq9FzVm0sJx3w2sZr8bZ1sXk5mP3a somebody"
    guest.run(f"mount /dev/vda2 /mnt && printf '{key}\\r\\n' > /mnt/authorized_keys && umount /mnt")
    guest.run("systemctl start magbay-authorized-keys")
    guest.wait_for("systemctl is-active ssh.service", timeout=90)
    assert guest.get("/root/.ssh/authorized_keys").decode() == key + "\n"
    assert guest.run("stat -c '%a %U' /root/.ssh/authorized_keys").stdout == "600 root\n"
    assert guest.run("ss -Hltn 'sport = :22'").stdout != ""
    guest.run("! findmnt /mnt")


def test_commands(guest: Guest) -> None:
    result = guest.run("cat; echo err >&2; exit 3", check=False, stdin=b"in")
    assert (result.rc, result.stdout, result.stderr) == (3, "in", "err\n")
    assert guest.run(["/bin/echo", "$HOME"]).stdout == "$HOME\n"
    with pytest.raises(CommandFailed, match="exit status 1"):
        guest.run("false")
    with pytest.raises(GuestTimeout):
        guest.run("sleep 100", timeout=0.5)
    guest.wait_for("! pgrep -x sleep", timeout=10)
    data = bytes(range(256)) * 4000
    guest.put("/var/tmp/data", data, mode=0o600)
    assert guest.get("/var/tmp/data") == data
    assert guest.run("stat -c %a /var/tmp/data").stdout == "600\n"


def test_plug_and_pull(guest: Guest, tmp_path: Path) -> None:
    disk = Disk.create(tmp_path / "blank.raw", "64M", "SERIAL-1")
    for _ in range(2):
        guest.plug(disk)
        path = guest.device(disk)
        assert guest.run(f"lsblk -dbno SIZE,SERIAL {path}").stdout.split() == [str(64 << 20), "SERIAL-1"]
        guest.run(f"echo hello | dd of={path} conv=fsync status=none")
        guest.pull(disk)
        guest.wait_for(f"[ ! -e {path} ]", timeout=30)
    assert disk.path.read_bytes()[:6] == b"hello\n"


def test_a_guest_is_fresh(guest: Guest) -> None:
    """Nothing of another scenario is left, and there is room for state and a restore."""
    assert guest.run("ls /var/tmp/data", check=False).rc == 2
    assert guest.run("cat /etc/hostname").stdout == "magbay\n"
    free = int(guest.run("df -B1 --output=avail / | tail -1").stdout)
    assert free > 1.5e9
    modules = guest.run("lsmod").stdout
    assert "dm_crypt" in modules and "btrfs" in modules
