"""Key slots beside the key file's, a lost header, and the secrets on their way to other programs."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.keyslots import typed_secret
from appliance.cli.main import main
from appliance.config.schema import Config, Enrolment
from appliance.errors import MagbayError, NotFoundError
from appliance.host.api import BlockDevice, Mount
from appliance.host.commands import run
from appliance.keys import headers, keyfile, luks, records, recovery, rotation, slots
from appliance.keys.luks import Cost
from appliance.keys.rotation import Keys, Opens
from appliance.keys.secret import Secret
from appliance.keys.slots import Disk
from appliance.magazines import headerless
from appliance.magazines.prepare import enrol
from appliance.magazines.states import Facts, State, observe, unlock_may_pass
from tests.unit.lukshelp import LuksDisk, needs_cryptsetup

ROOT = Path(__file__).parents[2]
_QUICK = ("--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024", "--pbkdf-parallel", "1")


@pytest.fixture
def disk(config: Config) -> LuksDisk:
    config.state_dir.mkdir()
    return LuksDisk.create(config.state_dir.parent / "disk", config.key_file)


@pytest.fixture
def place(disk: LuksDisk, config: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[Disk, Keys]:
    """The container and its keys; the slow key derivation is argon2id as ever, at its least."""
    monkeypatch.setitem(luks._PBKDF, Cost.STRONG, _QUICK)
    return Disk(str(disk.node), disk.uuid, config.state_dir), rotation.load(config.key_file)


@needs_cryptsetup
def test_passphrase_and_recovery_key_open_with_stock_cryptsetup(
    disk: LuksDisk, place: tuple[Disk, Keys], config: Config
) -> None:
    container, keys = place
    words = Secret(b"nine correct horses")
    assert slots.add_passphrase(container, keys, words) == 1
    number, made = slots.add_recovery(container, keys)
    assert number == 2 and disk.kdfs() == {0: "pbkdf2", 1: "argon2id", 2: "argon2id"}
    assert disk.opens(words.reveal()) and disk.opens(made.reveal())
    assert slots.opened_by(container, made) == 2 and slots.opened_by(container, Secret(b"something else")) is None
    kinds = {slot.number: (kind, slot.preferred) for slot, kind in slots.listing(container, keys)}
    assert kinds == {0: ("key file", True), 1: ("passphrase", False), 2: ("recovery key", False)}
    record = records.read(config.state_dir, disk.uuid)
    assert record is not None and record.slots == {0: "key file", 1: "passphrase", 2: "recovery key"}
    assert LuksDisk(headers.path_of(config.state_dir, disk.uuid), disk.uuid).opens(made.reveal())

    assert slots.remove(container, keys, 2) == "recovery key"
    assert not disk.opens(made.reveal()) and luks.header(disk.node).tokens == ()
    assert not LuksDisk(headers.path_of(config.state_dir, disk.uuid), disk.uuid).opens(made.reveal())
    with pytest.raises(MagbayError, match="key file's"):
        slots.remove(container, keys, 0)
    with pytest.raises(NotFoundError, match="not in use"):
        slots.remove(container, keys, 7)
    # Rotation leaves the others alone, and never tries the new key on the slow slots.
    rotation.begin(config.key_file)
    now = rotation.load(config.key_file)
    assert rotation.rekey(disk.node, disk.uuid, now, config.state_dir, lambda text: None) is Opens.NEW
    assert disk.opens(words.reveal()) and sorted(disk.kdfs().values()) == ["argon2id", "pbkdf2"]


@needs_cryptsetup
@pytest.mark.parametrize("words", [b"too short", b"\xff" * 20, b"a\nb" * 10, b"x" * 600])
def test_a_passphrase_that_nobody_could_type_is_refused(disk: LuksDisk, place: tuple[Disk, Keys], words: bytes) -> None:
    before = disk.node.read_bytes()
    with pytest.raises(MagbayError, match="passphrase"):
        slots.add_passphrase(*place, Secret(words))
    assert disk.node.read_bytes() == before


@needs_cryptsetup
def test_a_disk_that_the_key_does_not_open_is_not_changed(disk: LuksDisk, place: tuple[Disk, Keys]) -> None:
    before = disk.node.read_bytes()
    with pytest.raises(MagbayError, match="does not open"):
        slots.add_recovery(place[0], Keys(keyfile.generate(), None))
    assert disk.node.read_bytes() == before


@needs_cryptsetup
@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_an_imported_disk_gets_the_key_of_the_appliance(config: Config, tmp_path: Path, kind: str) -> None:
    config.state_dir.mkdir()
    keyfile.ensure(config.key_file)
    old, keys = LuksDisk.create(tmp_path / "old", tmp_path / "other.key", kind), rotation.load(config.key_file)
    container = Disk(str(old.node), old.uuid, config.state_dir)
    before = old.node.read_bytes()
    with pytest.raises(MagbayError, match="opens no key slot") as caught:
        slots.add_own_key(container, keys, Secret(b"not this one"))
    assert "--key-file" in caught.value.hint and old.node.read_bytes() == before
    assert slots.add_own_key(container, keys, Secret((tmp_path / "other.key").read_bytes())) == 1
    assert old.opens(config.key_file) and old.opens(tmp_path / "other.key")
    assert [kind for _, kind in slots.listing(container, keys)] == ["another key or passphrase", "key file"]
    assert LuksDisk(headers.path_of(config.state_dir, old.uuid), old.uuid).opens(config.key_file)
    with pytest.raises(MagbayError, match="already"):
        slots.add_own_key(container, keys, Secret(b"whatever"))


@pytest.mark.parametrize(
    "words",
    [
        "create --with tpm2",
        "add m1 --tpm2 --from file",
        "add m1 --passphrase --thumbprint x",
        "add m1 --passphrase --key-file file",
        "add m1 --own-key --key-file file --from other",
    ],
)
def test_options_that_would_be_ignored_are_refused(config: Config, words: str) -> None:
    assert main(["--config", str(config.state_dir.parent / "magbay.yaml"), "key", *words.split()]) == 2
    assert not config.key_file.exists()


def test_command_lines_of_other_enrollers() -> None:
    assert slots.cryptenroll("/dev/sdx", "/dev/fd/7", "--tpm2-device=auto") == [
        "systemd-cryptenroll",
        "--unlock-key-file=/dev/fd/7",
        "--tpm2-device=auto",
        "/dev/sdx",
    ]
    assert slots.cryptenroll("/dev/sdx", "/dev/fd/7", *slots.TPM2.options)[2:4] == [
        "--tpm2-device=auto",
        "--tpm2-pcrs=7",
    ]
    words = slots.clevis("/dev/sdx", "/dev/shm/k", "http://tang", "abc")
    assert words[:-1] == ["clevis", "luks", "bind", "-d", "/dev/sdx", "-k", "/dev/shm/k", "tang"]
    assert json.loads(words[-1]) == {"url": "http://tang", "thp": "abc"}
    assert json.loads(slots.clevis("/dev/sdx", "k", "http://tang", "")[-1]) == {"url": "http://tang"}


@needs_cryptsetup
@pytest.mark.parametrize(
    "add",
    [
        lambda *place: slots.add_device(*place, slots.TPM2),
        lambda *place: slots.add_device(*place, slots.FIDO2),
        lambda *place: slots.add_tang(*place, "http://tang", "thumbprint"),
    ],
)
def test_luks1_has_no_place_for_tokens(config: Config, tmp_path: Path, add: Callable[..., None]) -> None:
    config.state_dir.mkdir()
    old = LuksDisk.create(tmp_path / "old", config.key_file, "luks1")
    before = old.node.read_bytes()
    with pytest.raises(MagbayError, match="LUKS1 header") as caught:
        add(Disk(str(old.node), old.uuid, config.state_dir), rotation.load(config.key_file))
    assert "recovery key" in caught.value.hint and old.node.read_bytes() == before
    assert not list((config.state_dir / "headers").glob("*")), "nothing was begun"


@pytest.mark.parametrize(("status", "words"), [(7, "the TPM of this machine"), (8, "the Tang server")])
def test_what_else_could_have_opened_it_is_named(status: int, words: str) -> None:
    facts = Facts(enrolled=True, unit="failed", unit_result="exit-code", unit_status=status, attempted=True)
    verdict = observe(facts)
    assert verdict.state is State.FAILED and words in verdict.reason and "key file" in verdict.reason and verdict.hint
    assert unlock_may_pass("exit-code", status), "it is tried again by itself"


@needs_cryptsetup
def test_a_tool_that_is_not_installed_is_named_and_leaves_no_key_behind(
    place: tuple[Disk, Keys], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(slots, "_memory", lambda: str(tmp_path))
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(slots, "clevis", lambda *words: ["clevis-that-is-not-there"])
    with pytest.raises(MagbayError, match="not installed") as caught:
        slots.add_tang(*place, "http://tang", "")
    assert caught.value.hint and set(tmp_path.iterdir()) - before <= {tmp_path / "state"}


def test_recovery_keys_have_the_form_of_systemd() -> None:
    made = recovery.generate().reveal().decode()
    groups = made.split("-")
    assert [len(group) for group in groups] == [8] * 8 and set(made) <= set("cbdefghijklnrtuv-")
    assert recovery.generate() != recovery.generate()
    for typed in (made, made.upper(), made.replace("-", " "), f"  {made}\n", made.replace("-", "")):
        assert recovery.normal(typed) == made
    assert recovery.normal("a pass-phrase of-mine") == "a pass-phrase of-mine"
    wrong = "-".join([*groups[:3], "aaaaaaaa", *groups[4:]])
    with pytest.raises(MagbayError, match="group 4"):
        recovery.normal(wrong)


def test_a_passphrase_comes_from_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p").write_text("from a file\nsecond line\n")
    assert typed_secret(str(tmp_path / "p"), "", twice=True) == Secret(b"from a file")
    with (tmp_path / "p").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert typed_secret("-", "", twice=True) == Secret(b"from a file")


def test_a_secret_does_not_show() -> None:
    secret = Secret(os.urandom(32))
    text = f"{secret!r} {secret} {[secret]} {Keys(secret, secret)}"
    assert text.count("<secret>") == 5
    with pytest.raises(TypeError):
        __import__("pickle").dumps(secret)
    with secret.descriptor() as descriptor:
        seen = run(["sha256sum", f"/dev/fd/{descriptor}"], "x", descriptors=[descriptor])
    assert seen[:16] == secret.fingerprint()
    with pytest.raises(ValueError), Secret(bytes(5000)).descriptor():
        pass


def test_a_process_that_holds_a_secret_leaves_no_core() -> None:
    script = (
        "import resource, subprocess; from appliance.keys.secret import Secret\n"
        "Secret(b'x' * 32); print(resource.getrlimit(resource.RLIMIT_CORE), flush=True)\n"
        "subprocess.run(['cat', '/proc/self/limits'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith(("(1, 1)", "(0, 0)")), done
    assert re.search(r"Max core file size +([01]) +\1 ", done.stdout), "and the tools it starts have the limit, too"
    assert resource.getrlimit(resource.RLIMIT_CORE)[1] in (0, 1), "this very process has held secrets"


class Machine:
    """Devices as given, nothing mounted unless said."""

    def __init__(self, *devices: BlockDevice, mounts: tuple[Mount, ...] = ()) -> None:
        self.devices, self.mounts = devices, mounts

    def start(self, wake: object, gone: object = None) -> None: ...

    def enumerate(self) -> tuple[BlockDevice, ...]:
        return self.devices

    def table(self) -> tuple[Mount, ...]:
        return self.mounts

    async def trigger(self, path: Path) -> None: ...


@needs_cryptsetup
class TestLostHeader:
    """`magbay key header-restore`: the right disk only."""

    @pytest.fixture
    def device(self, disk: LuksDisk, config: Config) -> BlockDevice:
        size = disk.node.stat().st_size
        enrol(config, Enrolment("m", "0f0f", disk.uuid, serial="S?1", size=size))
        headers.backup(disk.node, disk.uuid, config.state_dir)
        with disk.node.open("r+b") as file:
            file.write(bytes(3 << 20))
        return BlockDevice("sdb", str(disk.node), "disk", size=size, serial="S\n1", number="8:16")

    def identify(self, config: Config, *devices: BlockDevice, **more: Any) -> headerless.Headerless:
        machine = Machine(*devices, mounts=more.get("mounts", ()))
        name, force = more.get("name", ""), more.get("force", False)
        return headerless.identify(config, machine, machine, Path(devices[0].node), name, force)

    def test_the_header_comes_back(self, device: BlockDevice, disk: LuksDisk, config: Config) -> None:
        assert not disk.opens(config.key_file)
        found = self.identify(config, device)
        assert found.enrolment.name == "m"
        assert headerless.restore(config, found, rotation.load(config.key_file)) is Opens.NEW
        assert disk.opens(config.key_file)

    @pytest.mark.parametrize(
        ("facts", "words"),
        [
            ({"serial": "S2"}, "no magazine by its serial"),
            ({"serial": ""}, "no magazine by its serial"),
            ({"size": 7 << 20}, "no magazine by its serial"),
            ({"read_only": True}, "write-protected"),
            ({"fs_type": "ext4"}, "holds ext4"),
            ({"fs_type": "crypto_LUKS", "fs_uuid": "another"}, "holds crypto_LUKS"),
            ({"has_partitions": True}, "partitions"),
        ],
    )
    def test_refused(self, device: BlockDevice, config: Config, facts: dict[str, Any], words: str) -> None:
        with pytest.raises(MagbayError, match=words) as caught:
            self.identify(config, replace(device, **facts))
        assert caught.value.hint

    def test_in_use_or_intact(self, device: BlockDevice, disk: LuksDisk, config: Config) -> None:
        above = BlockDevice("dm-0", "/dev/dm-0", "disk", below=("sdb",))
        with pytest.raises(MagbayError, match="in use"):
            self.identify(config, device, above)
        with pytest.raises(MagbayError, match="mounted"):
            self.identify(config, device, mounts=(Mount("/srv", device.node, "8:16", "ext4", False),))
        twin = BlockDevice("sdc", "/dev/sdc", "disk", fs_type="crypto_LUKS", fs_uuid=disk.uuid)
        with pytest.raises(MagbayError, match="/dev/sdc carries"):
            self.identify(config, device, twin)
        intact = replace(device, fs_type="crypto_LUKS", fs_uuid=disk.uuid)
        with pytest.raises(MagbayError, match="header is there"):
            self.identify(config, intact)
        assert self.identify(config, intact, force=True).enrolment.name == "m"

    def test_by_name(self, device: BlockDevice, disk: LuksDisk, config: Config) -> None:
        assert self.identify(config, device, name="m").enrolment.name == "m"
        with pytest.raises(MagbayError, match="is not the disk of magazine m"):
            self.identify(config, replace(device, serial="S2"), name="m")
        with pytest.raises(NotFoundError):
            self.identify(config, device, name="x")
        headers.path_of(config.state_dir, disk.uuid).unlink()
        with pytest.raises(NotFoundError, match="no backup"):
            self.identify(config, device)


def test_unit_and_script_know_the_same_keys() -> None:
    unit = (ROOT / "systemd/magbay-unlock@.service").read_text().splitlines()
    loaded = dict(
        line.split("=", 1)[1].split(":") for line in unit if line.startswith(("LoadCredential=", "LoadCredentialEncr"))
    )
    path = Path("/etc/magbay/keys/magbay.key")
    assert set(loaded.values()) == {
        str(file) for key in (path, keyfile.previous(path)) for file in (key, keyfile.sealed(key))
    }
    assert {line for line in unit if line.startswith("SetCredential=")} == {
        f"SetCredential={name}:-" for name in loaded
    }
    script = (ROOT / "systemd/libexec/open-container").read_text()
    listed = next(line for line in script.splitlines() if line.startswith("for key in magbay.key"))
    assert set(listed.removeprefix("for key in ").removesuffix("; do").split()) == set(loaded)
    assert (
        "ConditionPathExistsGlob=/etc/magbay/keys/magbay.key.previous*"
        in (ROOT / "systemd/magbay-rekey@.service").read_text()
    )
    for name in ("magbay-unlock@.service", "magbay-rekey@.service"):
        assert "LimitCORE=0" in (ROOT / "systemd" / name).read_text()
