"""What is in the way of an extraction: nothing goes that is not replaced, and of several jobs the last one counts."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.storage.extract import Extractor
from appliance.storage.outcome import Replace, Summary
from appliance.storage.renaming import Renaming
from appliance.storage.setting import pack_acl
from appliance.volumes.attributes import FileType, pack_attributes
from appliance.volumes.blocks import SessionIds
from appliance.volumes.events import Event, SessionStart
from appliance.volumes.reading import read_volumes
from appliance.volumes.stat64 import EncodedStat
from appliance.volumes.streams import Stream
from tests.unit.volume_builder import NOW, Job, volume


def extracted(tmp_path: Path, *jobs: Callable[[Job], object], **options: object) -> Summary:
    """Extract a volume with one session for each of *jobs* to `out`."""
    blocks = []
    for number, fill in enumerate(jobs):
        job = Job(ids=SessionIds(7 + number, NOW), job_id=3 + number)
        fill(job)
        blocks += job.end()
    path = volume(tmp_path / "volume", *blocks)
    return Extractor(tmp_path / "out", versions=True, **options).run(read_volumes([path]))  # type: ignore[arg-type]


def put(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def text_of(top: Path) -> dict[str, str]:
    """Every file and link below *top*, with its text."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in files + folders:
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path.relative_to(top))] = f"-> {path.readlink()}"
            elif path.is_file():
                found[str(path.relative_to(top))] = path.read_text()
    return found


def node(job: Job, name: bytes) -> None:
    job.entry(FileType.SPECIAL, name, mode=stat.S_IFCHR | 0o600, rdev=os.makedev(1, 3))


# What cannot be put back takes nothing away


def test_a_device_that_is_not_made_leaves_what_is_there(tmp_path: Path) -> None:
    one, two = put(tmp_path / "out/node"), put(tmp_path / "out/d")

    def fill(job: Job) -> None:
        node(job, b"/node")
        node(job, b"/d/node")

    summary = extracted(tmp_path, fill, trusted=False)
    assert summary.warned == 2 and one.read_text() == two.read_text() == "mine"


def test_a_link_that_cannot_be_made_leaves_what_is_there(tmp_path: Path) -> None:
    mine = put(tmp_path / "out/link")
    summary = extracted(tmp_path, lambda job: job.symlink(b"/link", b"x" * 5000))
    assert summary.errors == [f"/link: {os.strerror(errno.ENAMETOOLONG)}"] and mine.read_text() == "mine"
    assert os.listdir(tmp_path / "out") == ["link"]


def test_attributes_alone_take_no_file_for_a_directory(tmp_path: Path) -> None:
    mine = put(tmp_path / "out/d")

    def fill(job: Job) -> None:
        job.index += 1
        saved = EncodedStat(mode=stat.S_IFREG | 0o600, nlink=1)
        words = pack_attributes(job.index, FileType.REGULAR, b"/d/file", saved)
        job.writer.write_record(job.index, Stream.UNIX_ATTRIBUTE_UPDATE, words)

    summary = extracted(tmp_path, fill)
    assert summary.failed == 1 and mine.read_text() == "mine"


def test_a_file_of_which_nothing_comes_takes_no_file_for_a_directory(tmp_path: Path) -> None:
    mine = put(tmp_path / "out/d")

    def fill(job: Job) -> None:
        for number, size in enumerate((10, 1 << 20)):
            job.entry(FileType.REGULAR, b"/d/%d" % number, mode=stat.S_IFREG | 0o600, size=size)
            job.record(Stream.ENCRYPTED_FILE_DATA, b"cipher")

    assert extracted(tmp_path, fill).failed == 2 and mine.read_text() == "mine"


def test_a_file_that_ends_before_its_content_leaves_what_is_there(tmp_path: Path) -> None:
    mine = [put(tmp_path / "out" / name) for name in ("there", "d")]
    for name in (b"/there", b"/new", b"/d/file"):
        job = Job()
        job.file(b"/first", b"whole")
        job.entry(FileType.REGULAR, name, mode=stat.S_IFREG | 0o600, size=100_000)
        path = volume(tmp_path / "volume", *job.cut())
        summary = Extractor(tmp_path / "out", versions=True).run(read_volumes([path]))
        assert summary.files == 1 and summary.failed == 0
        assert summary.warnings == [
            f"{name.decode()}: is not restored: its job ends before its content, or goes on on another volume"
        ]
    assert [path.read_text() for path in mine] == ["mine"] * 2 and not (tmp_path / "out/new").exists()


def test_modes_that_no_thing_can_have(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        for mode in (-1, -0o100644, 1 << 40):
            job.entry(FileType.DIRECTORY, b"/d%d/" % mode, mode=mode)
            job.entry(FileType.EMPTY, b"/f%d" % mode, mode=mode)
            job.entry(FileType.SYMLINK, b"/l%d" % mode, mode=mode, link=b"x", nlink=2)
            job.entry(FileType.SPECIAL, b"/s%d" % mode, mode=mode, nlink=2)

    for replace in Replace:
        extracted(tmp_path, fill, fill, replace=replace)


# What gives way to a directory


def test_a_file_whose_other_name_was_replaced_gives_way(tmp_path: Path) -> None:
    """The kernel sets its ctime then: that does not make it one of this restore."""
    os.link(put(tmp_path / "out/one"), tmp_path / "out/two")

    def fill(job: Job) -> None:
        job.file(b"/one", b"saved")
        job.file(b"/two/file", b"saved")

    assert not extracted(tmp_path, fill).errors
    assert text_of(tmp_path / "out") == {"one": "saved", "two/file": "saved"}


@pytest.mark.parametrize("first", ["file", "link"])
def test_what_the_same_job_made_does_not_give_way(tmp_path: Path, first: str) -> None:
    def fill(job: Job) -> None:
        if first == "file":
            job.file(b"/d", b"saved")
        else:
            job.symlink(b"/d", b"elsewhere")
        job.file(b"/d/file", b"lost")

    summary = extracted(tmp_path, fill)
    assert summary.failed == 1 and "not followed" in summary.errors[0]
    assert text_of(tmp_path / "out") == {"d": "saved" if first == "file" else "-> elsewhere"}


# Several jobs


def old(job: Job) -> None:
    job.file(b"/to-file/sub/file", b"old")
    job.directory(b"/to-file/sub/")
    job.directory(b"/to-file/")
    job.file(b"/to-link/file", b"old")
    job.directory(b"/to-link/")
    job.file(b"/to-pipe/file", b"old")
    job.directory(b"/to-pipe/")
    job.file(b"/from-file", b"old")
    job.symlink(b"/from-link", b"elsewhere")
    job.file(b"/same", b"old", mtime=2_000_000)
    job.file(b"/gone", b"old")


def new(job: Job) -> None:
    job.file(b"/to-file", b"new")
    job.symlink(b"/to-link", b"elsewhere")
    job.entry(FileType.SPECIAL, b"/to-pipe", mode=stat.S_IFIFO | 0o600)
    job.file(b"/from-file/file", b"new")
    job.directory(b"/from-file/")
    job.file(b"/from-link/sub/file", b"new")
    job.directory(b"/from-link/sub/")
    job.directory(b"/from-link/")
    job.file(b"/same", b"new", mtime=1_000_000)


@pytest.mark.parametrize("replace", list(Replace))
def test_a_path_that_became_something_else(tmp_path: Path, replace: Replace) -> None:
    summary = extracted(tmp_path, old, new, replace=replace)
    assert not summary.errors and not summary.warnings and not summary.skipped
    assert text_of(tmp_path / "out") == {
        "to-file": "new",
        "to-link": "-> elsewhere",
        "from-file/file": "new",
        "from-link/sub/file": "new",
        "same": "new",
        "gone": "old",
    }
    assert stat.S_ISFIFO((tmp_path / "out/to-pipe").stat().st_mode)


def test_a_file_that_became_a_directory_and_then_went_with_the_one_around_it(tmp_path: Path) -> None:
    def second(job: Job) -> None:
        job.directory(b"/to-file/sub/file/")
        job.directory(b"/to-file/sub/")
        job.directory(b"/to-file/")

    assert not extracted(tmp_path, old, second, new).errors
    assert text_of(tmp_path / "out")["to-file"] == "new"


def test_and_back_again(tmp_path: Path) -> None:
    assert not extracted(tmp_path, old, new, old, new, old).errors
    assert text_of(tmp_path / "out")["to-file/sub/file"] == "old"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_what_somebody_mounts_meanwhile_stays(tmp_path: Path) -> None:
    first, second = Job(), Job(ids=SessionIds(8, NOW), job_id=4)
    old(first)
    new(second)
    path = volume(tmp_path / "volume", *first.end(), *second.end())
    place = tmp_path / "out/to-file/sub"

    def events() -> Iterator[Event]:
        for event in read_volumes([path]):
            if isinstance(event, SessionStart) and event.ids == second.ids:
                subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
                put(place / "theirs")
            yield event

    try:
        summary = Extractor(tmp_path / "out", versions=True).run(events())
        assert (place / "theirs").read_text() == "mine"
        assert [error.partition(":")[0] for error in summary.errors] == ["/to-file"]
    finally:
        subprocess.run(["umount", place], check=True)
    assert (place / "file").read_text() == "old"


def week(tmp_path: Path) -> list[Path]:
    """Two volumes that were written in turn, as those of two magazines are, from Monday to Thursday."""

    def monday(job: Job) -> None:
        for name in (b"/all", b"/until-tuesday", b"/until-wednesday", b"/monday", b"/to-directory"):
            job.file(name, b"monday")
        job.file(b"/to-file/sub/file", b"monday")
        job.directory(b"/to-file/sub/")
        job.directory(b"/to-file/")
        linked(job)

    def tuesday(job: Job) -> None:
        job.file(b"/all", b"tuesday")
        job.file(b"/until-tuesday", b"tuesday")
        job.file(b"/until-wednesday", b"tuesday")
        job.file(b"/to-file/sub/file", b"tuesday")
        job.directory(b"/to-file/sub/")
        job.directory(b"/to-file/", 0o700)
        job.file(b"/to-directory", b"tuesday")

    def wednesday(job: Job) -> None:
        job.file(b"/all", b"wednesday" * 30_000)
        job.file(b"/until-wednesday", b"wednesday")
        job.file(b"/to-file", b"wednesday")
        job.file(b"/to-directory/file", b"wednesday")
        job.directory(b"/to-directory/")

    def thursday(job: Job) -> None:
        job.file(b"/all", b"thursday")

    jobs = []
    for number, fill in enumerate((monday, tuesday, wednesday, thursday)):
        job = Job(ids=SessionIds(7 + number, NOW), job_id=3 + number, began=NOW + 86400 * number)
        fill(job)
        jobs.append(job.end())
    return [volume(tmp_path / "one", *jobs[0], *jobs[2]), volume(tmp_path / "two", *jobs[1], *jobs[3])]


@pytest.mark.parametrize("replace", list(Replace))
@pytest.mark.parametrize("turned", [False, True])
def test_volumes_that_were_written_in_turn(tmp_path: Path, replace: Replace, turned: bool) -> None:
    """In neither order do they give the newest state by themselves."""
    volumes = week(tmp_path)[:: -1 if turned else 1]
    summary = Extractor(tmp_path / "out", replace=replace, versions=True).run(read_volumes(volumes))
    assert not summary.errors and not summary.warnings and summary.skipped > 0
    assert text_of(tmp_path / "out") == {
        "all": "thursday",
        "until-tuesday": "tuesday",
        "until-wednesday": "wednesday",
        "monday": "monday",
        "one": "saved",
        "two": "saved",
        "to-file": "wednesday",
        "to-directory/file": "wednesday",
    }


def test_jobs_of_one_second(tmp_path: Path) -> None:
    """Labels of ours have whole seconds; of two the one with the higher session number is the later one."""
    volumes = []
    for number in (8, 7):
        job = Job(ids=SessionIds(number, NOW))
        job.file(b"/file", b"%d" % number)
        volumes.append(volume(tmp_path / f"{number}", *job.end()))
    for name, paths in (("a", volumes), ("b", volumes[::-1])):
        Extractor(tmp_path / name, versions=True).run(read_volumes(paths))
        assert (tmp_path / name / "file").read_text() == "8"


def test_of_jobs_in_no_order_nothing_gives_way(tmp_path: Path) -> None:
    """Where several magazines are read at once nobody knows which was the newer one."""
    summary = extracted(tmp_path, old, new, in_turn=False)
    assert summary.failed == 6 and not summary.warnings
    found = text_of(tmp_path / "out")
    assert found["to-file/sub/file"] == found["to-link/file"] == found["to-pipe/file"] == "old"


def test_a_clock_that_was_put_back(tmp_path: Path) -> None:
    """What stands behind something on a volume is newer."""
    jobs = []
    for number, began in enumerate((NOW, NOW - 86400)):
        job = Job(ids=SessionIds(7 + number, NOW), began=began)
        job.file(b"/file", b"%d" % number)
        jobs += job.end()
    Extractor(tmp_path / "out", versions=True).run(read_volumes([volume(tmp_path / "volume", *jobs)]))
    assert (tmp_path / "out/file").read_text() == "1"


@pytest.mark.parametrize("replace", list(Replace))
def test_versions_under_another_name(tmp_path: Path, replace: Replace) -> None:
    """A newer version is not another file that gets the same name; that one still is an error."""

    def first(job: Job) -> None:
        job.file(b"/a/file", b"old", mtime=2_000_000)
        job.file(b"/a/large", b"old" * 100_000)
        job.file(b"/a/both", b"of a")

    def second(job: Job) -> None:
        job.file(b"/a/file", b"new", mtime=1_000_000)
        job.file(b"/a/large", b"new" * 100_000)
        job.file(b"/b/both", b"of b")

    summary = extracted(tmp_path, first, second, replace=replace, renaming=Renaming(strip=1))
    assert summary.errors == ["/b/both: another file was restored as both just now"]
    found = text_of(tmp_path / "out")
    assert found["file"] == "new" and found["large"] == "new" * 100_000 and found["both"] == "of a"


@pytest.mark.parametrize("where", ["to-file", "to-file/sub", "to-link", "to-pipe"])
def test_a_directory_that_was_there_never_goes_with_what_is_in_it(tmp_path: Path, where: str) -> None:
    mine = put(tmp_path / "out" / where / "mine")
    summary = extracted(tmp_path, old, new)
    name = where.partition("/")[0]
    assert summary.errors == [f"/{name}: {os.strerror(errno.ENOTEMPTY)}"] and mine.read_text() == "mine"
    assert "old" in text_of(tmp_path / "out" / name).values()


@pytest.mark.parametrize("replace", [Replace.NEVER, Replace.IF_NEWER])
def test_what_was_there_stays_whatever_the_jobs_have(tmp_path: Path, replace: Replace) -> None:
    mine = [put(tmp_path / "out" / name) for name in ("from-file", "same", "gone")]
    summary = extracted(tmp_path, old, new, replace=replace)
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert summary.failed == 1 and summary.errors[0].startswith("/from-file/file: from-file in the target is a link")


# Hard links to what stays


def linked(job: Job) -> None:
    first = job.file(b"/one", b"saved", nlink=2)
    job.entry(FileType.HARD_LINK, b"/two", mode=stat.S_IFREG | 0o644, link=b"/one", size=5, nlink=2, link_fi=first)


def test_a_link_to_a_file_that_stays(tmp_path: Path) -> None:
    one = put(tmp_path / "out/one")
    assert not extracted(tmp_path, linked, replace=Replace.NEVER).errors
    assert one.read_text() == "mine" and (tmp_path / "out/two").samefile(one)


def test_no_file_is_replaced_by_a_link_to_one_that_stays(tmp_path: Path) -> None:
    one, two = put(tmp_path / "out/one"), put(tmp_path / "out/two", "mine, too")
    os.utime(two, (5, 5))
    assert extracted(tmp_path, linked, replace=Replace.IF_NEWER).failed == 1
    assert one.read_text() == "mine" and two.read_text() == "mine, too"


def test_a_link_to_what_is_no_file_is_none(tmp_path: Path) -> None:
    put(tmp_path / "out/one/file")
    summary = extracted(tmp_path, linked)
    assert summary.failed == 2 and "comes with its data" in summary.errors[1]
    assert not (tmp_path / "out/two").exists()


# Directories that give ACLs to what is made in them


def test_what_is_restored_has_the_acls_that_were_saved_and_no_others(tmp_path: Path) -> None:
    """Else it would be open to whom its directory is opened by default, and a restore to where it was would do that."""
    given = pack_acl(b"user::rwx\nuser:7:rwx\ngroup::r-x\nmask::rwx\nother::---\n")
    kept = tmp_path / "out/d/there"
    kept.mkdir(parents=True)
    try:
        for place in (kept, kept.parent):
            os.setxattr(place, "system.posix_acl_default", given)
    except OSError:
        pytest.skip("the file system has no ACLs")
    os.setxattr(kept, "system.posix_acl_access", given)
    text = b"user::rw-\nuser:9:r--\ngroup::r--\nmask::r--\nother::---\n\0"

    def fill(job: Job) -> None:
        for number in range(1200):  # enough for other processes
            job.file(b"/d/many/%d" % number, b"x", mode=0o640)
        job.file(b"/d/small", b"x", mode=0o640)
        job.file(b"/d/large", b"x" * 200_000, mode=0o640)
        job.entry(FileType.SPECIAL, b"/d/pipe", mode=stat.S_IFIFO | 0o640)
        job.symlink(b"/d/link", b"nowhere")
        job.entry(FileType.REGULAR, b"/d/acl", mode=stat.S_IFREG | 0o640, size=1)
        job.record(Stream.FILE_DATA, b"x")
        job.record(Stream.LINUX_ACCESS_ACL, text)
        for name in (b"/d/many/", b"/d/new/", b"/d/there/"):
            job.directory(name, 0o750)

    for _ in range(2):  # onto nothing, and onto what is there
        assert not extracted(tmp_path, fill).warnings
        found = {
            name: os.listxattr(tmp_path / "out/d" / name, follow_symlinks=False) for name in os.listdir(kept.parent)
        }
        assert found.pop("acl") == ["system.posix_acl_access"] and len(found.pop("there")) == 2
        assert set(map(tuple, found.values())) == {()} and len(found) == 6
        many = [path for path in (tmp_path / "out/d/many").iterdir() if os.listxattr(path)]
        assert not many and stat.S_IMODE((tmp_path / "out/d/small").stat().st_mode) == 0o640
    assert os.getxattr(tmp_path / "out/d/acl", "system.posix_acl_access") == pack_acl(text)
