"""A booted appliance: run commands in it, plug disks into it, pull them out again."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.vm.harness.channels import Agent, ChannelError
from tests.vm.harness.disk import Disk
from tests.vm.harness.image import CHECKOUT
from tests.vm.harness.machine import Firmware, Machine, overlay

BOOT_TIMEOUT = 400.0
# Loaded before a guest is frozen, because loading them costs seconds under emulation.
MODULES = ("dm_crypt", "sg", "st", "xfs", "btrfs", "autofs4", "xts", "ext4")
_ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8")
_REPORTS = {
    "journal.txt": "journalctl -b -o short-precise --no-pager",
    "units.txt": "systemctl --failed --no-pager; systemctl status 'magbay-*' autofs --no-pager -l -n 30",
    "disks.txt": "lsblk -o NAME,SIZE,TYPE,FSTYPE,UUID,SERIAL,MOUNTPOINTS; findmnt; dmsetup ls --tree; ls -lR /dev/disk",
    "magbay.txt": "magbay status; magbay slots; ls -lR /var/lib/magbay /run/magbay",
}


class GuestTimeout(AssertionError):
    """Something in the guest did not happen in time."""


@dataclass(frozen=True)
class Result:
    """What a command in the guest did: exit status, or 128 plus the signal that ended it, and its output."""

    rc: int
    stdout: str
    stderr: str


class CommandFailed(AssertionError):
    """A command in the guest that had to succeed did not; *result* has all of its output."""

    def __init__(self, command: str, result: Result) -> None:
        output = f"{result.stdout[-2000:]}{result.stderr[-2000:]}".rstrip()
        super().__init__(f"`{command}` in the guest: exit status {result.rc}\n{output}")
        self.result = result


class Guest:
    """The appliance in a machine. A context manager: at its end the machine is gone.

    Use `Guest.boot` for a cold start, or `Frozen.restore` for the quick way.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.plugged: dict[str, Disk] = {}
        self._agent: Agent | None = None

    # Life -------------------------------------------------------------------------------------------------------

    @classmethod
    def boot(
        cls,
        image: Path,
        folder: Path,
        *,
        firmware: Firmware = Firmware.BIOS,
        size: str | None = None,
        devices: Sequence[str] = (),
        progress: Callable[[str], None] | None = None,
    ) -> Guest:
        """Boot *image* through the firmware and wait until the system is up; changes go to an overlay in *folder*.

        *folder* also gets the sockets (keep its path short) and the console log. Raises GuestTimeout when the guest
        does not come up; the console log is part of the message. With *size* ("5G") the disk is larger than the image;
        *devices* are more words for QEMU.
        """
        folder.mkdir(parents=True, exist_ok=True)
        root = folder / "root.qcow2"
        overlay(root, image, "raw", size)
        guest = cls(Machine(root, folder, firmware, devices=devices))
        try:
            guest._wait_booted(progress or (lambda text: None))
        except BaseException:
            guest.close()
            raise
        return guest

    def _wait_booted(self, progress: Callable[[str], None]) -> None:
        end = time.monotonic() + BOOT_TIMEOUT
        self.connect(BOOT_TIMEOUT, on_console=progress)
        progress("the guest agent answers; waiting until everything is started")
        left = max(1.0, end - time.monotonic())
        self.run("systemctl is-system-running --wait", check=False, timeout=left)

    def connect(self, timeout: float, *, on_console: Callable[[str], None] | None = None) -> None:
        """Wait until the guest agent answers; every new unit on the console is told to *on_console*."""
        agent = Agent(self.machine.directory / "agent")
        seen, end = 0, time.monotonic() + timeout
        while not agent.synchronise(0.5):
            if not self.machine.alive():
                raise ChannelError(f"QEMU ended: {self.machine.errors()}")
            if time.monotonic() > end:
                console = self.console()[-3000:]
                raise GuestTimeout(f"no answer from the guest agent in {timeout:.0f} s; console:\n{console}")
            if on_console is not None:
                targets = re.findall(r"OK[^\n]*Reached target [^\n]* - ([^\n.]+)\.", self.console())
                for target in targets[seen:]:
                    on_console(f"console: reached {target}")
                seen = len(targets)
        self._agent = agent

    def close(self) -> None:
        """Pull the mains plug. What was on plugged disks by then is on them."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None
        self.machine.stop()

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def agent(self) -> Agent:
        """The channel to the guest agent; raises ChannelError when the guest is not up."""
        if self._agent is None:
            raise ChannelError("the guest is not up")
        return self._agent

    # Commands ---------------------------------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60,
        stdin: bytes = b"",
    ) -> Result:
        """Run a shell command, or a program with its words, as root.

        Raises CommandFailed on an exit status other than 0 unless *check* is false, and GuestTimeout, after killing
        the command, when it takes more than *timeout* seconds. Output is kept up to 16 MiB. What stays in the
        background must not keep stdout or stderr: the end of both is waited for.
        """
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        text = command if isinstance(command, str) else shlex.join(command)
        pid = self.agent.execute(
            "guest-exec",
            path=words[0],
            arg=words[1:],
            env=list(_ENVIRONMENT),
            input_data=base64.b64encode(stdin).decode(),
            capture_output=True,
        )["pid"]
        end, pause = time.monotonic() + timeout, 0.01
        while not (status := self.agent.execute("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() > end:
                self._kill(pid)
                raise GuestTimeout(f"`{text}` in the guest took more than {timeout:.0f} s")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)
        outputs = (base64.b64decode(status.get(name, "")).decode(errors="replace") for name in ("out-data", "err-data"))
        result = Result(status["exitcode"] if "exitcode" in status else 128 + status.get("signal", 0), *outputs)
        if check and result.rc != 0:
            raise CommandFailed(text, result)
        return result

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ChannelError):
            self.agent.execute("guest-exec", path="/bin/sh", arg=["-c", f"pkill -KILL -P {pid}; kill -KILL {pid}"])

    def wait_for(self, condition: str, timeout: float = 60) -> None:
        """Wait until the shell command *condition* succeeds; raises GuestTimeout with its last output."""
        end, pause = time.monotonic() + timeout, 0.1
        while True:
            result = self.run(condition, check=False, timeout=timeout)
            if result.rc == 0:
                return
            if time.monotonic() > end:
                output = f"{result.stdout[-1000:]}{result.stderr[-1000:]}".rstrip()
                raise GuestTimeout(f"`{condition}` did not come true in {timeout:.0f} s; last: {result.rc} {output}")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def put(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file in the guest. About a second for each MiB."""
        handle = self.agent.execute("guest-file-open", path=path, mode="w")
        try:
            for start in range(0, len(data), 1 << 19):
                part = base64.b64encode(data[start : start + (1 << 19)]).decode()
                self.agent.execute("guest-file-write", handle=handle, buf_b64=part)
        finally:
            self.agent.execute("guest-file-close", handle=handle)
        self.run(["/bin/chmod", f"{mode:o}", path])

    def get(self, path: str) -> bytes:
        """Read a file of the guest."""
        handle = self.agent.execute("guest-file-open", path=path, mode="r")
        parts = []
        try:
            while True:
                answer = self.agent.execute("guest-file-read", handle=handle, count=1 << 19)
                parts.append(base64.b64decode(answer["buf-b64"]))
                if answer["eof"]:
                    return b"".join(parts)
        finally:
            self.agent.execute("guest-file-close", handle=handle)

    # Disks ------------------------------------------------------------------------------------------------------

    def plug(self, disk: Disk) -> float:
        """Push *disk* into the dock, without waiting for the guest; returns the host's monotonic time of it."""
        file = {"driver": "file", "filename": str(disk.path), "cache": {"direct": False, "no-flush": True}}
        self.machine.qmp.execute(
            "blockdev-add",
            node_name=disk.node,
            driver=disk.format,
            discard="unmap",
            file={**file, "discard": "unmap"},
        )
        words = {"serial": disk.serial, "vendor": disk.vendor, "product": disk.product}
        place = {} if disk.target is None else {"channel": 0, "scsi-id": disk.target, "lun": 0}
        facts = {name: word for name, word in words.items() if word} | place
        try:
            moment = time.monotonic()
            self.machine.qmp.execute(
                "device_add", driver="scsi-hd", bus="dock.0", drive=disk.node, id=disk.device, **facts
            )
        except ChannelError:
            self.machine.qmp.execute("blockdev-del", node_name=disk.node)
            raise
        self.plugged[disk.device] = disk
        return moment

    def pull(self, disk: Disk, timeout: float = 30) -> float:
        """Pull *disk* out without asking the guest; returns the host's monotonic time, when QEMU has let go of it."""
        self.machine.qmp.forget_events("DEVICE_DELETED")
        moment = time.monotonic()
        self.machine.qmp.execute("device_del", id=disk.device)
        self.machine.qmp.wait_event("DEVICE_DELETED", timeout, device=disk.device)
        self.plugged.pop(disk.device, None)
        while True:
            try:
                self.machine.qmp.execute("blockdev-del", node_name=disk.node)
                return moment
            except ChannelError:
                # The last requests of the guest are still being answered.
                if time.monotonic() > moment + timeout:
                    raise
                time.sleep(0.05)

    def device(self, disk: Disk, timeout: float = 30) -> str:
        """Wait until the guest has the disk and udev is done with it; its path, like /dev/sda."""
        find = f"lsblk -dnpo NAME,SERIAL | grep -w '{disk.serial}'"
        self.wait_for(find, timeout)
        path = self.run(find).stdout.split()[0]
        self.run(["udevadm", "settle"])
        return path

    # Looking at it ----------------------------------------------------------------------------------------------

    def console(self) -> str:
        """What was said on the serial console so far."""
        with contextlib.suppress(FileNotFoundError):
            return self.machine.console.read_text(errors="replace")
        return ""

    def collect(self, name: str) -> Path:
        """Save journal, units, disks and console of the guest for a person to read; returns the directory.

        It is `$MAGBAY_ARTIFACTS/NAME`, by default below build/vm-failures of the checkout.
        """
        base = Path(os.environ.get("MAGBAY_ARTIFACTS") or CHECKOUT / "build/vm-failures")
        directory = base / re.sub(r"[^A-Za-z0-9._-]+", "-", name)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / "console.txt").write_text(self.console())
        (directory / "qemu.txt").write_text(self.machine.errors())
        for file, command in _REPORTS.items():
            try:
                result = self.run(f"({command}) 2>&1", check=False, timeout=60)
                (directory / file).write_text(result.stdout)
            except (ChannelError, GuestTimeout) as error:
                (directory / file).write_text(f"not to be had: {error}\n")
        return directory
