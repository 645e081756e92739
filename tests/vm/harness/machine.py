"""A QEMU process: its command line, its start and its certain end."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import signal
import subprocess
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import ClassVar

from tests.vm.harness.channels import ChannelError, Qmp

MEMORY = "2G"
_OVMF = Path("/usr/share/OVMF")
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Firmware(Enum):
    """What starts the boot loader."""

    BIOS = "bios"
    UEFI = "uefi"


@functools.cache
def qemu_version() -> str:
    """The first line of `qemu-system-x86_64 --version`; raises FileNotFoundError when it is not installed."""
    command = ["qemu-system-x86_64", "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def overlay(path: Path, backing: Path, backing_format: str, size: str | None = None) -> None:
    """Make *path* a qcow2 file in which all changes to *backing* go."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", backing_format, "-b", str(backing), str(path)]
    if size is not None:
        command.append(size)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def arguments(disk: Path, directory: Path, firmware: Firmware) -> list[str]:
    """QEMU's command line. A frozen machine can only be restored with the same devices in the same order."""
    words = ["qemu-system-x86_64", "-name", "magbay", "-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max", "-m", MEMORY, "-smp", "2"]
    words += ["-rtc", "base=utc,clock=host", "-nic", "none", "-vga", "none"]
    words += ["-drive", f"file={disk},if=none,id=root,format=qcow2,cache=unsafe"]
    words += ["-device", "virtio-blk-pci,drive=root"]
    words += ["-device", "virtio-scsi-pci,id=dock"]
    words += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={directory}/agent,server=on,wait=off"]
    words += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
    words += ["-chardev", f"file,id=console,path={directory}/console.log,append=on", "-serial", "chardev:console"]
    words += ["-qmp", f"unix:{directory}/qmp,server=on,wait=off", "-device", "virtio-rng-pci"]
    if firmware is Firmware.UEFI:
        variables = directory / "uefi-variables"
        variables.write_bytes((_OVMF / "OVMF_VARS_4M.fd").read_bytes())
        words += ["-drive", f"if=pflash,format=raw,readonly=on,file={_OVMF}/OVMF_CODE_4M.fd"]
        words += ["-drive", f"if=pflash,format=raw,file={variables}"]
    return words


def die_with_parent() -> None:
    """For `preexec_fn`: the process ends with this one."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Machine:
    """A running QEMU. It ends with `stop`, and in any case with this process.

    *directory* holds its sockets, the console log and what QEMU says; its path must be short (UNIX sockets).
    """

    live: ClassVar[set[Machine]] = set()

    def __init__(
        self,
        disk: Path,
        directory: Path,
        firmware: Firmware,
        incoming: Path | None = None,
        devices: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.console = directory / "console.log"
        words = [*arguments(disk, directory, firmware), *devices]
        if incoming is not None:
            words += ["-incoming", f"exec:cat {incoming}"]
        self._errors = directory / "qemu.log"
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        Machine.live.add(self)
        try:
            self.qmp = self._connect()
        except BaseException:
            self.stop()
            raise

    def _connect(self, timeout: float = 60) -> Qmp:
        """Connect to the QMP socket as soon as QEMU listens on it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if not self.alive():
                raise ChannelError(f"QEMU ended at once: {self.errors()}")
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return Qmp(self.directory / "qmp")
            time.sleep(0.02)
        raise ChannelError(f"QEMU does not listen on its QMP socket: {self.errors()}")

    def errors(self) -> str:
        """What QEMU itself said."""
        return self._errors.read_text(errors="replace").strip()

    def alive(self) -> bool:
        """Whether QEMU runs."""
        return self.process.poll() is None

    def freeze(self, memory: Path, timeout: float = 120) -> None:
        """Stop the machine and write its memory to *memory*; afterwards it is good for `stop` only."""
        self.qmp.execute("stop")
        self.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
        self.qmp.execute("migrate", uri=f"exec:cat > {memory}")
        end = time.monotonic() + timeout
        while (status := self.qmp.execute("query-migrate").get("status")) != "completed":
            if status == "failed" or time.monotonic() > end:
                raise ChannelError(f"The machine could not be frozen (status {status}): {self.errors()}")
            time.sleep(0.05)

    def wait_restored(self, timeout: float = 60) -> None:
        """Wait until the memory is read in and the machine runs."""
        end = time.monotonic() + timeout
        while (status := self.qmp.execute("query-status")["status"]) != "running":
            if status == "paused":
                self.qmp.execute("cont")
            elif time.monotonic() > end:
                raise ChannelError(f"The frozen machine does not run ({status}): {self.errors()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End QEMU now, as pulling the mains plug would."""
        if self.alive():
            with contextlib.suppress(ChannelError, AttributeError):
                self.qmp.execute("quit", timeout=5)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        with contextlib.suppress(AttributeError):
            self.qmp.close()
        Machine.live.discard(self)


@atexit.register
def _stop_all() -> None:
    for machine in list(Machine.live):
        machine.stop()
