"""Trouble: full, cut short, flipped, away, killed, cancelled, at the same time. Nothing acknowledged is lost."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import AwayError, ExitStatus, MagbayError, NotFoundError
from appliance.storage import backup, labelling, verify
from appliance.storage.catalog import Catalog, CatalogError
from appliance.storage.device import FileVolume, MagazineLostError, VolumeFullError
from appliance.storage.model import JobStatus, Level, NewJob, VolumeStatus
from appliance.volumes.events import SessionEnd
from appliance.volumes.reading import read_volumes
from tests.unit.enginehelp import ROOT, assert_same, below, bring_back, configuration, magbay, save, volume


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four files of half a megabyte, saved in no certain order."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(4):
        (folder / f"file-{number}").write_bytes(os.urandom(500_000))
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The directory m1 as a file system of its own with 1 MB."""
    place = tmp_path / "m1"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if os.geteuid() or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def checked(config: Config, **options: object) -> verify.VerifyResult:
    return verify.run(config, verify.VerifyRequest(**options), log=lambda text, fields: None)  # type: ignore[arg-type]


def media_status(config: Config) -> dict[str, VolumeStatus]:
    with Catalog(config.state_dir) as catalog:
        return {media.name: media.status for media in catalog.media()}


# -- full ---------------------------------------------------------------------------------------------------------


def test_a_full_magazine_and_the_job_goes_on_with_the_next(
    tmp_path: Path, config: Config, tree: Path, small_disk: Path
) -> None:
    saved = save(config, tree)
    assert (saved.status, saved.volumes) == (JobStatus.DONE, ("m1-0001", "m2-0001"))
    assert media_status(config)["m1-0001"] is VolumeStatus.FULL
    bring_back(config, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))
    found = checked(config)
    # The file that lies on both magazines too.
    assert (found.exit_status, found.files, found.jobs) == (ExitStatus.DONE, saved.files, [saved.job_id])


def test_a_full_target_of_a_restore_names_the_file_that_is_not_whole(
    tmp_path: Path, tree: Path, small_disk: Path
) -> None:
    config = configuration(tmp_path, magazines="magazines:\n  - {name: m2, directory: m2}\n")
    save(config, tree)
    with pytest.raises(MagbayError, match=f"No space left on device \\({tree}/.* is not whole"):
        bring_back(config, small_disk)


def test_a_full_magazine_and_no_other(tmp_path: Path, tree: Path, small_disk: Path) -> None:
    config = configuration(tmp_path, magazines="magazines:\n  - {name: m1, directory: m1}\n")
    saved = save(config, tree)
    assert (saved.status, saved.exit_status) == (JobStatus.FAILED, ExitStatus.FAILED)
    assert "full: m1" in saved.errors[0] and saved.hint
    (tree.parent / "tiny").write_text("x")
    again = save(config, tree.parent / "tiny")
    assert again.status is JobStatus.FAILED


def test_a_full_magazine_and_the_other_is_away(tmp_path: Path, config: Config, tree: Path, small_disk: Path) -> None:
    labelling.create(config, magazine="m2", pool="Default", count=1)
    (tmp_path / "m2").rename(tmp_path / "on-the-shelf")
    saved = save(config, tree)
    assert (saved.status, saved.exit_status) == (JobStatus.FAILED, ExitStatus.AWAY)
    assert "away: m2" in saved.errors[0] and "m2" in saved.hint
    (tmp_path / "on-the-shelf").rename(tmp_path / "m2")
    assert save(config, tree).volumes == ("m2-0001",)


# -- damage -------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_and_named(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    place = volume(config, "m1-0001")
    data = bytearray(place.read_bytes())
    data[700_000] ^= 4
    place.write_bytes(data)
    back = bring_back(config, tmp_path / "out")
    assert back.exit_status is ExitStatus.FAILED
    touched = [name for name in os.listdir(tree) if any(f"{tree}/{name}" in line for line in back.errors)]
    assert 1 <= len(touched) <= 2
    for name in set(os.listdir(tree)) - set(touched):
        assert (below(tmp_path / "out", tree) / name).read_bytes() == (tree / name).read_bytes()
    found = checked(config)
    assert found.exit_status is ExitStatus.FAILED
    assert any("m1-0001" in line and "checksum" in line for line in found.errors)
    assert all(any(f"{tree}/{name}" in line for line in found.errors) for name in touched)


def test_a_volume_cut_short(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    place = volume(config, "m1-0001")
    os.truncate(place, 1_200_000)
    back = bring_back(config, tmp_path / "out")
    assert back.exit_status is ExitStatus.FAILED
    assert any("cut short" in line for line in back.errors)
    whole = {name for name in os.listdir(tree) if _same(tree / name, below(tmp_path / "out", tree) / name)}
    named = {name for name in os.listdir(tree) if any(f"{tree}/{name}" in line for line in back.errors)}
    assert len(whole) == 2 and whole | named == set(os.listdir(tree)) and not whole & named
    assert checked(config).exit_status is ExitStatus.FAILED
    # The next job leaves it alone.
    saved = save(config, tree)
    assert saved.volumes == ("m1-0002",) and saved.exit_status is ExitStatus.WARNINGS
    assert "m1-0001" in saved.warnings[0]
    assert media_status(config)["m1-0001"] is VolumeStatus.ERROR
    assert place.stat().st_size == 1_200_000


def test_a_damaged_label_is_told_and_costs_no_file(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    place = volume(config, "m1-0001")
    data = bytearray(place.read_bytes())
    data[30] ^= 1
    place.write_bytes(data)
    back = bring_back(config, tmp_path / "out")
    assert back.exit_status is ExitStatus.WARNINGS and "label is damaged" in back.warnings[0]
    assert_same(tree, below(tmp_path / "out", tree))
    assert checked(config).exit_status is ExitStatus.FAILED


def test_a_volume_cut_at_a_block_border(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    place = volume(config, "m1-0001")
    with Catalog(config.state_dir) as catalog:
        start = catalog.stretches(catalog.jobs()[0].job_id)[0].start
    os.truncate(place, start + 10 * 64512)
    assert bring_back(config, tmp_path / "out").exit_status is ExitStatus.FAILED
    assert any("cut short" in line for line in checked(config).errors)


def test_a_volume_that_is_gone(tmp_path: Path, tree: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 700000")
    saved = save(config, tree)
    volume(config, saved.volumes[1]).unlink()
    back = bring_back(config, tmp_path / "out")
    assert back.exit_status is ExitStatus.FAILED
    assert any(saved.volumes[1] in line for line in back.errors)
    assert any(_same(tree / name, below(tmp_path / "out", tree) / name) for name in os.listdir(tree))


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


def test_what_is_behind_the_end_and_not_ours_is_not_touched(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    place = volume(config, "m1-0001")
    with open(place, "ab") as file:
        file.write(b"something else")
    before = place.read_bytes()
    saved = save(config, tree)
    assert saved.volumes == ("m1-0002",) and saved.exit_status is ExitStatus.WARNINGS
    assert place.read_bytes() == before


def test_a_volume_that_cannot_be_opened_keeps_its_status(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    place = volume(config, "m1-0001")
    place.rename(tmp_path / "kept")
    place.symlink_to(tmp_path / "kept")  # links are never followed to a volume
    saved = save(config, tree)
    assert saved.volumes == ("m1-0002",) and "m1-0001" in saved.warnings[0]
    assert media_status(config)["m1-0001"] is VolumeStatus.APPEND
    place.unlink()
    assert "its file is gone" in save(config, tree).warnings[0]
    assert media_status(config)["m1-0001"] is VolumeStatus.ERROR


def test_a_volume_with_another_label_is_not_appended_to(tmp_path: Path, config: Config, tree: Path) -> None:
    first, second = labelling.create(config, magazine="m1", pool="Default", count=2)
    volume(config, second.name).write_bytes(volume(config, first.name).read_bytes())
    save(config, tree)
    volume(config, first.name).unlink()
    saved = save(config, tree)
    assert saved.volumes == ("m1-0003",) and len(saved.warnings) == 2


# -- away ---------------------------------------------------------------------------------------------------------


def test_restoring_from_a_magazine_that_is_away(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    (tmp_path / "m1").rename(tmp_path / "on-the-shelf")
    with pytest.raises(AwayError, match=r"magazine m1 \(volumes m1-0001\)") as caught:
        bring_back(config, tmp_path / "out")
    assert "Plug in m1" in caught.value.hint
    assert not (tmp_path / "out").exists()
    assert magbay(tmp_path, "verify", "--magazine", "m1").status == 75
    done = magbay(tmp_path, "restore", "--to", str(tmp_path / "out"))
    assert done.status == 75


def test_only_the_volumes_that_are_needed_must_be_here(tmp_path: Path) -> None:
    config = configuration(tmp_path, "maximum_volume_bytes: 700000")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "data").write_bytes(os.urandom(900_000))
    saved = save(config, one, two)
    assert len(saved.volumes) == 3
    volume(config, saved.volumes[2]).rename(tmp_path / "elsewhere")
    back = bring_back(config, tmp_path / "out", globs=(str(one),))
    assert back.exit_status is ExitStatus.DONE and back.volumes == saved.volumes[:2]
    assert_same(one, below(tmp_path / "out", one))


def test_part_of_a_job_on_the_magazine_that_is_here_can_be_verified(
    tmp_path: Path, config: Config, tree: Path, small_disk: Path
) -> None:
    save(config, tree)
    (tmp_path / "m2").rename(tmp_path / "on-the-shelf")
    result = checked(config)
    assert result.exit_status is ExitStatus.DONE and 1 <= result.files <= 3


# -- killed, cancelled, at the same time --------------------------------------------------------------------------

_SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from appliance.config.loader import load
from appliance.storage import backup

config, tree, action, mark = load(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
seen = 0

def progress(count):
    global seen
    seen += count
    if seen > 1_000_000 and not mark.exists():
        mark.touch()
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while not mark.with_suffix(".go").exists():
            time.sleep(0.02)

result = backup.run(config, backup.BackupRequest((tree,)), log=lambda text, fields: None, progress=progress)
print(result.status.word, *result.volumes)
"""


def start(tmp_path: Path, tree: Path, action: str, mark: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path / "magbay.yaml"), str(tree), action, str(mark)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_killed_in_the_middle(tmp_path: Path, config: Config, tree: Path) -> None:
    before = save(config, tree)
    size = volume(config, "m1-0001").stat().st_size
    with start(tmp_path, tree, "kill", tmp_path / "mark") as process:
        assert process.wait(30) == -signal.SIGKILL
    assert volume(config, "m1-0001").stat().st_size > size
    (tree / "new").write_text("new")
    after = save(config, tree)
    assert (after.status, after.volumes) == (JobStatus.DONE, ("m1-0001",))
    with Catalog(config.state_dir) as catalog:
        statuses = [job.status for job in catalog.jobs()]
        lines = [text for _, _, text in catalog.log_lines(catalog.jobs()[1].job_id)]
    assert statuses == [JobStatus.DONE, JobStatus.FAILED, JobStatus.DONE]
    assert any("nothing of it counts as saved" in line for line in lines)
    for job in (before, after):
        assert bring_back(config, tmp_path / f"out-{job.job_id}", job=job.job_id).exit_status is ExitStatus.DONE
    assert_same(tree, below(tmp_path / f"out-{after.job_id}", tree))
    assert checked(config).exit_status is ExitStatus.DONE
    events = list(read_volumes([volume(config, "m1-0001")]))
    assert [e.end is not None for e in events if isinstance(e, SessionEnd)] == [True, True]


def test_a_killed_job_is_not_shown_as_running(tmp_path: Path, config: Config, tree: Path) -> None:
    job = start(tmp_path, tree, "kill", tmp_path / "mark")
    assert job.wait(30) == -9
    assert [job["status"] for job in magbay(tmp_path, "status", json_output=True).document["jobs"]] == ["failed"]


def test_killed_on_a_fresh_volume(tmp_path: Path, config: Config, tree: Path) -> None:
    with start(tmp_path, tree, "kill", tmp_path / "mark") as process:
        assert process.wait(30) == -signal.SIGKILL
    after = save(config, tree)
    assert (after.status, after.volumes) == (JobStatus.DONE, ("m1-0001",))
    assert checked(config).exit_status is ExitStatus.DONE


def test_two_jobs_at_the_same_time_write_on_different_volumes(tmp_path: Path, config: Config, tree: Path) -> None:
    labelling.create(config, magazine="m1", pool="Default", count=1)
    mark = tmp_path / "mark"
    with start(tmp_path, tree, "wait", mark) as process:
        for _ in range(500):
            if mark.exists():
                break
            time.sleep(0.02)
        mine = save(config, tree)
        mark.with_suffix(".go").touch()
        told, _ = process.communicate(timeout=30)
    assert told.split() == ["done", "m1-0001"]
    assert (mine.status, mine.volumes) == (JobStatus.DONE, ("m2-0001",))
    with Catalog(config.state_dir) as catalog:
        jobs = catalog.jobs()
    assert len({(job.session_id, job.session_time) for job in jobs}) == 2
    for job in jobs:
        bring_back(config, tmp_path / f"out-{job.job_id}", job=job.job_id)
        assert_same(tree, below(tmp_path / f"out-{job.job_id}", tree))


def test_labelling_at_the_same_time_gives_different_names(tmp_path: Path, config: Config) -> None:
    made: list[str] = []

    def label() -> None:
        made.extend(m.name for m in labelling.create(config, magazine="m1", pool="Default", count=5))

    threads = [threading.Thread(target=label) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 20 == len(os.listdir(config.magazines[0].directory))


def test_a_cancelled_job_is_closed_as_such(tmp_path: Path, config: Config, tree: Path) -> None:
    seen = [0]

    def progress(count: int) -> None:
        seen[0] += count

    request = backup.BackupRequest((tree,))
    result = backup.run(
        config, request, log=lambda text, fields: None, progress=progress, cancelled=lambda: seen[0] > 700_000
    )
    assert (result.status, result.exit_status) == (JobStatus.CANCELLED, ExitStatus.FAILED)
    ends = [e for e in read_volumes([volume(config, "m1-0001")]) if isinstance(e, SessionEnd)]
    assert [end.end.job_status for end in ends if end.end] == ["A"]
    with pytest.raises(NotFoundError, match="no finished job"):
        bring_back(config, tmp_path / "out")
    assert save(config, tree).volumes == ("m1-0001",)
    assert checked(config).exit_status is ExitStatus.DONE


def test_sigterm_cancels_the_command(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    for number in range(40):
        (tree / f"{number}").write_bytes(os.urandom(4 << 20))
    command = [sys.executable, "-m", "appliance", "--config", str(tmp_path / "magbay.yaml"), "backup", str(tree)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()  # "writing on volume …"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and "cancelled" in err and "Traceback" not in err
    with Catalog(config.state_dir) as catalog:
        assert [job.status for job in catalog.jobs()] == [JobStatus.CANCELLED]


# -- the catalog --------------------------------------------------------------------------------------------------


def test_without_its_catalog_volumes_are_left_alone(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    before = volume(config, "m1-0001").read_bytes()
    for file in config.state_dir.glob("catalog.db*"):
        file.unlink()
    with pytest.raises(NotFoundError) as caught:
        bring_back(config, tmp_path / "out")
    assert "magbay volume extract" in caught.value.hint
    assert save(config, tree).volumes == ("m1-0002",)
    assert volume(config, "m1-0001").read_bytes() == before


def test_a_damaged_or_newer_catalog_is_declared(tmp_path: Path, config: Config, tree: Path) -> None:
    save(config, tree)
    with Catalog(config.state_dir) as catalog:
        catalog.change("PRAGMA user_version=99")
    with pytest.raises(CatalogError, match="version 99"):
        save(config, tree)
    for file in config.state_dir.glob("catalog.db*"):
        file.unlink()
    (config.state_dir / "catalog.db").write_bytes(os.urandom(20_000))
    with pytest.raises(CatalogError) as caught:
        save(config, tree)
    assert "damaged" in caught.value.hint
    assert magbay(tmp_path, "jobs").status == 1


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("postgresql://[bad", "looking for matching"),
        ("postgresql://[bad?sslpassword=hush", "looking for matching"),
        ("postgresql:///db?nonsense=hush", 'invalid URI query parameter: "nonsense"'),
        ("postgresql://%zz/db", 'invalid percent-encoded token: "%zz"'),
    ],
)
def test_an_address_that_is_none_is_told_as_a_fault_of_the_setting(tmp_path: Path, address: str, words: str) -> None:
    pytest.importorskip("psycopg")
    configuration(tmp_path)
    with (tmp_path / "magbay.yaml").open("a") as file:
        file.write(f'catalog: {{database: "{address}"}}\n')
    with pytest.raises(CatalogError) as caught:
        Catalog.of(load(tmp_path / "magbay.yaml"))
    assert caught.value.message.startswith("the setting catalog.database (postgresql://")
    assert words in caught.value.message and "postgresql://USER@HOST:PORT/DATABASE" in caught.value.hint
    assert "hush" not in caught.value.message + caught.value.hint
    told = magbay(tmp_path, "jobs")
    assert told.status == ExitStatus.FAILED and "catalog.database" in told.stderr


# -- read-only ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True], ids=["never used", "used"])
@pytest.mark.parametrize("rest", ["", ", maximum_volumes: 1", ", recycle: yes, retention: 1d"])
def test_a_magazine_that_is_mounted_read_only_is_named(tmp_path: Path, small_disk: Path, used: bool, rest: str) -> None:
    one = "magazines:\n  - {name: m1, directory: m1}\n"
    config = configuration(tmp_path, f"maximum_volume_bytes: 10GB{rest}", one)
    (tmp_path / "data").write_bytes(b"x" * 1000)
    if used:
        assert save(config, tmp_path / "data").status is JobStatus.DONE
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = save(config, tmp_path / "data")
    assert refused.status is JobStatus.FAILED
    assert "magazine m1 is mounted read-only" in refused.errors[0] and "full" not in refused.errors[0]
    assert str(small_disk) in refused.hint and "writable" in refused.hint
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert save(config, tmp_path / "data").status is JobStatus.DONE


def test_a_job_takes_another_magazine_than_the_read_only_one(tmp_path: Path, small_disk: Path) -> None:
    config = configuration(tmp_path)
    (tmp_path / "data").write_bytes(b"x" * 1000)
    assert save(config, tmp_path / "data").volumes == ("m1-0001",)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = save(config, tmp_path / "data")
    assert (done.volumes, done.exit_status, done.warnings) == (("m2-0001",), ExitStatus.DONE, ())
    (tmp_path / "m2").rename(tmp_path / "shelf")
    away = "magazines:\n  - {name: m1, directory: m1}\n  - {name: m2, directory: m2, create: no}\n"
    told = save(configuration(tmp_path, magazines=away), tmp_path / "data")
    assert told.exit_status is ExitStatus.AWAY
    assert "magazine m1 is mounted read-only" in told.errors[0] and "away: m2" in told.errors[0]


# -- the device ---------------------------------------------------------------------------------------------------


def test_what_the_system_says_of_a_lost_disk_is_declared(tmp_path: Path) -> None:
    device = FileVolume.create(tmp_path / "v", "m1", b"label")
    for number in (errno.EIO, errno.ENODEV, errno.EROFS):
        error = device.declared(OSError(number, os.strerror(number)))
        assert isinstance(error, MagazineLostError)
        assert "m1" in error.message and "volume v" in error.message
    device.close()


def test_a_disk_that_is_lost_while_it_is_written(
    tmp_path: Path, config: Config, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save(config, tree)
    sync, state = os.fdatasync, {"lost": False}

    def fdatasync(descriptor: int) -> None:
        if state["lost"]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    def pull(_count: int) -> None:
        state["lost"] = True

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    request = backup.BackupRequest((tree,))
    lost = backup.run(config, request, log=lambda text, fields: None, progress=pull)
    assert (lost.status, lost.exit_status) == (JobStatus.FAILED, ExitStatus.FAILED)
    assert "magazine m1 was lost, or its disk fails, while volume m1-0001" in lost.errors[0]
    assert "plug it in again" in lost.hint and "journalctl -k" in lost.hint
    # Plugged in again: what the lost job left is cut off, what was acknowledged before is there.
    state["lost"] = False
    after = save(config, tree)
    assert (after.status, after.volumes) == (JobStatus.DONE, ("m1-0001",))
    for job in (before, after):
        bring_back(config, tmp_path / f"out-{job.job_id}", job=job.job_id)
        assert_same(tree, below(tmp_path / f"out-{job.job_id}", tree))
    assert checked(config).exit_status is ExitStatus.DONE


def test_a_trouble_that_the_sync_thread_saw_ends_the_job(tmp_path: Path) -> None:
    device = FileVolume.create(tmp_path / "v", "m1", b"label")
    device.start_syncing()
    device.append(memoryview(b"x"))
    good, (reading, writing) = device._fd, os.pipe()
    device._fd = reading  # on a pipe the system refuses what the thread does with a volume
    device._due.set()
    assert device._syncer is not None
    device._syncer.join(10)
    device._fd = good
    with pytest.raises(MagbayError, match="volume v on magazine m1"):
        device.append(memoryview(b"y"))
    device.close()
    os.close(reading)
    os.close(writing)


def test_a_block_that_does_not_fit_leaves_the_border(tmp_path: Path, small_disk: Path) -> None:
    device = FileVolume.create(small_disk / "v", "m1", b"l" * 200)
    with pytest.raises(VolumeFullError) as caught:
        for _ in range(100):
            device.append(memoryview(bytes(64512)))
    assert caught.value.magazine_full
    assert (small_disk / "v").stat().st_size == device.end and (device.end - 200) % 64512 == 0
    device.close()


def test_a_volume_that_cannot_grow_says_nothing_of_its_magazine(tmp_path: Path) -> None:
    device = FileVolume.create(tmp_path / "v", "m1", b"l" * 200)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(VolumeFullError) as caught:
            for _ in range(10):
                device.append(memoryview(bytes(64512)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not caught.value.magazine_full
    assert (tmp_path / "v").stat().st_size == device.end == 200 + 3 * 64512
    device.close()


def test_what_root_makes_belongs_to_the_owner_of_the_place(tmp_path: Path, config: Config, tree: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    for folder in (config.state_dir, tmp_path / "m1"):
        folder.mkdir()
        os.chown(folder, 65534, 65534)
    labelling.create(config, magazine="m1", pool="Default", count=1)
    running = Catalog(config.state_dir)
    job = running.start_job(NewJob("job", Level.FULL, "Default", "[]", ""))
    made = [*config.state_dir.glob("catalog*"), config.state_dir / "label.lock", config.state_dir / "running"]
    made += [config.state_dir / "running" / str(job.job_id), tmp_path / "m1" / "m1-0001"]
    running.log(job.job_id, "info", "so that there is a write-ahead log")
    assert {path.name: path.stat().st_uid for path in made} == {path.name: 65534 for path in made}
    running.close()


# -- an ordinary user ---------------------------------------------------------------------------------------------


def test_an_ordinary_user_is_warned_of_what_he_may_not_read() -> None:
    if os.geteuid():
        pytest.skip("needs root to become somebody else")
    nobody = 65534
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        configuration(folder)
        (folder / "source" / "closed").mkdir(parents=True)
        (folder / "source" / "secret").write_text("secret")
        (folder / "source" / "secret").chmod(0o600)
        (folder / "source" / "open").write_text("open")
        (folder / "source" / "closed").chmod(0o700)
        os.chown(folder, nobody, nobody)
        command = [sys.executable, "-m", "appliance", "--config", str(folder / "magbay.yaml")]
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        options = {
            "user": nobody,
            "group": nobody,
            "cwd": ROOT,
            "env": environment,
            "capture_output": True,
            "text": True,
        }
        probe = subprocess.run([*command, "--version"], **options)  # type: ignore[call-overload]
        if probe.returncode:
            pytest.skip("the checkout cannot be read by nobody")
        done = subprocess.run([*command, "backup", str(folder / "source")], **options)  # type: ignore[call-overload]
        assert done.returncode == 3, done.stderr
        assert "secret is not saved" in done.stderr and "closed is not saved" in done.stderr
        restore = [*command, "restore", "--to", str(folder / "out")]
        done = subprocess.run(restore, **options)  # type: ignore[call-overload]
        assert done.returncode == 3 and "only root can give them back" in done.stderr
        assert (below(folder / "out", folder / "source") / "open").read_text() == "open"
        mode = (folder / "m1" / "m1-0001").stat().st_mode
        assert mode & 0o777 == 0o640
        # What he may not do is 77, "not permitted", and told.
        closed = folder / "source" / "closed" / "out"
        done = subprocess.run([*command, "restore", "--to", str(closed)], **options)  # type: ignore[call-overload]
        assert done.returncode == 77 and str(closed) in done.stderr
        for place in ("m1", "m2"):
            (folder / place).chmod(0o500)
        done = subprocess.run([*command, "label"], **options)  # type: ignore[call-overload]
        assert done.returncode == 77 and "m1 or m2 cannot be written" in done.stderr
        for path in (folder / "state").rglob("*"):
            os.chown(path, 0, 0)
        os.chown(folder / "state", 0, 0)
        done = subprocess.run([*command, "jobs"], **options)  # type: ignore[call-overload]
        assert done.returncode == 77 and "state_dir" in done.stderr
