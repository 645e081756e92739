"""Drives that the storage daemon keeps, locks that another holds, and whether its user may use what it is given."""

from __future__ import annotations

import dataclasses
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.changer.lock import lock
from appliance.changer.people import createvols
from appliance.changer.service import Changer
from appliance.config.loader import load
from appliance.config.schema import Config
from appliance.director import rights
from appliance.director.console import BaculaConsole
from appliance.director.replies import storage_status
from appliance.director.rights import Identity
from appliance.director.sync import Director
from appliance.errors import MagbayError
from appliance.host.files import locked
from appliance.storage.labelling import create
from tests.unit.test_director import VOLUMES, Recorded, slot

# Bacula 15.0.3: drive 0 writes, drive 1 is idle, one device has nothing to do with us.
STATUS = """\
Running Jobs:
Writing: Full Backup job nightly JobId=3 Volume="a-1"
    pool="Magbay" device="chg-0" ({run}/drives/0)
    spooling=0 despooling=0 despool_wait=0
====

Device status:
Device "FileChgr1-Dev1" is not open or does not exist.
==

Device File is "chg-0" ({run}/drives/0) mounted with:
    Volume:      a-1
    Pool:        Magbay
   Slot 1 is loaded in drive 0.
   Available Space=101.8 MB
==

Device File: "chg-1" ({run}/drives/1) is not open.
   Slot 2 was last loaded in drive 1.
   Available Space=140.2 TB
==
====
"""


class Storage(Recorded):
    """Answers with the drives of *status*."""

    def __init__(self, status: str) -> None:
        super().__init__()
        self.status = status

    def send(self, *lines: str, extra: int = 0) -> str:
        self.lines += lines
        return ".storage\nchg\n" + VOLUMES + self.status

    def released(self) -> list[str]:
        return [line for line in self.lines if line.startswith("release")]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = tmp_path / "magbay.yaml"
    file.write_text(
        "state_dir: state\nrun_dir: run\nmagazines: [{name: m1, directory: m1}]\n"
        "director: {kind: bacula, storage: chg, label: no}\n"
    )
    return load(file)


def test_an_idle_drive_is_released_once_a_busy_one_never(config: Config) -> None:
    console = Storage(STATUS.format(run=config.run_dir))
    director = Director(config, console)
    here = [slot(1, "a-1", "m1", True), slot(2, "a-2", "m1", True)]
    away = [slot(1, "a-1", "m1", False), slot(2, "a-2", "m1", False)]
    assert director.sync(here).held == () and console.released() == []
    for _ in range(2):
        outcome = director.sync(away)
        assert outcome.held == ("chg-0",)
        assert console.released() == ["release storage=chg drive=1 slot=0"]
    # The job has ended.
    console.status = console.status.partition("====\n")[2]
    assert director.sync(away).held == ()
    assert console.released()[1:] == ["release storage=chg drive=0 slot=0"]


def test_a_drive_that_waits_for_a_person_is_not_released() -> None:
    text = STATUS.format(run="/run/magbay").replace(
        "is not open.\n   Slot", "is not open.\n   Device is BLOCKED.\n   Slot"
    )
    assert storage_status(text).loaded == {"chg-0": 1}


def test_a_talk_that_does_not_end_is_not_waited_for(config: Config) -> None:
    patient = dataclasses.replace(config, director=dataclasses.replace(config.director, timeout=0))
    with (
        lock(config.run_dir, "director.lock"),
        pytest.raises(MagbayError, match="another talk with the Director has not ended"),
    ):
        Director(patient, Storage("")).sync([])
    with lock(config.run_dir, "director.lock", 0):
        pass
    with locked(config.run_dir / "x"), pytest.raises(TimeoutError), locked(config.run_dir / "x", 0):
        pass


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "it refused the password"), (20, "no answer from host:9101 within 20 s")]
)
def test_a_director_that_says_nothing_is_no_wrong_password(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, words: str
) -> None:
    """bconsole has the same text for both; only the time tells them apart."""
    program = tmp_path / "bconsole"
    program.write_text(
        "#!/bin/sh\necho 'Connecting to Director host:9101'\necho 'Director authorization problem.'\nexit 1\n"
    )
    program.chmod(0o755)
    (tmp_path / "c").touch()
    settings = dataclasses.replace(config.director, console_program=str(program), console_config=tmp_path / "c")
    moments = iter([0.0, float(seconds)])
    monkeypatch.setattr("appliance.director.console.time.monotonic", lambda: next(moments, float(seconds)))
    with pytest.raises(MagbayError, match=words):
        BaculaConsole(settings).send("version")


@pytest.mark.parametrize(("folder", "file"), [(0o2770, 0o660), (0o750, 0o640), (0o2775, 0o660), (0o700, 0o640)])
def test_new_volumes_have_the_rights_of_their_magazine(config: Config, tmp_path: Path, folder: int, file: int) -> None:
    """A storage daemon of the group writes them; nobody else reads them."""
    (tmp_path / "m1").mkdir()
    (tmp_path / "m1").chmod(folder)
    create(config, magazine="m1", pool="Default", count=1)
    createvols(tmp_path / "magbay.yaml", ["0", "1"], {})
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "m1").iterdir()} == {file}


@pytest.fixture
def dock() -> Iterator[Config]:
    """Two volumes in a place that everybody may go to (pytest's own is closed)."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "magbay.yaml").write_text(
            "state_dir: state\nrun_dir: run\nmagazines: [{name: m1, directory: m1}, {name: m2, directory: m2}]\n"
        )
        config = load(place / "magbay.yaml")
        config.run_dir.mkdir()
        for number in (1, 2):
            (place / f"m{number}").mkdir()
            (place / f"m{number}" / f"v{number}").touch()
        Changer.open(place / "magbay.yaml").refresh()
        for path, mode in (("run", 0o770), ("run/drives", 0o770), ("m1", 0o770), ("m2", 0o770)):
            (place / path).chmod(mode)
        for number in (1, 2):
            (place / f"m{number}" / f"v{number}").chmod(0o660)
        yield config


def told(config: Config, who: Identity) -> str:
    slots = Changer(config).slots()
    return "\n".join(text for text, hint in rights.complaints(config, slots, who) if hint)


def test_what_the_daemon_may_not_do_is_named(dock: Config) -> None:
    place, gid = dock.run_dir.parent, dock.run_dir.stat().st_gid
    friend, stranger = Identity("bacula", 65533, frozenset({gid})), Identity("nobody", 65532, frozenset({65532}))
    assert told(dock, friend) == ""
    assert told(dock, Identity("root", 0, frozenset({0}))) == ""
    assert f"user nobody may not write in {place}/run," in told(dock, stranger)
    assert f"user nobody may not look into {place}/m1 (magazine m1)" in told(dock, stranger)
    (place / "run/drives").chmod(0o750)
    assert told(dock, friend) == f"user bacula may not write in {place}/run/drives, so it cannot load a drive"
    (place / "run/drives").chmod(0o770)
    (place / "m2/v2").chmod(0o640)
    assert told(dock, friend) == f"user bacula may not read and write {place}/m2/v2 (magazine m2)"
    # Write-protected on purpose: to restore from.
    (place / "m2/v2").chmod(0o440)
    assert told(dock, friend) == ""


def test_whom_the_storage_daemons_run_as(tmp_path: Path) -> None:
    for pid, name, uid in ((7, "bacula-sd", 65533), (8, "bash", 0), (9, "bareos-sd", 65534)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(
            f"Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t26\t26\t26\t26\nGroups:\t26 101 \n"
        )
    (tmp_path / "10").mkdir()  # ended while we looked
    found = rights.storage_daemons(tmp_path)
    assert {(who.uid, who.groups) for who in found} == {
        (65533, frozenset({26, 101})),
        (65534, frozenset({26, 101})),
    }
