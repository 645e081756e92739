"""Every stream of the format that file backups use: how it is listed, checked and restored. See docs/volumes.md."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.storage.extract import Extractor
from appliance.storage.outcome import Summary
from appliance.volumes.attributes import FileType, pack_attributes
from appliance.volumes.backupread import BackupStream, Part
from appliance.volumes.errors import VolumeError
from appliance.volumes.events import FileStart, Partial
from appliance.volumes.reader import Damage
from appliance.volumes.reading import read_volumes
from appliance.volumes.stat64 import EncodedStat
from appliance.volumes.streams import Stream
from appliance.volumes.verify import ContentCheck
from tests.unit.volume_builder import Job, one_job

TEXT = b"the content of a file, " * 20


def restored(tmp_path: Path, fill: Callable[[Job], object]) -> tuple[Path, Summary, list[tuple[str, str]]]:
    """(target, summary, path and type of each thing listed). Nothing here may count as damage."""
    volume = one_job(tmp_path / "volume", fill)
    listed = []
    for event in read_volumes([volume]):
        assert not isinstance(event, Damage | Partial), event
        if isinstance(event, FileStart):
            listed.append((event.entry.path, event.entry.attributes.kind))
    return tmp_path / "out", Extractor(tmp_path / "out").run(read_volumes([volume])), listed


def regular(job: Job, name: bytes, size: int = len(TEXT)) -> None:
    """The attributes of a regular file."""
    job.entry(FileType.REGULAR, name, mode=stat.S_IFREG | 0o640, size=size)


def framed(magic: bytes, body: bytes) -> bytes:
    """The data of a record of streams 29 to 31."""
    return struct.pack(">4sIHH", magic, len(body), 6, 1) + body


def part(kind: int, data: bytes, name: bytes = b"") -> bytes:
    """A part of what BackupRead gives."""
    return struct.pack("<IIQI", kind, 0, len(data), len(name)) + name + data


CONTENT = {
    Stream.FILE_DATA: TEXT,
    Stream.GZIP_DATA: zlib.compress(TEXT),
    Stream.SPARSE_DATA: bytes(8) + TEXT,
    Stream.SPARSE_GZIP_DATA: bytes(8) + zlib.compress(TEXT),
    Stream.WIN32_DATA: part(Part.DATA, TEXT),
    Stream.WIN32_GZIP_DATA: zlib.compress(part(Part.DATA, TEXT)),
    Stream.COMPRESSED_DATA: framed(b"GZIP", zlib.compress(TEXT)),
    Stream.SPARSE_COMPRESSED_DATA: bytes(8) + framed(b"GZIP", zlib.compress(TEXT)),
    Stream.WIN32_COMPRESSED_DATA: framed(b"GZIP", zlib.compress(part(Part.DATA, TEXT))),
}


@pytest.mark.parametrize("stream", CONTENT)
@pytest.mark.parametrize("flags", [0, 1 << 29 | 1 << 25, 1 << 28, 1 << 23 | 1 << 22])
def test_content(stream: Stream, flags: int, tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        regular(job, b"/f")
        job.record(stream | flags, CONTENT[stream])

    out, summary, listed = restored(tmp_path, fill)
    assert listed == [("/f", "file")] and (summary.errors, summary.warnings) == ([], [])
    assert (out / "f").read_bytes() == TEXT


def test_offsets_by_flag(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        regular(job, b"/f", 10)
        job.record(Stream.FILE_DATA | 1 << 26, struct.pack(">Q", 6) + b"last")
        job.record(Stream.FILE_DATA | 1 << 26, struct.pack(">Q", 0) + b"first ")

    out, summary, _ = restored(tmp_path, fill)
    assert (out / "f").read_bytes() == b"first last" and not summary.errors


@pytest.mark.parametrize("stream", [20, 21, 23, 24, 25, 32, 33])
def test_encrypted_content_is_named(stream: int, tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        regular(job, b"/secret")
        job.record(Stream.ENCRYPTED_SESSION_DATA, b"0\3abc")
        job.record(stream, b"cipher text")
        job.record(Stream.SIGNED_DIGEST, b"0\3abc")
        job.record(Stream.MD5_DIGEST, bytes(16))
        job.file(b"/clear", b"x")

    out, summary, listed = restored(tmp_path, fill)
    assert [name for name, _ in listed] == ["/secret", "/clear"]
    assert summary.errors == ["/secret: the data are encrypted by the client"]
    assert os.listdir(out) == ["clear"]


@pytest.mark.parametrize("flag", [1 << 27, 1 << 24])
def test_differences_and_references_are_named(flag: int, tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        regular(job, b"/f")
        job.record(Stream.FILE_DATA | flag, b"not the data")

    out, summary, _ = restored(tmp_path, fill)
    assert "differences or deduplication references" in summary.errors[0] and not os.listdir(out)


@pytest.mark.parametrize(
    ("stream", "value"),
    [
        (3, hashlib.md5(TEXT).digest()),
        (10, hashlib.sha1(TEXT).digest()),
        (17, hashlib.sha256(TEXT).digest()),
        (18, hashlib.sha512(TEXT).digest()),
    ],
)
def test_digests(stream: int, value: bytes, tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        for name, digest in ((b"/good", value), (b"/bad", bytes(len(value)))):
            regular(job, name)
            job.record(Stream.FILE_DATA, TEXT)
            job.record(stream, digest)

    _, summary, _ = restored(tmp_path, fill)
    assert summary.errors == ["/bad: is kept, but its content does not match its digest"] and not summary.unverified


@pytest.mark.parametrize(
    ("stream", "of_nothing"),
    # Of no bytes at all; as the description of the XXH algorithms gives them.
    [
        (39, "ef46db3751d8e999"),
        (40, "2d06800538d394c2"),
        (40, "99aa06d3014798d86001c324468d497f"),
        (41, "99aa06d3014798d86001c324468d497f"),
    ],
)
def test_xxh_digests(stream: int, of_nothing: str, tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        for name, digest in ((b"/good", bytes.fromhex(of_nothing)), (b"/bad", bytes(len(of_nothing) // 2))):
            job.entry(FileType.EMPTY, name, mode=stat.S_IFREG | 0o640)
            job.record(stream, digest)

    volume = one_job(tmp_path / "volume", fill)
    check = ContentCheck()
    for event in read_volumes([volume]):
        check.take(event)
    check.close()
    assert (check.verified, check.unverified) == (1, 0) and check.mismatches[0].startswith("/bad")


ACL_TEXT = b"user::rw-\nuser:1:r--\ngroup::r--\nmask::r--\nother::---\n\0"


@pytest.mark.parametrize(("stream", "name"), [(15, "access"), (1008, "access"), (16, "default"), (1007, "default")])
def test_acls_of_this_system(stream: int, name: str, tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.directory(b"/d/")
        job.record(stream, ACL_TEXT)

    out, summary, _ = restored(tmp_path, fill)
    if summary.warnings:
        pytest.skip(f"no ACLs here: {summary.warnings}")
    assert f"system.posix_acl_{name}" in os.listxattr(out / "d")


@pytest.mark.parametrize("stream", [1000, 1001, 1002, 1003, 1012, 1013, 1017, 1020, 1022])
def test_acls_of_other_systems_are_told(stream: int, tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.file(b"/f", TEXT)
        job.record(stream, b"whatever\0")

    out, summary, _ = restored(tmp_path, fill)
    assert (out / "f").read_bytes() == TEXT and not summary.errors
    assert summary.warnings == [f"/f: ACL not set (of another system, stream {stream})"]


@pytest.mark.parametrize("stream", [1987, 1990, 1993, 1995, 1996, 1997, 1999])
def test_attributes_of_other_systems_are_told(stream: int, tmp_path: Path) -> None:
    packed = struct.pack(">II", 0x005C5884, 6) + b"user.x" + struct.pack(">I", 1) + b"v"

    def fill(job: Job) -> None:
        job.file(b"/f", TEXT)
        job.record(stream, packed)

    out, summary, _ = restored(tmp_path, fill)
    assert summary.warnings == [f"/f: extended attributes of another system (stream {stream}) not restored"]
    assert "user.x" not in os.listxattr(out / "f")


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (Stream.MACOS_FORK_DATA, "MACOS_FORK_DATA not restored"),
        (Stream.HFSPLUS_ATTRIBUTES, "HFSPLUS_ATTRIBUTES not restored"),
        (Stream.PLUGIN_DATA, "PLUGIN_DATA not restored"),
        (Stream.PLUGIN_META_BLOB, "PLUGIN_META_BLOB not restored"),
        (500, "stream 500 not restored"),
        (Stream.PROGRAM_NAMES, ""),
        (Stream.PROGRAM_DATA, ""),
        (Stream.SIGNED_DIGEST, ""),
        (Stream.FILEEVENT, ""),
        (Stream.NDMP_SEPARATOR, ""),
    ],
)
def test_records_beside_the_content(stream: int, told: str, tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.file(b"/f", TEXT)
        job.record(stream, b"something")

    out, summary, _ = restored(tmp_path, fill)
    assert (out / "f").read_bytes() == TEXT and summary.warnings == ([f"/f: {told}"] if told else [])


@pytest.mark.parametrize("stream", [27, 34, 35, 36, 38, 500, 999])
def test_plugin_objects_and_unknown_things_are_listed_but_make_no_file(stream: int, tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.index += 1
        job.record(Stream.PLUGIN_NAME, b"1 1 0 some plugin\0")
        job.record(stream, b"something private")
        job.record(stream, b"more of it")
        job.record(Stream.PLUGIN_NAME, b"1 0")
        job.file(b"/f", TEXT)

    out, summary, listed = restored(tmp_path, fill)
    assert [kind for _, kind in listed] == ["plugin", "file"]
    assert os.listdir(out) == ["f"] and (summary.errors, summary.warnings) == ([], [])


def test_a_file_behind_its_plugin_metadata_is_restored(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.index += 1
        job.record(Stream.PLUGIN_META_BLOB, b"metadata first")
        saved = EncodedStat(mode=stat.S_IFREG | 0o600, size=len(TEXT))
        job.record(Stream.UNIX_ATTRIBUTES, pack_attributes(1, FileType.REGULAR, b"/f", saved))
        job.record(Stream.FILE_DATA, TEXT)

    out, _, listed = restored(tmp_path, fill)
    assert (out / "f").read_bytes() == TEXT and listed[-1] == ("/f", "file")


@pytest.mark.parametrize("kind", [25, 27, 28, 30])
def test_restore_objects(kind: int, tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.index += 1
        job.record(Stream.PLUGIN_NAME, b"1 1 0 python3:module_name=x\0")
        job.record(Stream.RESTORE_OBJECT, b"1 %d -7 4 4 0 python3:module_name=x\0job.xml\0a\0b\1\0" % kind)
        job.record(Stream.PLUGIN_NAME, b"1 0")
        job.file(b"/f", TEXT)

    out, summary, listed = restored(tmp_path, fill)
    assert listed == [("job.xml", "plugin"), ("/f", "file")]
    assert os.listdir(out) == ["f"] and not summary.errors


def test_deleted_entries_are_listed_and_make_nothing(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.file(b"/stays", TEXT)
        job.entry(FileType.DELETED, b"/gone")
        job.entry(FileType.DELETED, b"/gone-folder/")

    out, summary, listed = restored(tmp_path, fill)
    assert [kind for _, kind in listed] == ["file", "deleted", "deleted"]
    assert os.listdir(out) == ["stays"] and summary.files == 1


@pytest.mark.parametrize("there", [True, False])
def test_an_update_of_attributes_leaves_the_content(there: bool, tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        if there:
            job.file(b"/f", TEXT, mode=0o600)
        job.index += 1
        saved = EncodedStat(mode=stat.S_IFREG | 0o640, size=len(TEXT), mtime=77, uid=os.getuid(), gid=os.getgid())
        job.record(Stream.UNIX_ATTRIBUTE_UPDATE, pack_attributes(job.index, FileType.REGULAR, b"/f", saved))

    out, summary, listed = restored(tmp_path, fill)
    assert listed[-1] == ("/f", "file")
    if there:
        assert (out / "f").read_bytes() == TEXT and not summary.errors
        assert stat.S_IMODE((out / "f").stat().st_mode) == 0o640 and (out / "f").stat().st_mtime == 77
    else:
        assert "only its attributes are saved" in summary.errors[0] and not os.listdir(out)


# Windows


def feed(data: bytes, step: int) -> tuple[bytes, set[Part], bool]:
    """(content, kinds left out, whether whole) of parts that come in pieces of *step* bytes."""
    stream, content = BackupStream(), bytearray()
    for at in range(0, len(data), step):
        for chunk in stream.feed(memoryview(data)[at : at + step]):
            if chunk.offset is not None:
                content.extend(bytes(chunk.offset - len(content)))
            content += chunk.data
    return bytes(content), stream.left_out, stream.is_whole


@pytest.mark.parametrize("step", [1, 7, 20, 21, 10_000])
def test_parts_of_windows(step: int) -> None:
    name = ":extra:$DATA".encode("utf-16-le")
    data = part(Part.SECURITY, b"s" * 50) + part(Part.DATA, TEXT) + part(Part.ALTERNATE_DATA, b"hidden", name)
    assert feed(data, step) == (TEXT, {Part.ALTERNATE_DATA}, True)
    assert feed(data[:-1], step)[2] is False
    sparse = part(Part.DATA, b"") + part(Part.SPARSE_BLOCK, struct.pack("<Q", 5) + b"here")
    assert feed(sparse, step) == (b"\0\0\0\0\0here", set(), True)


@pytest.mark.parametrize(
    "data",
    [part(99, b"x"), struct.pack("<IIQI", 1, 0, 5, 1 << 20), part(Part.SPARSE_BLOCK, b"short") + b"xyz" * 9],
)
def test_damaged_parts_of_windows(data: bytes) -> None:
    with pytest.raises(VolumeError):
        feed(data, 10_000)


def test_windows_files_come_back_without_what_only_windows_has(tmp_path: Path) -> None:
    data = part(Part.SECURITY, b"descriptor") + part(Part.DATA, TEXT) + part(Part.ALTERNATE_DATA, b"hidden")

    def fill(job: Job) -> None:
        regular(job, b"c:/windows/file")
        for at in range(0, len(data), 100):
            job.record(Stream.WIN32_DATA, data[at : at + 100])
        job.record(Stream.MD5_DIGEST, hashlib.md5(data).digest())

    out, summary, _ = restored(tmp_path, fill)
    assert (out / "c:/windows/file").read_bytes() == TEXT and not summary.errors
    assert summary.warnings == ["c:/windows/file: Windows' ALTERNATE_DATA not restored"]
