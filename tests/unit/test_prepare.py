"""Preparing disks: which are refused and why, the plan, where it goes on. The rest happens in the virtual machine."""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.cli import moreslots
from appliance.cli.output import Output
from appliance.config.loader import load_enrolment
from appliance.config.schema import Config, Enrolment
from appliance.errors import MagbayError, NotFoundError, PermissionDeniedError
from appliance.host.api import BlockDevice, Mount
from appliance.keys import luks
from appliance.keys.slots import Disk
from appliance.magazines import candidate, preparations
from appliance.magazines.enrolment import enrol
from appliance.magazines.filesystems import Filesystem, make
from appliance.magazines.preparations import Phase, Preparation
from appliance.magazines.prepare import Plan, Request, execute, plan
from appliance.magazines.wipe import Wipe, Wiped
from tests.unit.lukshelp import LuksDisk, needs_cryptsetup
from tests.unit.machine import Machine

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="preparing disks needs root")
SIZE = 400 * 1024 * 1024


@pytest.fixture
def config(config: Config) -> Config:
    """With an owner that every machine has."""
    return replace(config, prepare=replace(config.prepare, owner="root", group="root"))


def blank(tmp_path: Path, **more: object) -> BlockDevice:
    """A disk whose node is a sparse file, so that the real wipefs can look at it."""
    node = tmp_path / "disk"
    with node.open("wb") as file:
        file.truncate(SIZE)
    values: dict[str, object] = {"size": SIZE, "serial": "S1", "number": "8:16", **more}
    return BlockDevice("sdb", str(node), "disk", **values)  # type: ignore[arg-type]


def planned(
    config: Config, machine: Machine, tmp_path: Path, name: str = "new", serial: str = "", **more: object
) -> Plan:
    request = Request(tmp_path / "disk", name, overwrite_serial=serial, **more)  # type: ignore[arg-type]
    return plan(request, config, machine, machine)


@needs_root
def test_a_blank_disk_has_a_plan(config: Config, tmp_path: Path) -> None:
    todo = planned(config, Machine((blank(tmp_path),)), tmp_path, filesystem=Filesystem.EXT4)
    words = "\n".join(todo.steps(config))
    state = todo.state
    for part in (
        str(SIZE),
        "LUKS2",
        "ext4",
        state.luks_uuid,
        state.filesystem_uuid,
        "enrol it as magazine new",
        "2770",
    ):
        assert part in words
    assert not todo.notes and not todo.goes_on
    assert not list((config.state_dir / "preparing").iterdir()), "a plan changes nothing"


@needs_root
def test_an_owner_or_a_tool_that_does_not_exist_is_refused_before_anything_is_done(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine((blank(tmp_path),))
    with pytest.raises(MagbayError, match="no-such-user") as caught:
        planned(replace(config, prepare=replace(config.prepare, owner="no-such-user")), machine, tmp_path)
    assert caught.value.hint
    monkeypatch.setattr("appliance.magazines.filesystems._SEARCH", str(tmp_path))
    with pytest.raises(MagbayError, match="not installed: nothing was done"):
        planned(config, machine, tmp_path)


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


def tool(*words: str) -> Callable[[Path], None]:
    """Have a real tool write its signature; words end with the disk."""

    def apply(node: Path) -> None:
        if shutil.which(words[0], path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            pytest.skip(f"{words[0]} is not installed")
        subprocess.run(
            [*words, str(node)], check=True, capture_output=True, input=b"size=10M\n" if "sfdisk" in words else b""
        )

    return apply


def container(kind: str) -> Callable[[Path], None]:
    key = "/proc/self/cmdline"  # any bytes do
    return tool("cryptsetup", "luksFormat", "-q", "--type", kind, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key)  # fmt: skip # noqa: E501


def lvm(node: Path) -> None:
    """A physical volume's label as lvm2 writes it: LABELONE in sector 1, checksum from byte 20 on."""
    body = struct.pack("<I8s", 32, b"LVM2 001") + b"0123456789abcdef0123456789abcdef" + bytes(512 - 64)
    crc = zlib.crc32(body, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    with node.open("r+b") as file:
        file.seek(512)
        file.write(struct.pack("<8sQI", b"LABELONE", 1, crc) + body)


def raid(node: Path) -> None:
    """A superblock of md, version 1.2: 4096 bytes from the beginning (md(4))."""
    block = bytearray(1024)
    struct.pack_into("<III", block, 0, 0xA92B4EFC, 1, 0)
    block[16:32] = uuid.uuid4().bytes
    struct.pack_into("<Q", block, 144, 8)  # where it stands, in sectors
    struct.pack_into("<I", block, 220, 0)
    total = sum(struct.unpack(f"<{(256 + 0) // 4}I", bytes(block[:216]) + bytes(4) + bytes(block[220:256])))
    struct.pack_into("<I", block, 216, (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF)
    with node.open("r+b") as file:
        file.seek(4096)
        file.write(block)


@needs_root
@pytest.mark.parametrize(
    ("sign", "words"),
    [
        pytest.param(tool("mkswap", "-q"), "swap", id="swap"),
        pytest.param(tool("mkfs.ext4", "-q", "-F"), "ext4", id="ext4"),
        pytest.param(tool("mkfs.xfs", "-q"), "xfs", id="xfs"),
        pytest.param(tool("mkfs.btrfs", "-q"), "btrfs", id="btrfs"),
        pytest.param(tool("sfdisk", "--quiet", "--label", "gpt"), "gpt", id="gpt"),
        pytest.param(tool("sfdisk", "--quiet", "--label", "dos"), "dos", id="dos"),
        pytest.param(container("luks1"), "crypto_LUKS", id="luks1"),
        pytest.param(container("luks2"), "crypto_LUKS", id="luks2"),
        pytest.param(lvm, "LVM2_member", id="lvm"),
        pytest.param(raid, "linux_raid_member", id="raid"),
    ],
)
def test_what_udev_did_not_see_is_found_and_lost_only_by_the_exact_serial(
    config: Config, tmp_path: Path, sign: Callable[[Path], None], words: str
) -> None:
    machine = Machine((blank(tmp_path),))
    sign(tmp_path / "disk")
    with pytest.raises(MagbayError, match=f"not blank: it holds .*{words}"):
        planned(config, machine, tmp_path)
    for wrong in ("S2", "S", "S1 ", "s1"):
        with pytest.raises(MagbayError, match="not blank"):
            planned(config, machine, tmp_path, serial=wrong)
    assert planned(config, machine, tmp_path, serial="S1")
    nameless = replace(machine.devices[0], serial="")
    with pytest.raises(MagbayError, match="no serial number to name it by"):
        planned(config, Machine((nameless,)), tmp_path)


@needs_root
def test_in_use_stays_in_use_whatever_serial_is_given(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = blank(tmp_path)
    part = BlockDevice("sdb1", "/dev/sdb1", "partition", parent="sdb", number="8:17")
    group = BlockDevice("dm-1", "/dev/dm-1", "disk", below=("sdb1",), number="254:1", mapping="vg-root")

    def refused(words: str, *devices: BlockDevice, mounts: tuple[Mount, ...] = ()) -> None:
        with pytest.raises(MagbayError, match=words):
            planned(config, Machine((disk, *devices), mounts), tmp_path, serial="S1")

    refused("mounted at /srv", mounts=(Mount("/srv", disk.node, "8:16", "ext4", False),))
    refused("mounted at /srv", mounts=(Mount("/srv", disk.node, "0:44", "btrfs", False),))
    refused("the system's own disk: /boot is on it", part, mounts=(Mount("/boot", "x", "8:17", "ext4", False),))
    root = (Mount("/data", "x", "8:17", "ext4", False), Mount("/", "/dev/mapper/vg-root", "254:1", "ext4", False))
    refused("the system's own disk: / is on it", part, group, mounts=root)
    refused("stands on it that is active .*vg-root", part, group)
    refused("stands on it that is active .*/dev/md0", BlockDevice("md0", "/dev/md0", "disk", below=("sdb",)))
    swaps = tmp_path / "swaps"
    swaps.write_text("Filename\tType\tSize\tUsed\tPriority\n/dev/sdb1  partition\t1\t0\t-2\n")
    monkeypatch.setattr(candidate, "_SWAPS", swaps)
    refused("swap space", part)
    swaps.unlink()
    with pytest.raises(MagbayError, match="has partitions: sdb1"):
        planned(config, Machine((disk, part)), tmp_path)
    with pytest.raises(MagbayError, match="a partition of /dev/sdb"):
        planned(config, Machine((replace(disk, kind="partition", parent="sdb"),)), tmp_path, serial="S1")
    with pytest.raises(NotFoundError):
        planned(config, Machine(()), tmp_path)


@needs_root
def test_what_the_kernel_has_given_to_somebody_is_not_taken(config: Config) -> None:
    table = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    source = next((row[-2] for row in table if row[4] == "/" and row[-2].startswith("/dev/")), None)
    if source is None:
        pytest.skip("the root of this machine is on no block device")
    assert candidate.claimed(BlockDevice("x", source, "disk")), "a mounted disk is claimed"


@needs_root
def test_an_enrolled_disk_is_lost_only_by_its_serial_and_its_copy_is_not_it(config: Config, tmp_path: Path) -> None:
    enrol(config, Enrolment("old", "0f0f", "abcd", serial="S1"))
    disk = blank(tmp_path, fs_type="crypto_LUKS", fs_uuid="abcd")
    with pytest.raises(MagbayError, match="it is magazine old"):
        planned(config, Machine((disk,)), tmp_path)
    with pytest.raises(MagbayError, match="called old already"):
        planned(config, Machine((blank(tmp_path, number="8:17"),)), tmp_path, name="old")
    todo = planned(config, Machine((disk,)), tmp_path, name="old", serial="S1")
    assert todo.replaces and todo.replaces.name == "old" and "forget the magazine old" in "\n".join(todo.steps(config))
    copy = replace(disk, serial="S2")
    todo = planned(config, Machine((copy,)), tmp_path, serial="S2")
    assert todo.replaces is None, "the enrolment of the magazine itself stays"
    inner = BlockDevice("dm-0", "/dev/dm-0", "disk", below=("sdb",), mapping="magbay-abcd")
    with pytest.raises(MagbayError, match=r"active .*magazine old"):
        planned(config, Machine((disk, inner)), tmp_path, serial="S1")
    with pytest.raises(MagbayError, match="called m1 already"):
        planned(config, Machine((blank(tmp_path),)), tmp_path, name="m1")


def test_without_root(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionDeniedError):
        planned(config, Machine((blank(tmp_path),)), tmp_path)


def test_enrolment_file_keeps_odd_texts(config: Config) -> None:
    enrol(config, Enrolment("NO", "0f0f", "abcd", serial="12:34", model="0x10 'quoted\" #1", size=5))
    found = load_enrolment(config.enrolment_dir / "0f0f.yaml")
    assert (found.name, found.serial, found.model, found.size) == ("NO", "12:34", "0x10 'quoted\" #1", 5)


# Going on after an interruption ----------------------------------------------------------------------------------


def interrupted(config: Config, disk: BlockDevice, phase: Phase = Phase.WIPING, done: int = 64 << 20) -> Preparation:
    """A record of a run that has overwritten *done* bytes, and the disk as it would be then."""
    import hashlib

    data = os.urandom(4096)
    with Path(disk.node).open("r+b") as file:
        file.seek(done - (4 << 20))
        file.write(data)
    wiped = Wiped(done, {done - (4 << 20): hashlib.sha256(data).hexdigest()})
    state = Preparation(
        disk.serial, disk.model, disk.size, "new", str(uuid.uuid4()), str(uuid.uuid4()), Wipe.RANDOM, phase, wiped
    )
    preparations.write(config, disk, state)
    return state


@needs_root
def test_an_interrupted_overwriting_is_gone_on_with(config: Config, tmp_path: Path) -> None:
    disk = blank(tmp_path)
    state = interrupted(config, disk)
    todo = planned(config, Machine((replace(disk, sequence=77, name="sdq"),)), tmp_path)
    assert todo.goes_on and todo.state.wiped == state.wiped and todo.state.luks_uuid == state.luks_uuid
    assert "going on at 67108864 (16 %)" in "\n".join(todo.steps(config)) and "interrupted" in todo.notes[0]
    stale = replace(disk, fs_type="ext4", has_partitions=True)
    assert planned(config, Machine((stale,)), tmp_path).goes_on, "udev tells what was there before"
    assert planned(config, Machine((disk,)), tmp_path, restart_wipe=True).state.wiped.done == 0
    assert planned(config, Machine((disk,)), tmp_path, wipe=Wipe.NONE).state.wiped.done == 0
    other = replace(disk, serial="S2")
    assert planned(config, Machine((other,)), tmp_path).state.wiped.done == 0, "another disk has its own record"
    with Path(disk.node).open("r+b") as file:
        file.seek(60 << 20)
        file.write(b"somebody has used it since")
    assert planned(config, Machine((disk,)), tmp_path).state.wiped.done == 0, "what was written is not there any more"


@needs_root
def test_a_damaged_record_means_beginning_anew(config: Config, tmp_path: Path) -> None:
    disk = blank(tmp_path)
    interrupted(config, disk)
    (file,) = (config.state_dir / "preparing").glob("*.json")
    for text in (b"", b"{}", b"[]", file.read_bytes()[:-10], file.read_bytes().replace(b'"wiping"', b'"x"')):
        file.write_bytes(text)
        assert not planned(config, Machine((disk,)), tmp_path).goes_on
    file.unlink()
    file.parent.chmod(0o755)
    with pytest.raises(MagbayError, match="not a directory that only its owner may enter"):
        planned(config, Machine((disk,)), tmp_path)


@needs_root
def test_a_container_that_we_had_begun_is_not_in_the_way(config: Config, tmp_path: Path) -> None:
    disk = blank(tmp_path)
    state = interrupted(config, disk, Phase.FORMATTING, done=SIZE)
    begun = replace(disk, fs_type="crypto_LUKS", fs_uuid=state.luks_uuid)
    todo = planned(config, Machine((begun,)), tmp_path)
    assert todo.goes_on and "overwritten with random data already" in "\n".join(todo.steps(config))
    # What a killed run has left open is ours, too; what somebody else has opened is not.
    left = BlockDevice("dm-0", "/dev/dm-0", "disk", below=("sdb",), number="254:0", mapping=state.mapping)
    mounted = (Mount(str(tmp_path / "x"), "/dev/dm-0", "254:0", "ext4", False),)
    assert planned(config, Machine((begun, left), mounted), tmp_path).goes_on
    with pytest.raises(MagbayError, match="stands on it"):
        planned(config, Machine((begun, replace(left, mapping="other"))), tmp_path)
    subprocess.run(["mkswap", "-q", disk.node], check=True)
    with pytest.raises(MagbayError, match="holds swap"):
        planned(config, Machine((begun,)), tmp_path)


@needs_root
def test_an_enrolled_one_without_volumes_is_finished_and_a_used_one_is_not(config: Config, tmp_path: Path) -> None:
    disk = blank(tmp_path)
    for phase in (Phase.FORMATTING, Phase.ENROLLED):
        state = interrupted(config, disk, phase, done=SIZE)
        enrol(config, Enrolment("new", state.filesystem_uuid, state.luks_uuid, serial="S1"))
        ours = replace(disk, fs_type="crypto_LUKS", fs_uuid=state.luks_uuid)
        todo = planned(config, Machine((ours,)), tmp_path)
        assert todo.enrolled and not todo.steps(config)
        with pytest.raises(MagbayError, match="it is magazine new"):
            planned(config, Machine((ours,)), tmp_path, name="other")
        anew = planned(config, Machine((ours,)), tmp_path, serial="S1")
        assert not anew.enrolled and anew.state.luks_uuid != state.luks_uuid
        (config.enrolment_dir / f"{state.filesystem_uuid}.yaml").unlink()
    with pytest.raises(MagbayError, match="holds crypto_LUKS"):
        planned(config, Machine((ours,)), tmp_path)


@needs_root
def test_a_disk_that_says_it_is_failing_is_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "smartctl"
    program.write_text("""#!/bin/sh\necho '{"smartctl": {"exit_status": 8}, "smart_status": {"passed": false}}'\n""")
    program.chmod(0o755)
    machine = Machine((blank(tmp_path),))
    monkeypatch.setattr(candidate, "_SEARCH", str(tmp_path))
    with pytest.raises(MagbayError, match="it is failing, it says"):
        planned(config, machine, tmp_path, serial="S1")
    lenient = replace(config, health=replace(config.health, refuse_failing=False))
    assert "it is failing" in planned(lenient, machine, tmp_path).notes[0]
    program.write_text("#!/bin/sh\necho nonsense; exit 2\n")
    assert planned(config, machine, tmp_path)


@needs_root
def test_two_runs_on_one_disk_or_with_one_name_are_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    todo = planned(config, Machine((blank(tmp_path),)), tmp_path, wipe=Wipe.NONE)
    monkeypatch.setattr("appliance.magazines.exclusive._LOCK_SECONDS", 0.0)

    def go() -> None:
        execute(todo, config, lambda text: None, lambda count: None, lambda: False)

    with (tmp_path / "disk").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(MagbayError, match="by another process"):
            go()
    with (preparations.folder(config) / "new.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(MagbayError, match="another disk is being prepared as magazine new"):
            go()
    assert not config.key_file.exists() and not any((tmp_path / "disk").read_bytes()[: 1 << 20])


@needs_root
def test_a_disk_full_of_what_nobody_knows_is_told_of(config: Config, tmp_path: Path) -> None:
    disk = blank(tmp_path)
    with Path(disk.node).open("r+b") as file:
        file.write(os.urandom(1 << 16))
    assert "not empty" in planned(config, Machine((disk,)), tmp_path).notes[0]


@pytest.mark.parametrize("filesystem", list(Filesystem))
def test_file_systems_are_made_for_few_large_files(filesystem: Filesystem, tmp_path: Path) -> None:
    if shutil.which(f"mkfs.{filesystem.value}", path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        pytest.skip(f"mkfs.{filesystem.value} is not installed")
    node, size, wanted = tmp_path / "fs", 8 << 30, str(uuid.uuid4())
    with node.open("wb") as file:
        file.truncate(size)
    make(filesystem, node, size, uuid=wanted, name="a-magazine-with-a-long-name")
    found = subprocess.run(["blkid", "-p", "-o", "export", node], capture_output=True, text=True, check=True).stdout
    assert f"TYPE={filesystem.value}" in found and f"UUID={wanted}" in found and "LABEL=a-magazine-w" in found
    assert node.stat().st_blocks * 512 < 512 << 20, "tables take less than a tenth"
    if filesystem is Filesystem.EXT4:
        facts = subprocess.run(["dumpe2fs", "-h", node], capture_output=True, text=True, check=True).stdout
        values = {key: value.strip() for key, _, value in (line.partition(":") for line in facts.splitlines())}
        assert values["Reserved block count"] == "0" and values["Errors behavior"] == "Remount read-only"
        assert 65536 <= int(values["Inode count"]) < 70000


@needs_cryptsetup
@pytest.mark.shows_key
def test_passphrase_and_recovery_key_at_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.state_dir.mkdir(exist_ok=True)
    disk = LuksDisk.create(tmp_path / "disk", config.key_file)
    least = ("--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024", "--pbkdf-parallel", "1")
    monkeypatch.setitem(luks._PBKDF, luks.Cost.STRONG, ("--pbkdf", "argon2id", *least))
    words = tmp_path / "words"
    parser = argparse.ArgumentParser()
    moreslots.register(parser)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(["--passphrase-from", str(words), "--recovery"])
    words.write_text("short\n")
    with pytest.raises(MagbayError, match="12 to 512"):
        moreslots.ask(args, "m9")
    words.write_text("nine correct horses\n")
    wanted = moreslots.ask(args, "m9")
    assert wanted.steps() == ("add a passphrase and a recovery key",)
    place = Disk(str(disk.node), disk.uuid, config.state_dir)
    made = moreslots.add(wanted, place, "m9", config, Output())
    assert disk.opens(b"nine correct horses") and disk.opens(made.encode()) and disk.opens(config.key_file)
    assert made in capsys.readouterr().out
    config.key_file.chmod(0o600)
    config.key_file.write_bytes(b"x" * 4096)
    with pytest.raises(MagbayError, match="nothing was changed") as caught:
        moreslots.add(wanted, place, "m9", config, Output())
    assert "magbay key add m9" in caught.value.hint
