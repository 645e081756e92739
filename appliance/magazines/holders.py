"""Who keeps a magazine from being unmounted, in words."""

from __future__ import annotations

from pathlib import Path

from appliance.host.api import Mount

_LOCKS = Path("/proc/locks")


def holders(mount: Mount | None, path: Path) -> str:
    """Why *mount* (at *path*) is still there. /proc/locks names the holders of file locks to anybody, and every
    writer of volumes holds one; others only root can see."""
    found = sorted(_lock_holders(mount.number)) if mount else []
    if found:
        return "waits for " + ", ".join(found) + " to let go"
    return f"unmounting; if this stays, 'fuser -vm {path}' names who holds it"


def _lock_holders(number: str) -> set[str]:
    """Processes with a file lock on device *number* (major:minor, decimal; the table has hexadecimal, proc(5))."""
    major, minor = (int(part) for part in number.split(":"))
    names = set()
    try:
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    for line in lines:
        words = line.replace("->", "").split()
        place = words[5].split(":") if len(words) > 5 else []
        if len(place) == 3 and (int(place[0], 16), int(place[1], 16)) == (major, minor):
            names.add(_name(words[4]))
    return names


def _name(pid: str) -> str:
    try:
        return f"process {pid} ({Path('/proc', pid, 'comm').read_text(encoding='utf-8', errors='replace').strip()})"
    except OSError:
        return f"process {pid}"
