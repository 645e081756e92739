"""The parts of the engine by themselves: walking, ACLs, selection, the catalog's promises."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.filesets import Compression, FilesetConfig
from appliance.config.schema import Config
from appliance.errors import ExitStatus
from appliance.storage import extras, saved_files
from appliance.storage.catalog import Catalog
from appliance.storage.limits import Limits
from appliance.storage.model import JobStatus, Level, Media, NewJob, Outcome, Stretch, VolumeStatus
from appliance.storage.pieces import OFFSET
from appliance.storage.reading import BUFFER, Reader
from appliance.storage.selection import matcher
from appliance.storage.setting import pack_acl
from appliance.storage.walk import Walker, allow_depth, tops, total_bytes
from appliance.volumes.digests import new as new_hash
from tests.unit.enginehelp import below, bring_back, in_one_process, save, sparse_file

NEW = NewJob("job", Level.FULL, "Default", "[]", "md5")


def walked(top: Path, limits: Limits | None = None) -> list[bytes]:
    trouble: list[bytes] = []
    walker = Walker(limits or Limits(frozenset()), lambda path, error: trouble.append(path), lambda text: None)
    found = [found.path for found in walker.walk(os.fsencode(top))]
    assert not trouble
    return found


# -- walking ------------------------------------------------------------------------------------------------------


def test_a_directory_comes_after_its_contents(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    (tmp_path / "a" / "link").symlink_to("b")
    names = [os.fsdecode(path) for path in walked(tmp_path)]
    assert names[-1] == str(tmp_path)
    for number, name in enumerate(names):
        assert not any(later.startswith(name + "/") for later in names[number:])
    assert len(names) == 5


def test_trees_deeper_than_the_longest_path(tmp_path: Path, config: Config) -> None:
    allow_depth()
    tree = tmp_path / "source"
    tree.mkdir()
    here = os.open(tree, os.O_RDONLY)
    for number in range(60):
        name = f"{number:03}" + "d" * 200
        os.mkdir(name, dir_fd=here)
        below_it = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below_it
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert max(map(len, walked(tree))) > 12_000
    saved = save(config, tree)
    assert (saved.exit_status, saved.files) == (ExitStatus.DONE, 62)
    assert bring_back(config, tmp_path / "out").files == 62
    for folder in (tree, tmp_path / "out"):
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_what_lies_deeper_than_a_restore_goes_is_told(tmp_path: Path, config: Config) -> None:
    allow_depth()
    tree = tmp_path / "source"
    tree.mkdir()
    here = os.open(tree, os.O_RDONLY)
    for _ in range(330):
        os.mkdir("d" * 200, dir_fd=here)
        below_it = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below_it
    os.close(here)
    saved = save(config, tree)
    told = [line for line in saved.warnings if line.endswith("is not saved: its path is longer than a restore takes")]
    assert 0 < len(told) < 10 and len(told) == len(saved.warnings) and saved.files + len(told) == 331
    back = bring_back(config, tmp_path / "out")
    assert (back.files, back.errors) == (saved.files, ())
    for folder in (tree, tmp_path / "out"):
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "source" / "mounted"
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by root")
    (place / "inside").touch()
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_other_file_systems_are_not_entered(tmp_path: Path, mounted: Path) -> None:
    assert walked(tmp_path / "source") == [os.fsencode(mounted), os.fsencode(tmp_path / "source")]
    assert walked(mounted) == [os.fsencode(mounted / "inside"), os.fsencode(mounted)]
    assert tops([tmp_path / "source", mounted]) == [os.fsencode(tmp_path / "source"), os.fsencode(mounted)]


def test_a_place_where_something_is_mounted_keeps_its_acl(tmp_path: Path, mounted: Path, config: Config) -> None:
    text = b"user::rwx\nuser:4242424:rwx\ngroup::r-x\nmask::rwx\nother::---\n\0"
    try:
        os.setxattr(mounted, "system.posix_acl_default", pack_acl(text))
    except OSError:
        pytest.skip("this file system has no ACLs")
    save(config, tmp_path / "source")
    assert bring_back(config, tmp_path / "out").warnings == ()
    assert os.getxattr(below(tmp_path / "out", mounted), "system.posix_acl_default") == pack_acl(text)


def test_holes_are_no_work_to_be_done(tmp_path: Path) -> None:
    sparse_file(tmp_path / "image", 1 << 40, {1 << 30: b"d" * 100_000})
    (tmp_path / "usual").write_bytes(b"u" * 1_000_000)
    expected = total_bytes([os.fsencode(tmp_path)], Limits(frozenset()), lambda: False)
    assert expected is not None and 1_000_000 < expected < 2_000_000


def test_paths_inside_others_are_saved_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "ab").mkdir()
    paths = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "ab", tmp_path / "a" / ".." / "a"]
    assert tops(paths) == [os.fsencode(tmp_path / "a"), os.fsencode(tmp_path / "ab")]


def test_a_path_behind_a_symbolic_link_is_not_part_of_the_tree_around_the_link(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / "tree" / "link").symlink_to("../elsewhere/deep")
    (tmp_path / "tree" / "down").symlink_to("../elsewhere")
    beside, through = tmp_path / "tree/down/file", tmp_path / "tree/link/../file"
    assert tops([tmp_path / "tree", beside]) == [os.fsencode(tmp_path / "tree"), os.fsencode(beside)]
    assert tops([through]) == [os.fsencode(tmp_path / "elsewhere/file")]
    assert tops([tmp_path / "tree/link/.."]) == [os.fsencode(tmp_path / "elsewhere")]
    assert tops([tmp_path / "tree/link"]) == [os.fsencode(tmp_path / "tree/link")]


# -- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, BUFFER, BUFFER + 1, 7 * BUFFER + 4711])
def test_reading_gives_all_bytes_and_their_digest(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    reader, digest, wanted = Reader(), new_hash("sha256"), new_hash("sha256")
    with open(tmp_path / "file", "rb") as file:
        assert b"".join(bytes(piece) for piece in reader.plain(file.fileno(), size, digest)) == data
        wanted.update(memoryview(data))
        assert digest.digest() == wanted.digest()
        # The file is shorter than was thought.
        assert b"".join(bytes(piece) for piece in reader.plain(file.fileno(), size + 3 * BUFFER, None)) == data
    reader.close()


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 70_000)), max_size=12), st.integers(1, 4_000_000))
def test_reading_around_holes(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]], size: int
) -> None:
    path = tmp_path_factory.mktemp("sparse") / "file"
    sparse_file(path, size, {at * 65536: b"d" * length for at, length in places})
    reader, digest, wanted = Reader(), new_hash("md5"), new_hash("md5")
    found = bytearray(size)
    reached = 0
    with open(path, "rb") as file:
        for piece in reader.sparse(file.fileno(), size, digest):
            at, data = int.from_bytes(piece[:OFFSET], "big"), piece[OFFSET:]
            assert at >= reached and len(piece) <= 65536
            found[at : at + len(data)] = data
            wanted.update(data)
            reached = at + len(data)
    reader.close()
    assert reached == size and bytes(found) == path.read_bytes()
    assert digest.digest() == wanted.digest()


@pytest.mark.parametrize("fails", [os.SEEK_DATA, os.SEEK_HOLE])
def test_a_disk_that_fails_to_say_where_data_are_is_no_hole(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    in_one_process(monkeypatch)
    tree = tmp_path / "source"
    tree.mkdir()
    sparse_file(tree / "file", 5_000_000, {0: b"first", 3_000_000: b"second" * 1000})
    real = os.lseek

    def broken(descriptor: int, at: int, how: int) -> int:
        if how == fails and at > 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, at, how)

    monkeypatch.setattr(os, "lseek", broken)
    saved = save(config, tree)
    assert saved.exit_status is ExitStatus.WARNINGS
    assert any("file cannot be read behind byte" in line and "Input/output" in line for line in saved.warnings)


@pytest.mark.parametrize("compression", ["none", "gzip1"])
def test_what_comes_before_a_bad_place_of_a_disk_is_saved(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    in_one_process(monkeypatch)
    tree, bad = tmp_path / "source", 3_000_320  # the begin of a page, far from any border of what is read at once
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(5_000_000))
    plain = os.preadv

    def preadv(fd: int, buffers: Any, at: int) -> int:
        if at <= bad < at + sum(map(len, buffers)) and os.readlink(f"/proc/self/fd/{fd}") == str(tree / "file"):
            if at == bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return plain(fd, [buffers[0][: bad - at]], at)
        return plain(fd, buffers, at)

    def pread(fd: int, length: int, at: int) -> bytes:
        buffer = bytearray(length)
        return bytes(buffer[: preadv(fd, [memoryview(buffer)], at)])

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "pread", pread)
    fileset = FilesetConfig((tree,), compression=Compression(compression))
    saved = save(config, tree, fileset=fileset)
    assert saved.exit_status is ExitStatus.WARNINGS
    (told,) = saved.warnings
    assert f"cannot be read behind byte {bad}: Input/output error" in told
    bring_back(config, tmp_path / "out")
    found = (below(tmp_path / "out", tree) / "file").read_bytes()
    assert len(found) == 5_000_000 and not found[bad:].strip(b"\0")
    assert found[:bad] == (tree / "file").read_bytes()[:bad]


# -- ACLs ---------------------------------------------------------------------------------------------------------


def test_acls_are_saved_as_text_and_come_back(tmp_path: Path, config: Config) -> None:
    text = b"user::rw-\nuser:0:r--\nuser:4242424:rwx\ngroup::r--\ngroup:0:--x\nmask::rwx\nother::---\n\0"
    named = text.replace(b":0:r", b":root:r").replace(b":0:-", b":root:-")
    assert extras.acl_text(pack_acl(text)) == named
    tree = tmp_path / "source"
    tree.mkdir()
    (tree / "file").touch()
    try:
        os.setxattr(tree / "file", "system.posix_acl_access", pack_acl(text))
        os.setxattr(tree, "system.posix_acl_default", pack_acl(text))
    except OSError:
        pytest.skip("this file system has no ACLs")
    save(config, tree)
    assert bring_back(config, tmp_path / "out").warnings == ()
    back = below(tmp_path / "out", tree)
    for path, name in ((tree / "file", "system.posix_acl_access"), (tree, "system.posix_acl_default")):
        assert os.getxattr(below(tmp_path / "out", path), name) == os.getxattr(path, name)
    assert (back / "file").stat().st_mode == (tree / "file").stat().st_mode


@pytest.mark.parametrize("value", [b"", b"\x01\0\0\0", b"\x02\0\0\0abc", b"\x02\0\0\0" + b"\x63\0\0\0\0\0\0\0"])
def test_an_acl_of_an_unknown_form_is_an_error(value: bytes) -> None:
    with pytest.raises(OSError, match="ACL"):
        extras.acl_text(value)


# -- selection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("/etc", "/etc/", True),
        ("/etc/", "/etc/passwd", True),
        ("/etc", "/etcetera", False),
        ("/etc/*.conf", "/etc/deep/a.conf", True),
        ("passwd", "/etc/passwd", True),
        ("passwd", "/etc/passwd/below", True),
        ("etc/passwd", "/etc/passwd", False),
        ("/", "/anything", True),
        ("*", "/", False),
        ("/a/b [1].odt", "/a/b [1].odt", True),
        ("b [1].odt", "/a/b [1].odt/below", True),
        ("b [1].odt", "/a/b 1.odt", True),
        ("b [1].odt", "/a/b 2.odt", False),
        ("odd\udcff", "/odd\udcff", True),
    ],
)
def test_globs(glob: str, path: str, expected: bool) -> None:
    assert matcher([glob])(os.fsencode(path)) is expected


# -- the catalog --------------------------------------------------------------------------------------------------


def test_session_ids_are_never_given_twice(tmp_path: Path) -> None:
    found: list[tuple[int, int]] = []

    def take() -> None:
        with Catalog(tmp_path) as catalog:
            for _ in range(5):
                ids = catalog.new_session()
                found.append((ids.session_id, ids.session_time))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Catalog(tmp_path) as catalog:
        catalog.change("DELETE FROM Session")
        found.append((catalog.new_session().session_id, 0))
    assert len({session_id for session_id, _ in found}) == 21


def test_job_ids_that_stock_tools_take_for_attributes_are_left_out(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        ids = [catalog.start_job(NEW).job_id for _ in range(5)]
        assert ids == [2, 3, 4, 6, 7]
        catalog.change("UPDATE Counter SET Last=2048 WHERE Name='Job'")
        assert catalog.start_job(NEW).job_id == 2050


def test_a_job_of_a_living_process_is_not_recovered(tmp_path: Path) -> None:
    living = Catalog(tmp_path)
    job = living.start_job(NEW)
    with Catalog(tmp_path) as other:
        assert other.recover() == [] and other.job(job.job_id).status is JobStatus.RUNNING
        living.close()  # as at the end of its process
        assert [lost.job_id for lost in other.recover()] == [job.job_id]
        assert other.job(job.job_id).status is JobStatus.FAILED
        assert other.recover() == []


def test_the_end_of_a_job_is_all_or_nothing(tmp_path: Path) -> None:
    outcome = Outcome(JobStatus.DONE, 1, 2, 3, 0, 0)
    with Catalog(tmp_path) as catalog:
        job = catalog.start_job(NEW)
        media = catalog.add_media("v", "m1", "directory:m1", "Default", 200)
        bad = Media(media.media_id, "v", "m1", "directory:m1", "Default", None, VolumeStatus.FULL, 1, 1)  # type: ignore[arg-type]
        with pytest.raises(Exception, match="NOT NULL"):
            catalog.finish_job(job.job_id, outcome, [Stretch(media.media_id, 1, 1, 200, 300)], [bad])
        assert catalog.job(job.job_id).status is JobStatus.RUNNING
        assert catalog.stretches(job.job_id) == [] and catalog.media(name="v") == [media]


def test_file_rows_come_back_as_they_were(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        job = catalog.start_job(NEW)
        rows = saved_files.FileWriter(catalog, job.job_id)
        names = [b"/a/%d" % number for number in range(4500)] + [b"/odd\xff\n/x", b"/dir/", b"/"]
        for index, name in enumerate(names, 1):
            rows.add(index, 3, name, "A B", "digest")
        rows.flush()
        found = list(saved_files.of_job(catalog, job.job_id))
        assert [saved.path for saved in found] == names
        assert [saved.file_index for saved in found] == list(range(1, len(names) + 1))
        one = saved_files.one(catalog, job.job_id, 4501)
        assert one is not None and one.path == b"/odd\xff\n/x"
        assert saved_files.one(catalog, job.job_id, 9999) is None
