"""Taking over disks that others have made: which, with which key. The opening itself happens in the virtual machine."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config.schema import Config, Enrolment
from appliance.errors import MagbayError
from appliance.host.api import BlockDevice
from appliance.magazines import adopt
from appliance.magazines.candidate import Surroundings
from appliance.magazines.enrolment import enrol
from appliance.magazines.stays import Stays, stays_folder
from tests.unit.lukshelp import LuksDisk, needs_cryptsetup
from tests.unit.machine import Machine

pytestmark = [needs_cryptsetup, pytest.mark.skipif(os.geteuid() != 0, reason="taking over disks needs root")]


def take(config: Config, machine: Machine, node: Path, key: Path | None = None) -> None:
    adopt.adopt(config, machine, machine, node, "old", key, closed=True)


def test_what_is_not_taken_over(config: Config, tmp_path: Path) -> None:
    disk = LuksDisk.create(tmp_path / "disk", config.key_file, "luks1")
    device = BlockDevice("sdb", str(disk.node), "disk", fs_type="crypto_LUKS", fs_uuid=disk.uuid, number="8:16")
    for facts, words in (
        ({"fs_type": "ext4"}, "it holds ext4"),
        ({"fs_type": "", "has_partitions": True}, "it has partitions"),
        ({"fs_type": ""}, "it is blank"),
    ):
        with pytest.raises(MagbayError, match=f"no LUKS container: {words}") as caught:
            take(config, Machine((replace(device, **facts),)), disk.node)
        assert caught.value.hint
    opened = BlockDevice("dm-0", "/dev/dm-0", "disk", below=("sdb",), mapping="by-hand")
    with pytest.raises(MagbayError, match=r"not taken over: something stands on it .*by-hand"):
        take(config, Machine((device, opened)), disk.node)
    enrol(config, Enrolment("m9", "0f0f", disk.uuid))
    with pytest.raises(MagbayError, match="is magazine m9 already"):
        take(config, Machine((device,)), disk.node)


def test_a_disk_with_one_container_in_a_partition(tmp_path: Path) -> None:
    disk = BlockDevice("sdb", "/dev/sdb", "disk", has_partitions=True)
    parts = tuple(BlockDevice(f"sdb{n}", f"/dev/sdb{n}", "partition", parent="sdb") for n in (1, 2, 3))
    one = replace(parts[1], fs_type="crypto_LUKS")
    assert adopt._container(Surroundings(disk, (disk, parts[0], one), (), ())) == one
    with pytest.raises(MagbayError, match="several LUKS containers") as caught:
        two = replace(parts[2], fs_type="crypto_LUKS")
        adopt._container(Surroundings(disk, (disk, one, two), (), ()))
    assert "/dev/sdb2, /dev/sdb3" in caught.value.hint


@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_any_slot_will_do_and_trying_writes_nothing(config: Config, tmp_path: Path, kind: str) -> None:
    other, wrong = tmp_path / "other.key", tmp_path / "wrong.key"
    wrong.write_bytes(b"x" * 64)
    disk = LuksDisk.create(tmp_path / "disk", other, kind)
    device = BlockDevice("sdb", str(disk.node), "disk", fs_type="crypto_LUKS", fs_uuid=disk.uuid)
    before = hashlib.sha256(disk.node.read_bytes()).digest()
    with pytest.raises(MagbayError, match="does not open") as caught:
        adopt._key(config, device, None)
    assert "--key-file" in caught.value.hint
    with pytest.raises(MagbayError, match=f"{wrong} does not open"):
        adopt._key(config, device, wrong)
    assert adopt._key(config, device, other) == (False, other)
    assert hashlib.sha256(disk.node.read_bytes()).digest() == before
    disk.add(other, config.key_file)
    before = hashlib.sha256(disk.node.read_bytes()).digest()
    assert adopt._key(config, device, None) == (True, config.key_file)
    assert hashlib.sha256(disk.node.read_bytes()).digest() == before


def test_left_closed_until_it_is_plugged_again(config: Config) -> None:
    device = BlockDevice("sdb", "/dev/sdb", "disk", fs_type="crypto_LUKS", fs_uuid="u-u-i-d", sequence=7)
    adopt._leave_alone(config, device)
    stays = Stays(stays_folder(config.run_dir))
    assert stays.of("u-u-i-d", 7).eject
    assert not stays.of("u-u-i-d", 8).eject
