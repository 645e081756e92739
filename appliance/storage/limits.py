"""What a walk leaves out, by the rules of a fileset."""

from __future__ import annotations

import contextlib
import os
import stat as modes
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.config.filesets import FilesetConfig
from appliance.storage.patterns import Patterns

# Source: the Cache Directory Tagging Specification (bford.info/cachedir).
_CACHE_TAG = "CACHEDIR.TAG"
_CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
_MOUNT_TABLE = Path("/proc/self/mountinfo")
# File systems that the kernel or a program makes up: nothing in them can be restored, some of it never ends.
_MADE_UP = frozenset(
    {"autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"}
    | {"fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs"}
    | {"tracefs"}
)


@dataclass(frozen=True)
class Limits:
    """What is left out: *directories* by (device, inode), the rest by patterns, size, age (Unix seconds), marks."""

    directories: frozenset[tuple[int, int]]
    exclude: Patterns | None = None
    include: Patterns | None = None
    one_file_system: bool = True
    made_up: frozenset[int] = frozenset()
    largest: int | None = None
    oldest: float | None = None
    caches: bool = False
    marks: tuple[str, ...] = ()

    @classmethod
    def of(cls, directories: Iterable[Path], fileset: FilesetConfig) -> Limits:
        """The limits of *fileset*, now; *directories* (those that exist) are left out besides."""
        known = set()
        for directory in directories:
            with contextlib.suppress(OSError):
                status = directory.stat()
                known.add((status.st_dev, status.st_ino))
        return cls(
            frozenset(known),
            exclude=Patterns.of(fileset.exclude) if fileset.exclude else None,
            include=Patterns.of(fileset.include, with_contents=True) if fileset.include else None,
            one_file_system=fileset.one_file_system,
            made_up=frozenset() if fileset.one_file_system else _made_up_devices(),
            largest=fileset.exclude_larger,
            oldest=time.time() - fileset.exclude_older if fileset.exclude_older is not None else None,
            caches=fileset.exclude_caches,
            marks=fileset.exclude_marked,
        )

    @property
    def by_status(self) -> bool:
        """Whether size or age of a file decide."""
        return self.largest is not None or self.oldest is not None

    def excludes(self, path: bytes, *, directory: bool) -> bool:
        """Whether a pattern leaves the path out."""
        return self.exclude is not None and self.exclude.match(os.fsdecode(path), directory=directory)

    def includes(self, path: bytes, *, directory: bool) -> bool:
        """Whether the path is among what is to be saved."""
        return self.include is None or self.include.match(os.fsdecode(path), directory=directory)

    def leaves_out(self, path: bytes, status: os.stat_result) -> bool:
        """Whether something that is no directory is left out."""
        if modes.S_ISREG(status.st_mode):
            if self.largest is not None and status.st_size > self.largest:
                return True
            if self.oldest is not None and status.st_mtime < self.oldest:
                return True
        return not self.includes(path, directory=False)

    def may_enter(self, status: os.stat_result, device: int) -> bool:
        """Whether a directory below a path that lies on *device* is descended into."""
        if status.st_dev == device:
            return True
        return not self.one_file_system and status.st_dev not in self.made_up

    def marks_in(self, descriptor: int) -> frozenset[str] | None:
        """The names that mark the open directory as one whose contents are left out; None when it is not marked."""
        found = {mark for mark in self.marks if _exists(mark, descriptor)}
        if self.caches and _is_cache(descriptor):
            found.add(_CACHE_TAG)
        return frozenset(found) or None


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


def _is_cache(directory: int) -> bool:
    try:
        tag = os.open(_CACHE_TAG, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        return modes.S_ISREG(os.fstat(tag).st_mode) and os.pread(tag, len(_CACHE_SIGNATURE), 0) == _CACHE_SIGNATURE
    except OSError:
        return False
    finally:
        os.close(tag)


def _made_up_devices() -> frozenset[int]:
    """Device numbers of mounted file systems that hold no files of anybody (proc_pid_mountinfo(5))."""
    found = set()
    for line in _MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        mount, _, rest = line.partition(" - ")
        major, _, minor = mount.split()[2].partition(":")
        if rest.split()[0] in _MADE_UP:
            found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)
