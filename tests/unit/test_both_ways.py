"""What is easily forgotten of the format, written here and read by stock tools, and through a backup and back."""

from __future__ import annotations

import errno
import itertools
import os
import random
import stat
import struct
from pathlib import Path

import pytest

from appliance.config.schema import Config
from appliance.storage import backup
from appliance.storage.extract import Extractor
from appliance.storage.model import JobStatus
from appliance.storage.selection import matcher
from appliance.volumes.attributes import FileType
from appliance.volumes.blocks import SessionIds
from appliance.volumes.events import FileEnd, FileState, SessionEnd
from appliance.volumes.reading import read_volumes
from appliance.volumes.streams import Stream
from tests.unit import stocktools
from tests.unit.enginehelp import assert_same, below, bring_back, configuration, facts, in_one_process, save, volume
from tests.unit.volume_builder import NOW, Job, label_of

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="attributes of the system need root")
# A capability set as the kernel keeps it: revision 2, CAP_NET_RAW effective and permitted (linux/capability.h).
_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
_MAGIC = 0x005C5884


@as_root
def test_capabilities_and_every_namespace_of_attributes(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    values = {
        "tool": {"security.capability": _CAPABILITY, "user.comment": b"mine"},
        "secret": {"trusted.note": bytes(range(256)), "user.empty": b""},
        "long": {f"user.{'n' * 240}": b"v" * 1500, "user.second": b"\0\n" * 100},
    }
    for name, pairs in values.items():
        (tree / name).write_text(name)
        os.chown(tree / name, 1234, 1234)
        for key, value in pairs.items():
            try:
                os.setxattr(tree / name, key, value)
            except OSError as error:
                pytest.skip(f"this file system has no {key.partition('.')[0]} attributes: {error.strerror}")
    saved = save(config, tree)
    assert saved.warnings == ()
    assert bring_back(config, tmp_path / "out").warnings == ()
    for name, pairs in values.items():
        place = below(tmp_path / "out", tree) / name
        assert {key: os.getxattr(place, key) for key in os.listxattr(place)} == pairs
    assert_same(tree, below(tmp_path / "out", tree))


def test_attributes_that_cannot_be_read_cost_no_data(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_one_process(monkeypatch)
    tree = tmp_path / "source"
    tree.mkdir()
    for name in ("too-many", "gone", "usual"):
        (tree / name).write_text(name)
        try:
            os.setxattr(tree / name, "user.a", b"b")
        except OSError as error:
            pytest.skip(f"this file system has no attributes: {error.strerror}")
    (tree / "closed").mkdir()
    numbers = {(tree / name).stat().st_ino: name for name in ("too-many", "gone", "closed")}
    really_list, really_get = os.listxattr, os.getxattr

    def listed(place: int | bytes, *, follow_symlinks: bool = True) -> list[str]:
        if numbers.get(os.stat(place).st_ino) in ("too-many", "closed"):
            raise OSError(errno.E2BIG, "Argument list too long")  # XFS and btrfs hold more names than one call gives
        return really_list(place, follow_symlinks=follow_symlinks)

    def got(place: int | bytes, name: str, *, follow_symlinks: bool = True) -> bytes:
        if numbers.get(os.stat(place).st_ino) == "gone":
            raise OSError(errno.ENODATA, "No data available")  # somebody took it away meanwhile
        return really_get(place, name, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "listxattr", listed)
    monkeypatch.setattr(os, "getxattr", got)
    saved = save(config, tree)
    told = [line for line in saved.warnings if "extended attributes are not saved: Argument list too long" in line]
    assert {line.partition(":")[0] for line in told} == {str(tree / "too-many"), str(tree / "closed")}
    assert len(saved.warnings) == 2
    monkeypatch.undo()
    bring_back(config, tmp_path / "out")
    back = below(tmp_path / "out", tree)
    assert {name: (back / name).read_text() for name in ("too-many", "gone", "usual")} == {
        name: name for name in ("too-many", "gone", "usual")
    }
    assert {name: os.listxattr(back / name) for name in ("too-many", "gone", "usual")} == {
        "too-many": [], "gone": [], "usual": ["user.a"]
    }  # fmt: skip
    assert (back / "closed").is_dir()


def test_more_attributes_than_a_restore_takes_do_not_end_the_job(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XFS keeps any number of 64 KiB each; more than a record can hold ended the job with an error."""
    in_one_process(monkeypatch)
    tree = tmp_path / "source"
    tree.mkdir()
    for name in ("before", "monster"):
        (tree / name).write_text(name)
    monster = (tree / "monster").stat().st_ino
    names = [f"user.{number}" for number in range(400)]
    monkeypatch.setattr(os, "listxattr", lambda place, **_: names if os.stat(place).st_ino == monster else [])
    monkeypatch.setattr(os, "getxattr", lambda _place, _name, **_: bytes(65536))
    saved = save(config, tree)
    assert (saved.files, len(saved.warnings)) == (3, 1)
    assert "attributes are not saved: they are larger than 3 MiB" in saved.warnings[0]
    monkeypatch.undo()
    assert bring_back(config, tmp_path / "out").warnings == ()
    assert (below(tmp_path / "out", tree) / "monster").read_text() == "monster"


def odd_names() -> list[bytes]:
    """A name with each byte that a name can have, and others that somebody may take for something else."""
    every = [b"byte-" + bytes([byte]) + b"-" for byte in range(1, 256) if byte != 0x2F]
    return list(
        dict.fromkeys(
            [
                *every,
                *(bytes([byte]) for byte in range(1, 256) if byte not in (0x2E, 0x2F)),
                b"n" * 255,
                "ü".encode() * 127,
                b"\xff" * 255,
                b"...",
                b"-rf",
                b" ",
                b"  two  blanks  ",
                b"tab\tand\nline",
                b"%s%n",
                b"C:\\dir",
                b"~",
                b"$(id)",
                b"1 3 fake",
            ]
        )
    )


def test_names_of_any_bytes_through_a_backup_and_by_stock_tools(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    base = os.fsencode(tree)
    for number, name in enumerate(odd_names()):
        with open(base + b"/" + name, "wb") as file:
            file.write(b"%d" % number)
    saved = save(config, tree)
    assert saved.files == len(odd_names()) + 1
    assert bring_back(config, tmp_path / "out").files == saved.files
    assert_same(tree, below(tmp_path / "out", tree))
    stocktools.bextract(volume(config, saved.volumes[0]), tmp_path / "stock")
    stock = facts(below(tmp_path / "stock", tree))
    assert {name: row[4] for name, row in stock.items()} == {name: row[4] for name, row in facts(tree).items()}
    # Each of them can be asked for by its own name.
    for name in (b"n" * 255, b" ", b"~", b"$(id)", b"\xff"):
        assert matcher([os.fsdecode(base + b"/" + name)])(base + b"/" + name)


def test_a_cancelled_job_is_read_as_far_as_it_came(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    for number in range(40):
        (tree / f"{number:02}").write_bytes(os.urandom(100_000))
    read: list[int] = []
    request = backup.BackupRequest((tree,))
    done = backup.run(
        config,
        request,
        log=lambda text, fields: None,
        progress=read.append,
        cancelled=lambda: sum(read) > 2_050_000,
    )
    assert done.status is JobStatus.CANCELLED
    path = volume(config, done.volumes[0])
    (end,) = [event for event in read_volumes([path]) if isinstance(event, SessionEnd)]
    assert end.end is not None and end.end.job_status == "A"
    states = [event.state for event in read_volumes([path]) if isinstance(event, FileEnd)]
    assert len(states) >= 20 and set(states[:-1]) == {FileState.WHOLE}
    assert "Status=A" in stocktools.bls_jobs(path)
    stocktools.bextract(path, tmp_path / "stock", strict=False)
    Extractor(tmp_path / "ours").run(read_volumes([path]))
    for place in ("stock", "ours"):
        back = list(below(tmp_path / place, tree).iterdir())
        right = [one for one in back if one.read_bytes() == (tree / one.name).read_bytes()]
        assert len(right) >= 20 and len(back) - len(right) <= 1


def packed(**pairs: bytes) -> bytes:
    """Extended attributes as a record has them."""
    out = b""
    for name, value in pairs.items():
        key = name.replace("__", ".").encode()
        out += struct.pack(">II", _MAGIC, len(key)) + key + struct.pack(">I", len(value)) + value
    return out


def fill(job: Job, name: bytes) -> dict[str, bytes]:
    """A session with everything that stands around files; gives the contents that must come back."""
    chance = random.Random(name)
    wanted: dict[str, bytes] = {}

    def file(path: bytes, data: bytes) -> None:
        job.file(path, data)
        wanted[path.decode()] = data

    # A restore object, in a FileIndex of its own.
    job.index += 1
    data = b"a\0binary \xff object" * 9
    front = b"%d 25 1 %d %d 0 python3:module\0object\0" % (job.index, len(data), len(data))
    job.record(Stream.RESTORE_OBJECT, front + data + b"\0")
    file(b"/%s/plain" % name, b"plain")
    # A plugin's file, its name before and behind.
    job.writer.write_record(job.index + 1, Stream.PLUGIN_NAME, b"%d 1 0 bpipe:/x:a:b\0" % (job.index + 1))
    file(b"/%s/of-a-plugin" % name, chance.randbytes(3000))
    job.record(Stream.PLUGIN_NAME, b"%d 0" % job.index)
    # A record that goes over dozens of blocks and several volumes, and long records of attributes.
    job.entry(FileType.REGULAR, b"/%s/long-record" % name, mode=stat.S_IFREG | 0o644, size=1_000_000)
    long = chance.randbytes(1_000_000)
    job.record(Stream.FILE_DATA, long)
    job.record(Stream.LINUX_XATTR, packed(user__big=chance.randbytes(60_000)))
    job.record(Stream.LINUX_ACCESS_ACL, b"user::rw-\nuser:1:r--\ngroup::r--\nmask::r--\nother::r--\n\0")
    job.finish_file(long)
    wanted[f"/{name.decode()}/long-record"] = long
    # A name and a link as long as any can be.
    deep = b"/%s/" % name + b"/".join([b"d" * 200] * 15) + b"/"
    file(deep + b"f" * 200, b"deep")
    job.symlink(b"/%s/link" % name, b"t" * 4000)
    job.entry(FileType.SPECIAL, b"/%s/fifo" % name, mode=stat.S_IFIFO | 0o600)
    job.directory(b"/%s/" % name)
    job.entry(FileType.DELETED, b"/%s/gone" % name)
    return wanted


@pytest.mark.parametrize("max_block", [1024, 64512])
def test_all_that_stands_around_files_interleaved_over_many_volumes(tmp_path: Path, max_block: int) -> None:
    (tmp_path / "volumes").mkdir()
    jobs = [Job(ids=SessionIds(number, NOW), job_id=100 + number, max_block=max_block) for number in (1, 2)]
    wanted = [fill(job, b"job-%d" % number) for number, job in enumerate(jobs, 1)]
    mixed = [block for row in itertools.zip_longest(*(job.end() for job in jobs)) for block in row if block]
    count = 9
    each = len(mixed) // count + 1
    paths = [tmp_path / "volumes" / f"many-{number}" for number in range(count)]
    for number, path in enumerate(paths):
        label = label_of(path, ids=SessionIds(1, NOW), stream=number + 1 if number else 0, when=NOW + number)
        path.write_bytes(label + b"".join(mixed[number * each : (number + 1) * each]))
    assert all(path.stat().st_size > 1000 for path in paths)
    summary = Extractor(tmp_path / "ours").run(read_volumes(paths))
    assert summary.errors == [] and all("xattr" in line or "attributes" in line for line in summary.warnings)
    listing = stocktools.bls(paths, strict=False)
    for number, files in enumerate(wanted, 1):
        bsr = tmp_path / f"{number}.bsr"
        entry = 'Volume="{}"\nMediaType="File"\nVolSessionId={}\nVolSessionTime={}\n'
        bsr.write_text("".join(entry.format(path.name, number, NOW) for path in paths))
        stocktools.bextract(paths, tmp_path / f"stock-{number}", bsr=bsr, strict=False)
        for path, data in files.items():
            assert path in listing
            for top in (tmp_path / "ours", tmp_path / f"stock-{number}"):
                assert (top / path[1:]).read_bytes() == data, path[:40]
        assert f"/job-{number}/gone" in listing and not (tmp_path / f"ours/job-{number}/gone").exists()
        assert os.readlink(tmp_path / f"ours/job-{number}/link") == "t" * 4000
        assert stat.S_ISFIFO((tmp_path / f"ours/job-{number}/fifo").stat().st_mode)
    jobs_told = stocktools.bls_jobs(paths)
    assert jobs_told.count("Begin Job Session") == jobs_told.count("End Job Session") == 2


def test_the_smallest_volumes_that_hold_a_job(tmp_path: Path) -> None:
    """A block to a volume: each record of a file goes over the border of two."""
    config = configuration(tmp_path, "maximum_volume_bytes: 70000", "magazines: [{name: m1, directory: m1}]\n")
    (tmp_path / "data").write_bytes(os.urandom(1_500_000))
    saved = save(config, tmp_path / "data")
    assert len(saved.volumes) >= 23
    bring_back(config, tmp_path / "out")
    assert below(tmp_path / "out", tmp_path / "data").read_bytes() == (tmp_path / "data").read_bytes()
    bsr = tmp_path / "all.bsr"  # bextract takes 127 characters of names behind -V
    bsr.write_text("".join(f'Volume="{name}"\n' for name in saved.volumes))
    stocktools.bextract([volume(config, saved.volumes[0])], tmp_path / "stock", bsr=bsr)
    assert below(tmp_path / "stock", tmp_path / "data").read_bytes() == (tmp_path / "data").read_bytes()
