"""The changer as agents use it: slots that stay, duplicates, full maps, drives of magazines that leave."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.changer import slotmap
from appliance.changer.command import answer, parse
from appliance.changer.inventory import scan
from appliance.changer.service import Changer
from appliance.changer.view import Presence, current
from appliance.cli.main import main
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.errors import AwayError, ExitStatus, MagbayError, NotFoundError, UsageError

LABEL = b"\x00\x00\x00\x01\x00\x00\x00\xc8\x00\x00\x00\x00BB02" + bytes(200)
UUID = "0b9a0000-1111-2222-3333-444455556666"


def fill(config: Config, magazine: str, *names: str) -> None:
    directory = next(item.directory for item in config.magazines if item.name == magazine)
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_bytes(LABEL)


def offered(changer: Changer) -> dict[int, str]:
    return {slot.slot: f"{slot.magazine}/{slot.volume}" for slot in changer.slots() if slot.attached}


def drive(config: Config, number: int) -> Path:
    return config.run_dir / "drives" / str(number)


class TestInventory:
    def test_volumes_are_told_from_everything_else_by_their_first_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "bb02").write_bytes(LABEL)
        (tmp_path / "bb03").write_bytes(LABEL.replace(b"BB02", b"BB03"))
        (tmp_path / "Vol-0001.x_y:z").write_bytes(LABEL)
        (tmp_path / "empty").touch()
        for name in ("README", "notes.txt", "magazine.yaml", "state.json", "v.sha256"):
            (tmp_path / name).touch()
            (tmp_path / f"full-{name}").write_bytes(b"text for people, longer than a block header")
        for name in (".hidden", "with blank", "with,comma", "naïve", "x" * 128, "a@b"):
            (tmp_path / name).write_bytes(LABEL)
        (tmp_path / "short").write_bytes(LABEL[:15])
        (tmp_path / "lost+found").mkdir()
        (tmp_path / "directory").mkdir()
        (tmp_path / "link").symlink_to("bb02")
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / ("y" * 127)).write_bytes(LABEL)
        os.close(os.open(os.fsencode(tmp_path) + b"/\xff\xfe", os.O_CREAT))
        assert scan(tmp_path, {}, ()).volumes == tuple(sorted(["bb02", "bb03", "Vol-0001.x_y:z", "empty", "y" * 127]))

    def test_the_real_volumes_of_the_corpus_are_volumes(self) -> None:
        default = Path(__file__).resolve().parents[3] / "shared" / "corpus"
        corpus = Path(os.environ.get("MAGBAY_CORPUS", default)) / "bacula-9.6"
        if not corpus.is_dir():
            pytest.skip(f"no corpus at {corpus}")
        volumes = [path for path in corpus.rglob("*") if path.is_file() and path.read_bytes()[12:16] == b"BB02"]
        assert volumes
        for path in volumes:
            assert path.name in scan(path.parent, {}, ()).volumes

    def test_a_file_is_opened_again_only_when_it_changed(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(LABEL)
            os.utime(tmp_path / name, (1, 1))
        before = scan(tmp_path, {}, ()).marks
        # Same size, times and inode, other contents: only a reader would see it.
        for name in ("a", "b"):
            with (tmp_path / name).open("r+b") as file:
                file.write(bytes(100))
        os.utime(tmp_path / "a", (1, 1))
        assert scan(tmp_path, before, ()).volumes == ("a",)


@pytest.mark.complaint(20)
class TestSlots:
    def test_a_volume_keeps_its_slot_for_ever(self, config: Config) -> None:
        changer = Changer(config)
        changer.refresh()
        fill(config, "m1", "b", "c")
        fill(config, "m2", "x")
        assert offered(changer) == {1: "m1/b", 2: "m1/c", 3: "m2/x"}
        fill(config, "m1", "a")  # sorts first, comes last
        assert offered(changer) == {1: "m1/b", 2: "m1/c", 3: "m2/x", 4: "m1/a"}
        m1 = config.magazines[0].directory
        m1.rename(m1.with_name("shelf"))
        fill(config, "m2", "y")
        assert offered(changer) == {3: "m2/x", 5: "m2/y"}
        m1.with_name("shelf").rename(m1)
        (m1 / "c").unlink()
        assert offered(Changer(config)) == {1: "m1/b", 3: "m2/x", 4: "m1/a", 5: "m2/y"}
        away = {slot.slot: slot.presence for slot in changer.slots() if not slot.attached}
        assert away == {2: Presence.MISSING}  # reserved: it may come back
        fill(config, "m1", "c", "d")
        assert offered(changer)[2] == "m1/c" and offered(changer)[6] == "m1/d"

    def test_a_full_map_is_reported_and_nothing_is_renumbered(self, tmp_path: Path) -> None:
        text = "state_dir: state\nrun_dir: run\nchanger: {slots: 3}\nmagazines: [{name: m1, directory: m1}]\n"
        file = tmp_path / "magbay.yaml"
        file.write_text(text)
        config, changer = load(file), Changer.open(file)
        fill(config, "m1", "a", "b", "c", "d", "e")
        report = changer.refresh()
        assert report.slots_full == ("m1/d", "m1/e")
        assert any("m1/d, m1/e" in warning for warning in report.warnings())
        (config.magazines[0].directory / "a").unlink()
        assert offered(changer) == {2: "m1/b", 3: "m1/c"}  # slot 1 is not given to another
        file.write_text(text.replace("slots: 3", "slots: 2"))
        less = Changer.open(file)
        assert offered(less) == {2: "m1/b"} and less.refresh().beyond == (3,)
        with pytest.raises(UsageError):
            less.load(3, 0)
        file.write_text(text.replace("slots: 3", "slots: 9"))
        assert offered(Changer.open(file)) == {2: "m1/b", 3: "m1/c", 4: "m1/d", 5: "m1/e"}

    def test_one_name_on_two_magazines_is_refused_on_both(self, config: Config) -> None:
        changer = Changer(config)
        fill(config, "m1", "twin", "other")
        changer.refresh()
        changer.load(2, 0)  # twin
        fill(config, "m2", "twin")
        report = changer.refresh()
        assert report.duplicates == {"twin": ("m1", "m2")} and report.emptied == (0,)
        assert offered(changer) == {1: "m1/other"} and not drive(config, 0).is_symlink()
        with pytest.raises(MagbayError, match="another magazine too"):
            changer.load(2, 0)
        (config.magazines[0].directory / "twin").unlink()
        assert offered(changer) == {1: "m1/other", 3: "m2/twin"}
        # Which of the two it is, is known by the magazine, not by the label.
        (config.magazines[1].directory / "twin").unlink()
        fill(config, "m1", "twin")
        assert offered(changer) == {1: "m1/other", 2: "m1/twin"}

    def test_one_directory_named_twice_offers_nothing_twice(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "alias").symlink_to("real")
        (tmp_path / "real" / "v").touch()
        file = tmp_path / "magbay.yaml"
        file.write_text(
            "state_dir: s\nrun_dir: r\nmagazines: [{name: a, directory: real}, {name: b, directory: alias}]\n"
        )
        assert offered(Changer.open(file)) == {}

    def test_what_arrived_and_departed_is_told_once(self, config: Config) -> None:
        changer = Changer(config)
        fill(config, "m1", "a")
        first = changer.refresh()
        assert (first.arrived, first.departed, first.changed) == (("m1", "m2"), (), True)
        again = changer.refresh()
        assert (again.arrived, again.departed, again.changed) == ((), (), False)
        shutil.move(config.magazines[1].directory, config.state_dir / "shelf")
        assert changer.refresh().departed == ("m2",)
        assert Changer(config).refresh().arrived == ("m1",)


class TestDrives:
    def test_the_link_is_all_that_says_what_is_loaded(self, config: Config) -> None:
        changer = Changer(config)
        fill(config, "m1", "a", "b")
        changer.refresh()
        changer.load(1, 0)
        assert drive(config, 0).read_bytes() == LABEL
        assert {slot.slot: slot.drive for slot in Changer(config).slots()} == {1: 0, 2: None}
        drive(config, 0).unlink()
        assert {slot.slot: slot.drive for slot in changer.slots()} == {1: None, 2: None}
        drive(config, 0).symlink_to("/etc/passwd")  # nothing of ours
        changer.refresh()
        assert not drive(config, 0).is_symlink()

    def test_release_empties_the_drives_of_one_magazine(self, config: Config) -> None:
        changer = Changer(config)
        fill(config, "m1", "a")
        fill(config, "m2", "b")
        changer.refresh()
        changer.load(1, 0)
        changer.load(2, 1)
        assert changer.release("m1") == (0,)
        assert changer.release("m1") == ()
        assert not drive(config, 0).is_symlink() and drive(config, 1).is_symlink()
        with pytest.raises(NotFoundError):
            changer.release("m3")

    def test_a_magazine_that_leaves_takes_its_volume_out_of_the_drive(self, config: Config) -> None:
        changer = Changer(config)
        fill(config, "m1", "a")
        changer.refresh()
        changer.load(1, 1)
        m1 = config.magazines[0].directory
        m1.rename(m1.with_name("shelf"))
        assert changer.refresh().emptied == (1,)
        with pytest.raises(AwayError):
            changer.load(1, 0)
        m1.with_name("shelf").rename(m1)
        assert changer.refresh().emptied == () and not drive(config, 1).is_symlink()
        changer.load(1, 0)

    def test_drives_that_are_no_longer_configured_are_emptied(self, config: Config, tmp_path: Path) -> None:
        changer = Changer(config)
        fill(config, "m1", "a")
        changer.refresh()
        changer.load(1, 1)
        file = tmp_path / "magbay.yaml"
        file.write_text(file.read_text().replace("drives: 2", "drives: 1"))
        fewer = Changer.open(file)
        assert fewer.refresh().emptied == (1,)
        with pytest.raises(UsageError):
            fewer.unload(1)


class TestDisks:
    """Enrolled disks, as the media agent's answer shows them."""

    def publish(self, config: Config, state: str, *, read_only: bool = False) -> None:
        config.run_dir.mkdir(exist_ok=True)
        disk = {"filesystem_uuid": UUID, "state": state, "read_only": read_only, "size": 0}
        disk |= dict.fromkeys(("magazine", "reason", "hint", "node", "serial"), "")
        (config.run_dir / "media.json").write_text(json.dumps({"disks": [disk]}))

    @pytest.fixture
    def disk(self, config: Config) -> Path:
        config.enrolment_dir.mkdir(parents=True)
        enrolment = f"name: offsite\nfilesystem_uuid: {UUID}\nluks_uuid: 77ac0000-1111-2222-3333-444455556666\n"
        (config.enrolment_dir / f"{UUID}.yaml").write_text(enrolment)
        path = config.mount_dir / UUID
        path.mkdir(parents=True)
        (path / "disk-1").write_bytes(LABEL)
        return path

    def test_a_disk_is_offered_while_it_can_be_reached(self, config: Config, disk: Path) -> None:
        changer = Changer(config)
        assert offered(changer) == {}
        self.publish(config, "mounted", read_only=True)
        assert offered(changer) == {1: "offsite/disk-1"}
        changer.load(1, 0)
        assert drive(config, 0).readlink() == disk / "disk-1"
        self.publish(config, "idle")
        assert changer.refresh().emptied == ()
        self.publish(config, "ejecting")
        assert changer.refresh().emptied == (0,)
        assert [slot.presence for slot in changer.slots()] == [Presence.AWAY]
        self.publish(config, "mounted")
        assert offered(changer) == {1: "offsite/disk-1"}

    def test_a_forgotten_disk_keeps_its_slots_and_name(self, config: Config, disk: Path) -> None:
        self.publish(config, "mounted")
        changer = Changer(config)
        assert offered(changer) == {1: "offsite/disk-1"}
        (config.enrolment_dir / f"{UUID}.yaml").unlink()
        assert [(slot.slot, slot.magazine, slot.attached) for slot in changer.slots()] == [(1, "offsite", False)]

    def test_a_cursory_refresh_leaves_a_known_disk_alone(self, config: Config, disk: Path) -> None:
        self.publish(config, "mounted")
        os.utime(disk, (1, 1))
        changer = Changer(config)
        changer.refresh()
        (disk / "disk-1").rename(disk / "disk-2")
        changer.refresh(thorough=False)
        assert [slot.volume for slot in changer.look(thorough=False)[0]] == ["disk-1"]
        # One that went and came back is looked at.
        self.publish(config, "safe to remove")
        changer.refresh(thorough=False)
        self.publish(config, "mounted")
        changer.refresh(thorough=False)
        assert offered(changer) == {2: "offsite/disk-2"}

    def test_an_idle_disk_is_not_woken_by_a_look(self, config: Config, disk: Path, tmp_path: Path) -> None:
        self.publish(config, "mounted")
        for path in (disk, config.enrolment_dir, tmp_path / "magbay.yaml"):
            os.utime(path, (1, 1))
        changer = Changer.open(tmp_path / "magbay.yaml")
        changer.refresh()
        self.publish(config, "idle")
        shutil.rmtree(disk)  # autofs would mount it at an access; here an access would fail
        assert changer.refresh().unreadable == ()
        for magazine in config.magazines:
            os.utime(magazine.directory, (1, 1))
        os.utime(config.enrolment_dir, (1, 1))
        assert offered(changer) == {1: "offsite/disk-1"}
        assert current(str(tmp_path / "magbay.yaml")) is not None
        assert answer(parse([str(tmp_path / "magbay.yaml"), "list"])) == "1:disk-1\n"
        with pytest.raises(MagbayError, match="disk-1"):
            changer.load(1, 0)
        self.publish(config, "mounted")
        assert "offsite" in changer.refresh().unreadable[0]

    def test_a_disk_that_cannot_be_read_makes_no_list(self, config: Config, disk: Path, tmp_path: Path) -> None:
        self.publish(config, "mounted")
        changer = Changer(config)
        fill(config, "m1", "a")
        changer.refresh()
        shutil.rmtree(disk)  # pulled, and the media agent has not said so yet
        assert "offsite" in changer.refresh().unreadable[0]
        with pytest.raises(MagbayError, match="offsite"):
            answer(parse([str(tmp_path / "magbay.yaml"), "list"]))
        changer.load(1, 0)


class TestMap:
    def test_it_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        made, left = slotmap.SlotMap().place([("u1", "b"), ("u1", "a"), ("u2", "a")], {"u1": "one", "u2": "two"}, 2)
        assert made.slots == {("u1", "b"): 1, ("u1", "a"): 2} and left == (("u2", "a"),)
        slotmap.write(tmp_path / "slots.json", made)
        assert slotmap.read(tmp_path / "slots.json") == made

    def test_a_gap_left_by_hand_is_filled_from_below(self) -> None:
        gap = slotmap.SlotMap({("u", "a"): 1, ("u", "c"): 3}, {"u": "one"})
        assert gap.place([("u", "d"), ("u", "e")], {"u": "one"}, 9)[0].slots[("u", "e")] == 4


class TestSlotsCommand:
    def test_it_shows_what_is_here_and_with_all_what_is_away(
        self, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = str(tmp_path / "magbay.yaml")
        fill(config, "m1", "a")
        fill(config, "m2", "b")
        changer = Changer(config)
        changer.refresh()
        changer.load(1, 1)
        shutil.rmtree(config.magazines[1].directory)
        assert main(["--config", file, "--json", "slots"]) == ExitStatus.DONE
        assert json.loads(capsys.readouterr().out) == [{"slot": 1, "volume": "a", "magazine": "m1", "drive": 1}]
        assert main(["--config", file, "--json", "slots", "--all"]) == ExitStatus.DONE
        assert json.loads(capsys.readouterr().out) == [
            {"slot": 1, "volume": "a", "magazine": "m1", "drive": 1, "attached": True},
            {"slot": 2, "volume": "b", "magazine": "m2", "drive": None, "attached": False},
        ]

    def test_it_warns_of_duplicates(self, config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        fill(config, "m1", "a")
        fill(config, "m2", "a", "b")
        assert main(["--config", str(tmp_path / "magbay.yaml"), "slots"]) == ExitStatus.WARNINGS
        out, err = capfd.readouterr()
        assert "b" in out and "volume a is on magazines m1 and m2" in err


MAGAZINES = ("m1", "m2", "m3")
NAMES = ("a", "b", "c", "d")
SLOTS, DRIVES = 7, 2


class Schedules(RuleBasedStateMachine):
    """Random arrivals, departures and new volumes against a model that a page can hold."""

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="magbay-test-"))
        self.file = self.root / "magbay.yaml"
        lines = "".join(f"  - {{name: {name}, directory: {name}}}\n" for name in MAGAZINES)
        self.file.write_text(
            f"state_dir: state\nrun_dir: run\nchanger: {{drives: {DRIVES}, slots: {SLOTS}}}\nmagazines:\n{lines}"
        )
        os.utime(self.file, (1, 1))
        self.changer = Changer.open(self.file)
        self.changer.refresh()
        (self.root / "shelf").mkdir()
        self.here = dict.fromkeys(MAGAZINES, True)
        self.files: set[tuple[str, str]] = set()
        self.slot: dict[tuple[str, str], int] = {}  # the model: for ever
        self.loaded: dict[int, tuple[str, str]] = {}

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    def offered(self) -> dict[tuple[str, str], int]:
        """What the model offers; gives new volumes slots and empties drives on the way."""
        volumes = [key for key in sorted(self.files) if self.here[key[0]]]
        names = [name for _magazine, name in volumes]
        single = [key for key in volumes if names.count(key[1]) == 1]
        for key in single:
            if key not in self.slot and len(self.slot) < SLOTS:
                self.slot[key] = len(self.slot) + 1
        found = {key: self.slot[key] for key in single if key in self.slot}
        self.loaded = {number: key for number, key in self.loaded.items() if key in found}
        return found

    @rule(magazine=st.sampled_from(MAGAZINES))
    def move(self, magazine: str) -> None:
        here, shelf = self.root / magazine, self.root / "shelf" / magazine
        here.rename(shelf) if self.here[magazine] else shelf.rename(here)
        self.here[magazine] = not self.here[magazine]

    @rule(magazine=st.sampled_from(MAGAZINES), name=st.sampled_from(NAMES), empty=st.booleans())
    def add(self, magazine: str, name: str, empty: bool) -> None:
        if self.here[magazine] and (magazine, name) not in self.files:
            (self.root / magazine / name).write_bytes(b"" if empty else LABEL)
            self.files.add((magazine, name))

    @rule(magazine=st.sampled_from(MAGAZINES), name=st.sampled_from(NAMES))
    def delete(self, magazine: str, name: str) -> None:
        if self.here[magazine] and (magazine, name) in self.files:
            (self.root / magazine / name).unlink()
            self.files.discard((magazine, name))

    @rule()
    def age(self) -> None:
        """From here on the published answer may be used until something changes."""
        for path in (*(self.root / name for name in MAGAZINES), self.root / "state" / "magazines"):
            if path.exists():
                os.utime(path, (1, 1))

    @rule()
    def restart(self) -> None:
        self.changer = Changer.open(self.file)

    @rule(slot=st.integers(0, SLOTS + 1), number=st.integers(0, DRIVES))
    def load(self, slot: int, number: int) -> None:
        here = {slot: key for key, slot in self.offered().items()}
        key, holds = here.get(slot), self.loaded.get(number)
        elsewhere = any(other == key for drive, other in self.loaded.items() if drive != number)
        if key is None or number >= DRIVES or holds not in (None, key) or elsewhere:
            with pytest.raises(MagbayError):
                self.call("load", slot, number)
        else:
            self.call("load", slot, number)
            self.loaded[number] = key

    @rule(number=st.integers(0, DRIVES - 1))
    def unload(self, number: int) -> None:
        self.offered()
        self.call("unload", 1, number)
        self.loaded.pop(number, None)

    @rule(magazine=st.sampled_from(MAGAZINES))
    def release(self, magazine: str) -> None:
        self.changer.release(magazine)
        self.loaded = {number: key for number, key in self.loaded.items() if key[0] != magazine}

    def call(self, word: str, slot: int = 0, number: int = 0) -> str:
        return answer(parse([str(self.file), word, str(slot), "/dev/null", str(number)]))

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "root"):
            return
        offered = self.offered()
        at = {slot: key for key, slot in offered.items()}
        listed = dict(line.split(":") for line in self.call("list").splitlines())
        assert listed == {str(slot): key[1] if at.get(slot) == key else "" for key, slot in self.slot.items()}
        for number in range(DRIVES):
            wanted = self.slot[self.loaded[number]] if number in self.loaded else 0
            assert self.call("loaded", 0, number) == f"{wanted}\n"
            if wanted:
                magazine, name = self.loaded[number]
                assert (self.root / "run" / "drives" / str(number)).readlink() == self.root / magazine / name


Schedules.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestSchedules = Schedules.TestCase
