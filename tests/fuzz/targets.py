"""What is fuzzed, and what must hold whatever the input is: declared errors only, and everything inside its bounds."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from appliance.errors import MagbayError
from appliance.storage.extract import Extractor
from appliance.storage.setting import pack_acl, unpack_xattrs
from appliance.volumes import fastlz, lzo
from appliance.volumes.attributes import parse_attributes, parse_restore_object
from appliance.volumes.bb03 import VolumeKey, VolumeKeys
from appliance.volumes.bsr import parse_bsr
from appliance.volumes.compression import decode
from appliance.volumes.events import Acl, Data, Event, FileEnd, FileStart, Other, Partial, Xattr
from appliance.volumes.labels import LabelKind, SessionLabel, VolumeLabel
from appliance.volumes.reader import Damage
from appliance.volumes.reading import read_volumes
from appliance.volumes.verify import ContentCheck
from tests.fuzz.parts import KEY

MOST = 32 << 20  # plain bytes of one record


class OneKey(VolumeKeys):
    """The key of the enciphered seeds, without a file."""

    def of(self, volume: Path, label_name: str) -> tuple[VolumeKey, ...]:
        return (VolumeKey(KEY),)


class Volume:
    """A file in memory that is read as a volume, again and again."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("volume")
        self.path = Path(f"/proc/self/fd/{self._fd}")
        self.keys = OneKey()

    def close(self) -> None:
        os.close(self._fd)

    def fill(self, data: bytes) -> Path:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)
        return self.path

    def read(self, data: bytes) -> None:
        """Read the volume *data* in full: events in order and inside the file, content decoded, digests compared."""
        self.fill(data)
        check = ContentCheck()
        with contextlib.suppress(MagbayError), contextlib.closing(check):
            follow(read_volumes([self.path], keys=self.keys), check, len(data))

    def extract(self, data: bytes) -> None:
        """Extract the volume *data*; nothing may appear or change outside of the target."""
        self.fill(data)
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            root = Path(folder)
            (root / "outside").mkdir()
            (root / "outside/file").write_text("untouched")
            before = _picture(root)
            with contextlib.suppress(MagbayError):
                Extractor(root / "target").run(read_volumes([self.path], keys=self.keys))
            shutil.rmtree(root / "target", ignore_errors=True)
            if _picture(root) != before:
                raise AssertionError("something outside of the target was changed")


def _picture(root: Path) -> list[tuple[str, int, int, int, int]]:
    """Names, modes, owners, sizes, but not of *root* itself, in which the target is made."""
    found = []
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        found.append((str(path), stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size))
    return found


def follow(events: object, check: ContentCheck, size: int) -> None:
    """Consume the events of a volume of *size* bytes and hold them to their rules."""
    open_files: dict[object, object] = {}
    stored = 0
    for event in events:  # type: ignore[attr-defined]
        check.take(event)
        if isinstance(event, FileStart):
            assert event.entry.ids not in open_files, "a file begins inside another of its session"
            open_files[event.entry.ids] = event.entry
        elif isinstance(event, FileEnd):
            assert open_files.pop(event.entry.ids, None) is event.entry, "a file ends that did not begin"
        elif isinstance(event, Damage | Partial):
            assert 0 <= event.address <= size, "damage outside of the volume"
            assert not isinstance(event, Damage) or 0 <= event.length <= size, "damage larger than the volume"
        elif getattr(event, "entry", None) is not None:
            assert open_files.get(event.entry.ids) is event.entry, "a record of a file that is not open"
            stored += look(event)
            assert stored <= size, "more data than the volume has bytes"
    assert not open_files, "a file without an end"


def look(event: Event) -> int:
    """Take a record apart as an extraction would; gives its bytes on the volume."""
    with contextlib.suppress(MagbayError):
        if isinstance(event, Data):
            assert len(decode(event.stream, event.data).data) <= MOST
        elif isinstance(event, Xattr):
            unpack_xattrs(event.data)
        elif isinstance(event, Acl):
            pack_acl(event.data)
    return len(event.data) if isinstance(event, Data | Other | Acl | Xattr) else 0


# Parsers of their own: the bytes of one thing


def attributes(data: bytes) -> None:
    """An attributes record, and what is asked of it."""
    for parse in (parse_attributes, parse_restore_object):
        with contextlib.suppress(MagbayError):
            found = parse(data)
            assert isinstance(found.kind, str)
            found.stat.pack()


def labels(data: bytes) -> None:
    """Volume and session labels; what can be read can be written again."""
    with contextlib.suppress(MagbayError):
        VolumeLabel.parse(data)
    for kind in (LabelKind.SOS_LABEL, LabelKind.EOS_LABEL):
        with contextlib.suppress(MagbayError):
            SessionLabel.parse(kind, data)


def extras(data: bytes) -> None:
    """Extended attributes and ACLs."""
    with contextlib.suppress(MagbayError):
        unpack_xattrs(data)
    with contextlib.suppress(MagbayError):
        pack_acl(data)


def streams(data: bytes) -> None:
    """A data record of every kind."""
    view = memoryview(data)
    for stream in (2, 4, 6, 7, 29, 30, 2 | 1 << 26):
        with contextlib.suppress(MagbayError):
            assert len(decode(stream, view).data) <= MOST


def bare_lzo(data: bytes) -> None:
    """LZO and FastLZ without any frame."""
    for expand in (lzo.expand, fastlz.expand):
        with contextlib.suppress(MagbayError):
            assert len(expand(memoryview(data), 1 << 16)) <= 1 << 16


def bootstrap(data: bytes) -> None:
    """A bootstrap file, and every question that is asked of it."""
    with contextlib.suppress(MagbayError):
        found = parse_bsr(data.decode("utf-8", "surrogateescape"), "x.bsr")
        for entry in found.entries:
            entry.wants_name("/home/somebody/" + "a" * 200)
            for volume in entry.volumes:
                found.span(volume)


PARSERS: dict[str, Callable[[bytes], None]] = {
    "attributes": attributes,
    "labels": labels,
    "extras": extras,
    "streams": streams,
    "lzo": bare_lzo,
    "bootstrap": bootstrap,
}
