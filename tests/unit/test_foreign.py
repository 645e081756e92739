"""Disks of strangers: what libblkid says of each image, and what is made of that."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.cli.output import as_told
from appliance.config.schema import Config, Enrolment
from appliance.host.api import BlockDevice
from appliance.host.real.devices import Marks, _decode
from appliance.host.simulated import SimulatedDisk, World, simulated_host
from appliance.magazines.attached import enrolments, read_enrolments
from appliance.magazines.disks import survey
from appliance.magazines.media import Media
from appliance.magazines.prepare import enrol
from appliance.magazines.states import State
from tests.strangers import Ours, Stranger, strangers
from tests.strangers.kinds import blank, tool

LUKS_UUID = "0c1d2e3f-0000-4000-8000-000000000001"
FILESYSTEM_UUID = "0c1d2e3f-0000-4000-8000-000000000002"
ENROLMENT = Enrolment("mag1", FILESYSTEM_UUID, LUKS_UUID, serial="SER-M1")
# libblkid says nothing of these: names that only a reader of the whole disk could give.
_SILENT = {"luks1-without-magic", "header-elsewhere", "zeros", "ambivalent"}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stranger, ...]:
    """All kinds as files, those that pretend to be a magazine pretending to be ENROLMENT."""
    folder = tmp_path_factory.mktemp("ours")
    (folder / "key").write_bytes(b"k" * 4096)
    image = blank(folder / "image", 20 << 20)
    options = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--uuid", LUKS_UUID]
    tool("cryptsetup", "luksFormat", "-q", *options, "--key-file", folder / "key", image)
    return strangers(
        tmp_path_factory.mktemp("strangers"), Ours("mag1", LUKS_UUID, FILESYSTEM_UUID, folder / "key", image)
    )


def probe(path: Path) -> dict[str, str]:
    """What `blkid -p` finds: the library is the one that udev uses."""
    done = subprocess.run(["blkid", "-p", "-o", "export", path], capture_output=True)
    lines = done.stdout.decode(errors="replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def as_device(name: str, stranger: Stranger) -> BlockDevice:
    facts = probe(stranger.path)
    assert ("TYPE" in facts or "PTTYPE" in facts) is (stranger.name not in _SILENT), f"{stranger.name}: {facts}"
    return BlockDevice(
        name,
        f"/dev/{name}",
        "disk",
        fs_type=facts.get("TYPE", ""),
        fs_uuid=facts.get("UUID", "").lower(),
        has_partitions="PTTYPE" in facts,
        serial=stranger.serial,
    )


def test_every_kind_is_left_alone_with_a_reason(kinds: tuple[Stranger, ...], config: Config) -> None:
    """Decided with the magazine in use, and in the simulator without it: nothing is unlocked, no unit started."""
    assert len(kinds) >= 40
    magazine = BlockDevice("sda", "/dev/sda", "disk", fs_type="crypto_LUKS", fs_uuid=LUKS_UUID)
    inner = BlockDevice("dm-0", "/dev/dm-0", "disk", fs_type="ext4", fs_uuid=FILESYSTEM_UUID, below=("sda",))
    opened = (magazine, BlockDevice(**{**vars(inner), "mapping": f"magbay-{LUKS_UUID}"}))
    devices = {kind: as_device(f"sdb{number:03}", kind) for number, kind in enumerate(kinds)}
    for kind, device in devices.items():
        first, found = survey((*opened, device), (), [ENROLMENT], config.mount_dir)
        assert first.inner_matches and not first.refusal, f"{kind.name} takes the magazine away"
        assert found.inner is None and found.mount is None
        assert kind.says in (found.refusal if kind.claims else found.foreign), f"{kind.name}: {found}"

    async def story() -> None:
        enrol(config, ENROLMENT)
        config.run_dir.mkdir(exist_ok=True)
        world = World(config.mount_dir, lambda uuid: uuid == FILESYSTEM_UUID)
        host = simulated_host(world)
        media = Media(config, host, lambda: None)
        disks = {}
        for kind, device in devices.items():
            luks = device.fs_uuid if device.fs_type == "crypto_LUKS" else ""
            disk = SimulatedDisk(kind.serial, luks, fs_type=device.fs_type, fs_uuid=device.fs_uuid)
            disks[f"/dev/{world.plug(disk)}"] = (kind, disk)
        for _ in range(5):
            reports = {report.node: report for report in await media.reconcile() if report.node}
        assert len(reports) == len(kinds)
        for node, (kind, disk) in disks.items():
            assert reports[node].state is (State.FAILED if kind.claims else State.FOREIGN), kind.name
            assert reports[node].reason and disk.writes == 0
        assert not world.mappings and not world.mounted

    asyncio.run(story())


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("WDC\\x20WD40", "WDC WD40"),
        ("a\\x2fb\\x0ac", "a/b\nc"),
        ("größe €", "größe €"),
        ("\\xff\\xc3\\xa9", "\udcffé"),
        ("\udcff", "\udcff"),
    ],
)
def test_names_of_devices_are_decoded(told: str, name: str) -> None:
    assert _decode(told) == name


def test_names_of_devices_give_no_orders() -> None:
    assert as_told("a\x1b[2J\n\x9b\u202e\udcff é") == "a\\x1b[2J\\n\\x9b\\u202e\\udcff é"


def test_a_device_is_looked_at_again_when_udev_has_said_something(tmp_path: Path) -> None:
    devices, database = tmp_path / "block", tmp_path / "data"
    (devices / "sda").mkdir(parents=True)
    database.mkdir()
    (devices / "sda" / "dev").write_text("8:0\n")
    marks = Marks(devices, database)
    assert marks.names() == ["sda"] and marks.mark("sda") is None, "udev is not through with it"
    (database / "b8:0").write_text("E:ID_FS_TYPE=ext4\n")
    first = marks.mark("sda")
    assert first is not None and marks.mark("sda") == first
    # udev replaces the file, perhaps within one tick of the clock and with as many bytes.
    (database / "new").write_text("E:ID_FS_TYPE=swap\n")
    os.utime(database / "new", ns=(first[2], first[2]))
    (database / "new").rename(database / "b8:0")
    second = marks.mark("sda")
    assert second is not None and second != first
    # Another disk under the same name, with another number.
    (devices / "sda").rename(tmp_path / "old")
    (devices / "sda").mkdir()
    (devices / "sda" / "dev").write_text("8:16\n")
    assert marks.mark("sda") is None
    (database / "b8:0").rename(database / "b8:16")
    assert marks.mark("sda") not in (None, first, second)
    assert marks.mark("sdb") is None


def test_an_enrolment_that_changes_is_read_again(config: Config) -> None:
    enrol(config, ENROLMENT)
    assert enrolments(config) == (ENROLMENT,)
    enrol(config, replace(ENROLMENT, name="mag2"))
    assert [item.name for item in enrolments(config)] == ["mag2"]
    path = config.enrolment_dir / f"{FILESYSTEM_UUID}.yaml"
    path.write_text("name: [")
    for _ in range(2):
        found, damaged = read_enrolments(config)
        assert not found and len(damaged) == 1
    path.unlink()
    assert read_enrolments(config) == ((), ())
