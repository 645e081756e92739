"""What lies on a magazine beside its volumes, so that it can be read and checked without us.

`README.txt` says what this is and how to get at it; `volumes.txt` lists the volumes; `volumes.sha256` has their
checksums in the form that `sha256sum -c` takes. The lists tell of the moment they were written: a volume that was
appended to since then is longer, and its checksum is another one. A volume that was written to and not read since then
is listed without a checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import NotFoundError
from appliance.host.files import write_atomic
from appliance.volumes.blocks import MAGIC, MAGIC_OFFSET

README, LIST, SUMS = "README.txt", "volumes.txt", "volumes.sha256"
_CHUNK = 1024 * 1024
_HEAD_BYTES = MAGIC_OFFSET + len(MAGIC)
_MAGICS = (MAGIC, b"BB03")
_LINE = re.compile(r"(\d+)\t(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{9})Z\t([0-9a-f]{64}|-)\t([^\t\n]+)")
_HEAD = re.compile(r"# Volumes of the magbay magazine (.+) as they were at ")
_UNREAD = "-"  # instead of a checksum

_TEXT = """This disk is the magbay magazine {name}. It holds backups.

Each file here whose name has no ending is one volume in the file format of Bacula; {list} lists them.

To read it without magbay, on any Linux machine, as root, with the key file (or a passphrase or recovery key, if it was
given one; leave --key-file out then):

    cryptsetup open --readonly --key-file KEYFILE /dev/disk/by-uuid/{luks} backup
    mount -o ro /dev/mapper/backup /mnt
    bls -j -V VOLUME /mnt                  what is on a volume    (Debian package bacula-sd)
    bextract -V VOLUME /mnt DIRECTORY      all files of a volume
    bscan                                  puts its jobs back into the catalog of a Bacula

Are the volumes still what they were?

    cd /mnt && sha256sum -c {sums}

Both lists were written at the time that stands in {list}. A volume that was written to since then has another checksum
without being damaged: it is longer then, or newer than the list says. One with a dash instead of a checksum was not
read since it was written to.

LUKS container {luks}, file system {filesystem}. Prepared {prepared}.
"""


@dataclass(frozen=True)
class Sum:
    """A volume as it was: *size* in bytes, *modified* in nanoseconds since 1970, SHA-256 in hex ("": not read)."""

    size: int
    modified: int
    digest: str


@dataclass(frozen=True)
class Checked:
    """What became of a list: *busy* are volumes that are being written, *damaged* those whose contents have changed
    though nobody has written to them."""

    sums: Mapping[str, Sum]
    read: tuple[str, ...]
    busy: tuple[str, ...]
    damaged: tuple[str, ...]


def readme(name: str, luks_uuid: str, filesystem_uuid: str, prepared: str) -> bytes:
    """The text of `README.txt`."""
    values = {"name": name, "luks": luks_uuid, "filesystem": filesystem_uuid, "prepared": prepared}
    return _TEXT.format(list=LIST, sums=SUMS, **values).encode()


def volumes(directory: Path, listed: Collection[str] = ()) -> list[str]:
    """Names of the volumes in *directory*, in order: regular files that begin with a block, or were *listed* as volumes
    before: one whose first bytes are damaged does not look like a volume any more. Raises `OSError`."""
    with os.scandir(directory) as entries:
        names = [e.name for e in entries if e.is_file(follow_symlinks=False) and not e.name.startswith(".")]
    fit = (name for name in names if "\n" not in name and "\t" not in name)
    return sorted(name for name in fit if name in listed or _is_volume(directory / name))


def _is_volume(path: Path) -> bool:
    """Whether a block begins there, damaged or not, of a kind that we can read or of a newer one."""
    with path.open("rb", buffering=0) as file:
        return file.read(_HEAD_BYTES)[MAGIC_OFFSET:] in _MAGICS


def checksums(directory: Path, magazine: str, *, everything: bool, advance: Callable[[int], None]) -> Checked:
    """Write both lists in *directory* anew; *advance* is told the bytes read.

    A volume that has not changed since the last list keeps its checksum, unless *everything* is to be read again: then
    one that does not give the same bytes any more is named. Raises `MagbayError`, `OSError`.
    """
    before = _listed(directory)
    sums: dict[str, Sum] = {}
    read: list[str] = []
    busy: list[str] = []
    damaged: list[str] = []
    for name in volumes(directory, before):
        old = before.get(name)
        with contextlib.ExitStack() as stack:
            fd = _opened(directory / name)
            stack.callback(os.close, fd)
            facts = os.fstat(fd)
            same = (
                old is not None and old.digest != "" and (old.size, old.modified) == (facts.st_size, facts.st_mtime_ns)
            )
            if old is not None and same and not everything:
                sums[name] = old
                continue
            found = sums[name] = _digest(fd, advance)
            (read if found.digest else busy).append(name)
            if old is not None and same and found.digest not in ("", old.digest):
                damaged.append(name)
                sums[name] = old  # what it should be: the next look finds the damage, too
    _write(directory, magazine, sums)
    return Checked(sums, tuple(read), tuple(busy), tuple(damaged))


def current(directory: Path) -> bool:
    """Whether the lists tell of all volumes as they are now, with checksums, or there are none. Only heads of volumes
    that are not listed are read. Raises `OSError`."""
    before = _listed(directory)
    if not (directory / LIST).exists():
        return True
    return _looked_at(directory, before) == before and all(item.digest for item in before.values())


def relist(directory: Path) -> None:
    """Make the lists, where there are some, tell of the volumes as they are now, without reading them: those that were
    written to are listed without a checksum. Raises `OSError`."""
    before = _listed(directory)
    now = _looked_at(directory, before)
    with (directory / LIST).open(encoding="utf-8", errors="surrogateescape") as file:
        head = _HEAD.match(file.readline())
    if now != before and head:
        _write(directory, head[1], now)


def _looked_at(directory: Path, before: Mapping[str, Sum]) -> dict[str, Sum]:
    """The volumes as they are; those that have not changed since *before* have their checksums."""
    found = {}
    for name in volumes(directory, before):
        facts, old = (directory / name).lstat(), before.get(name)
        now = Sum(facts.st_size, facts.st_mtime_ns, old.digest if old else "")
        found[name] = now if now == old else Sum(now.size, now.modified, "")
    return found


def _opened(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotFoundError(f"{path} is no volume any more")
    return fd


def _digest(fd: int, advance: Callable[[int], None]) -> Sum:
    """The file as it is now with the digest of all of it; without when somebody writes to it meanwhile."""
    before = os.fstat(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from memory
    digest = hashlib.sha256()
    left = before.st_size
    while left > 0 and (data := os.read(fd, min(_CHUNK, left))):
        digest.update(data)
        left -= len(data)
        advance(len(data))
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    after = os.fstat(fd)
    still = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return Sum(after.st_size, after.st_mtime_ns, digest.hexdigest() if still else "")


def _listed(directory: Path) -> dict[str, Sum]:
    """What `volumes.txt` says; nothing when there is none."""
    try:
        text = (directory / LIST).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return {}
    found = {}
    for match in filter(None, map(_LINE.fullmatch, text.splitlines())):
        size, second, nanoseconds, digest, name = match.groups()
        with contextlib.suppress(ValueError):
            moment = datetime.strptime(second, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
            found[name] = Sum(
                int(size), int(moment.timestamp()) * 10**9 + int(nanoseconds), "" if digest == _UNREAD else digest
            )
    return found


def _write(directory: Path, magazine: str, sums: Mapping[str, Sum]) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    head = f"# Volumes of the magbay magazine {magazine} as they were at {now}.\n# bytes\tlast written\tSHA-256\tname\n"
    rows = [f"{s.size}\t{_moment(s.modified)}\t{s.digest or _UNREAD}\t{name}\n" for name, s in sums.items()]
    lines = [f"{s.digest}  {name}\n" for name, s in sums.items() if s.digest]
    for file, text in ((LIST, head + "".join(rows)), (SUMS, "".join(lines))):
        write_atomic(directory / file, text.encode("utf-8", "surrogateescape"), mode=0o644)


def _moment(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
