"""Searching a guest for secrets: in logs, state files, properties of units, and what processes were started with."""

from __future__ import annotations

from tests.vm.harness import Guest

# Notes the command line and environment of every process until it is stopped; cryptsetup takes long enough to be seen.
_SAMPLER = """
import pathlib, time
seen = set()
while not pathlib.Path("/run/sampler.stop").exists():
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                seen.add((process / name).read_bytes())
            except OSError:
                pass
    time.sleep(0.02)
pathlib.Path("/root/sampled").write_bytes(b"\\n".join(sorted(seen)))
"""
# The first argument: words that must have been seen among command lines, with commas between. The others: secrets.
_SEARCH = """
import base64, pathlib, subprocess, sys
seen = pathlib.Path("/root/sampled").read_bytes()
for word in sys.argv[1].split(","):
    assert word.encode() in seen, word
for words in (["journalctl", "-b", "-o", "export", "--no-pager"], ["systemctl", "show", "magbay-*"], ["dmesg"]):
    seen += subprocess.run(words, capture_output=True).stdout
places = ("/var/lib/magbay", "/run/magbay", "/run/magbay-disks", "/run/systemd", "/var/lib/systemd/coredump")
places += ("/var/log", "/tmp", "/dev/shm")
files = [p for place in places for p in pathlib.Path(place).rglob("*") if p.is_file() and "credentials" not in str(p)]
assert len(files) > 2 and len(seen) > 10000
for name in sys.argv[2:]:
    part = pathlib.Path("/root", name).read_bytes()[:15]
    assert len(part) == 15, name
    forms = [part, part.hex().encode(), base64.b64encode(part), base64.b32encode(part), repr(part)[2:-1].encode()]
    found = [str(p) for p in files if any(form in p.read_bytes() for form in forms)]
    assert not found and not any(form in seen for form in forms), (name, found)
"""


def watch(guest: Guest) -> None:
    """Begin to note what processes are started with."""
    guest.put("/var/tmp/sampler.py", _SAMPLER.encode())
    guest.put("/var/tmp/search.py", _SEARCH.encode())
    guest.run("systemd-run --unit=sampler python3 /var/tmp/sampler.py")


def unwatch(guest: Guest) -> None:
    """End that."""
    guest.run("touch /run/sampler.stop")
    guest.wait_for("[ -s /root/sampled ] && ! systemctl is-active -q sampler", timeout=60)


def search(guest: Guest, seen: str, *names: str) -> None:
    """None of the secrets in the files *names* of /root is anywhere; *seen*: words, with commas between, of command
    lines that must have been noted since `watch`."""
    guest.run(["python3", "/var/tmp/search.py", seen, *names], timeout=120)
