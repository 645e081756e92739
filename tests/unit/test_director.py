"""The Director's room without a Director: its replies as recorded from Bacula 9.6.7, plans, configuration, records.

What a real Director does with the commands is in tests/native.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from appliance.changer.report import Slot
from appliance.changer.view import Presence
from appliance.cli.main import main
from appliance.config.loader import load
from appliance.config.schema import Config, DirectorConfig, DirectorKind
from appliance.director import newcomers, record
from appliance.director.console import BaculaConsole, open_console, read_console_config
from appliance.director.newcomers import Content, Newcomer, content
from appliance.director.ours import media_type
from appliance.director.pieces import OtherSide, pieces
from appliance.director.plan import Offer, commands, mount_slot, plan
from appliance.director.record import Sighting
from appliance.director.replies import Blocked, CatalogVolume, Waiting, storage_status, volumes
from appliance.director.sync import Director
from appliance.director.wanted import wanted
from appliance.errors import ConfigError, MagbayError, PermissionDeniedError
from appliance.storage.labelling import create

VOLUMES = """\
list volumes
Automatically selected Catalog: Cat
Using Catalog "Cat"
Pool: Default
+---------+------------+-----------+---------+-----------+------+-----------+-----------+
| MediaId | VolumeName | VolStatus | Enabled | VolBytes  | Slot | InChanger | MediaType |
+---------+------------+-----------+---------+-----------+------+-----------+-----------+
| 1       | a-1        | Append    | 1       | 1,935,570 | 1    | 1         | magbay    |
| 2       | a-2        | Full      | 0       | 210       | 0    | 0         | magbay    |
+---------+------------+-----------+---------+-----------+------+-----------+-----------+
Pool: Scratch
No results to list.
Pool: Tapes
+---------+------------+-----------+---------+-----------+------+-----------+-----------+
| MediaId | VolumeName | VolStatus | Enabled | VolBytes  | Slot | InChanger | MediaType |
+---------+------------+-----------+---------+-----------+------+-----------+-----------+
| 9       | T00001     | Append    | 1       | 0         | 3    | 1         | LTO-8     |
+---------+------------+-----------+---------+-----------+------+-----------+-----------+
You have messages.
"""
STATUS = """\
Running Jobs:
Writing: Full Backup job one JobId=1 Volume=""
    pool="Default" device="chg-1" (/run/magbay/drives/1)
    spooling=0 despooling=0 despool_wait=0
Reading:   Restore job restore JobId=12 Volume="a-2"
    pool="Default" device="chg-0" (/run/magbay/drives/0) newbsr=0
====

Device status:
Autochanger "chg" with devices:
   "chg-0" (/run/magbay/drives/0)
   "chg-1" (/run/magbay/drives/1)

Device File: "chg-0" (/run/magbay/drives/0) is not open.
   Device is BLOCKED waiting for mount of volume "a-2",
       Pool:        Default
       Media type:  magbay
   Slot 6 was last loaded in drive 0.
   Available Space=75.30 GB
==

Device File: "chg-1" (/run/magbay/drives/1) is not open.
   Device is BLOCKED waiting to create a volume for:
       Pool:        Default
       Media type:  magbay
   Drive 1 is not loaded.
==
====
"""


def volume(name: str, **changes: object) -> CatalogVolume:
    values = {"pool": "Default", "status": "Append", "enabled": True, "slot": 1, "in_changer": True}
    return CatalogVolume(**{"name": name, "media_type": "magbay", **values, **changes})  # type: ignore[arg-type]


def slot(number: int, name: str, magazine: str, attached: bool) -> Slot:
    return Slot(number, name, magazine, None, attached, Presence.HERE if attached else Presence.AWAY)


@pytest.mark.parametrize("table", [VOLUMES, VOLUMES.replace("VolumeName", "volumename").replace("Slot", "slot")])
def test_the_table_of_volumes(table: str) -> None:
    found = volumes(table)
    assert found["a-1"] == CatalogVolume("a-1", "Default", "Append", True, 1, True, "magbay")
    assert found["a-2"] == CatalogVolume("a-2", "Default", "Full", False, 0, False, "magbay")
    assert found["T00001"].pool == "Tapes"
    assert len(found) == 3


def test_the_state_of_the_drives() -> None:
    status = storage_status(STATUS)
    assert status.devices == ("chg-0", "chg-1")
    assert status.paths == ("/run/magbay/drives/0", "/run/magbay/drives/1")
    assert status.blocked == (
        Blocked("chg-0", 0, Waiting.VOLUME, "a-2", "Default", "restore", 12),
        Blocked("chg-1", 1, Waiting.APPENDABLE, "", "Default", "one", 1),
    )


def test_a_drive_that_a_person_unmounted_is_left_alone() -> None:
    text = STATUS.replace('BLOCKED waiting for mount of volume "a-2",', "BLOCKED. User unmounted.")
    assert [blocked.device for blocked in storage_status(text).blocked] == ["chg-1"]


def test_a_drive_that_works_is_a_device_too() -> None:
    working = 'Device File is "chg-0" (/run/magbay/drives/0) waiting for:\n    Volume:      m1-0007\n==\n'
    mounted = 'Device File: "chg-1" (/run/magbay/drives/1) is mounted with:\n    Volume:      m1-0008\n==\n'
    status = storage_status("Device status:\n" + working + mounted)
    assert status.devices == ("chg-0", "chg-1")
    assert status.paths == ("/run/magbay/drives/0", "/run/magbay/drives/1")
    assert status.blocked == ()


def test_no_answer_of_the_storage_daemon_is_no_status() -> None:
    with pytest.raises(MagbayError, match="does not reach the storage daemon"):
        storage_status("Connecting to Storage daemon chg at 127.0.0.1:9103\n")


def test_plan_of_a_swap() -> None:
    offer = Offer({"b-1": 5, "b-2": 6, "new": 7}, {"a-1", "a-2", "b-1", "b-2", "new"})
    catalog = {
        "a-1": volume("a-1"),
        "a-2": volume("a-2", enabled=False, slot=0, in_changer=False),
        "b-1": volume("b-1", enabled=False, slot=0, in_changer=False),
        "b-2": volume("b-2", enabled=False, slot=6),
        "T1": volume("T1", media_type="LTO-8"),
        "elsewhere": volume("elsewhere", slot=9),
    }
    found = plan(offer, catalog, {"b-1"}, "magbay")
    assert commands(found, "chg") == (
        "update volume=a-1 inchanger=no slot=0 enabled=no",
        "update slots storage=chg drive=0",
        "update volume=b-1 enabled=yes",
    )
    assert found.unknown == ("new",)


@pytest.mark.complaint(14)
def test_what_is_write_protected_is_not_to_be_chosen_for_writing() -> None:
    here = [
        Slot(n, name, "m1", None, True, Presence.HERE, "/x", writable)
        for n, name, writable in ((1, "a", False), (2, "b", True), (3, "c", False))
    ]
    catalog = {name: volume(name, slot=n, enabled=name != "c") for n, name in ((1, "a"), (2, "b"), (3, "c"))}
    found = plan(Offer.of(here), catalog, {"c"}, "magbay")
    assert commands(found, "chg") == ("update volume=a enabled=no",)
    again = [dataclasses.replace(item, writable=True) for item in here]
    catalog["a"] = dataclasses.replace(catalog["a"], enabled=False)
    assert commands(plan(Offer.of(again), catalog, {"a", "c"}, "magbay"), "chg") == (
        "update volume=a enabled=yes",
        "update volume=c enabled=yes",
    )


def test_nothing_to_do_is_no_command() -> None:
    found = plan(
        Offer({"a": 1}, {"a", "b"}),
        {"a": volume("a"), "b": volume("b", enabled=False, slot=0, in_changer=False)},
        (),
        "magbay",
    )
    assert found.empty and commands(found, "chg") == ()


def test_a_name_of_another_media_type_is_not_ours() -> None:
    catalog = {"a": volume("a", media_type="File")}
    assert plan(Offer({}, {"a"}), catalog, (), "magbay").empty
    assert plan(Offer({}, {"a"}), catalog, (), "File").disable == ("a",)


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (
            "Storage: name=chg address=x SDport=1 MaxJobs=2\n DeviceName=chg MediaType=our type StorageId=1 X=1\n",
            "our type",
        ),
        ("      DeviceName=chg MediaType=File1\n", "File1"),
        ('Storage {\n  Name = "chg"\n  Media Type = "File 2"\n}\n', "File 2"),
        ("Storage {\n  MediaType = File3\n}\n", "File3"),
        ("", "chg"),
    ],
)
def test_nobody_elses_volumes_are_touched_when_no_media_type_is_set(reply: str, wanted: str) -> None:
    class Replies:
        def send(self, *lines: str, extra: int = 0) -> str:
            assert lines == ("show storage=chg",)
            return reply

    assert media_type(DirectorConfig(storage="chg"), Replies()) == wanted
    assert media_type(DirectorConfig(storage="chg", media_type="set"), Replies()) == "set"


def test_what_a_blocked_drive_can_go_on_with() -> None:
    offer = Offer({"a": 1, "b": 2, "full": 3, "off": 4}, ())
    catalog = {
        "a": volume("a", pool="Other"),
        "b": volume("b", pool="Scratch"),
        "full": volume("full", status="Full"),
        "off": volume("off", enabled=False),
    }
    appendable = Blocked("chg-0", 0, Waiting.APPENDABLE, "", "Default")
    assert mount_slot(appendable, offer, catalog) == 2
    assert mount_slot(Blocked("chg-0", 0, Waiting.VOLUME, "full", "Default"), offer, catalog) == 3
    assert mount_slot(Blocked("chg-0", 0, Waiting.VOLUME, "gone", "Default"), offer, catalog) == 0


def test_which_magazine_last_seen_first() -> None:
    slots = [slot(1, "a-1", "m1", False), slot(2, "b-1", "m2", False), slot(3, "c-1", "m3", True)]
    catalog = {name: volume(name, enabled=False) for name in ("a-1", "b-1", "c-1")}
    seen = {"m2": Sighting(1_700_000_000.0, "/dev/sdb (serial WD-1)")}
    blocked = Blocked("chg-0", 0, Waiting.APPENDABLE, "", "Default", "nightly", 7)
    found = wanted(blocked, slots, catalog, seen)
    assert found.magazines == ("m2", "m1")
    assert "insert magazine m2 (last seen 2023-11-1" in found.sentence()
    assert "/dev/sdb (serial WD-1)): job nightly (JobId 7) waits for a volume of pool Default" in found.sentence()
    assert found.sentence().endswith("; m1 would do too")
    lost = wanted(Blocked("chg-0", 0, Waiting.VOLUME, "zzz", "Default"), slots, catalog, seen)
    assert lost.sentence() == "drive 0 waits for volume zzz: no magazine that is known here holds it"


def test_a_magazine_that_is_here_is_not_asked_for() -> None:
    slots = [Slot(1, "a-1", "m1", None, False, Presence.MISSING)]
    found = wanted(Blocked("chg-0", 0, Waiting.VOLUME, "a-1", "Default"), slots, {"a-1": volume("a-1")}, {})
    assert found.magazines == ()


def test_newcomers_are_labelled_by_slot_into_the_pool_of_their_magazine(config: Config, tmp_path: Path) -> None:
    settings = DirectorConfig(storage="chg", pool="Daily", pools={"m2": "Monthly"})
    found = [
        *(Newcomer(f"m1-{n}", n, "m1", Content.EMPTY) for n in (1, 2, 3, 7)),
        Newcomer("m2-1", 5, "m2", Content.EMPTY),
        Newcomer("m2-2", 6, "m2", Content.LABEL),
        Newcomer("m2-3", 8, "m2", Content.DATA),
    ]
    assert newcomers.commands(found, settings, 1) == [
        ("label storage=chg pool=Daily slots=1-3,7 drive=1 barcodes", "yes"),
        ("label storage=chg pool=Monthly slots=5 drive=1 barcodes", "yes"),
        ("add pool=Monthly storage=chg", "0", "m2-2", "6", "yes"),
    ]


def test_what_a_file_holds(config: Config, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    made = create(config, magazine="m1", pool="Default", count=1)
    label = tmp_path / "m1" / made[0].name
    more = tmp_path / "more"
    more.write_bytes(label.read_bytes() + b"\0")
    odd = tmp_path / "odd"
    odd.write_bytes(b"not a volume")
    assert [content(path) for path in (empty, label, more, odd)] == [
        Content.EMPTY,
        Content.LABEL,
        Content.DATA,
        Content.DATA,
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('Director { Name = d; DIRport = 19101; address = 10.0.0.1; Password = "p w;}x" }', "d"),
        ('# old\nDirector {\n  Name = d\n  Dir Port = 19101\n  Address = 10.0.0.1\n  Password = "p w;}x"\n}\n', "d"),
        ('Director { Name = d\n Port = 19101\n Address = 10.0.0.1 }\nConsole { Name = c\n Password = "p w;}x" }', "c"),
    ],
)
def test_console_configuration(tmp_path: Path, text: str, name: str) -> None:
    path = tmp_path / "bconsole.conf"
    path.write_text(text)
    found = read_console_config(path)
    assert (found["address"], found["port"], found["password"], found["name"]) == ("10.0.0.1", "19101", "p w;}x", name)
    assert found["resource"] == ("console" if name == "c" else "director")


def test_console_configuration_that_says_too_little(tmp_path: Path) -> None:
    path = tmp_path / "bconsole.conf"
    path.write_text("Director { Name = d }\n")
    with pytest.raises(ConfigError, match="address and password missing"):
        read_console_config(path)
    with pytest.raises(ConfigError, match="is not there"):
        read_console_config(tmp_path / "none")


def test_no_director_is_said(config: Config) -> None:
    with pytest.raises(ConfigError, match="no Director is configured"):
        open_console(config.director)


def test_a_control_character_never_becomes_a_command(tmp_path: Path) -> None:
    settings = DirectorConfig(console_config=tmp_path / "c", console_program="true")
    with pytest.raises(MagbayError, match="control character"):
        BaculaConsole(settings).send("update volume=a\nquit")


def test_an_unreadable_console_configuration_is_said(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(PermissionDeniedError, match="Is a directory"):
        BaculaConsole(DirectorConfig(console_config=tmp_path / "c")).send("version")


def test_the_program_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "c").touch()
    settings = DirectorConfig(console_config=tmp_path / "c", console_program="no-such-console")
    with pytest.raises(MagbayError, match="no-such-console is not installed"):
        BaculaConsole(settings).send("version")


def test_records(tmp_path: Path) -> None:
    assert record.disabled(tmp_path) == frozenset()
    record.keep_disabled(tmp_path, {"b", "a"})
    assert record.disabled(tmp_path) == {"a", "b"}
    record.keep_sightings(tmp_path, {"m1": Sighting(5.0, "bay 1")})
    assert record.sightings(tmp_path) == {"m1": Sighting(5.0, "bay 1")}


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 1, "disabled": [1]}', "[" * 100_000])
def test_a_damaged_record_is_named_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / record.DISABLED).write_text(text)
    (tmp_path / record.SEEN).write_text(text)
    with pytest.raises(MagbayError, match=record.DISABLED):
        record.disabled(tmp_path)
    assert record.sightings(tmp_path) == {}
    assert (tmp_path / record.DISABLED).read_text() == text


def test_settings(tmp_path: Path) -> None:
    file = tmp_path / "magbay.yaml"
    file.write_text("director:\n  kind: bareos\n  console_config: bc.conf\n  pools: {m1: Monthly}\n  label: no\n")
    director = load(file).director
    assert director == DirectorConfig(
        kind=DirectorKind.BAREOS, console_config=tmp_path / "bc.conf", pools={"m1": "Monthly"}, label=False
    )
    file.write_text("director: {label: maybe}\n")
    with pytest.raises(ConfigError, match="wants yes or no, got 'maybe'"):
        load(file)


def test_pieces_for_both(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "magbay.yaml"
    bacula = pieces(config, file, OtherSide(), DirectorKind.BACULA)
    bareos = pieces(config, file, OtherSide(), DirectorKind.BAREOS)
    assert sorted(bacula) == ["bacula-dir-magbay.conf", "bacula-sd-magbay.conf"]
    assert sorted(bareos) == ["bareos-dir-magbay.conf", "bareos-sd-magbay.conf"]
    assert f'Archive Device = "{config.run_dir}/drives/1"' in bacula["bacula-sd-magbay.conf"]
    assert "Removable Media = yes" in bacula["bacula-sd-magbay.conf"]
    assert "SD Port" in bacula["bacula-dir-magbay.conf"] and "SD Port" not in bareos["bareos-dir-magbay.conf"]


class Recorded:
    """A console that answers as recorded and keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def send(self, *lines: str, extra: int = 0) -> str:
        self.lines += lines
        return ".storage\nchg\n" + VOLUMES + STATUS


def test_mount_is_repeated_with_longer_pauses(config: Config, tmp_path: Path) -> None:
    """A drive that stays blocked is not asked at every look."""
    file = tmp_path / "magbay.yaml"
    file.write_text(file.read_text() + "director: {kind: bacula, storage: chg, label: no}\n")
    now, console = [0.0], Recorded()
    director = Director(load(file), console, lambda: now[0])
    slots = [slot(1, "a-1", "m1", True), slot(2, "a-2", "m1", True)]
    times = []
    for second in range(0, 400, 10):
        now[0], console.lines = float(second), []
        director.sync(slots)
        if any(line.startswith("mount") for line in console.lines):
            times.append(second)
    assert times == [0, 30, 90, 210]
    director.sync([slot(1, "a-1", "m1", True), slot(2, "a-2", "m1", False)])
    console.lines = []
    director.sync(slots)
    assert "mount storage=chg drive=0 slot=2" in console.lines


def test_the_record_is_written_before_the_command(config: Config, tmp_path: Path) -> None:
    """Whatever happens while we disable a volume, it is enabled again when its magazine is back."""
    file = tmp_path / "magbay.yaml"
    file.write_text(file.read_text() + "director: {kind: bacula, storage: chg, media_type: magbay, label: no}\n")

    class Broken(Recorded):
        def send(self, *lines: str, extra: int = 0) -> str:
            if any("enabled=no" in line for line in lines):
                raise MagbayError("the line was cut")
            return super().send(*lines, extra=extra)

    with pytest.raises(MagbayError, match="the line was cut"):
        Director(load(file), Broken()).sync([slot(1, "a-1", "m1", False)])
    assert json.loads((tmp_path / "state" / record.DISABLED).read_text())["disabled"] == ["a-1"]


def test_config_command(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = str(tmp_path / "magbay.yaml"), tmp_path / "out"
    assert main(["--config", file, "director", "config", "--kind", "bareos", "--client", "box-fd"]) == 0
    shown = capsys.readouterr().out
    assert "Client = box-fd" in shown and "Password = @/etc/bareos/magbay-sd-password" in shown
    assert main(["--config", file, "director", "config", "--to", str(folder)]) == 1
    assert "is not a directory" in capsys.readouterr().err
    folder.mkdir()
    assert main(["--config", file, "--json", "director", "config", "--to", str(folder)]) == 0
    assert sorted(json.loads(capsys.readouterr().out)) == sorted(path.name for path in folder.iterdir())
    assert main(["--config", file, "director", "sync"]) == 78
    assert "no Director is configured" in capsys.readouterr().err
