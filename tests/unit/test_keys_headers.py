"""Backups of LUKS headers, with the real cryptsetup on images in files."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from appliance.errors import MagbayError, NotFoundError
from appliance.keys import headers
from tests.unit.lukshelp import LuksDisk, needs_cryptsetup

pytestmark = needs_cryptsetup


@pytest.fixture
def disk(tmp_path: Path) -> LuksDisk:
    return LuksDisk.create(tmp_path / "disk", tmp_path / "key")


def test_a_wiped_header_comes_back_from_its_backup(disk: LuksDisk, tmp_path: Path) -> None:
    image = headers.backup(disk.node, disk.uuid, tmp_path)
    assert image == tmp_path / "headers" / f"{disk.uuid}.img" == headers.path_of(tmp_path, disk.uuid)
    assert stat.S_IMODE(image.stat().st_mode) == 0o600 and stat.S_IMODE(image.parent.stat().st_mode) == 0o700
    with disk.node.open("r+b") as file:
        file.write(os.urandom(3 << 20))
    assert not disk.opens(tmp_path / "key")
    headers.restore(disk.node, disk.uuid, tmp_path)
    assert disk.opens(tmp_path / "key")


def test_a_backup_replaces_the_older_one_and_a_power_cut_leaves_nothing_in_the_way(
    disk: LuksDisk, tmp_path: Path
) -> None:
    image = headers.backup(disk.node, disk.uuid, tmp_path)
    (image.parent / f".{disk.uuid}.broken").mkdir()
    (image.parent / f".{disk.uuid}.broken" / "img").write_bytes(b"half")
    disk.add(tmp_path / "key", tmp_path / "key2")
    before = image.read_bytes()
    headers.backup(disk.node, disk.uuid, tmp_path)
    assert image.read_bytes() != before and os.listdir(image.parent) == [image.name]
    assert LuksDisk(image, disk.uuid).opens(tmp_path / "key2")


def test_the_wrong_disk_is_neither_saved_nor_restored(disk: LuksDisk, tmp_path: Path) -> None:
    other = LuksDisk.create(tmp_path / "other", tmp_path / "key")
    headers.backup(disk.node, disk.uuid, tmp_path)
    with pytest.raises(MagbayError, match="has the LUKS UUID") as caught:
        headers.backup(other.node, disk.uuid, tmp_path)
    assert caught.value.hint
    with pytest.raises(NotFoundError, match="no backup"):
        headers.restore(other.node, other.uuid, tmp_path)
    shutil.copy(headers.path_of(tmp_path, disk.uuid), headers.path_of(tmp_path, other.uuid))
    with pytest.raises(MagbayError, match="LUKS UUID"):
        headers.restore(other.node, other.uuid, tmp_path)
    assert other.opens(tmp_path / "key")


def test_a_directory_that_others_could_enter_is_refused(disk: LuksDisk, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "headers").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MagbayError, match="only its owner"):
        headers.backup(disk.node, disk.uuid, tmp_path)
    (tmp_path / "headers").unlink()
    (tmp_path / "headers").mkdir()
    (tmp_path / "headers").chmod(0o755)
    with pytest.raises(MagbayError, match="only its owner"):
        headers.backup(disk.node, disk.uuid, tmp_path)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_backup_that_fails_leaves_the_old_one(disk: LuksDisk, tmp_path: Path) -> None:
    image = headers.backup(disk.node, disk.uuid, tmp_path)
    before = image.read_bytes()
    subprocess.run(["truncate", "-s", "0", disk.node], check=True)
    with pytest.raises(MagbayError):
        headers.backup(disk.node, disk.uuid, tmp_path)
    assert image.read_bytes() == before and os.listdir(image.parent) == [image.name]
