"""Volumes made to do harm: what they may not do even to root, and what they may not use up."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.config.schema import Config
from appliance.storage import scanning
from appliance.storage.extract import Extractor
from appliance.storage.outcome import Summary
from appliance.storage.targets import LimitError
from appliance.volumes.attributes import FileType
from appliance.volumes.blocks import RECORD_HEADER
from appliance.volumes.reading import read_volumes
from appliance.volumes.streams import Stream
from appliance.volumes.verify import ContentCheck
from tests.unit.enginehelp import statements
from tests.unit.test_cli_volume import run
from tests.unit.volume_builder import IDS, Job, label_of, one_job, volume

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give away")


MIB = 1 << 20


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python held at most while *work* ran, beyond what it held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def extract(tmp_path: Path, fill: Callable[[Job], object], **options: Any) -> Summary:
    """Extract what *fill* makes into `out`."""
    return Extractor(tmp_path / "out", **options).run(read_volumes([one_job(tmp_path / "volume", fill)]))


def xattrs(**values: bytes) -> bytes:
    """A record of extended attributes; a double underline stands for the dot."""
    packed = b""
    for name, value in values.items():
        key = name.replace("__", ".").encode()
        packed += struct.pack(">II", 0x005C5884, len(key)) + key + struct.pack(">I", len(value)) + value
    return packed


# A capability set as the kernel keeps it: revision 2, CAP_NET_RAW effective and permitted.
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def block_of(records: bytes) -> bytes:
    """A good block with anything in it."""
    rest = struct.pack(">II4sII", 24 + len(records), 1, b"BB02", 7, 8) + records
    return struct.pack(">I", zlib.crc32(rest)) + rest


def with_rights(job: Job) -> None:
    """Everything that gives somebody a right."""
    job.entry(FileType.REGULAR, b"/tool", mode=stat.S_IFREG | 0o6755, size=1, uid=4711, gid=4712)
    job.record(Stream.FILE_DATA, b"x")
    job.record(Stream.LINUX_XATTR, xattrs(security__capability=NET_RAW, user__comment=b"mine"))
    job.finish_file(b"x")
    job.entry(FileType.SPECIAL, b"/disk", mode=stat.S_IFBLK | 0o666, rdev=os.makedev(8, 0))
    job.entry(FileType.SPECIAL, b"/zero", mode=stat.S_IFCHR | 0o666, rdev=os.makedev(1, 5))
    job.entry(FileType.SPECIAL, b"/pipe", mode=stat.S_IFIFO | 0o600)
    job.directory(b"/dir/", 0o6777, uid=4711)


@as_root
def test_an_untrusted_volume_gives_nobody_a_right(tmp_path: Path) -> None:
    summary = extract(tmp_path, with_rights, trusted=False)
    out = tmp_path / "out"
    assert not summary.failed and {text.partition(":")[0] for text in summary.warnings} == {"/disk", "/zero"}
    assert sorted(os.listdir(out)) == ["dir", "pipe", "tool"]
    for name, mode in (("tool", 0o755), ("dir", 0o777)):
        found = (out / name).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), os.getegid(), mode)
    assert os.listxattr(out / "tool") in (["user.comment"], [])


@as_root
def test_a_trusted_volume_gives_them_back(tmp_path: Path) -> None:
    summary = extract(tmp_path, with_rights)
    found = (tmp_path / "out/tool").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (4711, 4712, 0o6755)
    if not summary.warnings:
        assert os.getxattr(tmp_path / "out/tool", "security.capability") == NET_RAW
        assert stat.S_ISBLK((tmp_path / "out/disk").stat().st_mode)


def test_the_command_line_has_both_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = one_job(tmp_path / "volume", lambda job: (job.file(b"/a", b"x" * 600), job.file(b"/b", b"x" * 600)))
    assert run("extract", volume, "--to", tmp_path / "out", "--limit", "1kB", "--untrusted") == 1
    assert "/b goes over the limit of 1000 bytes" in capsys.readouterr().out
    assert (tmp_path / "out/a").read_bytes() == b"x" * 600
    assert run("extract", volume, "--to", tmp_path / "out", "--limit", "1.2kB") == 0
    with pytest.raises(SystemExit):
        run("extract", volume, "--to", tmp_path / "out", "--limit", "much")


@pytest.mark.parametrize("mode", [-1, -(1 << 31), 1 << 31, (1 << 63) - 1])
def test_a_mode_may_be_any_number(tmp_path: Path, mode: int) -> None:
    def fill(job: Job) -> None:
        job.entry(FileType.REGULAR, b"/file", mode=mode, size=1)
        job.record(Stream.FILE_DATA, b"x")
        job.finish_file(b"x")
        job.entry(FileType.DIRECTORY, b"/dir/", mode=mode)
        job.entry(FileType.SPECIAL, b"/pipe", mode=mode)
        job.entry(FileType.SYMLINK, b"/link", mode=mode, link=b"file")

    extract(tmp_path, fill)  # errors of the files, at most
    assert (tmp_path / "out/dir").is_dir()


@pytest.mark.parametrize("sparse", [False, True])
def test_a_bomb_stops_at_the_limit(tmp_path: Path, sparse: bool) -> None:
    """30 MiB come out of a few kB; the volume claims a small file."""
    bomb = zlib.compress(bytes(30 << 20), 1)

    def fill(job: Job) -> None:
        job.entry(FileType.REGULAR, b"/bomb", mode=stat.S_IFREG | 0o600, size=10)
        for number in range(3):
            front = struct.pack(">Q", number << 25) if sparse else b""
            job.record(Stream.SPARSE_GZIP_DATA if sparse else Stream.GZIP_DATA, front + bomb)

    with pytest.raises(LimitError, match="/bomb"):
        extract(tmp_path, fill, limit=50 << 20)
    assert os.listdir(tmp_path / "out") == []  # what did not become whole is gone


def test_a_record_that_expands_beyond_measure_is_an_error_of_the_file(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.entry(FileType.REGULAR, b"/bomb", mode=stat.S_IFREG | 0o600, size=10)
        job.record(Stream.GZIP_DATA, zlib.compress(bytes(40 << 20), 1))
        job.file(b"/next", b"good")

    summary = extract(tmp_path, fill)
    assert summary.errors[0].startswith("/bomb:") and (tmp_path / "out/next").read_bytes() == b"good"


def test_attributes_without_end_are_not_kept(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.file(b"/f", b"x")
        for _ in range(40):
            job.record(Stream.LINUX_XATTR, bytes(1 << 20))
        for _ in range(20_000):
            job.record(Stream.LINUX_ACCESS_ACL, b"\0")

    volume = one_job(tmp_path / "volume", fill)
    found: list[Summary] = []
    assert peak(lambda: found.append(Extractor(tmp_path / "out").run(read_volumes([volume])))) < 20 * MIB
    assert volume.stat().st_size > 40 * MIB
    assert sum("more ACLs and extended attributes than" in text for text in found[0].warnings) == 1


def test_names_without_end(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.file(b"/" + b"a/" * 100_000, b"x")
        job.symlink(b"/link", b"b" * 100_000)
        job.file(b"/good", b"good")

    summary = extract(tmp_path, fill)
    assert summary.failed == 2 and all(len(text) < 400 for text in summary.errors)
    assert sorted(os.listdir(tmp_path / "out")) == ["good"]


def test_holes_of_exabytes_take_no_room(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.entry(FileType.REGULAR, b"/huge", mode=stat.S_IFREG | 0o600, size=1 << 62)
        job.record(Stream.SPARSE_DATA, struct.pack(">Q", 1 << 62) + b"x")
        job.record(Stream.SPARSE_DATA, struct.pack(">Q", (1 << 64) - 1) + b"x")
        job.file(b"/good", b"good")

    summary = extract(tmp_path, fill)
    assert [text.partition(":")[0] for text in summary.errors] == ["/huge"]
    assert (tmp_path / "out/good").read_bytes() == b"good"


def test_hundreds_of_thousands_of_records_without_data(tmp_path: Path) -> None:
    """12 bytes each, nothing in them: read in a stream, and nothing of them is kept."""
    header = struct.pack(">iiI", 1, Stream.FILE_DATA, 0)
    many = 5000
    blocks = []
    job = Job()
    job.entry(FileType.REGULAR, b"/f", mode=stat.S_IFREG | 0o600)
    blocks = list(job.cut())
    for number in range(2, 32):
        body = header * many
        front = struct.pack(">III4sII", 0, 24 + len(body), number, b"BB02", job.ids.session_id, job.ids.session_time)
        blocks.append(zlib.crc32(front[4:] + body).to_bytes(4, "big") + front[4:] + body)
    path = tmp_path / "volume"
    path.write_bytes(label_of(path) + b"".join(blocks))
    check, seen = ContentCheck(), 0

    def read() -> None:
        nonlocal seen
        for event in read_volumes([path]):
            check.take(event)
            seen += 1

    assert peak(read) < 5 * MIB
    check.close()
    assert seen > 30 * many and check.bytes == 0


def test_what_is_there_stays_when_nothing_can_be_read(tmp_path: Path) -> None:
    """A volume whose data are of no use here must not cost the files that it names."""

    def fill(job: Job) -> None:
        job.entry(FileType.REGULAR, b"/secret", mode=stat.S_IFREG | 0o600, size=4, nlink=2)
        job.record(Stream.ENCRYPTED_FILE_DATA, b"abcd")
        job.entry(FileType.HARD_LINK, b"/other-name", mode=stat.S_IFREG | 0o600, link=b"/secret", link_fi=1, nlink=2)
        job.entry(FileType.REGULAR, b"/broken", mode=stat.S_IFREG | 0o600, size=4)
        job.record(Stream.GZIP_DATA, b"no zlib")
        job.file(b"/emptied", b"")
        job.file(b"/replaced", b"new")

    out = tmp_path / "out"
    out.mkdir()
    for name in ("secret", "other-name", "broken", "emptied", "replaced"):
        (out / name).write_text("old")
    summary = extract(tmp_path, fill)
    assert [text.partition(":")[0] for text in summary.errors] == ["/secret", "/other-name", "/broken"]
    assert [(out / name).read_text() for name in ("secret", "other-name", "broken")] == ["old"] * 3
    assert (out / "emptied").read_text() == "" and (out / "replaced").read_text() == "new"


def test_directories_without_end_above_a_file(tmp_path: Path) -> None:
    """What is kept of directories that are made on the way grows with the name, not with its square."""
    names = [b"/%d/" % number + b"d/" * 2500 + b"f" for number in range(3)]

    def fill(job: Job) -> None:
        for name in names:
            job.file(name, b"x")

    volume = one_job(tmp_path / "volume", fill)
    found: list[Summary] = []
    out = tmp_path / "out"
    try:
        assert peak(lambda: found.append(Extractor(out).run(read_volumes([volume])))) < 16 * MIB
        assert (found[0].errors, found[0].files) == ([], 3)
        for number in range(3):
            here = os.open(out / str(number), os.O_PATH)
            for _ in range(2500):
                below = os.open("d", os.O_PATH | os.O_NOFOLLOW, dir_fd=here)
                os.close(here)
                here = below
            assert os.stat("f", dir_fd=here).st_size == 1 and stat.S_IMODE(os.fstat(here).st_mode) & 0o500 == 0o500
            os.close(here)
    finally:
        subprocess.run(["rm", "-rf", out], check=True)  # nothing else of Python's gets that deep


@pytest.mark.parametrize("what", ["labels", "parts"])
def test_damage_without_end_is_counted_and_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """Each record of a block may be one; a large disk that is failing has as many bad blocks."""
    count = 100_000
    records = ((-4, 1) if what == "labels" else (number, -2) for number in range(1, count + 1))
    data = b"".join(RECORD_HEADER.pack(index, stream, 0) for index, stream in records)
    path = volume(tmp_path / "volume", block_of(data))
    held = peak(lambda: run("check", path, as_json=True))
    found = json.loads(capsys.readouterr().out)
    assert len(found["damage" if what == "labels" else "partial"]) == 10_000
    assert found["not_kept"] == count - 10_000
    assert held < 25 * MIB


def test_a_scan_of_a_volume_that_is_damaged_everywhere(tmp_path: Path, config: Config) -> None:
    (tmp_path / "m1").mkdir()
    broken = RECORD_HEADER.pack(-4, 1, 0) * 100_000
    job = Job(ids=IDS)
    job.file(b"/good", b"good")
    volume(tmp_path / "m1" / "broken", block_of(broken), *job.end())
    results: list[scanning.ScanResult] = []

    def scan() -> None:
        request = scanning.ScanRequest(magazine="m1")
        results.append(scanning.run(config, request, log=lambda text, fields: None))

    held = peak(scan)
    (result,) = results
    assert len(result.errors) == 10_001 and "90000 more damaged places" in result.errors[-1]
    assert result.jobs[IDS].status == "done"
    assert held < 25 * MIB


def test_a_scan_of_many_jobs_changes_few_rows(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job was entered anew whenever another one of its name came."""
    (tmp_path / "m1").mkdir()
    jobs = [Job(ids=IDS._replace(session_id=number), job_id=number) for number in range(1, 61)]
    volume(tmp_path / "m1" / "many", *(block for job in jobs for block in job.end()))
    queries = statements(monkeypatch)
    request = scanning.ScanRequest(magazine="m1")
    assert len(scanning.run(config, request, log=lambda text, fields: None).jobs) == 60
    assert len([query for query in queries if "SET BaseJobId" in query]) <= 2 * 60
