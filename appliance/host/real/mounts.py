"""The mount table of the kernel, and touching a path so that autofs mounts it."""

from __future__ import annotations

import asyncio
import os
import re
import select
from pathlib import Path

from appliance.host.api import Mount, Wake

_OCTAL = re.compile(r"\\([0-7]{3})")
_TABLE = Path("/proc/self/mountinfo")


def parse(text: str) -> tuple[Mount, ...]:
    """The lines of a mountinfo file (proc_pid_mountinfo(5)); the mount on top of a path comes last."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        words, more = left.split(" "), right.split(" ")
        if len(words) < 6 or len(more) < 3:
            continue
        options = set(words[5].split(",")) | set(more[2].split(","))
        found.append(Mount(_plain(words[4]), _plain(more[1]), words[2], more[0], "ro" in options, more[2]))
    return tuple(found)


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


class KernelMounts:
    """`/proc/self/mountinfo`."""

    def __init__(self) -> None:
        self._poll: select.epoll | None = None

    def start(self, wake: Wake) -> None:
        """Call *wake* whenever the table changes (the kernel raises POLLPRI on the file)."""
        table = os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC)
        # An epoll descriptor turns the priority event into readability, which the event loop can wait for.
        poll = select.epoll()
        poll.register(table, select.EPOLLPRI | select.EPOLLERR | select.EPOLLET)
        self._poll = poll

        def changed() -> None:
            poll.poll(0)
            wake()

        asyncio.get_running_loop().add_reader(poll.fileno(), changed)

    def table(self) -> tuple[Mount, ...]:
        """The mounts of now."""
        return parse(_TABLE.read_text(encoding="utf-8", errors="surrogateescape"))

    def written(self, mount: Mount) -> int:
        """The seventh number in the device's statistics (Documentation/block/stat.rst of Linux)."""
        try:
            device = Path(mount.source).stat().st_rdev  # btrfs mounts have numbers of their own
            place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
            return int(place.read_text(encoding="ascii").split()[6])
        except (OSError, ValueError, IndexError):
            return 0

    async def trigger(self, path: Path) -> None:
        """Open *path* as a directory in a thread: autofs lets the caller wait until it has mounted or failed."""

        def touch() -> None:
            os.close(os.open(path / ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

        await asyncio.to_thread(touch)
