"""LZO, LZ4 and FastLZ as Bacula and Bareos write them, byte by byte, and read by their own tools where those can."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from appliance.config.filesets import Compression, FilesetConfig
from appliance.errors import ExitStatus
from appliance.storage import backup, verify
from appliance.volumes import optional, packing
from appliance.volumes.compression import decode
from appliance.volumes.errors import UnsupportedError
from appliance.volumes.events import Data
from appliance.volumes.packing import Packing
from appliance.volumes.reading import read_volumes
from appliance.volumes.streams import SPARSE, TYPE_MASK, Stream
from tests.unit import stocktools
from tests.unit.enginehelp import assert_same, below, bring_back, configuration, facts, rich_tree, volume
from tests.unit.volume_builder import sample

WAYS = {"lzo": packing.lzo, "lz4": packing.lz4, "lz4hc": packing.lz4hc, "lzfast": packing.lzfast}
needs_fastlz = pytest.mark.skipif(optional.find("fastlz") is None, reason="Python's pyfastlz is not here")
NAMES = [pytest.param(name, marks=needs_fastlz if name == "lzfast" else ()) for name in WAYS]
MARKS = {"lz4": b"FZ4L", "lz4hc": b"FZ4H", "lzfast": b"FZFZ"}
PLAIN = {
    "one": b"x",
    "short": b"a" * 64,
    "longer": b"a" * 65,
    "text": b"a line of text\n" * 4000,
    "noise": random.Random(1).randbytes(65536),
    "zeros": bytes(65536),
    "mixed": random.Random(2).randbytes(30000) + b"y" * 35528,
}


@pytest.mark.parametrize("content", PLAIN.values(), ids=list(PLAIN))
@pytest.mark.parametrize("way", NAMES)
def test_what_is_packed_comes_back(way: str, content: bytes) -> None:
    one: Packing = WAYS[way]()
    packed = one.compress(content)
    assert bytes(decode(one.stream, memoryview(packed)).data) == content
    offset = (123456).to_bytes(8, "big")
    chunk = decode(one.sparse_stream, memoryview(offset + packed))
    assert (chunk.offset, bytes(chunk.data)) == (123456, content)
    assert len(packed) < len(content) / 5 or content in (
        PLAIN["one"],
        PLAIN["short"],
        PLAIN["noise"],
        PLAIN["mixed"],
        PLAIN["longer"],
    )


@pytest.mark.parametrize(
    ("which", "name", "way"),
    [
        ("bacula-9.6", "a-lzo-sha1", packing.lzo),
        ("bacula-9.6", "b-sparse-lzo-nosig", packing.lzo),
        ("bacula-15.0", "a-lzo-sha1", packing.lzo),
        ("bareos-26", "a-fd-lzo", packing.lzo),
    ],
)
def test_the_same_bytes_as_theirs(which: str, name: str, way: Any) -> None:
    """Each record of a real volume, expanded and compressed again: the library is the same one."""
    volumes, _ = sample(which, name)
    same = 0
    for event in read_volumes(volumes):
        if isinstance(event, Data) and event.stream & TYPE_MASK in (Stream.COMPRESSED_DATA, 30):
            begin = 8 if event.stream & TYPE_MASK in SPARSE else 0
            stored = bytes(event.data[begin:])
            assert way().compress(bytes(decode(event.stream, event.data).data)) == stored
            same += 1
    assert same > 5


def frames(record: bytes, mark_of: bytes) -> list[tuple[bytes, int, int]]:
    """Mark, kind and plain length of each frame of a record, and that its lengths add up."""
    magic, size, level, version = struct.unpack(">4sIHH", record[:12])
    assert (magic, level, version, size) == (mark_of, 1, 1, len(record) - 12)
    found, at = [], 12
    while at < len(record):
        mark, kind, length, plain = struct.unpack("<7sBII", record[at : at + 16])
        found.append((mark, kind, plain))
        at += 16 + length
    assert at == len(record)
    return found


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("a-fd-lz4", "lz4"),
        ("a-sparse-lz4", "lz4"),
        ("a-fd-lz4hc", "lz4hc"),
        pytest.param("a-fd-lzfast", "lzfast", marks=needs_fastlz),
    ],
)
def test_the_same_frames_as_bareos(name: str, way: str) -> None:
    """What the libraries make of the data differs by a few bytes from version to version; the frames do not."""
    volumes, _ = sample("bareos-26", name)
    same = 0
    for event in read_volumes(volumes):
        if isinstance(event, Data):
            begin = 8 if event.stream & TYPE_MASK in SPARSE else 0
            stored, plain = bytes(event.data[begin:]), bytes(decode(event.stream, event.data).data)
            if len(plain) > 256 << 10:
                continue
            ours, mark = WAYS[way]().compress(plain), MARKS[way]
            assert frames(ours, mark) == frames(stored, mark) and abs(len(ours) - len(stored)) <= len(stored) / 20
            same += 1
    assert same > 5


@pytest.mark.parametrize("way", NAMES)
@pytest.mark.parametrize("pool", ["maximum_volume_bytes: 10GB, signature: SHA1", "maximum_volume_bytes: 700000"])
def test_a_tree_compressed_with(tmp_path: Path, way: str, pool: str) -> None:
    config = configuration(tmp_path, pool, "magazines: [{name: m1, directory: m1}]\n")
    tree = rich_tree(tmp_path / "source")
    (tree / "text").write_bytes(b"the same line again\n" * 50_000)
    request = backup.BackupRequest((), fileset=FilesetConfig((tree,), compression=Compression(way)))
    done = backup.run(config, request, log=lambda text, fields: None)
    assert done.exit_status is ExitStatus.DONE
    volumes = [volume(config, name) for name in done.volumes]
    streams = {event.stream for event in read_volumes(volumes) if isinstance(event, Data)}
    assert streams == {Stream.COMPRESSED_DATA, Stream.SPARSE_COMPRESSED_DATA}
    assert sum(path.stat().st_size for path in volumes) < 6_500_000
    back = bring_back(config, tmp_path / "out")
    assert (back.errors, back.warnings) == ((), ())
    assert_same(tree, below(tmp_path / "out", tree))
    checked = verify.run(config, verify.VerifyRequest(), log=lambda text, fields: None)
    assert (checked.files, checked.errors) == (done.files, [])
    if way == "lzo":
        stocktools.bextract(volumes, tmp_path / "stock", strict=False)
        stock = facts(below(tmp_path / "stock", tree))
        assert {name: row[4] for name, row in stock.items()} == {name: row[4] for name, row in facts(tree).items()}


@pytest.mark.parametrize("way", list(WAYS))
def test_without_the_library_no_job_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(optional, "find", lambda module: None)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    packing._lzo_library.cache_clear()
    config = configuration(tmp_path)
    request = backup.BackupRequest((), fileset=FilesetConfig((tmp_path,), compression=Compression(way)))
    with pytest.raises(
        UnsupportedError, match="lz4" if way == "lz4hc" else "fastlz" if way == "lzfast" else way
    ) as told:
        backup.run(config, request, log=lambda text, fields: None)
    packing._lzo_library.cache_clear()
    assert "nstall" in told.value.hint and not (config.state_dir / "catalog.db").exists()
    assert os.listdir(tmp_path) == ["magbay.yaml"]


def test_the_library_itself_reads_what_bareos_wrote_and_what_we_wrote() -> None:
    """FastLZ's own decompressor, on the bodies of the frames; our reader says the same of both."""
    fastlz = pytest.importorskip("fastlz")
    volumes, _ = sample("bareos-26", "a-fd-lzfast")
    bodies = 0
    for event in read_volumes(volumes):
        if isinstance(event, Data):
            plain = bytes(decode(event.stream, event.data).data)
            for record in (bytes(event.data), packing.lzfast().compress(plain)):
                _, kind, length, size = struct.unpack("<7sBII", record[12:28])
                if kind == 0xC8 and size == len(plain):
                    body = record[28 : 28 + length]
                    assert fastlz.decompress(size.to_bytes(4, "little") + body) == plain
                    bodies += 1
    assert bodies > 10 and bodies % 2 == 0
