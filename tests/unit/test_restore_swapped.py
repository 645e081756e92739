"""Somebody who may write in the target puts links in place of what was just restored: nothing outside changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.storage.extract import Extractor
from appliance.storage.setting import Setting
from appliance.storage.targets import Target
from appliance.volumes.attributes import FileType
from appliance.volumes.reading import read_volumes
from appliance.volumes.streams import Stream
from tests.unit.test_extract_hostile import xattrs
from tests.unit.volume_builder import Job, one_job

PIPE, FOLDER = stat.S_IFIFO | 0o666, stat.S_IFDIR | 0o777


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("mine")
    path.chmod(0o600)
    os.utime(path, (5, 5))
    return path


def facts(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    return found.st_mode, found.st_uid, found.st_gid, found.st_mtime, found.st_nlink, os.listxattr(path)


def swap(place: Path, victim: Path) -> None:
    """What is at *place* goes, and a link to *victim* is there."""
    place.rename(place.with_name("moved"))
    place.symlink_to(victim)


def pipe(job: Job) -> None:
    job.entry(FileType.SPECIAL, b"/d/thing", mode=PIPE, uid=4711, gid=4712)


def directory(job: Job) -> None:
    job.directory(b"/d/thing/", FOLDER, uid=4711)
    job.record(Stream.LINUX_XATTR, xattrs(user__kind=b"mine"))


@pytest.mark.parametrize("fill", [pipe, directory])
def test_attributes_go_to_what_was_looked_at(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, fill: Callable[[Job], object]
) -> None:
    before = facts(victim)
    place = tmp_path / "out" / "d" / "thing"
    really = Setting.all

    def late(self: Setting, found: os.stat_result, acls: Sequence[Any], more: Sequence[bytes]) -> None:
        swap(place, victim)
        really(self, found, acls, more)

    monkeypatch.setattr(Setting, "all", late)
    summary = Extractor(tmp_path / "out").run(read_volumes([one_job(tmp_path / "volume", fill)]))
    assert facts(victim) == before
    found = place.with_name("moved").stat()
    assert stat.S_IMODE(found.st_mode) == (0o666 if fill is pipe else 0o777)
    if os.geteuid() == 0:
        assert found.st_uid == 4711 and not summary.failed


def test_a_file_that_is_put_in_the_place_of_a_pipe_keeps_its_owner_and_mode(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns a directory may rename in it what belongs to others."""
    before = facts(victim)
    place = tmp_path / "out" / "d" / "thing"
    really = Target.create_node

    def early(self: Target, *words: Any) -> None:
        really(self, *words)
        victim.rename(place)

    monkeypatch.setattr(Target, "create_node", early)
    summary = Extractor(tmp_path / "out").run(read_volumes([one_job(tmp_path / "volume", pipe)]))
    assert facts(place) == before
    assert summary.failed == 1 and "somebody else put a file in its place" in summary.errors[0]


def test_a_directory_on_the_way_that_becomes_a_link(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a one is opened to others at the end."""
    before = facts(victim)
    place = tmp_path / "out" / "way"
    really = os.chmod

    def late(path: Any, mode: int, **options: Any) -> None:
        if not place.is_symlink():
            swap(place, victim)
        really(path, mode, **options)

    def fill(job: Job) -> None:
        job.entry(FileType.SYMLINK, b"/way/link", mode=stat.S_IFLNK | 0o777, link=b"nowhere")

    monkeypatch.setattr(os, "chmod", late)
    Extractor(tmp_path / "out").run(read_volumes([one_job(tmp_path / "volume", fill)]))
    assert place.is_symlink()
    assert facts(victim) == before
    assert stat.S_IMODE(place.with_name("moved").stat().st_mode) & 0o700 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives things to others")
def test_links_get_their_owner_and_times_and_not_what_they_lead_to(tmp_path: Path, victim: Path) -> None:
    before = facts(victim)

    def fill(job: Job) -> None:
        text = os.fsencode(victim)
        job.entry(FileType.SYMLINK, b"/link", mode=stat.S_IFLNK | 0o777, link=text, uid=4711, gid=4712, mtime=77)

    summary = Extractor(tmp_path / "out").run(read_volumes([one_job(tmp_path / "volume", fill)]))
    found = (tmp_path / "out" / "link").lstat()
    assert (found.st_uid, found.st_gid, found.st_mtime) == (4711, 4712, 77)
    assert facts(victim) == before and not summary.warnings
