"""Every single bit of sample volumes flipped: found, or harmless, and never wrong data without a word."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.errors import MagbayError
from appliance.storage.extract import Extractor
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.compression import decode
from appliance.volumes.errors import VolumeError
from appliance.volumes.events import Acl, Data, Digest, FileEnd, FileState, Partial, SessionEnd, SessionStart, Xattr
from appliance.volumes.reader import Damage
from appliance.volumes.reading import read_volumes
from tests.fuzz.make_seeds import SEEDS
from tests.fuzz.targets import OneKey, Volume
from tests.unit.volume_builder import CORPUS, sample

# Every bit of these.
WHOLE = [
    "bacula-9.6-a-plain-md5", "bacula-15.0-a-span3", "bareos-26-a-sparse-lz4", "made-enciphered", "made-split",
]  # fmt: skip
# Bits here and there of real volumes.
SAMPLES = [
    ("bacula-9.6", "a-lzo-sha1"), ("bacula-9.6", "a-sparse-gzip9-sha512"), ("bacula-9.6", "a-interleaved"),
    ("bacula-15.0", "a-xxh64-tiny"), ("bacula-15.0", "a-sha256-gzip6"), ("bacula-15.0", "a-encrypted-strong"),
    ("bacula-15.0", "a-append-bb02"), ("bareos-26", "a-fd-lzfast"), ("bareos-26", "a-sparse-lz4"),
    ("bareos-26", "a-blocks-64512"),
]  # fmt: skip
EACH = 200


@dataclass
class Content:
    """All that a volume says: things by session and FileIndex, and complaints."""

    files: dict[tuple[object, int], tuple[object, ...]] = field(default_factory=dict)
    sessions: list[object] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def content(path: Path, keys: VolumeKeys) -> Content:
    """Read a volume to the end. Files that the reader does not call whole are left out: nobody takes them for good."""
    found = Content()
    parts: dict[object, list[object]] = {}
    try:
        for event in read_volumes([path], keys=keys):
            if isinstance(event, Damage | Partial):
                found.complaints.append(str(event))
            elif isinstance(event, SessionStart | SessionEnd):
                found.sessions.append((event.ids, getattr(event, "label", None) or getattr(event, "end", None)))
            elif isinstance(event, FileEnd):
                if event.state is FileState.WHOLE:
                    pieces = parts.pop(event.entry.ids, [])
                    found.files[event.entry.ids, event.entry.file_index] = (event.entry.attributes, *pieces)
                else:
                    parts.pop(event.entry.ids, None)
                    found.complaints.append(event.entry.path)
            elif isinstance(event, Data):
                with contextlib.suppress(VolumeError):
                    chunk = decode(event.stream, event.data)
                    parts.setdefault(event.entry.ids, []).append((chunk.offset, bytes(chunk.data)))
            elif isinstance(event, Digest):
                parts.setdefault(event.entry.ids, []).append((event.algorithm, event.value))
            elif isinstance(event, Acl | Xattr):
                parts.setdefault(event.entry.ids, []).append((event.stream, event.data))
    except MagbayError as error:
        found.complaints.append(error.message)
    return found


@pytest.fixture
def volume() -> Iterator[Volume]:
    """A file in memory."""
    found = Volume()
    yield found
    found.close()


def flipped(data: bytes, bits: Iterator[int] | range) -> Iterator[tuple[int, bytes]]:
    """The bytes with one bit flipped, for each of *bits*."""
    for bit in bits:
        changed = bytearray(data)
        changed[bit >> 3] ^= 1 << (bit & 7)
        yield bit, bytes(changed)


def judge(bit: int, truth: Content, found: Content) -> None:
    """What comes as whole is what was saved; whatever is missing is complained about."""
    where = f"bit {bit & 7} of byte {bit >> 3}"
    for key, parts in found.files.items():
        assert truth.files.get(key) == parts, f"{where}: file {key} is wrong"
    assert set(found.sessions) <= set(truth.sessions) or found.complaints, f"{where}: a session is wrong"
    assert found.complaints, f"{where} was not noticed"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", WHOLE)
def test_every_bit(name: str, volume: Volume) -> None:
    data = (SEEDS / f"{name}.volume").read_bytes()
    truth = content(volume.fill(data), OneKey())
    assert truth.files and not truth.complaints
    for bit, changed in flipped(data, range(len(data) * 8)):
        judge(bit, truth, content(volume.fill(changed), OneKey()))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("which", "name"), SAMPLES)
def test_bits_of_real_volumes(which: str, name: str, volume: Volume) -> None:
    (path,), _ = sample(which, name)
    data, keys = path.read_bytes(), VolumeKeys(list((CORPUS / which / name).glob("*.key")))
    truth = content(path, keys)
    assert truth.files and not truth.complaints
    noise = random.Random(name)
    for bit, changed in flipped(data, (noise.randrange(len(data) * 8) for _ in range(EACH))):
        judge(bit, truth, content(volume.fill(changed), keys))


@pytest.mark.parametrize("name", WHOLE[:3])
def test_extracted_files_are_right_or_named(name: str, volume: Volume, tmp_path: Path) -> None:
    """The same through extraction: each file below the target has the right bytes, or the summary names it."""
    data = (SEEDS / f"{name}.volume").read_bytes()

    def tree(target: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(target)): path.read_bytes()
            for path in target.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    first = Extractor(tmp_path / "truth").run(read_volumes([volume.fill(data)], keys=OneKey()))
    truth = tree(tmp_path / "truth")
    assert truth and first.files
    noise = random.Random(name)
    for number, (bit, changed) in enumerate(flipped(data, (noise.randrange(len(data) * 8) for _ in range(60)))):
        target = tmp_path / str(number)
        try:
            summary = Extractor(target).run(read_volumes([volume.fill(changed)], keys=OneKey()))
        except MagbayError:
            continue
        assert summary.failed, f"bit {bit}: nothing was noticed"
        told = " ".join(summary.errors)
        for path, found in tree(target).items():
            assert found == truth[path] or f"/{path}: is kept, but" in told, f"bit {bit}: {path} is wrong"
