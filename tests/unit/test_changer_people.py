"""What the changer has for people: check, initmag, names of new volumes, which file a volume is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.changer import check, command
from appliance.changer.service import Changer
from appliance.cli.main import main
from appliance.config.loader import load
from appliance.config.names import TEMPLATE, Names
from appliance.errors import ConfigError
from appliance.magazines.attached import known
from appliance.magazines.states import State
from appliance.storage.labelling import create

LABEL = b"\x00\x00\x00\x01\x00\x00\x00\xc8\x00\x00\x00\x00BB02" + bytes(200)
YAML = (
    "state_dir: state\nrun_dir: run\nmount_dir: mnt\nchanger: {name: c0, drives: 2}\n"
    "magazines:\n  - {name: m1, directory: m1}\n  - {name: m2, directory: m2}\npools:\n  Default: {}\n"
)
NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "magbay.yaml"
    path.write_text(YAML)
    for name in ("m1", "m2"):
        (tmp_path / name).mkdir()
    return path


def run(capfd: pytest.CaptureFixture[str], file: Path, *words: str) -> tuple[int, str, str]:
    status = command.main([str(file), *words])
    out, err = capfd.readouterr()
    return status, out, err


@pytest.mark.complaint(12)
class TestWhyABayIsEmpty:
    def test_directories(self, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
        text = YAML.replace("directory: m2}", "directory: m2, filesystem_uuid: 0b9a0000-1111, create: no}")
        file.write_text(text.replace("pools:", "  - {name: m3, directory: m3, create: no}\npools:"))
        (file.parent / "m1" / "v1").write_bytes(LABEL)
        status, out, err = run(capfd, file, "check")
        assert (status, err) == (0, "")
        assert out.splitlines()[:3] == [
            f"m1: in bay: {file.parent}/m1, 1 volumes, slots 1 to 1",
            "m2: away: no file system with UUID 0b9a0000-1111 is plugged in and unlocked",
            f"m3: away: {file.parent}/m3 is not there; is its disk mounted?",
        ]

    def test_disks(self, file: Path) -> None:
        """The media agent's own words, for each state that keeps a magazine out of its bay."""
        config = load(file)
        config.enrolment_dir.mkdir(parents=True)
        config.run_dir.mkdir()
        uuid = "11111111-2222-3333-4444-555555555555"
        (config.enrolment_dir / "off.yaml").write_text(
            f"name: off\nfilesystem_uuid: {uuid}\nluks_uuid: 99999999-2222-3333-4444-555555555555\n"
        )

        def explained() -> str:
            magazine = next(item for item in known(config) if item.name == "off")
            return check.explain(config, magazine, Changer(config).slots())

        assert explained().startswith("away: no media agent has run")
        disk = {"magazine": "off", "filesystem_uuid": uuid, "node": "/dev/sdb", "serial": "S", "size": 1}
        disk |= {"state": State.FAILED.value, "reason": "wrong key", "hint": "use the other key", "read_only": False}
        (config.run_dir / "media.json").write_text(json.dumps({"disks": [disk]}))
        assert explained() == f"away: /dev/sdb {State.FAILED.value}: wrong key: use the other key"
        (config.run_dir / "media.json").write_text('{"disks": []}')
        assert explained() == "away: not plugged in"


@pytest.fixture
def public() -> Iterator[Path]:
    """A configuration that the user nobody can use."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to run the command as another user")
    root = Path(tempfile.mkdtemp(prefix="magbay-test-"))
    try:
        root.chmod(0o755)
        (root / "magbay.yaml").write_text(YAML)
        for name in ("m1", "m2"):
            (root / name).mkdir()
            (root / name / f"{name}-1").write_bytes(LABEL)
            (root / name / f"{name}-2").write_bytes(LABEL)
        for path in (root, *root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        yield root
    finally:
        shutil.rmtree(root)


@pytest.mark.complaint(13)
def test_which_user_lacks_what(public: Path) -> None:
    full = Path(sys.executable).with_name("magbay-changer-full")

    def checked() -> subprocess.CompletedProcess[str]:
        line = [full, "-u", "nobody", "-g", "nogroup", public / "magbay.yaml", "check"]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    done = checked()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "user nobody (uid 65534, groups nogroup) can use all of it"
    for name in ("m1-1", "m1-2"):
        os.chown(public / "m1" / name, 0, 0)
        (public / "m1" / name).chmod(0o644)
    done = checked()
    assert (done.returncode, done.stdout) == (1, "")
    assert f"may not write {public}/m1/m1-1 (of root:root, mode 0644) and 1 more on magazine m1" in done.stderr
    assert "may not read" not in done.stderr and done.stderr.count("\n") == 1
    (public / "run").chmod(0o500)
    assert f"may not write {public}/run (of nobody:nogroup, mode 0500)" in checked().stderr
    os.chown(public / "magbay.yaml", 0, 0)
    (public / "magbay.yaml").chmod(0o600)
    assert f"{public}/magbay.yaml" in checked().stderr


@pytest.mark.complaint(22)
class TestNames:
    @pytest.mark.parametrize(
        ("template", "number", "name"),
        [
            ("{magazine}-{number:4}", 7, "m1-0007"),
            ("{pool}_{changer}.{number:6}", 123, "Full_c0.000123"),
            ("{number}", 12, "12"),
            ("V{number:2}-{magazine}", 100, "V100-m1"),
        ],
    )
    def test_padding(self, template: str, number: int, name: str) -> None:
        assert TEMPLATE.fullmatch(template)
        names = Names(template, magazine="m1", changer="c0", pool="Full")
        assert names.name(number) == name and names.number(name) == number
        assert names.number(f"{name}x") is None and names.number("other") is None

    @pytest.mark.parametrize(
        "template",
        ["", "abc", "{number}{number}", "{disk}{number}", "-{number}", ".{number}", "a b{number}", "{number:0}"],
    )
    def test_what_is_no_template(self, file: Path, template: str) -> None:
        file.write_text(YAML.replace("drives: 2", f'drives: 2, volume_names: "{template}"'))
        with pytest.raises(ConfigError, match="volume_names"):
            load(file)

    def test_labels_and_empty_volumes_follow_it_and_sort(self, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
        file.write_text(YAML.replace("drives: 2", "drives: 2, volume_names: 'X{number:3}-{magazine}'"))
        config = load(file)
        made = create(config, magazine="m1", pool="Default", count=11)
        assert [media.name for media in made] == sorted(f"X{n:03}-m1" for n in range(1, 12))
        assert run(capfd, file, "createvols", "m1", "2", "-l", "E")[0] == 0
        status, out, _err = run(capfd, file, "createvols", "m2", "1", "5")
        assert (status, out.splitlines()[0]) == (0, "creating label 'X005-m2'")
        listed = [line.split(":")[1] for line in run(capfd, file, "list")[1].splitlines()]
        assert set(listed) == {"E0000", "E0001", "X005-m2", *(media.name for media in made)}


@pytest.mark.complaint(26)
def test_which_file_a_volume_is(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for magazine, volume in (("m1", "v1"), ("m2", "w1")):
        (file.parent / magazine / volume).write_bytes(LABEL)
    assert main(["--config", str(file), "slots", "--paths"]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert rows == [["VOLUME", "PATH"], ["v1", f"{file.parent}/m1/v1"], ["w1", f"{file.parent}/m2/w1"]]
    assert all(Path(row[1]).read_bytes() == LABEL for row in rows[1:])
    (file.parent / "m2").rename(file.parent / "away")
    assert main(["--config", str(file), "--json", "slots", "--paths", "--all"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [(row["volume"], row["path"]) for row in found] == [("v1", f"{file.parent}/m1/v1"), ("w1", None)]
    assert main(["--config", str(file), "slots", "--paths", "--all"]) == 0
    assert "(magazine m2: away)" in capfd.readouterr().out


class TestInitmag:
    OLD = (
        "changer_name = c1\nwork_dir = {root}/work\nslots_per_magazine = 3\nmagazine_bays = 2\n"
        "magazine = {root}/m1\nmagazine = {root}/m2\n"
    )

    def test_an_empty_magazine_gets_the_volumes_of_0_8(self, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
        old = file.with_name("vchanger.conf")
        old.write_text(self.OLD.format(root=file.parent))
        (file.parent / "work").mkdir()
        assert run(capfd, old, "initmag", "2") == (0, f"created magazine 1 in bay 2 [{file.parent}/m2]\n", "")
        assert run(capfd, old, "initmag", "1", "-m", "7")[1] == f"created magazine 7 in bay 1 [{file.parent}/m1]\n"
        expected = [f"{n}:c1_0007_000{n}" for n in (1, 2, 3)] + [f"{n}:c1_0001_000{n - 3}" for n in (4, 5, 6)]
        assert run(capfd, old, "list")[1].splitlines() == expected
        assert "has volumes already" in run(capfd, old, "initmag", "1")[2]
        for words, says in (
            ((), "needs the bay"),
            (("9",), "no bay or magazine '9'"),
            (("2", "-m", "x"), "has volumes already"),
            (("2", "-m"), "-m needs"),
        ):
            status, out, err = run(capfd, old, "initmag", *words)
            assert (status, out) == (1, "") and says in err

    def test_others_are_told_what_to_use_instead(self, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
        status, out, err = run(capfd, file, "initmag", "1")
        assert (status, out) == (1, "") and "createvols BAY COUNT" in err
