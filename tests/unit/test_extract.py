"""Extraction: everything comes back as it was saved, and nothing ever leaves the target."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ExitStatus, MagbayError
from appliance.storage.extract import Extractor
from appliance.storage.outcome import FileResult, Outcome, Replace, Summary
from appliance.storage.selection import link_aliases, path_filter
from appliance.storage.setting import pack_acl, unpack_xattrs
from appliance.storage.targets import parts_of
from appliance.volumes.attributes import FileType
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.blocks import SessionIds
from appliance.volumes.errors import VolumeError
from appliance.volumes.reading import in_order, read_volumes
from appliance.volumes.streams import Stream
from tests.unit.volume_builder import NOW, Job, names_of, one_job, sample, volume

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


def extract(paths: list[Path] | Path, target: Path, **options: Any) -> Summary:
    """Extract everything that the options select."""
    volumes = [paths] if isinstance(paths, Path) else paths
    return Extractor(target, **options).run(read_volumes(volumes))


def built(tmp_path: Path, fill: Callable[[Job], object], **options: Any) -> Path:
    """A volume with one job beside the target."""
    return one_job(tmp_path / "volume", fill, **options)


# Those with two states of one tree, or with files that cannot come back whole, have tests of their own.
APART = {"a-incr", "b-incr", "a-canceled", "b-canceled", "a-pki", "a-xf-sparse"}
SAMPLES = [
    (which, name)
    for which in ("bacula-9.6", "bacula-15.0", "bareos-26")
    for name in names_of(which)
    if name not in APART
]


@as_root
@pytest.mark.parametrize(("which", "name"), SAMPLES)
def test_real_volumes_come_back_as_their_catalog_says(which: str, name: str, tmp_path: Path) -> None:
    volumes, manifest = sample(which, name)
    keys = VolumeKeys([volumes[0].parent])
    summary = Extractor(tmp_path / "out").run(read_volumes(in_order(volumes, keys), keys=keys))
    assert summary.errors == []
    files = [file for job in manifest["jobs"] for file in job["files"] if file["file_index"] > 0]
    assert summary.files == len(files)
    extras = manifest["jobs"][-1]["options"]
    for file in files:
        place = tmp_path / "out" / file["path"].lstrip("/")
        found = place.lstat()
        if "sha256" in file:
            assert hashlib.sha256(place.read_bytes()).hexdigest() == file["sha256"], place
        if "mode" not in file:
            continue
        if file["type"] != "symlink":
            assert oct(stat.S_IMODE(found.st_mode)) == file["mode"], place
        assert (found.st_uid, found.st_gid, int(found.st_mtime)) == (file["uid"], file["gid"], file["mtime"]), place
        if "target" in file:
            assert os.readlink(place) == file["target"]
        if file["type"] == "fifo":
            assert stat.S_ISFIFO(found.st_mode)
        if file["link_fi"]:
            firsts = [tmp_path / "out" / one["path"][1:] for one in files if one["file_index"] == file["link_fi"]]
            assert any(os.path.samefile(place, one) for one in firsts)
        if extras.get("xattr") and "xattr_hex" in file and not summary.warnings:
            values = {key: os.getxattr(place, key).hex() for key in file["xattr_hex"]}
            assert values == file["xattr_hex"]
        if extras.get("acl") and "acl" in file and not summary.warnings:
            access = "\n".join(line for line in file["acl"] if not line.startswith("default:"))
            assert os.getxattr(place, "system.posix_acl_access") == pack_acl(access.encode())


def test_files_encrypted_by_the_client_are_named_one_by_one(tmp_path: Path) -> None:
    volumes, manifest = sample("bareos-26", "a-pki")
    summary = extract(volumes, tmp_path / "out")
    files = manifest["jobs"][0]["files"]
    secret = {one["path"] for one in files if one.get("size") and not one["link_fi"]}
    told = {text.partition(":")[0] for text in summary.errors if "encrypted by the client" in text}
    assert told == secret and not [path for path in secret if (tmp_path / "out" / path[1:]).exists()]
    # What is left: hard links to them, which cannot be made, and all that has no data.
    links = {one["path"] for one in files if one["link_fi"]}
    assert {text.partition(":")[0] for text in summary.errors} == secret | links
    assert summary.files == len(files) - len(secret) - len(links)


def test_what_bareos_damaged_is_kept_and_named(tmp_path: Path) -> None:
    volumes, manifest = sample("bareos-26", "a-xf-sparse")
    summary = extract(volumes, tmp_path / "out")
    spoiled = {one["path"] for one in manifest["jobs"][0]["files"] if "on_volume" in one}
    told = {text.partition(":")[0] for text in summary.errors}
    assert told == spoiled and all("does not match its digest" in text for text in summary.errors)


def test_incremental_in_the_same_volume(tmp_path: Path) -> None:
    volumes, manifest = sample("bacula-9.6", "a-incr")
    assert extract(volumes, tmp_path / "out").errors == []
    newest = {file["path"]: file for job in manifest["jobs"] for file in job["files"] if "sha256" in file}
    for path, file in newest.items():
        assert hashlib.sha256((tmp_path / "out" / path[1:]).read_bytes()).hexdigest() == file["sha256"]


def test_modes_times_and_read_only_directories(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.file(b"/d/sub/old", b"x", mtime=-86400, atime=-86401)
        job.file(b"/d/sub/new", b"x", mode=0o4750, mtime=1 << 33)
        job.directory(b"/d/sub/", 0o555, mtime=1234)
        job.directory(b"/d/", 0o700, mtime=5678)

    assert extract(built(tmp_path, fill), tmp_path / "out") == Summary(files=4, bytes=2)
    tree = tmp_path / "out" / "d"
    assert (tree.stat().st_mtime, (tree / "sub").stat().st_mtime) == (5678, 1234)
    assert stat.S_IMODE((tree / "sub").stat().st_mode) == 0o555
    assert (tree / "sub/old").stat().st_mtime == -86400
    assert (tree / "sub/new").stat().st_mtime == 1 << 33
    assert stat.S_IMODE((tree / "sub/new").stat().st_mode) == 0o4750  # it belongs to whoever runs this
    (tree / "sub").chmod(0o755)


def test_directories_without_an_entry_get_the_usual_mode(tmp_path: Path) -> None:
    extract(built(tmp_path, lambda job: job.file(b"/a/b/c", b"x")), tmp_path / "out")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out/a/b").stat().st_mode) == 0o777 & ~mask


@contextmanager
def extracted_by_an_ordinary_user(path: Path) -> Iterator[Path]:
    """Where an unprivileged user has extracted a volume to, twice, without an error or warning."""
    code = (
        "import os, sys; from pathlib import Path; os.setgroups([]) if os.geteuid() == 0 else None\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "from appliance.storage.extract import Extractor; from appliance.volumes.reading import read_volumes\n"
        "for _ in range(2):\n"
        "    s = Extractor(Path(sys.argv[2])).run(read_volumes([Path(sys.argv[1])])); assert not s.errors, s\n"
        "print(*(line for line in s.warnings if 'only root' not in line), sep='\\n', end='')"
    )
    # Not below pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        volume = shutil.copy(path, folder)
        os.chmod(volume, 0o644)
        out = Path(folder, "out")
        command = [sys.executable, "-c", code, volume, str(out)]
        done = subprocess.run(command, check=True, timeout=60, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
        if b"not supported" in done.stdout:
            pytest.skip(f"this file system has none: {done.stdout!r}")
        assert done.stdout == b""
        yield out


def test_setuid_is_dropped_when_the_owner_cannot_be_set(tmp_path: Path) -> None:
    path = built(tmp_path, lambda job: job.file(b"/tool", b"x", mode=0o6755, uid=4711, gid=4711))
    with extracted_by_an_ordinary_user(path) as out:
        assert stat.S_IMODE((out / "tool").stat().st_mode) == 0o755


def test_an_ordinary_user_gets_the_attributes_of_what_he_may_not_write(tmp_path: Path) -> None:
    value = struct.pack(">II", 0x005C5884, 9) + b"user.kept" + struct.pack(">I", 3) + b"\0\1\2"

    def fill(job: Job) -> None:
        job.entry(FileType.REGULAR, b"/closed/file", mode=stat.S_IFREG | 0o400, size=1)
        job.record(Stream.FILE_DATA, b"x")
        job.record(Stream.LINUX_XATTR, value)
        job.finish_file(b"x")
        job.entry(FileType.DIRECTORY, b"/empty/", mode=stat.S_IFDIR | 0o500)
        job.record(Stream.LINUX_XATTR, value)

    with extracted_by_an_ordinary_user(built(tmp_path, fill)) as out:
        for place, mode in ((out / "closed" / "file", 0o400), (out / "empty", 0o500)):
            assert os.getxattr(place, "user.kept") == b"\0\1\2"
            assert stat.S_IMODE(place.stat().st_mode) == mode


@as_root
def test_devices_and_fifos(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.entry(FileType.SPECIAL, b"/null", mode=stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))
        job.entry(FileType.SPECIAL, b"/pipe", mode=stat.S_IFIFO | 0o600)

    summary = extract(built(tmp_path, fill), tmp_path / "out")
    if summary.warned:
        pytest.skip(f"no device nodes here: {summary.warnings}")
    found = (tmp_path / "out/null").stat()
    assert stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((tmp_path / "out/pipe").stat().st_mode)


def test_sparse_files_keep_their_holes(tmp_path: Path) -> None:
    size, block = 8 << 20, b"d" * 65528

    def fill(job: Job) -> None:
        job.entry(FileType.REGULAR, b"/sparse", mode=stat.S_IFREG | 0o600, size=size)
        job.record(Stream.SPARSE_DATA, struct.pack(">Q", 4 << 20) + block)
        job.record(Stream.SPARSE_GZIP_DATA, struct.pack(">Q", 6 << 20) + zlib.compress(block))
        job.finish_file(block + block)

    assert extract(built(tmp_path, fill), tmp_path / "out") == Summary(files=1, bytes=2 * len(block))
    place = tmp_path / "out/sparse"
    expected = bytearray(size)
    expected[4 << 20 : (4 << 20) + len(block)] = expected[6 << 20 : (6 << 20) + len(block)] = block
    assert place.read_bytes() == expected
    assert place.stat().st_blocks * 512 < 1 << 20


# Nothing leaves the target


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (b"/a/b", (b"a", b"b")),
        (b"../../a", (b"a",)),
        (b"/a/../../../etc/passwd", (b"etc", b"passwd")),
        (b"./a//b/.", (b"a", b"b")),
        (b"/", ()),
        (b"..", ()),
    ],
)
def test_names_stay_below_the_target(name: bytes, parts: tuple[bytes, ...]) -> None:
    assert parts_of(name) == parts


def outside_is_untouched(tmp_path: Path) -> None:
    """The directory that attacks aim at is as it was."""
    outside = tmp_path / "outside"
    assert sorted(path.name for path in outside.iterdir()) == ["kept"]
    assert (outside / "kept").read_text() == "kept"
    assert (outside / "kept").stat().st_nlink == 1
    assert stat.S_IMODE((outside / "kept").stat().st_mode) == 0o600
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755 and outside.stat().st_mtime == 1000


def attack(tmp_path: Path, fill: Callable[[Job, bytes], object]) -> Summary:
    """Extract what *fill* makes, given the path of a directory outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (outside / "kept").chmod(0o600)
    outside.chmod(0o755)
    os.utime(outside, (1000, 1000))
    path = built(tmp_path, lambda job: fill(job, os.fsencode(outside)))
    summary = extract(path, tmp_path / "out")
    outside_is_untouched(tmp_path)
    return summary


def test_dots_lead_nowhere(tmp_path: Path) -> None:
    summary = attack(tmp_path, lambda job, outside: job.file(b"../outside/kept", b"evil"))
    assert summary.status is ExitStatus.DONE
    assert (tmp_path / "out/outside/kept").read_text() == "evil"


def test_file_through_a_link_of_the_volume(tmp_path: Path) -> None:
    def fill(job: Job, outside: bytes) -> None:
        job.symlink(b"/door", outside)
        job.file(b"/door/kept", b"evil")
        job.file(b"/door/new", b"evil")
        job.directory(b"/door/dir/", 0o777)
        job.symlink(b"/door/link", b"/etc")
        job.entry(FileType.SPECIAL, b"/door/pipe", mode=stat.S_IFIFO | 0o600)
        job.file(b"/good", b"good")

    summary = attack(tmp_path, fill)
    assert summary.failed == 5 and summary.files == 2
    assert all("not followed" in text for text in summary.errors)
    assert (tmp_path / "out/good").read_text() == "good"


def test_directory_replaced_by_a_link_before_its_attributes_are_set(tmp_path: Path) -> None:
    def fill(job: Job, outside: bytes) -> None:
        job.directory(b"/door/", 0o777, mtime=5)
        job.symlink(b"/door", outside)

    attack(tmp_path, fill)
    assert (tmp_path / "out/door").is_symlink()


def test_link_under_the_name_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    def fill(job: Job, outside: bytes) -> None:
        job.symlink(b"/f", outside + b"/kept")
        job.file(b"/f", b"evil")

    assert attack(tmp_path, fill).status is ExitStatus.DONE
    assert not (tmp_path / "out/f").is_symlink() and (tmp_path / "out/f").read_text() == "evil"


def test_hard_link_to_a_link_links_the_link(tmp_path: Path) -> None:
    def fill(job: Job, outside: bytes) -> None:
        first = job.entry(FileType.SYMLINK, b"/s", mode=stat.S_IFLNK | 0o777, link=outside + b"/kept", nlink=2)
        job.entry(FileType.HARD_LINK, b"/h", mode=stat.S_IFREG | 0o666, link=b"/s", link_fi=first, nlink=2)
        job.record(Stream.FILE_DATA, b"evil")

    attack(tmp_path, fill)
    assert (tmp_path / "out/h").is_symlink()


def test_directory_entry_that_claims_to_be_a_link(tmp_path: Path) -> None:
    def fill(job: Job, outside: bytes) -> None:
        job.symlink(b"/door", outside)
        job.entry(FileType.DIRECTORY, b"/door/", mode=stat.S_IFLNK | 0o777)
        job.file(b"/door/kept", b"evil")

    attack(tmp_path, fill)
    assert (tmp_path / "out/door/kept").read_text() == "evil"


def test_link_that_was_in_the_target_before(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/door").symlink_to(tmp_path / "outside")
    assert attack(tmp_path, lambda job, outside: job.file(b"/door/kept", b"evil")).status is ExitStatus.DONE
    assert not (tmp_path / "out/door").is_symlink() and (tmp_path / "out/door/kept").read_text() == "evil"


def test_names_that_no_file_system_takes(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.file(b"/", b"x")
        job.file(b"x" * 300, b"x")
        job.file(b"/f", b"x")
        job.file(b"/f/below", b"x")
        job.file(b"/\xff\xfe", b"odd")

    results: list[FileResult] = []
    summary = extract(built(tmp_path, fill), tmp_path / "out", on_result=results.append)
    assert [one.outcome for one in results].count(Outcome.FAILED) == summary.failed == 3
    assert Path(os.fsdecode(os.fsencode(tmp_path) + b"/out/\xff\xfe")).read_bytes() == b"odd"


# Digests, damage, policies, selections


def test_wrong_content_is_an_error_of_that_file(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.file(b"/first", b"good")
        job.entry(FileType.REGULAR, b"/bad", mode=stat.S_IFREG | 0o600, size=4)
        job.record(Stream.FILE_DATA, b"evil")
        job.finish_file(b"good")
        job.file(b"/last", b"good")

    summary = extract(built(tmp_path, fill, digest="SHA256"), tmp_path / "out")
    assert summary.errors == ["/bad: is kept, but its content does not match its digest"]
    assert (tmp_path / "out/bad").read_text() == "evil" and summary.status is ExitStatus.FAILED


@pytest.mark.parametrize("algorithm", ["MD5", "SHA1", "SHA256", "SHA512", None])
@pytest.mark.parametrize("known", ["MD5", None])
def test_digests_of_any_kind(tmp_path: Path, algorithm: str | None, known: str | None) -> None:
    path = built(tmp_path, lambda job: [job.file(b"/%d" % n, b"x" * n) for n in range(4)], digest=algorithm)
    summary = extract(path, tmp_path / "out", algorithm=known)
    assert summary.status is ExitStatus.DONE and summary.files == 4
    assert summary.unverified == 0  # a small file is digested when its digest is there, which says how


@pytest.mark.parametrize("algorithm", ["MD5", "SHA1", None])
def test_the_first_large_file_of_another_digest_than_expected(tmp_path: Path, algorithm: str | None) -> None:
    path = built(tmp_path, lambda job: [job.file(b"/%d" % n, b"x" * 200_000) for n in range(4)], digest=algorithm)
    summary = extract(path, tmp_path / "out", algorithm="MD5")
    assert summary.status is ExitStatus.DONE and summary.files == 4
    assert summary.unverified == (1 if algorithm == "SHA1" else 0)


def test_file_cut_by_the_end_of_the_volumes_is_a_warning(tmp_path: Path) -> None:
    job = Job(max_block=1000)
    job.file(b"/whole", b"x" * 100)
    job.file(b"/cut", b"y" * 5000, chunk=500)
    summary = extract(volume(tmp_path / "v", *job.cut()[:4]), tmp_path / "out")
    assert summary.failed == 0 and any("/cut: is not whole" in text for text in summary.warnings)
    assert summary.status is ExitStatus.WARNINGS
    assert (tmp_path / "out/whole").read_bytes() == b"x" * 100


def test_damaged_file_is_kept_and_named(tmp_path: Path) -> None:
    job = Job(max_block=1000)
    for name in (b"/a", b"/b", b"/c"):
        job.file(name, name * 1500, chunk=500)
    path = volume(tmp_path / "v", *job.end())
    data = bytearray(path.read_bytes())
    data[data.index(b"/b" * 100) + 1500] ^= 4
    path.write_bytes(data)
    summary = extract(path, tmp_path / "out")
    assert any("wrong checksum" in text for text in summary.errors)
    assert {text.split(":")[0] for text in summary.errors} == {str(path), "/b"}
    for name in ("a", "c"):
        assert (tmp_path / "out" / name).read_bytes() == b"/%s" % name.encode() * 1500


def test_policies_for_what_is_there(tmp_path: Path) -> None:
    path = built(tmp_path, lambda job: job.file(b"/f", b"saved", mtime=1000))
    place = tmp_path / "out/f"
    for policy, when, expected in (
        (Replace.NEVER, 10, "there"),
        (Replace.IF_NEWER, 1000, "there"),
        (Replace.IF_NEWER, 999, "saved"),
        (Replace.ALWAYS, 2000, "saved"),
    ):
        place.parent.mkdir(exist_ok=True)
        place.write_text("there")
        os.utime(place, (when, when))
        summary = extract(path, tmp_path / "out", replace=policy)
        assert place.read_text() == expected and summary.skipped == (expected == "there"), policy


def test_hard_link_alone_takes_the_content(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        first = job.file(b"/d/first", b"content", nlink=3)
        for name in (b"/d/second", b"/d/third"):
            job.entry(
                FileType.HARD_LINK, name, mode=stat.S_IFREG | 0o644, size=7, link=b"/d/first", link_fi=first, nlink=3
            )

    path = built(tmp_path, fill)
    wanted = path_filter(["second", "third"])
    aliases = link_aliases(read_volumes([path]), wanted)
    summary = extract(path, tmp_path / "out", select=wanted, aliases=aliases)
    assert summary == Summary(files=2, bytes=7)
    assert sorted(os.listdir(tmp_path / "out/d")) == ["second", "third"]
    assert os.path.samefile(tmp_path / "out/d/second", tmp_path / "out/d/third")
    assert (tmp_path / "out/d/second").read_text() == "content"
    without = extract(path, tmp_path / "out2", select=wanted)
    assert without.failed == 2 and "/d/first" in without.errors[0]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.txt", {"/a/b.txt", "/c.txt"}),
        ("/a", {"/a/", "/a/b.txt", "/a/c"}),
        ("/a/", {"/a/", "/a/b.txt", "/a/c"}),
        ("/a/*", {"/a/b.txt", "/a/c"}),
        ("c", {"/a/c"}),
        ("/b*", set()),
    ],
)
def test_patterns(tmp_path: Path, glob: str, expected: set[str]) -> None:
    def fill(job: Job) -> None:
        job.file(b"/a/b.txt", b"")
        job.file(b"/a/c", b"")
        job.directory(b"/a/")
        job.file(b"/c.txt", b"")

    results: list[FileResult] = []
    extract(built(tmp_path, fill), tmp_path / "out", select=path_filter([glob]), on_result=results.append)
    assert {one.path for one in results} == expected


def test_what_cannot_be_decoded_is_an_error_of_the_file(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        job.entry(FileType.REGULAR, b"/lzo", mode=stat.S_IFREG | 0o600, size=4)
        job.record(Stream.COMPRESSED_DATA, b"LZOX\0\0\0\x02\0\0\0\x01ab")
        job.entry(FileType.REGULAR, b"/secret", mode=stat.S_IFREG | 0o600, size=4)
        job.record(Stream.ENCRYPTED_FILE_DATA, b"abcd")
        job.file(b"/plain", b"x")
        job.entry(FileType.DELETED, b"/gone")
        job.entry(FileType(22), b"/made-by-a-plugin", mode=stat.S_IFREG | 0o600, size=-1)
        job.record(Stream.FILE_DATA, b"dump")

    summary = extract(built(tmp_path, fill), tmp_path / "out")
    assert [text.partition(":")[0] for text in summary.errors] == ["/lzo", "/secret"]
    assert "LZO" in summary.errors[0] and "encrypted by the client" in summary.errors[1]
    assert sorted(os.listdir(tmp_path / "out")) == ["made-by-a-plugin", "plain"]


@pytest.mark.parametrize("number", ["uid", "gid", "mtime", "mode", "size", "rdev"])
@pytest.mark.parametrize("value", [-(1 << 63), (1 << 63) - 1, -1])
def test_absurd_numbers_are_only_warnings(tmp_path: Path, number: str, value: int) -> None:
    def fill(job: Job) -> None:
        job.file(b"/f", b"x")
        job.entry(FileType.REGULAR, b"/odd", **{"mode": stat.S_IFREG | 0o600, "size": 1, number: value})
        job.record(Stream.FILE_DATA, b"x")
        job.finish_file(b"x")
        job.directory(b"/d/")
        job.entry(FileType.SPECIAL, b"/dev", **{"mode": stat.S_IFIFO | 0o600, number: value})

    summary = extract(built(tmp_path, fill), tmp_path / "out")
    assert (tmp_path / "out/odd").stat().st_size == 1
    assert (tmp_path / "out/f").read_text() == "x" and not [text for text in summary.errors if text.startswith("/f")]


def test_xattrs_and_acls(tmp_path: Path) -> None:
    value = struct.pack(">II", 0x005C5884, 9) + b"user.kept" + struct.pack(">I", 3) + b"\0\1\2"
    text = b"user::rw-\nuser:0:r--\ngroup::r--\nmask::r--\nother::---\n\0"

    def fill(job: Job) -> None:
        job.entry(FileType.REGULAR, b"/f", mode=stat.S_IFREG | 0o640, size=1)
        job.record(Stream.FILE_DATA, b"x")
        job.record(Stream.LINUX_ACCESS_ACL, text)
        job.record(Stream.LINUX_XATTR, value)
        job.finish_file(b"x")

    summary = extract(built(tmp_path, fill), tmp_path / "out")
    if summary.warned:
        pytest.skip(f"this file system has none: {summary.warnings}")
    assert os.getxattr(tmp_path / "out/f", "user.kept") == b"\0\1\2"
    assert os.getxattr(tmp_path / "out/f", "system.posix_acl_access") == pack_acl(text)


@pytest.mark.parametrize("packed", [b"\0", struct.pack(">II", 1, 1) + b"x", struct.pack(">II", 0x005C5884, 1 << 31)])
def test_damaged_xattr_records(packed: bytes) -> None:
    with pytest.raises(VolumeError):
        unpack_xattrs(packed)


@pytest.mark.parametrize("text", [b"user::rw", b"nobody::rwx", b"user:no such user:rwx", b"x"])
def test_damaged_acls(text: bytes) -> None:
    with pytest.raises(VolumeError):
        pack_acl(text)


def test_target_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MagbayError):
        Extractor(tmp_path / "file")


def test_a_file_that_cannot_grow_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = built(tmp_path, lambda job: job.file(b"/f", b"x" * 200_000))
    code = (
        "import resource, signal, sys; from pathlib import Path; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from appliance.storage.extract import Extractor; from appliance.volumes.reading import read_volumes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "s = Extractor(Path(sys.argv[2])).run(read_volumes([Path(sys.argv[1])])); assert s.failed == 1, s"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "out")]
    subprocess.run(command, check=True, timeout=60, cwd=Path(__file__).parents[2])


def test_events_of_entries_can_be_replaced_for_restores_elsewhere(tmp_path: Path) -> None:
    """`Extractor` takes any iterable of events, so a caller may choose and rename."""
    path = built(tmp_path, lambda job: job.file(b"/f", b"x"))
    seen = []
    for event in read_volumes([path]):
        entry = getattr(event, "entry", None)
        if entry is not None:
            renamed = entry._replace(attributes=entry.attributes._replace(name=b"/moved/f"))
            event = event._replace(entry=renamed)
        seen.append(event)
    assert Extractor(tmp_path / "out").run(seen).files == 1
    assert (tmp_path / "out/moved/f").exists()


def test_the_cut_file_of_a_job_without_an_end_does_not_replace_a_later_one(tmp_path: Path) -> None:
    """A killed job, and the next one behind it: its last file stays open until the volumes end."""
    old, new = Job(ids=SessionIds(1, NOW), job_id=11), Job(ids=SessionIds(2, NOW + 9), job_id=12)
    old.file(b"/data/before", b"old")
    old.entry(FileType.REGULAR, b"/data/open", mode=stat.S_IFREG | 0o644, size=70_000)
    old.record(Stream.FILE_DATA, b"o" * 20_000)
    old.entry(FileType.DIRECTORY, b"/data/late/", mode=stat.S_IFDIR | 0o700)
    old.entry(FileType.REGULAR, b"/data/alone", mode=stat.S_IFREG | 0o644, size=9)
    old.record(Stream.FILE_DATA, b"torn")
    for name in (b"/data/before", b"/data/open", b"/data/alone"):
        new.file(name, b"new " + name)
    path = volume(tmp_path / "v", *old.cut(), *new.end())

    told: list[FileResult] = []
    summary = extract(path, tmp_path / "out", on_result=told.append)
    data = tmp_path / "out" / "data"
    for name in ("before", "open", "alone"):
        assert (data / name).read_bytes() == b"new /data/" + name.encode()
    assert summary.errors == []
    assert any("/data/alone: is not whole in a job that has no end" in line for line in summary.warnings)
    assert [one.outcome for one in told if one.path == "/data/alone"] == [Outcome.RESTORED, Outcome.SKIPPED]
    assert not [name for name in os.listdir(data) if name.startswith(".magbay")]

    # Where nothing newer is, it is kept as far as it goes.
    alone = volume(tmp_path / "alone", *old.sink.blocks)
    summary = extract(alone, tmp_path / "less")
    assert (tmp_path / "less/data/alone").read_bytes() == b"torn"
    assert any("/data/alone: is not whole: its job ends inside it" in line for line in summary.warnings)
