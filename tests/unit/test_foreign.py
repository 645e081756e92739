"""Disks of strangers: what libblkid says of each image, and what is made of that."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from appliance.cli.output import as_told
from appliance.config.schema import Config, Enrolment
from appliance.host.api import BlockDevice
from appliance.host.real.devices import _decode
from appliance.host.simulated import SimulatedDisk, World, simulated_host
from appliance.magazines.disks import survey
from appliance.magazines.media import Media
from appliance.magazines.prepare import enrol
from appliance.magazines.states import State
from tests.strangers import Ours, Stranger, strangers
from tests.strangers.kinds import blank, tool

LUKS_UUID = "0c1d2e3f-0000-4000-8000-000000000001"
FILESYSTEM_UUID = "0c1d2e3f-0000-4000-8000-000000000002"
ENROLMENT = Enrolment("m1", FILESYSTEM_UUID, LUKS_UUID, serial="SER-M1")
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
        tmp_path_factory.mktemp("strangers"), Ours("m1", LUKS_UUID, FILESYSTEM_UUID, folder / "key", image)
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
