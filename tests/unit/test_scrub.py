"""Verifying a whole magazine: what it finds, and that it goes on where it stopped."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.config.schema import Config
from appliance.errors import AwayError, ExitStatus, MagbayError
from appliance.host import files
from appliance.magazines import attached
from appliance.storage import expiry, scrub, scrubs
from appliance.storage.catalog import Catalog
from appliance.storage.device import FileVolume
from appliance.storage.model import VolumeStatus
from appliance.volumes.attributes import FileType
from appliance.volumes.blocks import SessionIds
from appliance.volumes.reader import Block, VolumeReader
from tests.unit.enginehelp import assert_same, below, bring_back, configuration, magbay, rich_tree, save, volume
from tests.unit.test_pools import media
from tests.unit.volume_builder import Job, sample
from tests.unit.volume_builder import volume as volume_of


@pytest.fixture
def small(tmp_path: Path) -> Config:
    """Volumes of half a megabyte on one magazine of two."""
    return configuration(tmp_path, "maximum_volume_bytes: 500000, magazines: [m1]")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of many sizes, some of them longer than a volume."""
    chance = random.Random(5)
    top = tmp_path / "source"
    top.mkdir()
    for number in range(50):
        (top / f"{number:02}").write_bytes(chance.randbytes(chance.choice((0, 10, 5000, 70_000))))
    for number in range(3):
        (top / f"long-{number}").write_bytes(chance.randbytes(700_000))
    return top


def check(config: Config, **options: Any) -> scrub.ScrubResult:
    """Verify magazine m1; what it calls may be among the *options*."""
    calls = {name: options.pop(name) for name in ("progress", "cancelled", "started", "pause") if name in options}
    return scrub.run(config, scrub.ScrubRequest("m1", **options), log=lambda text, fields: None, **calls)


def status_of(config: Config, name: str) -> VolumeStatus:
    with Catalog(config.state_dir) as catalog:
        return catalog.media(name=name)[0].status


def blocks_of(path: Path) -> list[int]:
    with VolumeReader(path) as one:
        return [block.address for block in one.blocks() if isinstance(block, Block)]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_a_good_magazine(tmp_path: Path, small: Config, tree: Path) -> None:
    jobs = [save(small, tree), save(small, rich_tree(tmp_path / "rich"))]
    read: list[int] = []
    total: list[int] = []
    found = check(small, progress=read.append, started=total.append)
    assert (found.round.errors, found.round.warnings, found.exit_status) == ([], [], ExitStatus.DONE)
    assert found.round.files == sum(job.files for job in jobs) and found.round.jobs == [job.job_id for job in jobs]
    used = sum(path.stat().st_size for path in (tmp_path / "m1").glob("m1-*"))
    assert sum(read) == found.round.read == total[0] == used
    shown = magbay(tmp_path, "magazine", "show", "m1", json_output=True).document["verified"]
    assert (shown["errors"], shown["files"], shown["resumes_at"]) == (0, found.round.files, None) and shown["last"]
    assert "never" in magbay(tmp_path, "magazine", "show", "m2").stdout
    told = magbay(tmp_path, "status", json_output=True).document["magazines"][0]["verified"]
    assert told["last"] == shown["last"]


@pytest.mark.parametrize("seed", range(4))
def test_interrupted_anywhere_it_sees_every_file_once(tmp_path: Path, small: Config, tree: Path, seed: int) -> None:
    """Stopped after every few blocks, by a new process each time: together they judge what one run judges."""
    chance = random.Random(seed)
    saved = save(small, tree)
    whole = check(small)
    read = 0
    for _ in range(500):
        left = chance.randrange(2, 25)
        counts: list[int] = []
        found = check(small, progress=counts.append, cancelled=lambda left=left, counts=counts: len(counts) >= left)
        read += sum(counts)
        if not found.interrupted:
            break
        assert found.exit_status is ExitStatus.AWAY and found.document()["status"] == "interrupted"
        kept = json.loads((small.state_dir / "scrubs" / "directory:m1.json").read_text())
        assert (kept["round"]["volume"], kept["round"]["address"]) == (found.round.volume, found.round.address)
    assert not found.interrupted and found.round.errors == found.round.warnings == []
    assert read >= whole.round.read
    # A file over the border of two volumes in which it was stopped is not compared with its digest, its blocks are.
    assert saved.files - 20 <= found.round.files <= saved.files
    assert [status_of(small, name) for name in saved.volumes].count(VolumeStatus.ERROR) == 0


def test_what_was_read_before_is_not_read_again(small: Config, tree: Path) -> None:
    save(small, tree)
    counts: list[int] = []
    first = check(small, progress=counts.append, cancelled=lambda: len(counts) >= 30)
    total: list[int] = []
    second = check(small, started=total.append)
    assert first.interrupted and second.round.read <= first.round.read + total[0] and not second.interrupted
    assert total[0] < second.round.read - first.round.read + 100_000
    again = check(small, started=total.append)
    assert total[-1] == again.round.read  # a whole one is over: the next begins at the beginning


def test_restart_begins_anew(small: Config, tree: Path) -> None:
    save(small, tree)
    counts: list[int] = []
    check(small, progress=counts.append, cancelled=lambda: len(counts) >= 30)
    total: list[int] = []
    found = check(small, restart=True, started=total.append)
    assert found.round.read == total[0] and found.exit_status is ExitStatus.DONE


def test_a_magazine_pulled_in_the_middle_goes_on_when_it_comes_back(tmp_path: Path, small: Config, tree: Path) -> None:
    save(small, tree)
    counts: list[int] = []

    def pull(count: int) -> None:
        counts.append(count)
        if len(counts) == 40:
            (tmp_path / "m1").rename(tmp_path / "shelf")

    found = check(small, progress=pull)
    assert found.interrupted and found.round.errors == [] and found.exit_status is ExitStatus.AWAY
    assert found.round.volume and len(counts) >= 40
    with pytest.raises(AwayError):
        check(small)
    shown = magbay(tmp_path, "magazine", "show", "m1", json_output=True).document["verified"]
    assert shown["resumes_at"] == {"volume": found.round.volume, "address": found.round.address}
    (tmp_path / "shelf").rename(tmp_path / "m1")
    total: list[int] = []
    again = check(small, started=total.append)
    assert again.exit_status is ExitStatus.DONE and 0 < total[0] < again.round.read


def test_it_can_wait_for_the_magazine(tmp_path: Path, small: Config, tree: Path) -> None:
    save(small, tree)
    counts: list[int] = []
    (tmp_path / "m1").rename(tmp_path / "shelf")

    def bring(_seconds: float) -> None:
        if (tmp_path / "shelf").exists():
            (tmp_path / "shelf").rename(tmp_path / "m1")

    def pull(count: int) -> None:
        counts.append(count)
        if len(counts) == 40:
            (tmp_path / "m1").rename(tmp_path / "shelf")

    found = check(small, wait=600, pause=bring, progress=pull)
    assert found.exit_status is ExitStatus.DONE and len(counts) > 40


@pytest.mark.parametrize("where", ["middle", "first", "last", "label"])
def test_damage_is_told_with_jobs_and_files_and_the_volume_takes_no_more(
    tmp_path: Path, small: Config, tree: Path, where: str
) -> None:
    saved = save(small, tree)
    name = saved.volumes[1]
    addresses = blocks_of(volume(small, name))
    at = {"middle": addresses[len(addresses) // 2], "first": addresses[1], "last": addresses[-1], "label": 0}[where]
    flip(volume(small, name), at + 60)
    back = bring_back(small, tmp_path / "out")
    lost = {line.partition(": ")[0] for line in back.errors if line.startswith(str(tree))}
    done = magbay(tmp_path, "verify", "--magazine", "m1", json_output=True)
    assert done.status == 1 and any(name in line and "checksum" in line for line in done.document["errors"])
    (damaged,) = done.document["damaged"]
    assert damaged["volume"] == name
    assert {path for job in damaged["jobs"] for path in job["files"]} == lost
    assert [job["job_id"] for job in damaged["jobs"]] == ([saved.job_id] if lost else [])
    assert status_of(small, name) is VolumeStatus.ERROR
    assert [status_of(small, other) for other in saved.volumes if other != name].count(VolumeStatus.ERROR) == 0
    more = save(small, tree / "01")
    assert name not in more.volumes
    # What is good on it still comes back.
    again = bring_back(small, tmp_path / "again", job=saved.job_id)
    assert {line.partition(": ")[0] for line in again.errors if line.startswith(str(tree))} == lost
    shown = magbay(tmp_path, "magazine", "show", "m1", json_output=True).document["verified"]
    assert shown["errors"] == len(done.document["errors"])


def test_volumes_that_are_short_gone_or_others(tmp_path: Path, small: Config, tree: Path) -> None:
    saved = save(small, tree)
    short, gone, other = saved.volumes[1], saved.volumes[3], saved.volumes[5]
    os.truncate(volume(small, short), 200_000)
    volume(small, gone).unlink()
    (tmp_path / "m1" / other).write_bytes((tmp_path / "m1" / saved.volumes[0]).read_bytes())
    found = check(small)
    assert found.exit_status is ExitStatus.FAILED and set(found.round.damaged) == {short, gone, other}
    assert any("cut short" in line for line in found.round.errors)
    assert any(gone in line and "no such" in line for line in found.round.errors)
    assert any(f"label says {saved.volumes[0]}" in line for line in found.round.errors)
    assert {status_of(small, name) for name in (short, gone, other)} == {VolumeStatus.ERROR}
    back = bring_back(small, tmp_path / "out")
    touched = {line.partition(": ")[0] for line in back.errors if line.startswith(str(tree))}
    named = {path for one in found.round.damaged.values() for names in one.files.values() for path in names}
    assert touched and touched == named


def test_what_the_disk_cannot_read_is_damage_and_the_rest_is_read(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(tmp_path, magazines="magazines: [{name: m1, directory: m1}]\n")
    saved = save(config, tree)
    plain = os.preadv

    def preadv(fd: int, buffers: Any, at: int) -> int:
        """A bad sector at 1,500,000."""
        if at <= 1_500_000 < at + sum(len(b) for b in buffers):
            if at < 1_500_000:
                return plain(fd, [buffers[0][: 1_500_000 - at]], at)
            raise OSError(5, os.strerror(5))
        return plain(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", preadv)
    back = bring_back(config, tmp_path / "out")
    assert back.exit_status is ExitStatus.FAILED and back.files >= saved.files - 6
    found = check(config)
    assert any("Input/output error" in line for line in found.round.errors)
    (damaged,) = found.round.damaged.values()
    assert 1 <= len(damaged.files[str(saved.job_id)]) <= 6
    assert found.round.files >= saved.files - 6
    told = {line.partition(": ")[0] for line in back.errors if line.startswith(str(tree))}
    assert told == set(damaged.files[str(saved.job_id)])
    assert status_of(config, saved.volumes[0]) is VolumeStatus.ERROR


def test_content_that_the_catalog_knows_otherwise(small: Config, tree: Path) -> None:
    """Good blocks, other bytes: only the digest of the catalog tells."""
    save(small, tree)
    with Catalog(small.state_dir) as catalog:
        catalog.change("UPDATE File SET Digest=(SELECT max(Digest) FROM File) WHERE FileIndex=4")
    found = check(small)
    assert found.round.error_count <= 1 and all("differs from its digest" in line for line in found.round.errors)


def test_a_job_that_the_catalog_does_not_know_is_checked_by_its_own_digests(tmp_path: Path, small: Config) -> None:
    job = Job(ids=SessionIds(99, 1_700_000_000), job_id=44)
    job.file(b"/good", b"x" * 1000)
    job.file(b"/wrong", b"y" * 1000)
    (tmp_path / "m1").mkdir()
    blocks = job.end()
    spoiled = Job(ids=SessionIds(98, 1_700_000_000), job_id=45)
    spoiled.entry(FileType.REGULAR, b"/spoiled", mode=0o100644, size=4)
    spoiled.record(2, b"data")
    spoiled.finish_file(b"other")
    path = volume_of(tmp_path / "m1" / "foreign", *blocks, *spoiled.end())
    with Catalog(small.state_dir) as catalog:
        catalog.add_media("foreign", "m1", "directory:m1", "Default", path.stat().st_size)
    found = check(small)
    assert found.round.error_count == 1 and "/spoiled" in found.round.errors[0]
    assert status_of(small, "foreign") is VolumeStatus.ERROR


def test_a_volume_without_its_key_is_not_called_damaged(tmp_path: Path, small: Config) -> None:
    volumes, manifest = sample("bacula-15.0", "a-encrypted")
    (tmp_path / "m1").mkdir()
    (tmp_path / "m1" / volumes[0].name).symlink_to(volumes[0])
    with Catalog(small.state_dir) as catalog:
        catalog.add_media(volumes[0].name, "m1", "directory:m1", "Default", manifest["volumes"][0]["size"])
    found = check(small)
    assert found.exit_status is ExitStatus.WARNINGS and "--volume-key" in found.round.warnings[0]
    assert status_of(small, volumes[0].name) is VolumeStatus.APPEND
    done = magbay(tmp_path, "verify", "--magazine", "m1", "--volume-key", str(volumes[0].parent))
    assert done.status == 0


def test_a_volume_that_a_job_writes_on_is_marked_later(small: Config, tree: Path) -> None:
    saved = save(small, tree)
    path = volume(small, saved.volumes[-1])
    flip(path, blocks_of(path)[1] + 60)
    writer = FileVolume.open(path, "m1")
    found = check(small)
    assert any("a job writes on it" in line for line in found.round.warnings)
    assert status_of(small, path.name) is not VolumeStatus.ERROR
    writer.close()
    check(small)
    assert status_of(small, path.name) is VolumeStatus.ERROR


def test_a_volume_written_anew_is_read_from_its_beginning(small: Config, tree: Path) -> None:
    save(small, tree)
    counts: list[int] = []
    found = check(small, progress=counts.append, cancelled=lambda: len(counts) >= 30)
    assert found.round.address > 0
    state = scrubs.load(small, "directory:m1", "m1")
    assert state.round
    state.round.label -= 1
    scrubs.save(small, "directory:m1", state)
    total: list[int] = []
    again = check(small, started=total.append)
    assert again.exit_status is ExitStatus.DONE and again.round.read > total[0] + found.round.read - 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"round": {"x": 1}, "last": null}', b'{"round": 7, "last": 1}']
)
def test_a_damaged_note_is_as_none(small: Config, tree: Path, content: bytes) -> None:
    save(small, tree / "01")
    check(small)
    scrubs.file_of(small, "directory:m1").write_bytes(content)
    assert check(small).exit_status is ExitStatus.DONE


def test_one_at_a_time(small: Config, tree: Path) -> None:
    save(small, tree / "01")
    check(small)
    with (
        files.locked(scrubs.file_of(small, "directory:m1").with_suffix(".lock")),
        pytest.raises(MagbayError, match="already"),
    ):
        check(small)


def test_a_limited_rate(small: Config, tree: Path) -> None:
    """At a byte a second it must pause about as many seconds as there are bytes."""
    saved = save(small, tree / "01")
    pauses: list[float] = []
    found = check(small, rate=1, pause=pauses.append)
    assert found.exit_status is ExitStatus.DONE and saved.files and pauses[-1] > found.round.read - 60


def test_words_that_do_not_go_together(tmp_path: Path, small: Config) -> None:
    assert magbay(tmp_path, "verify", "--restart").status == 2
    assert magbay(tmp_path, "verify", "--magazine", "m1", "--rate", "fast").status == 2
    assert magbay(tmp_path, "verify", "--magazine", "m1", "--job", "1").status == 2


def test_the_tree_is_still_there(tmp_path: Path, small: Config, tree: Path) -> None:
    before = threading.active_count()  # other tests of this process may have left some
    save(small, tree)
    check(small)
    bring_back(small, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))
    assert threading.active_count() <= before


def test_volumes_are_read_in_the_order_of_their_jobs_whatever_the_clock_said(small: Config, tree: Path) -> None:
    """Times are whole seconds, names of volumes that are written anew tell nothing, and clocks are set back."""
    names = save(small, tree).volumes
    with Catalog(small.state_dir) as catalog, catalog.transaction() as db:
        db.execute("UPDATE Media SET FirstWritten=FirstWritten+1 WHERE VolumeName=?", (names[1],))
    found = check(small)
    assert (found.round.errors, found.round.damaged, found.exit_status) == ([], {}, ExitStatus.DONE)


def test_a_job_with_a_part_on_another_magazine(tmp_path: Path, tree: Path) -> None:
    """From one magazine to another and back: what lies there in between is not missing here."""
    config = configuration(tmp_path, "maximum_volume_bytes: 500000, magazines: [m1]")
    done = save(config, tree)
    (tmp_path / "m2").mkdir(exist_ok=True)
    other = next(one for one in attached.known(config) if one.name == "m2")
    for name in done.volumes[1:3]:
        volume(config, name).rename(tmp_path / "m2" / name)
        with Catalog(config.state_dir) as catalog, catalog.transaction() as db:
            db.execute("UPDATE Media SET Magazine='m2', Identity=? WHERE VolumeName=?", (other.identity, name))
    found = check(config)
    assert (found.round.errors, found.round.damaged, found.exit_status) == ([], {}, ExitStatus.DONE)
    assert 0 < found.round.files < done.files
    flip(volume(config, done.volumes[0]), volume(config, done.volumes[0]).stat().st_size - 500)
    found = check(config)
    assert set(found.round.damaged) == {done.volumes[0]}


@pytest.mark.parametrize("block", [64_512, 4096])
def test_what_is_left_of_a_job_that_was_partly_written_over(tmp_path: Path, block: int) -> None:
    """Also where many files are missing, and the first block behind the gap is within a record."""
    config = configuration(tmp_path, f"maximum_volume_bytes: 500000, maximum_block_size: {block}, magazines: [m1]")
    (top := tmp_path / "source").mkdir()
    for number in range(20):
        (top / f"more-{number}").write_bytes(bytes([number]) * 130_000)
    done = save(config, top)
    with Catalog(config.state_dir) as catalog, catalog.transaction() as db:
        for table in ("JobMedia", "File", "Job"):
            db.execute(f"DELETE FROM {table}")
        for name in done.volumes[1:3]:
            db.execute("DELETE FROM Media WHERE VolumeName=?", (name,))
    found = check(config)
    assert (found.round.errors, found.round.damaged, found.exit_status) == ([], {}, ExitStatus.DONE)


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("gone", range(6))
def test_files_that_run_over_a_volume_that_is_gone_are_named(
    tmp_path: Path, small: Config, tree: Path, gone: int, count: int
) -> None:
    """Those too that begin on a volume before, whether or not they end on one behind: all that a restore lacks."""
    (tree / "long-0").write_bytes(random.Random(7).randbytes(1_300_000))
    saved = save(small, tree)
    for name in saved.volumes[gone : gone + count]:
        volume(small, name).unlink()
    back = bring_back(small, tmp_path / "out")
    lacking = {name for name in map(str, tree.iterdir()) if any(name in line for line in back.errors)}
    found = check(small)
    named = {name for one in found.round.damaged.values() for names in one.files.values() for name in names}
    assert set(found.round.damaged) == set(saved.volumes[gone : gone + count])
    assert lacking and {name for name in named if not name.endswith("/")} == lacking
    assert all(any(name in line for line in found.round.errors) for name in lacking)
    lines = [line for line in found.round.errors if str(tree) in line]
    assert len(lines) == len(set(lines)) == len(named)


def _once(what: Callable[[], object]) -> Callable[[int], None]:
    """Something that happens when the first blocks were read."""
    left = [what]

    def progress(count: int) -> None:
        if left:
            left.pop()()

    return progress


def test_a_job_that_ends_meanwhile_is_no_damage(tmp_path: Path, small: Config, tree: Path) -> None:
    """It was told as lost, and the volume that it had been written on took no more jobs."""
    save(small, tree)
    last = media(small)[save(small, tree / "00").volumes[0]]
    assert last.status is VolumeStatus.APPEND
    saved: list[int] = []
    found = check(small, progress=_once(lambda: saved.append(save(small, tree / "long-0", name="new").job_id)))
    assert (found.round.errors, found.round.warnings, found.round.damaged) == ([], [], {})
    assert status_of(small, last.name) is VolumeStatus.FULL
    # What came before its volume was read is verified, too; the volumes behind it are not those of this round.
    assert saved[0] in found.round.jobs


@pytest.mark.parametrize("anew", [False, True])
def test_a_job_that_is_purged_meanwhile_is_not_lost(tmp_path: Path, tree: Path, anew: bool) -> None:
    pool = "maximum_volume_bytes: 500000, maximum_volumes: 8, magazines: [m1], retention: 1d, keep_newest: no"
    config = configuration(tmp_path, pool)
    old = save(config, tree)

    def forget() -> None:
        with Catalog(config.state_dir) as catalog:
            catalog.change("UPDATE Job SET Finished=1 WHERE JobId=?", (old.job_id,))
            if not anew:
                assert [job.job_id for job in expiry.prune(catalog, config)] == [old.job_id]
        if anew:
            (tmp_path / "large").write_bytes(os.urandom(1_500_000))
            assert not save(config, tmp_path / "large").errors

    found = check(config, progress=_once(forget))
    assert (found.round.errors, found.round.damaged) == ([], {})
    assert all("written anew" in line for line in found.round.warnings)
    assert VolumeStatus.ERROR not in {one.status for one in media(config).values()}
