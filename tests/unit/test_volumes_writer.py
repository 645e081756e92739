"""The writer: its splitting rules, and what the stock tools say about its volumes."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from pathlib import Path

import pytest

from appliance.volumes.attributes import FileType, pack_attributes
from appliance.volumes.blocks import SessionIds
from appliance.volumes.errors import VolumeError
from appliance.volumes.labels import LabelKind, SessionLabel, VolumeLabel
from appliance.volumes.stat64 import EncodedStat
from appliance.volumes.streams import DIGEST_STREAMS, Stream
from appliance.volumes.writer import SessionWriter, label_block
from tests.unit import stocktools

IDS = SessionIds(7, 1_795_342_893)
LABEL = VolumeLabel("test-0001", "Default", "File", 1_795_342_893_000_000, 1_795_342_893_000_000)
SOS = SessionLabel(3, 1_795_342_894_000_000, "test.2026-11-22_10.22.00_16", "test", "client", "set", "abc", "Default")


class Kept:
    """A sink that keeps its blocks."""

    def __init__(self) -> None:
        self.blocks: list[tuple[bytes, int, int]] = []

    def write_block(self, block: memoryview, first_index: int, last_index: int) -> None:
        self.blocks.append((bytes(block), first_index, last_index))


def headers(block: bytes) -> list[tuple[int, int, int]]:
    """The record headers of *block*, by the rules of the format."""
    found, at = [], 24
    while len(block) - at >= 12:
        found.append(struct.unpack_from(">iiI", block, at))
        at += 12 + found[-1][2]
    return found


def save_file(writer: SessionWriter, index: int, name: str, data: bytes, *, chunk: int = 65536) -> None:
    """The records of one regular file."""
    meta = EncodedStat(1, index, stat.S_IFREG | 0o644, 1, 0, 0, 0, len(data), 4096, 0, 5, 6, 7, 0, 0, 2)
    kind = FileType.REGULAR if data else FileType.EMPTY
    writer.write_record(index, Stream.UNIX_ATTRIBUTES, pack_attributes(index, kind, name.encode(), meta))
    for start in range(0, len(data), chunk):
        writer.write_record(index, Stream.FILE_DATA, data[start : start + chunk])
    writer.write_record(index, DIGEST_STREAMS["MD5"], hashlib.md5(data).digest())


def test_blocks_are_sealed() -> None:
    sink = Kept()
    writer = SessionWriter(sink, IDS, max_block=100)
    writer.write_record(4, 2, b"x" * 200)
    writer.write_record(5, 3, b"y" * 16)
    writer.flush()
    for number, (block, _, _) in enumerate(sink.blocks, 1):
        check, length, found, magic, session_id, session_time = struct.unpack_from(">III4sII", block)
        assert (length, found, magic) == (len(block), number, b"BB02")
        assert (session_id, session_time) == (IDS.session_id, IDS.session_time)
        assert check == zlib.crc32(block[4:])
    assert [(first, last) for _, first, last in sink.blocks] == [(4, 4), (4, 4), (4, 4), (4, 5)]
    assert writer.job_bytes == 216


def test_record_is_continued_with_negative_stream_and_the_rest_of_its_length() -> None:
    sink = Kept()
    writer = SessionWriter(sink, IDS, max_block=100)
    writer.write_record(1, 2, b"x" * 150)
    writer.flush()
    assert [headers(block) for block, _, _ in sink.blocks] == [[(1, 2, 150)], [(1, -2, 86)], [(1, -2, 22)]]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (52, [[(1, 2, 52), (1, 3, 16)], [(1, -3, 16)]]),  # the header fits exactly, no byte of the data does
        (53, [[(1, 2, 53)], [(1, 3, 16)]]),  # eleven bytes left: no header fits
        (64, [[(1, 2, 64)], [(1, 3, 16)]]),  # nothing left
    ],
)
def test_edges_of_a_block(first: int, expected: list[list[tuple[int, int, int]]]) -> None:
    sink = Kept()
    writer = SessionWriter(sink, IDS, max_block=100)
    writer.write_record(1, 2, bytes(first))
    writer.write_record(1, 3, bytes(16))
    writer.flush()
    assert [headers(block) for block, _, _ in sink.blocks] == expected


def test_labels_are_never_split() -> None:
    sink = Kept()
    writer = SessionWriter(sink, IDS, max_block=400)
    writer.write_record(1, 2, bytes(300))
    writer.write_label(LabelKind.SOS_LABEL, 3, SOS.pack(LabelKind.SOS_LABEL))
    writer.flush()
    assert [len(headers(block)) for block, _, _ in sink.blocks] == [1, 1]
    assert sink.blocks[1][1:] == (0, 0)
    with pytest.raises(VolumeError):
        writer.write_label(LabelKind.SOS_LABEL, 3, bytes(400))


@pytest.mark.parametrize("max_block", [0, 36, 20_000_001])
def test_impossible_block_sizes(max_block: int) -> None:
    with pytest.raises(VolumeError):
        SessionWriter(Kept(), IDS, max_block=max_block)


def test_records_that_no_reader_takes_are_refused() -> None:
    writer = SessionWriter(Kept(), IDS)
    with pytest.raises(VolumeError):
        writer.write_record(0, 2, b"x")
    with pytest.raises(VolumeError):
        writer.write_record(1, 2, bytes(20_000_000))


def write_volume(path: Path, files: dict[str, bytes], *, max_block: int = 64512) -> None:
    """A whole volume with one job."""
    sink = Kept()
    writer = SessionWriter(sink, IDS, max_block=max_block)
    writer.write_label(LabelKind.SOS_LABEL, SOS.job_id, SOS.pack(LabelKind.SOS_LABEL))
    for index, (name, data) in enumerate(files.items(), 1):
        save_file(writer, index, name, data)
    end = SessionLabel(
        **{**SOS.__dict__, "job_files": len(files), "job_bytes": writer.job_bytes, "end_address": 1}
    ).pack(LabelKind.EOS_LABEL)
    writer.write_label(LabelKind.EOS_LABEL, SOS.job_id, end)
    writer.flush()
    label = VolumeLabel(**{**LABEL.__dict__, "name": path.name})
    path.write_bytes(label_block(label, IDS) + b"".join(block for block, _, _ in sink.blocks))


@pytest.mark.parametrize("max_block", [700, 1024, 64512, 1_048_576])
def test_stock_tools_read_what_we_write(tmp_path: Path, max_block: int) -> None:
    files = {f"/tree/f{size}": os.urandom(size) for size in (0, 1, 11, 12, 13, 600, 676, 65535, 65536, 66000, 200_000)}
    volume = tmp_path / "test-0001"
    write_volume(volume, files, max_block=max_block)
    quiet = max_block <= 64512  # larger blocks are read right, but with a complaint about their size
    assert f"{len(files)} files found" in stocktools.bls(volume, strict=quiet)
    jobs = stocktools.bls_jobs(volume)
    assert (
        "Begin Job Session Record" in jobs and "End Job Session Record" in jobs and "JobId=3" in jobs.replace(" ", "")
    )
    stocktools.bls(volume, "-k", "-v", strict=quiet)
    target = tmp_path / "out"
    assert f"{len(files)} files restored" in stocktools.bextract(volume, target, strict=quiet)
    for name, data in files.items():
        assert (target / name[1:]).read_bytes() == data


def test_stock_bscan_rebuilds_a_catalog_from_spanning_volumes(tmp_path: Path) -> None:
    files = {f"/tree/f{number}": os.urandom(number * 5000) for number in range(20)}
    write_volume(tmp_path / "whole", files)
    data = (tmp_path / "whole").read_bytes()
    border = struct.unpack_from(">I", data, 4)[0]
    for _ in range(4):
        border += struct.unpack_from(">I", data, border + 4)[0]
    second = VolumeLabel(**{**LABEL.__dict__, "name": "second"})
    (tmp_path / "second").write_bytes(label_block(second, IDS, 2) + data[border:])
    (tmp_path / "whole").write_bytes(data[:border])
    jobs, names, ranges = stocktools.bscan(
        [tmp_path / "whole", tmp_path / "second"],
        "SELECT Job, Level, JobStatus, JobFiles FROM Job",
        "SELECT FileIndex, Path || Name FROM File JOIN Path USING (PathId) JOIN Filename USING (FilenameId)",
        "SELECT FirstIndex, LastIndex FROM JobMedia",
    )
    assert jobs == [(SOS.job, "F", "T", len(files))]
    assert names == list(enumerate(files, 1))
    assert len(ranges) == 2 and ranges[0][0] == 1 and ranges[1][1] == len(files)
