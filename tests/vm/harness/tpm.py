"""A TPM 2.0 for a machine: Debian's swtpm, which has the state of a chip in a folder."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.vm.harness.channels import ChannelError
from tests.vm.harness.machine import die_with_parent


class Tpm:
    """A chip whose state is in *folder* (short path: there is a socket in it); it ends with the machine's QEMU.

    *devices* are the words for QEMU's command line. A context manager.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        socket = folder / "socket"
        self.devices = ["-chardev", f"socket,id=tpm,path={socket}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
        self.devices += ["-device", "tpm-crb,tpmdev=tpm0"]
        words = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--ctrl", f"type=unixio,path={socket}"]
        self._process = subprocess.Popen(
            [*words, "--terminate"], stdin=subprocess.DEVNULL, preexec_fn=die_with_parent, start_new_session=True
        )
        end = time.monotonic() + 30
        while not socket.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                self.close()
                raise ChannelError(f"swtpm does not listen on {socket}")
            time.sleep(0.02)

    def close(self) -> None:
        """End it; the state stays in the folder."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()

    def __enter__(self) -> Tpm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
