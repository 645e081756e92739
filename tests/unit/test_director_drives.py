"""Drives that the storage daemon keeps, locks that another holds, and whether its user may use what it is given."""

from __future__ import annotations

import dataclasses
import os
import pwd
import stat
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


def test_the_changer_is_asked_as_the_daemon_and_by_it(config: Config, tmp_path: Path) -> None:
    me = Identity(os.geteuid(), os.getegid(), frozenset(os.getgroups()))
    Changer.open(tmp_path / "magbay.yaml").refresh()
    assert rights.complaint(tmp_path / "magbay.yaml", me) == ""
    (tmp_path / "magbay.yaml").write_text("nonsense: 1\n")
    assert "nonsense" in rights.complaint(tmp_path / "magbay.yaml", me)


@pytest.mark.parametrize(("mode", "may"), [(0o640, True), (0o600, False), (0o604, False), (0o040, True)])
def test_whether_a_user_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, may: bool) -> None:
    """A member of the file's group who is neither its owner nor root."""
    file = tmp_path / "bconsole.conf"
    file.touch()
    file.chmod(mode)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("x", "x", uid, 65533, "", "/", "/bin/sh")))
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, file.stat().st_gid])
    assert rights.may_read(file, 65533) is may
    assert rights.may_read(file, 0)


def test_whom_the_storage_daemons_run_as(tmp_path: Path) -> None:
    for pid, name, uid in ((7, "bacula-sd", 65533), (8, "bash", 0), (9, "bareos-sd", 65534)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(
            f"Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t26\t26\t26\t26\nGroups:\t26 101 \n"
        )
    (tmp_path / "10").mkdir()  # ended while we looked
    found = rights.storage_daemons(tmp_path)
    assert all(who.gid == 26 for who in found)
    assert {(who.uid, who.groups) for who in found} == {
        (65533, frozenset({26, 101})),
        (65534, frozenset({26, 101})),
    }
