"""Configurations of vchanger as they are, of 0.8 and 1.0: their drives, slots, names and commands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.changer import command
from appliance.changer.service import Changer
from appliance.changer.view import current
from appliance.cli.main import main
from appliance.config import vchanger
from appliance.config.loader import is_vchanger, load
from appliance.config.schema import Config, DirectorKind
from appliance.errors import ConfigError
from appliance.host.real.mounts import parse
from appliance.magazines import elsewhere

LABEL = b"\x00\x00\x00\x01\x00\x00\x00\xc8\x00\x00\x00\x00BB02" + bytes(200)
UUID = "0b9a0000-1111-2222-3333-444455556666"
OLD = """# the tutorial's
changer_name = c1
work_dir = {root}/work
logfile = vchanger.log
log_level = LOG_INFO
Virtual_Drives = 2
slots_per_magazine = 10
magazine_bays = 2   # two docks
automount_dir = {root}/auto
magazine = "UUID:0B9A0000-1111-2222-3333-444455556666"
magazine = "{root}/m2"
magazine = '{root}/m3'
"""
NEW = """[global]
Storage Resource = "TestChanger"
Work Dir = {root}/work
Logfile = "{root}/vc\\x2elog"
Log Level = 4
bconsole = ""
; three bays
Magazine = {root}/m0
Magazine = {root}/m#1   # the blank begins the comment
Magazine = {root}/m2
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str, config: str = "vchanger.conf") -> tuple[int, str, str]:
        status = command.main([str(tmp_path / config), *words])
        return (status, *capfd.readouterr())

    return call


def fill(directory: Path, *names: str, data: bytes = LABEL) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_bytes(data)


class TestOld:
    """0.8: fixed slots for each magazine, drives in directories."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        (tmp_path / "vchanger.conf").write_text(OLD.format(root=tmp_path))
        fill(tmp_path / "auto" / UUID.upper(), *(f"c1_0001_000{n}" for n in (1, 2, 4)))
        fill(tmp_path / "m2", "c1_0002_0001")
        return tmp_path

    def test_each_magazine_keeps_its_slots_whatever_is_in_the_bays(self, root: Path, run: Run) -> None:
        assert run("slots") == (0, "30\n", "")
        assert run("list") == (0, "1:c1_0001_0001\n2:c1_0001_0002\n4:c1_0001_0004\n11:c1_0002_0001\n", "")
        (root / "m2").rename(root / "shelf")
        fill(root / "m3", "c1_0003_0002", "odd")
        assert run("list")[1] == "1:c1_0001_0001\n2:c1_0001_0002\n4:c1_0001_0004\n11:\n21:odd\n22:c1_0003_0002\n"
        (root / "shelf").rename(root / "m2")
        fill(root / "auto" / UUID.upper(), "c1_0001_0003")
        assert run("list")[1].splitlines()[:5] == [
            "1:c1_0001_0001",
            "2:c1_0001_0002",
            "3:c1_0001_0003",
            "4:c1_0001_0004",
            "11:c1_0002_0001",
        ]

    def test_the_drive_is_where_the_old_daemon_configuration_opens_it(self, root: Path, run: Run) -> None:
        device = root / "work" / "1" / "drive1"
        # What vchanger 0.8 left: its drive was a link to the mount point.
        (root / "work").mkdir()
        (root / "work" / "1").symlink_to(root / "m2")
        assert run("loaded", "0", str(device), "1") == (0, "0\n", "")
        assert run("load", "11", str(device), "1") == (0, "", "")
        assert device.readlink() == root / "m2" / "c1_0002_0001" and not (root / "work" / "1").is_symlink()
        assert run("loaded", "11", str(device), "1") == (0, "11\n", "")
        assert "D:1:F:11:c1_0002_0001\n" in run("listall")[1]
        assert run("unload", "11", str(device), "1") == (0, "", "")
        assert not device.exists() and not device.is_symlink()
        assert run("loaded", "0", str(device), "1") == (0, "0\n", "")
        # A daemon that was configured for 1.0 opens the other path; each load makes the one that is asked for.
        assert run("load", "11", str(root / "work" / "1"), "1") == (0, "", "")
        assert (root / "work" / "1").readlink() == root / "m2" / "c1_0002_0001"
        assert run("load", "11", str(device), "1") == (0, "", "")
        assert device.readlink() == root / "m2" / "c1_0002_0001"

    def test_the_options_of_the_tutorial(self, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
        me = str(os.getuid()), str(os.getgid())
        words = ["-u", me[0], "-g", me[1], str(root / "vchanger.conf"), "slots", "0", "/dev/null", "0"]
        assert command.main(words) == 0
        assert capfd.readouterr() == ("30\n", "")

    def test_an_empty_mount_point_is_no_magazine(self, root: Path, run: Run) -> None:
        for path in (root / "auto" / UUID.upper()).iterdir():
            path.unlink()
        assert run("listmags")[1] == f"1::0:\n2:c1:2:{root}/m2\n3::0:\n"
        assert run("createvols", "1", "2")[0] == 1
        assert list((root / "auto" / UUID.upper()).iterdir()) == []
        # It comes: seen at once, though nothing but the directory has changed.
        assert run("list")[1] == "11:c1_0002_0001\n"
        fill(root / "auto" / UUID.upper(), "c1_0001_0001")
        assert run("list")[1] == "1:c1_0001_0001\n11:c1_0002_0001\n"
        assert run("listmags")[1].startswith(f"1:c1:1:{root}/auto/{UUID.upper()}\n")

    def test_volumes_are_made_with_the_names_of_0_8(self, root: Path, run: Run) -> None:
        assert run("createvols", "2", "2")[1] == (
            "creating label 'c1_0002_0002'\ncreating label 'c1_0002_0003'\nCreated 2 volume files on magazine 2\n"
        )
        assert "11:c1_0002_0001\n12:c1_0002_0002\n13:c1_0002_0003\n" in run("list")[1]

    def test_a_load_that_0_8_left_on_its_disk_is_undone(self, root: Path, run: Run) -> None:
        (root / "m2" / "c1_0002_0001").rename(root / "m2" / "drive0")
        (root / "m2" / "loaded0").write_text("c1_0002_0001\n")
        (root / "m2" / "index").write_text("other_0002\n")
        assert "11:" not in run("list")[1]  # a disk of another changer: its volume has another name than it seems
        (root / "m2" / "index").write_text("c1_0002\n")
        assert "11:c1_0002_0001\n" in run("list")[1]
        names = sorted(path.name for path in (root / "m2").iterdir())
        assert names == [".loaded0.done", "c1_0002_0001", "index"]
        assert (root / "m2" / ".loaded0.done").read_text() == "c1_0002_0001\n"

    def test_more_volumes_than_the_magazine_has_slots_are_named(
        self, root: Path, run: Run, capfd: pytest.CaptureFixture[str]
    ) -> None:
        fill(root / "m2", *(f"c1_0002_{n:04d}" for n in range(1, 13)))
        assert run("list")[1].count("c1_0002_") == 10
        assert main(["--config", str(root / "vchanger.conf"), "slots"]) == 3
        assert "no slot for m2/c1_0002_0011, m2/c1_0002_0012" in capfd.readouterr().err

    def test_failures_go_to_its_log(self, root: Path, run: Run) -> None:
        assert run("load", "9", "x", "0")[0] == 1
        text = (root / "work" / "vchanger.log").read_text()
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \S+ \[\d+\]: load 9 x 0: Source Element Address 9 is Empty.*\n", text)


class TestNew:
    """1.0: slots as volumes come, drives are links in the work directory."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        (tmp_path / "vchanger.conf").write_text(NEW.format(root=tmp_path).replace("\n", "\r\n"))
        fill(tmp_path / "m0", *(f"TestChanger_0000_000{n}" for n in range(3)))
        fill(tmp_path / "m#1", "TestChanger_0001_0001", "TestChanger_0001_0002")
        (tmp_path / "m2").mkdir()
        return tmp_path

    def test_the_answers_are_those_of_vchanger(self, root: Path, run: Run) -> None:
        assert run("load", "2", "/dev/null", "0") == (0, "", "")
        assert run("load", "4", str(root / "work" / "3"), "3") == (0, "", "")
        assert (root / "work" / "0").readlink() == root / "m0" / "TestChanger_0000_0001"
        assert (root / "work" / "3").readlink() == root / "m#1" / "TestChanger_0001_0001"
        assert run("loaded", "0", "/dev/null", "0")[1] == "2\n"
        assert run("loaded", "0", "/dev/null", "13")[1] == "0\n"
        assert run("listall")[1].splitlines() == [
            "D:0:F:2:TestChanger_0000_0001",
            "D:1:E",
            "D:2:E",
            "D:3:F:4:TestChanger_0001_0001",
            "S:1:F:TestChanger_0000_0000",
            "S:2:E",
            "S:3:F:TestChanger_0000_0002",
            "S:4:E",
            "S:5:F:TestChanger_0001_0002",
            *(f"S:{slot}:E" for slot in range(6, 11)),
        ]
        assert run("slots")[1] == "1000\n"
        (root / "m2").rmdir()
        assert run("listmags")[1] == f"0:3:1:{root}/m0\n1:2:4:{root}/m#1\n2:::\n"
        assert run("refresh", "--force") == (0, "", "")

    def test_the_slots_that_vchanger_had_given_stay(self, root: Path, run: Run) -> None:
        (root / "work").mkdir()
        (root / "work" / "bay_state-0").write_text(f"{root}/m0,3,13\n")
        (root / "work" / "bay_state-1").write_text(f"{root}/m#1,2,4\n")
        (root / "work" / "bay_state-2").write_text("garbage")
        fill(root / "m2", "x")
        listed = "".join(f"{slot}:TestChanger_0000_000{slot - 13}\n" for slot in (13, 14, 15))
        assert run("list")[1] == f"1:x\n4:TestChanger_0001_0001\n5:TestChanger_0001_0002\n{listed}"
        fill(root / "m0", "TestChanger_0000_0000_more")
        assert run("list")[1] == (
            f"1:x\n2:TestChanger_0000_0000_more\n4:TestChanger_0001_0001\n5:TestChanger_0001_0002\n{listed}"
        )

    def test_volumes_are_made_as_vchanger_makes_them(self, root: Path, run: Run) -> None:
        assert run("createvols", "0", "2")[1] == (
            "creating label 'TestChanger_0000_0003'\ncreating label 'TestChanger_0000_0004'\n"
            "Created 2 volume files on magazine 0\n"
        )
        status, out, _err = run("createvols", "2", "2", "7", "-l", "W", "--pool=Offsite")
        assert status == 0 and out.startswith("creating label 'W0007'\ncreating label 'W0008'\nCreated 2 volume files")
        assert 'label storage="TestChanger" pool="Offsite" slots=8-9 barcodes' in out
        assert (root / "m2" / "W0007").stat().st_size == 0
        for words, says in (
            (("9", "1"), "no bay or magazine '9'"),
            (("0",), "needs bay and number"),
            (("0", "x"), "number of volumes must be"),
            (("0", "0"), "number of volumes must be"),
            (("0", "1", "-l", "../x"), "cannot begin"),
            (("0", "2", "9999"), "only 1 names"),
        ):
            status, out, err = run("createvols", *words)
            assert (status, out) == (1, "") and says in err, (words, err)

    def test_any_file_counts_as_with_vchanger_and_grows_the_changer(self, root: Path, run: Run) -> None:
        fill(root / "m2", *(f"v{n:04d}" for n in range(1100)), data=b"x" * 214)
        assert run("slots")[1] == "2000\n"
        assert run("load", "1105", "x", "0") == (0, "", "")
        assert run("loaded", "0", "x", "0")[1] == "1105\n"

    def test_the_user_of_the_file_holds_for_root(self, root: Path, run: Run) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, who alone may become somebody else")
        with (root / "vchanger.conf").open("a") as file:
            file.write("User = no-such-user\n")
        assert "no user 'no-such-user'" in run("list")[2]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("magazine = /x\nfoo = 1\n", 2, "unknown keyword 'foo'"),
        ("magazine = /x\n\n# c\nchanger_name = c1\nVirtual_Drives = many\n", 5, "from 1 to 99"),
        ("magazine = /x\nmagazine_bays = 33\n", 2, "from 1 to 32"),
        ("magazine = UUID:nonsense!\n", 1, "UUID"),
        ("magazine =\n", 1, "no value"),
        ("magazine = '/x\n", 1, "quotes"),
        ("magazine = '/x' y\n", 1, "quotes"),
        ("work_dir = \\\n  /w\nmagazine /x\n", 3, "KEYWORD = VALUE"),
        ("magazine = /x\n[other]\n", 2, "KEYWORD = VALUE"),
        ("changer_name = ../x\n", 1, "a name"),
        ("magazine = /x\nDefault Pool = ''\n", 2, "no value"),
        ("magazine = /x\nvirtual_drives =\n", 2, "no value"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    file = tmp_path / "v.conf"
    file.write_text(text)
    assert is_vchanger(file)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert f"{file}:{line}: " in caught.value.message and words in caught.value.message


def test_nothing_behind_the_equals_sign_is_the_default(tmp_path: Path) -> None:
    """vchanger 1.0 clears the keyword then; a quoted empty text is a value, which not every keyword takes."""
    file = tmp_path / "v.conf"
    bare = "Storage Resource = c\nMagazine = /x\n"
    for lines in (
        "Default Pool =\n",
        "Default Pool = Other\nDefault Pool = # none\n",
        "Default Pool =",
        "User =\nGroup=\n",
    ):
        file.write_text(f"{bare}{lines}")
        assert (load(file).director.pool, vchanger.read(file).user) == ("Scratch", "")
    file.write_text(f"{bare}Default Pool =\nDefault Pool = Last\nWork Dir =\n")
    assert load(file).director.pool == "Last" and load(file).state_dir == Path("/var/spool/vchanger/c")
    file.write_text(f"{bare}bconsole config = /etc/b.conf\nbconsole =\n")
    assert load(file).director.kind is DirectorKind.BACULA
    file.write_text(f'{bare}bconsole config = /etc/b.conf\nbconsole = ""\n')
    assert load(file).director.kind is DirectorKind.NONE


@pytest.mark.parametrize("text", [OLD, NEW])
def test_keywords_and_values_in_columns_made_with_tabs(run: Run, tmp_path: Path, text: str) -> None:
    lines = [line for line in text.format(root=tmp_path).splitlines(keepends=True) if line[0] not in "#;["]
    (tmp_path / "vchanger.conf").write_text("".join("\t" + line.replace(" = ", "\t=\t", 1) for line in lines))
    fill(tmp_path / "m2", "v1")
    status, out, err = run("list")
    assert (status, [line.partition(":")[2] for line in out.splitlines()], err) == (0, ["v1"], "")


def test_what_is_missing_or_double_is_named(tmp_path: Path) -> None:
    file = tmp_path / "v.conf"
    file.write_text("changer_name = c\n")
    with pytest.raises(ConfigError, match="no magazine"):
        load(file)
    file.write_text("magazine = /x\nmagazine = /x\n")
    with pytest.raises(ConfigError, match="named twice"):
        load(file)


@given(st.binary(max_size=200).map(lambda tail: b"changer_name = c\n" + tail))
def test_any_bytes_give_a_declared_error_or_a_configuration(data: bytes) -> None:
    try:
        assert isinstance(vchanger.parse(data, Path("/x.conf")).config(), Config)
    except ConfigError as error:
        assert "/x.conf" in error.message


class TestImport:
    @pytest.mark.parametrize("dialect", [OLD, NEW])
    def test_the_yaml_means_the_same(
        self, tmp_path: Path, run: Run, capfd: pytest.CaptureFixture[str], dialect: str
    ) -> None:
        conf, ours = tmp_path / "vchanger.conf", tmp_path / "ours.yaml"
        conf.write_text(dialect.format(root=tmp_path))
        for name in ("m0", "m2", "m3", f"auto/{UUID.upper()}"):
            fill(tmp_path / name, f"{name[-2:]}_0002", f"{name[-2:]}_0001")
        assert main(["config", "import-vchanger", str(conf)]) == 0
        ours.write_text(capfd.readouterr().out)
        assert not (tmp_path / "work").exists()  # it only reads
        assert load(ours) == load(conf)
        assert main(["--json", "config", "import-vchanger", "--apply", str(conf)]) == 0
        document = json.loads(capfd.readouterr().out)
        assert document["yaml"] == ours.read_text()
        listed = run("list")[1]
        assert listed == run("list", config="ours.yaml")[1] and listed.count("_000") == len(document["slots"]) > 3
        assert run("load", "1", "x", "0", config="ours.yaml")[0] == 0
        assert run("loaded", "1", "x", "0")[1] == "1\n"

    def test_what_is_no_such_file_is_refused(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "x.yaml").write_text("run_dir: r\n")
        assert main(["config", "import-vchanger", str(tmp_path / "x.yaml")]) == 78
        assert "x.yaml:1" in capfd.readouterr().err
        assert main(["config", "import-vchanger", str(tmp_path / "nothing")]) == 78


class TestElsewhere:
    """A file system that somebody else mounts, found by its UUID."""

    def test_it_is_found_by_the_mount_table(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mounts = [
            mount for mount in parse(Path("/proc/self/mountinfo").read_text()) if Path(mount.source).is_block_device()
        ]
        if not mounts:
            pytest.skip("no block device is mounted here")
        monkeypatch.setattr(elsewhere, "_BY_UUID", tmp_path)
        usual = tmp_path / "usual"
        assert elsewhere.directory_of(UUID, usual) is None
        (tmp_path / UUID.upper()).symlink_to(mounts[0].source)
        found = elsewhere.directory_of(UUID, usual)
        same = {
            Path(mount.path) for mount in mounts if mount.number == mounts[0].number or mount.source == mounts[0].source
        }
        assert found in same
        # What lies where it is usually mounted is looked at first; an empty directory is not it.
        usual.mkdir()
        assert elsewhere.directory_of(UUID, usual) == found
        (usual / "v1").touch()
        assert elsewhere.directory_of(UUID, usual) == usual

    def test_plugged_in_and_not_mounted_nothing_is_proved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(elsewhere, "_BY_UUID", tmp_path / "by-uuid")
        file = tmp_path / "c.yaml"
        file.write_text(
            "state_dir: s\nrun_dir: r\nmagazines:\n"
            f"  - {{name: u, directory: m, filesystem_uuid: {UUID}, create: no}}\n"
        )
        Changer.open(file).refresh()
        os.utime(file, (1, 1))
        Changer.open(file).refresh()
        assert current(str(file)) is not None and not (tmp_path / "m").exists()
        (tmp_path / "by-uuid").mkdir()
        (tmp_path / "by-uuid" / UUID).touch()
        assert current(str(file)) is None
        Changer.open(file).refresh()
        assert current(str(file)) is None  # it may be mounted anywhere, of which no file tells
