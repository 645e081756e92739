"""The directory that files are restored below: nothing is ever made, changed or followed outside of it.

Every path is walked component by component from the target's descriptor and no symbolic link is followed, so neither
`..` nor a link (from the volume, one that was there, or one that somebody puts there meanwhile) leads out.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import stat as modes
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from appliance.errors import MagbayError, PermissionDeniedError
from appliance.host import unfinished
from appliance.storage.pathset import PathSet
from appliance.storage.places import Places
from appliance.storage.setting import Rights, Setting, without_inherited
from appliance.volumes.attributes import LONGEST_NAME
from appliance.volumes.errors import VolumeError
from appliance.volumes.stat64 import EncodedStat

Parts = tuple[bytes, ...]
_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_NOTED = 100_000


class Place(NamedTuple):
    """A directory below the target, open. *is_new*: this restore made it (False too when that is forgotten).

    *gives_acls*: to what is made in it (acl(5), "Object creation and default ACLs").
    """

    parts: Parts
    descriptor: int
    is_new: bool
    gives_acls: bool


def _gives_acls(directory: int) -> bool:
    try:
        return bool(os.getxattr(b"/proc/self/fd/%d" % directory, "system.posix_acl_default"))
    except OSError:  # it has none, or cannot
        return False


class LimitError(MagbayError):
    """More data than the caller allows."""


def parts_of(name: bytes) -> Parts:
    """The components of a name on a volume below the target; `..` never climbs above it. `VolumeError`: too long."""
    if len(name) > LONGEST_NAME:
        raise VolumeError(f"its name has {len(name)} bytes, more than a name can have")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return tuple(parts)


class Target:
    """An open target directory (made when missing). Raises `MagbayError` when it cannot be used.

    *trusted* False: what the volume says gives nobody any right, even if root restores it: no owners, no set-user-ID
    and set-group-ID bits, no device nodes, of extended attributes only `user.*`. *gives_way*: whether a file or link
    (its path and stat) does so where a directory must be; one that is noted for the present job never does.
    """

    def __init__(
        self,
        root: Path,
        *,
        trusted: bool = True,
        gives_way: Callable[[Parts, os.stat_result], bool] = lambda parts, found: False,
    ) -> None:
        self.root = root
        self._gives_way = gives_way
        self.rights = Rights(os.geteuid(), trusted)
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            kind = PermissionDeniedError if isinstance(error, PermissionError) else MagbayError
            raise kind(f"{root}: {error.strerror}", hint="Give a directory that can be written to.") from None
        self._umask = os.umask(0o77)
        os.umask(self._umask)
        self._last: Place | None = None  # the directory used last
        self._places = Places()
        self._is_branch = False
        self._implicit = PathSet()  # made on the way, not yet seen on the volume
        self._noted: set[int] = set()  # hashes of paths
        self.foreign = 0  # things whose owner or group could not be restored, for want of rights

    def branch(self) -> Target:
        """The same directory for another thread."""
        other = copy.copy(self)
        other._root = os.dup(self._root)
        other._last = None
        other._noted = set()
        other._is_branch = True
        other.foreign = 0
        return other

    def close(self) -> None:
        """Close the descriptors."""
        self._forget()
        os.close(self._root)
        if not self._is_branch:
            self._places.close()

    def _forget(self) -> None:
        if self._last:
            os.close(self._last.descriptor)
            self._last = None

    def begin_job(self) -> None:
        """What comes now is of another job."""
        self._noted.clear()

    def note(self, parts: Parts) -> None:
        """The present job has a file or link there."""
        if len(self._noted) >= _MOST_NOTED:
            self._noted.clear()
        self._noted.add(hash(parts))

    def parent(self, parts: Parts) -> int:
        """A descriptor of the directory that *parts* lies in, valid until the next call. Raises `OSError`."""
        return self.place(parts).descriptor

    def place(self, parts: Parts) -> Place:
        """As `parent`; the same object as long as the directory is the same."""
        place = self._reach(parts[:-1], make=True)
        assert place is not None
        return place

    def find(self, parts: Parts) -> Place | None:
        """As `place`, but nothing is made, and nothing gives way: None when the directory is not there (yet)."""
        return self._reach(parts[:-1], make=False)

    def _reach(self, wanted: Parts, *, make: bool) -> Place | None:
        if self._last and self._last.parts == wanted:
            return self._last
        # From the directory above it, if that was the last one; deep down each step from the top would take long.
        above = self._last if self._last and wanted and self._last.parts == wanted[:-1] else None
        begin = len(wanted) - 1 if above else 0
        fd = os.dup(above.descriptor if above else self._root)
        try:
            for depth, part in enumerate(wanted[begin:], begin + 1):
                below = self._step(fd, part, wanted[:depth], make=make)
                if below is None:
                    os.close(fd)
                    return None
                os.close(fd)
                fd = below
            self._places.came_to(wanted, fd)
        except BaseException:
            os.close(fd)
            raise
        self._forget()
        self._last = Place(wanted, fd, self._places.was_made(wanted), _gives_acls(fd))
        return self._last

    def _step(self, fd: int, part: bytes, whole: Parts, *, make: bool) -> int | None:
        try:
            return os.open(part, _WALK, dir_fd=fd)
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            self._give_way(fd, part, whole, make=make)
        if not make:
            return None
        # Closed to others until its own entry comes, which on a volume is behind its contents.
        self._implicit.add(whole)
        self._places.note(fd)
        with contextlib.suppress(FileExistsError):  # another branch was faster
            os.mkdir(part, 0o700, dir_fd=fd)
            self._places.made(whole)
        return os.open(part, _WALK, dir_fd=fd)

    def _give_way(self, fd: int, part: bytes, whole: Parts, *, make: bool) -> None:
        """Take away the file or link that lies where a directory must be; without that what is in it would be lacking.

        Where a link leads nothing is touched. Not *make*: it is only asked whether that may be. Raises `OSError`.
        """
        with contextlib.suppress(FileNotFoundError):  # another branch was faster
            found = os.stat(part, dir_fd=fd, follow_symlinks=False)
            if modes.S_ISDIR(found.st_mode):
                return
            if hash(whole) in self._noted or not self._gives_way(whole, found):
                what = os.fsdecode(b"/".join(whole))
                reason = f"{what} in the target is a link or no directory, and is not followed"
                raise OSError(errno.ENOTDIR, reason)
            if make:
                os.unlink(part, dir_fd=fd)

    def existing(self, parts: Parts) -> os.stat_result | None:
        """What is there now (a link itself, not its target), or None. Raises `OSError`."""
        place = self.find(parts)
        if place is None:
            return None
        try:
            return os.stat(parts[-1], dir_fd=place.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def listed(self, parts: Parts) -> list[tuple[bytes, bool]]:
        """The names in a directory, and which of them are directories. Raises `OSError`."""
        listed = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.parent((*parts, b"")))
        try:
            with os.scandir(listed) as entries:
                return [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
        finally:
            os.close(listed)

    def was_made_on_the_way(self, parts: Parts) -> bool:
        """Whether the directory is there only because something in it was restored."""
        return parts in self._implicit

    def create_file(self, parts: Parts) -> tuple[int, bytes]:
        """A new regular file, open for writing, for its owner only, and its name until `place_file`. Raises `OSError`.

        So what was there stays until the new file is whole, and no half file ever has the name of a whole one.
        """
        return unfinished.create(self.parent(parts))

    def reopen_file(self, name: bytes, parts: Parts, before: os.stat_result) -> int:
        """The file of `create_file`, which was closed when it was as *before*, again. Raises `OSError`."""
        return unfinished.reopen(self.parent(parts), name, before)

    def place_file(self, name: bytes, parts: Parts) -> None:
        """The file of `create_file` is done: it takes the place of what is there.

        Raises `OSError`, among others for a directory that is not empty.
        """
        directory = self.parent(parts)
        try:
            os.rename(name, parts[-1], src_dir_fd=directory, dst_dir_fd=directory)
        except IsADirectoryError:
            self.remove_directory(parts)
            directory = self.parent(parts)
            os.rename(name, parts[-1], src_dir_fd=directory, dst_dir_fd=directory)

    def remove_directory(self, parts: Parts) -> None:
        """Make room for something else. Raises `OSError`, among others for a directory that is not empty."""
        os.rmdir(parts[-1], dir_fd=self.parent(parts))
        self._implicit.discard(parts)
        self._forget()

    def drop_file(self, name: bytes, parts: Parts) -> None:
        """Nothing will become of the file of `create_file`."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self.parent(parts))

    def create_directory(self, parts: Parts) -> bool:
        """A directory, which may be there already; False when it was, and not made on the way. Raises `OSError`."""
        is_new = parts in self._implicit
        self._implicit.discard(parts)
        if not parts:
            return False
        found = self.existing(parts)
        if found is not None and not modes.S_ISDIR(found.st_mode):
            os.unlink(parts[-1], dir_fd=self.parent(parts))
            found = None
        if found is None:
            with contextlib.suppress(FileExistsError):  # another branch made it on its way
                os.mkdir(parts[-1], 0o700, dir_fd=self.parent(parts))
                self._places.made(parts)
                is_new = True
        return is_new

    def create_symlink(self, parts: Parts, text: bytes) -> None:
        """A symbolic link that reads *text*, in place of what is there. Raises `OSError`."""
        self._create(parts, lambda name, directory: os.symlink(text, name, dir_fd=directory))

    def create_link(self, parts: Parts, first: Parts) -> None:
        """Another name of *first*, in place of what is there. Raises `OSError`."""
        source = os.dup(self.parent(first))
        try:
            self._create(
                parts,
                lambda name, directory: os.link(
                    first[-1], name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False
                ),
            )
        finally:
            os.close(source)

    def create_node(self, parts: Parts, stat: EncodedStat) -> None:
        """A FIFO or device node in place of what is there. Raises `OSError`; `OverflowError` for absurd numbers."""
        if not modes.S_ISFIFO(stat.mode) and not (self.rights.trusted and self.rights.user == 0):
            raise PermissionError(errno.EPERM, "device nodes are made by root only, and from volumes that are trusted")
        mode = stat.mode & 0o170000 | 0o600
        self._create(parts, lambda name, directory: os.mknod(name, mode, stat.rdev, dir_fd=directory))

    def _create(self, parts: Parts, make: Callable[[bytes, int], None]) -> None:
        """*make* a thing, given its name and directory. What is there goes when it could be made, and not before."""
        directory = self.parent(parts)
        try:
            make(parts[-1], directory)
        except FileExistsError:
            name = unfinished.make(lambda name: make(name, directory))
            try:
                self.place_file(name, parts)
            finally:  # if it has no place; and where both names are links to one file already, a rename changes nothing
                self.drop_file(name, parts)

    def apply(
        self,
        parts: Parts,
        stat: EncodedStat,
        acls: Sequence[tuple[int, bytes]],
        xattrs: Sequence[bytes],
        fd: int | None = None,
        *,
        is_new: bool = True,
    ) -> list[str]:
        """Owner, mode, ACL, extended attributes, times, as far as allowed; gives what could not be set, in words.

        *fd*: the file, when it is open. *is_new*: ACLs that it has are of the directory that it was made in. Owners are
        set by root only; others lose setuid bits of foreign files.
        """
        if not parts:
            return []
        mode = stat.mode & 0o177777  # a volume may claim any number
        if is_new and not modes.S_ISLNK(mode) and self.place(parts).gives_acls:
            acls = without_inherited(acls, is_directory=modes.S_ISDIR(mode))
        if fd is not None:
            return self._set(fd, os.fstat(fd), stat, acls, xattrs)
        with self._held(parts) as held:
            found = os.fstat(held)
            # Somebody may have put a file of ours, or another name of one, in the place of a pipe.
            if modes.S_ISREG(found.st_mode) and modes.S_IFMT(mode) not in (0, modes.S_IFREG):
                raise OSError(errno.EBUSY, "somebody else put a file in its place")
            # Leads to the thing itself, also where that is a link.
            return self._set(b"/proc/self/fd/%d" % held, found, stat, acls, xattrs)

    def _set(
        self,
        place: int | bytes,
        found: os.stat_result,
        saved: EncodedStat,
        acls: Sequence[tuple[int, bytes]],
        xattrs: Sequence[bytes],
    ) -> list[str]:
        setting = Setting(place, saved, self.rights, is_link=modes.S_ISLNK(found.st_mode))
        setting.all(found, acls, xattrs)
        self.foreign += setting.foreign
        return setting.missed

    @contextlib.contextmanager
    def _held(self, parts: Parts) -> Iterator[int]:
        """What is at *parts*, held: whoever may write there can put a link in its place at any moment."""
        held = os.open(parts[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.parent(parts))
        try:
            yield held
        finally:
            os.close(held)

    def settle(self, known: Container[Parts]) -> None:
        """At the end: open the directories that were made on the way and are not *known*. Raises `OSError`."""
        for parts in self._implicit:
            if parts in known:
                continue
            with contextlib.suppress(FileNotFoundError), self._held(parts) as held:
                if modes.S_ISDIR(os.fstat(held).st_mode):
                    os.chmod(b"/proc/self/fd/%d" % held, 0o777 & ~self._umask)  # noqa: PTH101 (a descriptor)
        self._implicit.clear()

    def flush(self) -> None:
        """Return when everything is on the disk, whatever file systems it went to. Raises `OSError`."""
        self._places.flush()


def no_more(root: Path, error: OSError) -> MagbayError:
    """What to say when nothing more can be written below *root*; the file of the *error* is not whole."""
    todo = {errno.ENOSPC: "make room", errno.EDQUOT: "make room", errno.EROFS: "give a target that can be written"}
    hint = f"What was restored before is kept; {todo.get(error.errno or 0, 'look at its disk')} and run it again."
    where = f" ({os.fsdecode(error.filename)} is not whole)" if error.filename else ""
    return MagbayError(f"{root}: {error.strerror}{where}", hint=hint)
