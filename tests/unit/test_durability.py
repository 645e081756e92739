"""Single cases of what a power cut leaves; tests/power goes through all of them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.config.schema import Config
from appliance.errors import ExitStatus, MagbayError
from appliance.host import files
from appliance.keys import keyfile
from appliance.keys.keyfile import Form
from appliance.keys.secret import Secret
from appliance.storage import device, labelling
from appliance.storage.catalog import Catalog
from appliance.storage.model import JobStatus, VolumeStatus
from tests.unit.enginehelp import ROOT, assert_same, below, bring_back, save, sessions_from_one, volume


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "file").write_bytes(b"content")
    return folder


@pytest.mark.parametrize("left", ["nothing", "zeros", "half", "another pool's length"])
def test_a_torn_label_of_a_volume_never_written_is_written_anew(config: Config, tree: Path, left: str) -> None:
    labelling.create(config, magazine="m1", pool="Default", count=1)
    place = volume(config, "m1-0001")
    label = place.read_bytes()
    torn = {"nothing": b"", "zeros": bytes(len(label)), "half": label[:100], "another pool's length": label + bytes(3)}
    place.write_bytes(torn[left])
    done = save(config, tree)
    assert (done.status, done.volumes, done.warnings) == (JobStatus.DONE, ("m1-0001",), ())


def test_what_is_no_torn_label_is_left_alone(config: Config, tree: Path) -> None:
    first, second, third = labelling.create(config, magazine="m1", pool="Default", count=3)
    foreign = {
        first.name: b"somebody's notes",
        second.name: volume(config, third.name).read_bytes(),  # whole, and of another volume
        third.name: volume(config, third.name).read_bytes()[:16] + b"another catalog's session",
    }
    for name, content in foreign.items():
        volume(config, name).write_bytes(content)
    done = save(config, tree)
    assert done.status is JobStatus.WARNINGS and done.volumes == ("m1-0004",)
    assert {name: volume(config, name).read_bytes() for name in foreign} == foreign
    with Catalog(config.state_dir) as catalog:
        assert {media.status for media in catalog.media() if media.name in foreign} == {VolumeStatus.ERROR}


def test_a_volume_that_was_labelled_but_not_entered_is_taken_up(
    config: Config, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions_from_one(monkeypatch)
    first, second, third = labelling.create(config, magazine="m1", pool="Default", count=3)
    save(config, tree)
    with Catalog(config.state_dir) as catalog:
        for media in (first, second, third):
            catalog.change("DELETE FROM Media WHERE MediaId=?", (media.media_id,))
        catalog.change("DELETE FROM Session WHERE VolSessionId=3")  # that of the third, which is somebody else's then
    written, foreign = volume(config, first.name).read_bytes(), volume(config, third.name).read_bytes()
    made = labelling.create(config, magazine="m1", pool="Default", count=2)
    assert [media.name for media in made] == ["m1-0002", "m1-0004"]
    assert volume(config, first.name).read_bytes() == written and volume(config, third.name).read_bytes() == foreign


_KILLED = """
import os, signal, sys
from pathlib import Path
from appliance.config.loader import load
from appliance.storage import device, labelling

def kill(*words):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(*{"append": (device.FileVolume, "append"), "sync": (device.FileVolume, "sync"),
    "name": (device.files, "rename_new"), "directory": (device.files, "sync_directory")}[sys.argv[2]], kill)
labelling.create(load(Path(sys.argv[1])), magazine="m1", pool="Default", count=1)
"""


@pytest.mark.parametrize("where", ["append", "sync", "name", "directory"])
def test_a_kill_while_a_volume_is_labelled_leaves_nothing_for_ever(tmp_path: Path, config: Config, where: str) -> None:
    labelling.create(config, magazine="m1", pool="Default", count=1)
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "magbay.yaml"), where]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == -signal.SIGKILL
    left = set(os.listdir(tmp_path / "m1")) - {"m1-0001"}
    assert len(left) == 1 and (left == {"m1-0002"}) is (where == "directory")
    (made,) = labelling.create(config, magazine="m1", pool="Default", count=1)
    assert made.name == "m1-0002"
    assert sorted(os.listdir(tmp_path / "m1")) == ["m1-0001", "m1-0002"]


def test_a_name_that_is_taken_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "volume"
    place.write_bytes(b"somebody's")
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # it came between the look and the rename
    with pytest.raises(FileExistsError):
        device.FileVolume.create(place, "m1", b"label")
    assert os.listdir(tmp_path) == ["volume"] and place.read_bytes() == b"somebody's"


def test_filling_up_counts_what_a_kill_left_once_only(config: Config) -> None:
    (first,) = labelling.create(config, magazine="m1", pool="Default", count=1)
    with Catalog(config.state_dir) as catalog:
        catalog.change("DELETE FROM Media WHERE MediaId=?", (first.media_id,))
    told: list[int] = []
    names = labelling.fill(config, magazine="m1", pool="Default", count=3, say=told.append)
    assert names == ["m1-0001", "m1-0002", "m1-0003"] and told == [2, 1]
    assert labelling.fill(config, magazine="m1", pool="Default", count=2, say=told.append) == names
    with Catalog(config.state_dir) as catalog:
        assert sorted(media.name for media in catalog.media()) == names


def test_new_directories_are_synced_from_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    files.make_directory(tmp_path / "a" / "b")
    assert sorted(synced) == [tmp_path, tmp_path / "a"]
    files.make_directory(tmp_path / "a" / "b")
    assert len(synced) == 2


def test_a_key_file_that_is_written_in_part_only_is_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:64]))
    keyfile.store(tmp_path / "key", Secret(bytes(range(256)) * 16), Form.PLAIN)
    assert (tmp_path / "key").read_bytes() == bytes(range(256)) * 16


def test_an_interrupted_restore_leaves_what_was_there(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(200_000))
    save(config, source)
    out = below(tmp_path / "out", source)
    out.mkdir(parents=True)
    (out / "file").write_bytes(b"what was there")
    pwrite, count = os.pwrite, [0]

    def full(descriptor: int, data: bytes, offset: int) -> int:
        count[0] += 1
        if count[0] > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(MagbayError, match="file is not whole"):
            bring_back(config, tmp_path / "out")
    assert os.listdir(out) == ["file"] and (out / "file").read_bytes() == b"what was there"
    bring_back(config, tmp_path / "out")
    assert_same(source, out)


def test_a_link_to_a_file_that_was_not_restored_is_no_link_to_what_was_there(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "one").write_bytes(b"new")
    os.link(source / "one", source / "two")
    save(config, source)
    out = below(tmp_path / "out", source)
    out.mkdir(parents=True)
    for name in ("one", "two"):
        (out / name).write_bytes(b"old")

    def too_large(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "pwrite", too_large)
    back = bring_back(config, tmp_path / "out")
    assert back.exit_status is ExitStatus.FAILED and len(back.errors) == 2
    assert [(out / name).read_bytes() for name in ("one", "two")] == [b"old", b"old"]
    assert (out / "one").stat().st_nlink == 1
