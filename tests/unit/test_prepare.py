"""Preparing disks: which are refused and why, the plan, wiping. The real thing happens in the virtual machine."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from appliance.config.loader import load_enrolment
from appliance.config.schema import Config, Enrolment
from appliance.errors import MagbayError, NotFoundError, PermissionDeniedError
from appliance.host.api import BlockDevice, Mount
from appliance.magazines.prepare import Filesystem, enrol, execute, plan
from appliance.magazines.wipe import Wipe, wipe

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="preparing disks needs root")
SIZE = 80 * 1024 * 1024


@dataclass
class Machine:
    """Devices and mounts as given."""

    devices: tuple[BlockDevice, ...]
    mounts: tuple[Mount, ...] = ()

    def start(self, wake: object) -> None: ...

    def enumerate(self) -> tuple[BlockDevice, ...]:
        return self.devices

    def table(self) -> tuple[Mount, ...]:
        return self.mounts

    async def trigger(self, path: Path) -> None: ...


def blank(tmp_path: Path, **more: object) -> BlockDevice:
    """A disk whose node is a sparse file, so that the real wipefs can look at it."""
    node = tmp_path / "disk"
    with node.open("wb") as file:
        file.truncate(SIZE)
    values: dict[str, object] = {"size": SIZE, "serial": "S1", "number": "8:16", **more}
    return BlockDevice("sdb", str(node), "disk", **values)  # type: ignore[arg-type]


def planned(config: Config, machine: Machine, tmp_path: Path, name: str = "new", serial: str = "") -> object:
    return plan(config, machine, machine, tmp_path / "disk", name, Wipe.NONE, Filesystem.EXT4, serial)


@needs_root
def test_a_blank_disk_has_a_plan(config: Config, tmp_path: Path) -> None:
    todo = plan(
        config, Machine((blank(tmp_path),)), Machine(()), tmp_path / "disk", "new", Wipe.RANDOM, Filesystem.XFS, ""
    )
    words = "\n".join(todo.steps(config))
    for part in (str(SIZE), "LUKS2", "xfs", todo.luks_uuid, todo.filesystem_uuid, "enrol it as magazine new"):
        assert part in words


@needs_root
def test_an_owner_who_does_not_exist_is_refused_before_anything_is_done(config: Config, tmp_path: Path) -> None:
    machine = Machine((blank(tmp_path),))
    todo = plan(config, machine, machine, tmp_path / "disk", "new", Wipe.RANDOM, Filesystem.EXT4, "")
    nobody = replace(config, prepare=replace(config.prepare, owner="no-such-user"))
    with pytest.raises(MagbayError, match="no-such-user") as caught:
        execute(todo, nobody, lambda text: None, lambda count: None)
    assert caught.value.hint and not config.key_file.exists()
    assert not any((tmp_path / "disk").read_bytes()[: 1 << 20])


@needs_root
@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"read_only": True}, "write-protected"),
        ({"size": 1024}, "are needed"),
        ({"fs_type": "ext4"}, "holds ext4"),
        ({"fs_type": "crypto_LUKS", "fs_uuid": "x"}, "holds crypto_LUKS"),
        ({"has_partitions": True}, "has partitions"),
    ],
)
def test_refused(config: Config, tmp_path: Path, facts: dict[str, object], words: str) -> None:
    with pytest.raises(MagbayError, match=words) as caught:
        planned(config, Machine((blank(tmp_path, **facts),)), tmp_path)
    assert str(tmp_path / "disk") in caught.value.message and caught.value.hint


@needs_root
def test_a_signature_that_udev_did_not_see_is_found(config: Config, tmp_path: Path) -> None:
    machine = Machine((blank(tmp_path),))
    subprocess.run(["mkswap", "-q", str(tmp_path / "disk")], check=True)
    with pytest.raises(MagbayError, match="it holds swap"):
        planned(config, machine, tmp_path)
    with pytest.raises(MagbayError, match="not blank"):
        planned(config, machine, tmp_path, serial="S2")
    assert planned(config, machine, tmp_path, serial="S1")


@needs_root
def test_mounted_stacked_enrolled_and_named_twice_are_never_used(config: Config, tmp_path: Path) -> None:
    disk = blank(tmp_path)
    mounted = Machine((disk,), (Mount("/srv", disk.node, "8:16", "ext4", False),))
    with pytest.raises(MagbayError, match="mounted at /srv"):
        planned(config, mounted, tmp_path, serial="S1")
    btrfs = Machine((disk,), (Mount("/srv", disk.node, "0:44", "btrfs", False),))
    with pytest.raises(MagbayError, match="mounted at /srv"):
        planned(config, btrfs, tmp_path, serial="S1")
    part = BlockDevice("sdb1", "/dev/sdb1", "partition", parent="sdb", number="8:17")
    with pytest.raises(MagbayError, match="mounted at /boot"):
        planned(config, Machine((disk, part), (Mount("/boot", "x", "8:17", "ext4", False),)), tmp_path)
    with pytest.raises(MagbayError, match="stands on it"):
        planned(
            config, Machine((disk, BlockDevice("dm-0", "/dev/dm-0", "disk", below=("sdb",)))), tmp_path, serial="S1"
        )
    enrol(config, Enrolment("old", "0f0f", "abcd"))
    with pytest.raises(MagbayError, match="it is magazine old"):
        planned(config, Machine((blank(tmp_path, fs_type="crypto_LUKS", fs_uuid="abcd"),)), tmp_path, serial="S1")
    with pytest.raises(MagbayError, match="called old already"):
        planned(config, Machine((disk,)), tmp_path, name="old")
    with pytest.raises(MagbayError, match="called m1 already"):
        planned(config, Machine((disk,)), tmp_path, name="m1")
    with pytest.raises(NotFoundError):
        planned(config, Machine(()), tmp_path)


def test_without_root(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionDeniedError):
        planned(config, Machine((blank(tmp_path),)), tmp_path)


def test_enrolment_file_keeps_odd_texts(config: Config) -> None:
    enrol(config, Enrolment("NO", "0f0f", "abcd", serial="12:34", model="0x10 'quoted\" #1", size=5))
    found = load_enrolment(config.enrolment_dir / "0f0f.yaml")
    assert (found.name, found.serial, found.model, found.size) == ("NO", "12:34", "0x10 'quoted\" #1", 5)


def test_random_wipe_covers_every_byte(tmp_path: Path) -> None:
    size = 9 * 1024 * 1024 + 4096
    node = tmp_path / "disk"
    node.write_bytes(bytes(size))
    told: list[int] = []
    wipe(node, size, Wipe.RANDOM, told.append)
    data = node.read_bytes()
    assert len(data) == size and sum(told) == size
    assert all(data[at : at + 4096].count(0) < 100 for at in range(0, size, 4096)), "a page was left as it was"
    assert len({data[at : at + 4096] for at in range(0, size, 4096)}) == size // 4096, "the stream repeats"
