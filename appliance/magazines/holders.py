"""Who keeps a magazine from being unmounted: processes with their files, and jobs of ours by name.

Only root sees the files of other people's processes, so root's eject unit looks and leaves a list
(`systemd/libexec/holders`); /proc/locks, which anybody may read, serves until that is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.host.api import Mount
from appliance.host.files import adopt

_LOCKS = Path("/proc/locks")
_NAMED = 3  # holders that are named in a sentence


@dataclass(frozen=True)
class Holder:
    """A process (or, with *pid* 0, something in the kernel) and the file of the magazine that it has open."""

    pid: int
    user: str
    command: str
    file: str
    job: int = 0  # number of our job that this process is
    job_name: str = ""

    def document(self) -> dict[str, object]:
        """For JSON."""
        return dict(vars(self))

    def words(self) -> str:
        """For a sentence."""
        if self.job:
            return f"job {self.job} ({self.job_name}, process {self.pid})"
        user = f" of {self.user}" if self.user else ""
        who = f"{self.command} (process {self.pid}{user})" if self.pid else self.command
        return f"{who} with {self.file}" if self.file else who


def parse(text: str) -> tuple[Holder, ...]:
    """The list that the eject unit left: a line each, PID, user, command and file, with tabs between."""
    found = []
    for line in text.splitlines():
        pid, _, rest = line.partition("\t")
        words = [_printable(word) for word in rest.split("\t", 2)]
        if pid.isdecimal() and len(words) == 3:
            found.append(Holder(int(pid), user=words[0], command=words[1], file=words[2]))
    return tuple(found)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def sentence(holders: Iterable[Holder]) -> str:
    """Who is waited for."""
    names = [holder.words() for holder in holders]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"waits for {', '.join(names[:_NAMED])}{more} to let go" if names else ""


def lock_holders(mount: Mount) -> tuple[Holder, ...]:
    """Processes with a file lock on *mount*; every writer of volumes has one. Numbers in the table are hexadecimal
    (proc(5))."""
    major, minor = (int(part) for part in mount.number.split(":"))
    try:
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return ()
    pids = set()
    for line in lines:
        words = line.replace("->", "").split()
        place = words[5].split(":") if len(words) > 5 else []
        if len(place) == 3 and (int(place[0], 16), int(place[1], 16)) == (major, minor) and words[4].isdecimal():
            pids.add(int(words[4]))
    return tuple(Holder(pid, "", _name(pid), "") for pid in sorted(pids))


def _name(pid: int) -> str:
    try:
        return _printable(Path("/proc", str(pid), "comm").read_text(encoding="utf-8", errors="replace").strip())
    except OSError:
        return "a process"


@contextlib.contextmanager
def announced_job(run_dir: Path, job_id: int, name: str) -> Iterator[None]:
    """Let others know while this block runs that this process is job *job_id*: a locked file `run_dir/jobs/PID`.

    That is a courtesy to people: a job runs as well without it.
    """
    path = run_dir / "jobs" / str(os.getpid())
    fd = -1
    try:
        if not path.parent.exists():
            path.parent.mkdir()
            adopt(path.parent, run_dir)
            path.parent.chmod(0o2775)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, json.dumps({"job_id": job_id, "name": name}).encode())
    except OSError:
        pass
    try:
        yield
    finally:
        if fd >= 0:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(fd)


def with_jobs(holders: Iterable[Holder], run_dir: Path) -> tuple[Holder, ...]:
    """*holders*, those that are jobs of ours with number and name."""
    return tuple(_with_job(holder, run_dir / "jobs" / str(holder.pid)) for holder in holders)


def _with_job(holder: Holder, path: Path) -> Holder:
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                kept = json.load(file)
                return replace(holder, job=int(kept["job_id"]), job_name=_printable(str(kept["name"])))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return holder  # no job, or one that has ended
