"""Rotation: real containers in files, one here and one away; killed at every step there is no disk without a key."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import appliance.host.commands as commands
from appliance.cli.main import main
from appliance.config.schema import Config, Enrolment
from appliance.errors import MagbayError
from appliance.host.api import BlockDevice, Mount
from appliance.keys import headers, keyfile, luks, records, rotation
from appliance.keys.rotation import Opens
from appliance.magazines import keyring, rekeying
from appliance.magazines.keyring import Backup, Container
from appliance.magazines.prepare import enrol
from tests.unit.lukshelp import LuksDisk, needs_cryptsetup

pytestmark = needs_cryptsetup


class Dock:
    """The disks that are plugged."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.disks: list[BlockDevice] = []

    def start(self, wake: object, gone: object = None) -> None: ...

    def enumerate(self) -> tuple[BlockDevice, ...]:
        return tuple(self.disks)

    def table(self) -> tuple[Mount, ...]:
        return ()

    async def trigger(self, path: Path) -> None: ...

    def magazine(self, name: str, kind: str = "luks2") -> LuksDisk:
        """A prepared magazine; its disk is on the shelf."""
        folder = self.config.state_dir.parent
        disk = LuksDisk.create(folder / f"{name}.disk", self.config.key_file, kind)
        enrol(self.config, Enrolment(name, disk.uuid[::-1].replace("-", ""), disk.uuid, serial=name))
        return disk

    def plug(self, disk: LuksDisk) -> None:
        letter = "abcdef"[len(self.disks)]
        self.disks.append(BlockDevice(f"sd{letter}", str(disk.node), "disk", fs_type="crypto_LUKS", fs_uuid=disk.uuid))

    def containers(self) -> tuple[Container, ...]:
        return keyring.containers(self.config, self, self)

    def rekey(self) -> tuple[MagbayError, ...]:
        return keyring.rekey_all(self.config, self.containers(), rotation.load(self.config.key_file), lambda text: None)

    def check(self) -> dict[str, keyring.Finding]:
        keys = rotation.load(self.config.key_file)
        return {f.container.enrolment.name: f for f in keyring.examine(self.config, self.containers(), keys)}


@pytest.fixture
def dock(config: Config) -> Dock:
    config.state_dir.mkdir()
    return Dock(config)


def test_one_here_and_one_away(dock: Dock, config: Config) -> None:
    first, second = dock.magazine("first"), dock.magazine("second")
    old = keyfile.read(config.key_file)
    dock.plug(first)
    dock.rekey()
    keys = rotation.begin(config.key_file)
    assert keys.previous == old and keys.key != old
    assert dock.rekey() == ()
    assert first.opens(keys.key.reveal()) and not first.opens(old.reveal())
    assert second.opens(old.reveal()) and not second.opens(keys.key.reveal())
    found = dock.check()
    assert (found["first"].opens, found["first"].backup) == (Opens.NEW, Backup.CURRENT)
    assert found["first"].settled(keys) and not found["second"].settled(keys) and found["second"].opens is None
    with pytest.raises(MagbayError, match="unfinished"):
        rotation.begin(config.key_file)
    assert keyfile.read(config.key_file) == keys.key

    dock.disks.clear()
    dock.plug(second)
    assert dock.rekey() == ()
    found = dock.check()
    assert found["first"].opens is Opens.NEW and not found["first"].container.node  # by its record
    assert all(finding.settled(keys) for finding in found.values())
    rotation.finish(config.key_file)
    assert not rotation.load(config.key_file).rotating and not keyfile.previous(config.key_file).exists()
    assert second.opens(keys.key.reveal()) and not second.opens(old.reveal())
    backup = LuksDisk(headers.path_of(config.state_dir, second.uuid), second.uuid)
    assert backup.opens(keys.key.reveal()) and not backup.opens(old.reveal())


def test_a_disk_of_another_key_is_left_alone(dock: Dock, config: Config, tmp_path: Path) -> None:
    ours = dock.magazine("ours")
    other = LuksDisk.create(tmp_path / "other.disk", tmp_path / "other.key")
    enrol(config, Enrolment("other", "0f0f", other.uuid))
    rotation.begin(config.key_file)
    dock.plug(other)
    dock.plug(ours)
    before = other.node.read_bytes()
    troubles = dock.rekey()
    assert [trouble.message for trouble in troubles if "neither the key file" in trouble.message and trouble.hint]
    assert other.node.read_bytes() == before and dock.check()["other"].opens is Opens.NONE
    assert dock.check()["ours"].opens is Opens.NEW, "trouble with one does not stop the others"


def test_a_copy_beside_the_magazine_is_refused(dock: Dock, config: Config, tmp_path: Path) -> None:
    disk = dock.magazine("m")
    shutil.copy(disk.node, tmp_path / "copy.disk")
    rotation.begin(config.key_file)
    dock.plug(disk)
    dock.plug(LuksDisk(tmp_path / "copy.disk", disk.uuid))
    before = disk.node.read_bytes()
    dock.rekey()
    assert disk.node.read_bytes() == before
    assert "copy" in dock.check()["m"].trouble
    with pytest.raises(MagbayError, match="copy of magazine m"):
        keyring.here(config, dock, dock, "m")


def test_luks1_and_other_slots_stay(dock: Dock, config: Config, tmp_path: Path) -> None:
    disk = dock.magazine("old", "luks1")
    disk.add(config.key_file, tmp_path / "another")
    dock.plug(disk)
    old = keyfile.read(config.key_file)
    keys = rotation.begin(config.key_file)
    assert dock.rekey() == ()
    assert disk.opens(keys.key.reveal()) and not disk.opens(old.reveal()) and disk.opens(tmp_path / "another")
    record = records.read(config.state_dir, disk.uuid)
    assert record is not None and sorted(record.slots.values()) == ["another key or passphrase", "key file"]


_CHANGES = ("luksAddKey", "luksKillSlot", "config", "luksHeaderBackup", "encrypt")


def _killed(work: Callable[[], Any], moment: int) -> bool:
    """Run *work* in a child that is killed after its *moment*-th step: a command that changes a disk, or a change of a
    file. Between these steps nothing changes. False when *work* ends before."""
    child = os.fork()
    if child == 0:
        left = moment

        def step() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def around(real: Callable[..., Any]) -> Callable[..., Any]:
            def stepping(*args: Any, **more: Any) -> Any:
                result = real(*args, **more)
                if not isinstance(args[0], list) or args[0][1] in _CHANGES:
                    step()
                return result

            return stepping

        for place, name in (
            (commands.subprocess, "run"),
            (os, "link"),
            (os, "rename"),
            (Path, "replace"),
            (os, "write"),
        ):
            setattr(place, name, around(getattr(place, name)))
        Path.unlink = around(Path.unlink)  # type: ignore[method-assign]
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_at_every_step_of_rekeying(dock: Dock, config: Config, tmp_path: Path) -> None:
    disk = dock.magazine("m")
    dock.plug(disk)
    rotation.begin(config.key_file)
    keys = rotation.load(config.key_file)
    assert keys.previous is not None
    pristine, seen, moment = disk.node.read_bytes(), set(), 0
    while True:
        moment += 1
        disk.node.write_bytes(pristine)
        shutil.rmtree(config.state_dir / "headers", ignore_errors=True)
        if not _killed(dock.rekey, moment):
            break
        slots = luks.header(disk.node).cheap_slots()
        old, new = (luks.opens(disk.node, key, slots) is not None for key in (keys.previous, keys.key))
        assert old or new, f"killed at step {moment}: no key opens the disk"
        seen.add((old, new))
        if moment % 3 == 0:  # all go on to the end; the others start from the same few states
            assert dock.rekey() == () and dock.check()["m"].settled(keys)
    assert seen == {(True, False), (True, True), (False, True)} and moment > 8
    assert dock.check()["m"].settled(keys) and os.listdir(config.state_dir / "headers")


def test_cryptsetup_itself_killed_while_it_writes(dock: Dock, config: Config, tmp_path: Path) -> None:
    disk = dock.magazine("m")
    old, new = config.key_file, tmp_path / "new"
    new.write_bytes(keyfile.generate().reveal())
    words = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", old, disk.node, new]
    for milliseconds in range(5, 65, 5):
        subprocess.run(
            ["timeout", "-s", "KILL", f"0.{milliseconds:03}", "cryptsetup", "luksAddKey", "-q", *words],
            capture_output=True,
        )
        assert disk.opens(old), f"killed after {milliseconds} ms"


def test_killed_at_every_step_of_beginning_and_finishing(dock: Dock, config: Config) -> None:
    path = config.key_file
    older = keyfile.previous(path)
    keyfile.ensure(path)
    first = keyfile.read(path)

    def reset(keep_previous: bool) -> None:
        for leftover in path.parent.glob("*key*"):
            leftover.unlink()
        keyfile.store(path, first, keyfile.Form.PLAIN)
        if keep_previous:
            rotation.begin(path)

    moment, begun = 0, 0
    while True:
        moment += 1
        reset(False)
        if not _killed(lambda: rotation.begin(path), moment):
            break
        keys = rotation.load(path)
        assert first in (keys.key, keys.previous), f"killed at step {moment}: the old key is lost"
        begun += keys.rotating
        if not keys.rotating:
            assert rotation.begin(path).previous == first
    assert moment > 3 and begun >= 1
    moment = 0
    while True:
        moment += 1
        reset(True)
        new = keyfile.read(path)
        if not _killed(lambda: rotation.finish(path), moment):
            break
        assert keyfile.read(path) == new
        rotation.finish(path)
        assert not older.exists()
    assert moment > 2 and keyfile.read(path) == new and not older.exists()


def test_the_previous_key_is_overwritten_but_never_the_key(dock: Dock, config: Config, tmp_path: Path) -> None:
    path = config.key_file
    keyfile.ensure(path)
    os.link(path, keyfile.previous(path))  # as a cut beginning leaves it
    key = keyfile.read(path)
    rotation.finish(path)
    assert keyfile.read(path) == key and not keyfile.previous(path).exists()
    rotation.begin(path)
    with keyfile.previous(path).open("rb") as held:
        rotation.finish(path)
        assert held.read() == bytes(4096), "its bytes must not stay on the disk"


def _magbay(config: Config, *words: str) -> int:
    return main(["--config", str(config.state_dir.parent / "magbay.yaml"), "--json", "key", *words])


def test_commands(dock: Dock, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(*words: str, status: int = 0) -> Any:
        assert _magbay(config, *words) == status, capsys.readouterr()
        return json.loads(capsys.readouterr().out)

    assert "no key file" in ask("show", status=4)["error"]
    made = ask("create")
    assert made["form"] == "plain" and made["bytes"] == 4096 and not made["rotating"]
    assert config.key_file.stat().st_mode & 0o777 == 0o400
    assert "a key already" in ask("create", status=1)["error"]
    dock.magazine("m")
    assert ask("check", status=3)["magazines"][0]["opens_with"] == "unknown"
    assert "no rotation" in ask("rotate", "--finish", status=1)["error"]

    def status() -> Any:
        """What anybody sees of it."""
        file = str(config.state_dir.parent / "magbay.yaml")
        assert main(["--config", file, "--json", "status"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert main(["--config", file, "status"]) == 0
        assert ("Key rotation unfinished" in capsys.readouterr().out) == (document["key_rotation"] is not None)
        return document["key_rotation"]

    assert status() is None
    rotated = ask("rotate")
    assert rotated["previous_fingerprint"] == made["fingerprint"] and rotated["previous_key_needed_by"] == ["m"]
    assert "unfinished" in ask("rotate", status=1)["error"]
    refused = ask("rotate", "--finish", status=1)
    assert "still needed by m" in refused["error"] and "forget" in refused["hint"]
    assert ask("rotate", "--resume")["fingerprint"] == rotated["fingerprint"]
    assert status()["needed_by"] == ["m"]
    keys = rotation.load(config.key_file)
    enrolment = dock.containers()[0].enrolment
    rekeyed = records.Record(keys.key.fingerprint(), "2026-01-01T00:00:00Z", {0: "key file"})
    records.write(config.state_dir, enrolment.luks_uuid, rekeyed)
    rekeying.note(config, keys)
    assert "--finish" in status()["sentence"]
    assert "not here" in ask("list", "m", status=75)["error"]
    assert "no enrolled magazine" in ask("list", "x", status=4)["error"]
    kept = config.key_file.with_name("away")
    config.key_file.rename(kept)
    assert "would not open them" in ask("create", status=1)["error"]
    with pytest.raises(MagbayError, match="previous one is there"):
        keyfile.ensure(config.key_file)
    kept.rename(config.key_file)
    assert ask("rotate", "--finish")["finished"] and status() is None


@pytest.mark.parametrize(("data", "mode", "words"), [(b"short", 0o400, "damaged"), (bytes(4096), 0o644, "others")])
def test_an_unusable_key_file_is_named(config: Config, data: bytes, mode: int, words: str) -> None:
    config.key_file.write_bytes(data)
    config.key_file.chmod(mode)
    with pytest.raises(MagbayError, match=words):
        rotation.load(config.key_file)
