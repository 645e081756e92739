"""Lists and checksums on a magazine, and enrolments that end or travel."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli.main import main
from appliance.config.schema import Config, Enrolment
from appliance.errors import ConfigError, MagbayError, NotFoundError
from appliance.magazines import enrolment, leaflet
from appliance.magazines.attached import enrolments
from appliance.magazines.enrolment import enrol, export, forget, keep_named, take_over
from appliance.storage.labelling import create

UUIDS = ("0b9a0000-1111-2222-3333-444455556666", "77ac0000-1111-2222-3333-444455556666")


def run(config: Config, *words: str) -> tuple[int, str]:
    """A command in this process; gives status and what it printed."""
    file = str(config.state_dir.parent / "magbay.yaml")
    done = subprocess.run([sys.executable, "-m", "appliance", "--config", file, *words], capture_output=True, text=True)
    return done.returncode, done.stdout if words[0] == "--json" else done.stdout + done.stderr


def sums(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sha256sum", "-c", leaflet.SUMS], cwd=directory, capture_output=True, text=True)


def test_stock_sha256sum_takes_our_list(config: Config) -> None:
    create(config, magazine="m1", pool="Default", count=3)
    directory = config.magazines[0].directory
    (directory / "README.txt").write_text("no volume")
    (directory / "odd").write_bytes(b"no volume either")
    read: list[int] = []
    found = leaflet.checksums(directory, "m1", everything=False, advance=read.append)
    names = ["m1-0001", "m1-0002", "m1-0003"]
    assert list(found.sums) == list(found.read) == leaflet.volumes(directory) == names and sum(read) > 0
    assert sums(directory).stdout == "".join(f"{name}: OK\n" for name in names)
    listed = (directory / leaflet.LIST).read_text()
    assert all(f"\t{name}\n" in listed for name in names) and str((directory / names[0]).stat().st_size) in listed
    again = leaflet.checksums(directory, "m1", everything=False, advance=read.append)
    assert again.read == () and again.sums == found.sums, "what has not changed is not read again"
    with (directory / names[1]).open("ab") as volume:
        volume.write(b"more")
    assert sums(directory).returncode == 1
    assert leaflet.checksums(directory, "m1", everything=False, advance=read.append).read == (names[1],)
    assert sums(directory).returncode == 0


def test_bytes_that_changed_by_themselves_are_damage_until_somebody_acts(config: Config) -> None:
    create(config, magazine="m1", pool="Default", count=2)
    directory = config.magazines[0].directory
    assert run(config, "magazine", "checksums", "m1")[0] == 0
    victim = directory / "m1-0002"
    before = victim.stat()
    with victim.open("r+b") as volume:
        volume.seek(100)
        volume.write(b"\xff")
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(config, "magazine", "checksums", "m1")[0] == 0, "a quick look does not read it"
    for _ in range(2):
        status, words = run(config, "magazine", "checksums", "m1", "--all")
        assert status == 1 and "m1-0002 is damaged" in words and "m1-0001" not in words
        assert "m1-0002: FAILED" in sums(directory).stdout


def test_a_volume_that_is_written_meanwhile_is_left_out(config: Config) -> None:
    create(config, magazine="m1", pool="Default", count=2)
    directory = config.magazines[0].directory

    def write(_count: int) -> None:
        with (directory / "m1-0002").open("ab") as volume:
            volume.write(b"x")

    found = leaflet.checksums(directory, "m1", everything=False, advance=write)
    assert found.busy == ("m1-0002",) and {name: bool(item.digest) for name, item in found.sums.items()} == {
        "m1-0001": True,
        "m1-0002": False,
    }
    assert sums(directory).stdout == "m1-0001: OK\n" and not leaflet.current(directory)
    assert leaflet.checksums(directory, "m1", everything=False, advance=lambda count: None).read == ("m1-0002",)
    assert leaflet.current(directory)


def test_lists_are_made_true_without_reading(config: Config) -> None:
    create(config, magazine="m1", pool="Default", count=4)
    directory = config.magazines[0].directory
    program = "import sys; from appliance.magazines.relist import main; sys.exit(main())"

    def relist() -> int:
        return subprocess.run([sys.executable, "-c", program, str(directory)], stderr=subprocess.DEVNULL).returncode

    assert leaflet.current(directory), "where there are no lists none are made"
    assert relist() == 1 and not (directory / leaflet.LIST).exists()
    leaflet.checksums(directory, "m1", everything=False, advance=lambda count: None)
    before = (directory / leaflet.LIST).stat().st_ino
    assert relist() == 0 and (directory / leaflet.LIST).stat().st_ino == before, "they are as they should be"
    with (directory / "m1-0002").open("ab") as volume:
        volume.write(b"more")
    (directory / "m1-0003").unlink()
    (directory / "m1-0005").write_bytes((directory / "m1-0001").read_bytes())
    (directory / "odd").write_bytes(b"no volume")
    assert not leaflet.current(directory)
    assert relist() == 0
    listed = (directory / leaflet.LIST).read_text()
    assert listed.startswith("# Volumes of the magbay magazine m1 as they were at ")
    rows = {row.split("\t")[3]: row.split("\t") for row in listed.splitlines()[2:]}
    assert list(rows) == ["m1-0001", "m1-0002", "m1-0004", "m1-0005"]
    assert all(int(row[0]) == (directory / name).stat().st_size for name, row in rows.items())
    assert [name for name, row in rows.items() if row[2] == "-"] == ["m1-0002", "m1-0005"]
    assert sums(directory).stdout == "m1-0001: OK\nm1-0004: OK\n"
    found = leaflet.checksums(directory, "m1", everything=False, advance=lambda count: None)
    assert found.read == ("m1-0002", "m1-0005") and leaflet.current(directory)


def test_readme_tells_the_commands() -> None:
    text = leaflet.readme("m1", *UUIDS, "2026-11-24").decode()
    for part in ("m1", *UUIDS, "cryptsetup open --readonly", "bextract -V", "sha256sum -c volumes.sha256"):
        assert part in text


def test_enrolments_travel(config: Config, tmp_path: Path) -> None:
    enrol(config, Enrolment("NO", UUIDS[0], UUIDS[1], serial="12:34", model="0x10", size=5, prepared="2026-11-24"))
    enrol(config, Enrolment("second", "0f0f", "abcd"))
    text, documents = export(config, [])
    assert [item["name"] for item in documents] == ["NO", "second"]
    before = enrolments(config)
    file = tmp_path / "list.yaml"
    file.write_text(text)
    assert take_over(config, file) == ([], ["NO", "second"])
    forget(config, "NO")
    assert [item.name for item in enrolments(config)] == ["second"]
    assert take_over(config, file) == (["NO"], ["second"]) and enrolments(config) == before
    with pytest.raises(NotFoundError):
        export(config, ["third"])
    with pytest.raises(NotFoundError):
        forget(config, "third")


def test_an_enrolment_that_replaces_another_is_killed_in_between(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(config, Enrolment("m9", "0e0e", "dcba", serial="S1"))
    child = os.fork()
    if child == 0:  # killed by SIGKILL when it has written the new one, before the next step
        end = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
        monkeypatch.setattr(enrolment, "_name_files", lambda config: end() if _new(config) else None)
        enrol(config, Enrolment("m9", "0f0f", "abcd", serial="S1"), replaces="0e0e")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (only,) = enrolments(config)
    assert (only.name, only.filesystem_uuid, only.luks_uuid) == ("m9", "0f0f", "abcd")
    # The media agent finishes it at its next look, or the next command that changes enrolments.
    keep_named(config, (only,))
    assert [path.name for path in config.enrolment_dir.glob("*.yaml")] == ["0f0f.yaml"]
    enrol(config, Enrolment("other", "0d0d", "dddd"))
    assert forget(config, "m9") == only and [item.name for item in enrolments(config)] == ["other"]


def _new(config: Config) -> bool:
    return any(item.filesystem_uuid == "0f0f" for item in enrolments(config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("name: second", "name: m1"), "called m1 already"),
        (("name: second", "name: first"), "called first"),
        (("luks_uuid: abcd", "luks_uuid: ../x"), "wants a UUID"),
        (("luks_uuid: abcd", "key: abcd"), "unknown key"),
        (("enrolments:", "something:"), "unknown key"),
    ],
)
def test_a_list_that_contradicts_us_changes_nothing(
    config: Config, tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    enrol(config, Enrolment("first", "0e0e", "dcba"))
    enrol(config, Enrolment("second", "0f0f", "abcd"))
    text, _ = export(config, [])
    forget(config, "second")
    file = tmp_path / "list.yaml"
    file.write_text(text.replace(*change))
    with pytest.raises((ConfigError, MagbayError), match=words):
        take_over(config, file)
    assert [item.name for item in enrolments(config)] == ["first"]


def test_commands(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enrol(config, Enrolment("first", "0e0e", "dcba"))
    status, text = run(config, "magazine", "export", "first")
    assert status == 0
    file = tmp_path / "list.yaml"
    file.write_text(text)
    monkeypatch.setattr(enrolment, "_MAPPINGS", tmp_path)
    (tmp_path / "magbay-dcba").touch()
    with pytest.raises(MagbayError, match="in use"):
        forget(config, "first")
    (tmp_path / "magbay-dcba").unlink()
    status, text = run(config, "--json", "magazine", "forget", "first")
    assert status == 0 and json.loads(text) == {"forgotten": "first"} and not enrolments(config)
    status, text = run(config, "--json", "magazine", "import", "--from", str(file))
    assert status == 0 and json.loads(text) == {"enrolled": ["first"], "known": []}
    assert run(config, "magazine", "import")[0] == 2
    assert run(config, "magazine", "import", "/dev/null", "--from", str(file))[0] == 2
    assert main(["--config", str(config.state_dir.parent / "magbay.yaml"), "magazine", "forget", "m1"]) == 4


def test_a_new_volume_may_be_written_by_whom_the_directory_lets_write(config: Config) -> None:
    directory = config.magazines[0].directory
    for mode, wanted in ((0o2770, 0o660), (0o750, 0o640)):
        directory.mkdir(exist_ok=True)
        directory.chmod(mode)
        (media,) = create(config, magazine="m1", pool="Default", count=1)
        assert (directory / media.name).stat().st_mode & 0o777 == wanted
