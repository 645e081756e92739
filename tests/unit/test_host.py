"""The host room: unit names, mount table, journal protocol, durable files, tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MagbayError
from appliance.host import files
from appliance.host.commands import run
from appliance.host.names import (
    check_unit,
    eject_unit,
    escape,
    hook_unit,
    idle_unit,
    lists_unit,
    mount_unit,
    unlock_unit,
)
from appliance.host.real.mounts import KernelMounts, parse
from appliance.host.real.services import journal_datagram
from appliance.keys.keyfile import check, ensure


@pytest.mark.parametrize(
    "text", ["plain", "77ac-12", "/dev/disk/by-uuid/a-b", "a b", ".hidden", "ü", "..", "x.y_z:1", "a\\b"]
)
def test_escape_is_that_of_systemd(text: str) -> None:
    if shutil.which("systemd-escape") is None:
        pytest.skip("systemd-escape is not installed")
    theirs = subprocess.run(["systemd-escape", "--", text], capture_output=True, text=True, check=True).stdout.strip()
    assert escape(text) == theirs


def test_unit_names() -> None:
    uuid = "0b9a-77"
    assert unlock_unit(uuid) == "magbay-unlock@0b9a\\x2d77.service"
    assert mount_unit(Path("/mnt/magbay/0b9a-77")) == "mnt-magbay-0b9a\\x2d77.mount"


def test_polkit_rule_covers_exactly_these_names() -> None:
    import re

    text = (Path(__file__).parents[2] / "systemd/polkit/50-magbay.rules").read_text()
    patterns = [re.compile(found) for found in re.findall(r"/(\^magbay[^/]+\$|\^mnt[^/]+\$)/\.test\(unit\)", text)]
    assert len(patterns) == 5
    uuid = "77acb2f0-1c1b-4f0e-9d7a-3f6f0c1d2e3f"
    good = [unlock_unit(uuid), check_unit(uuid), eject_unit(uuid), mount_unit(Path("/mnt/magbay") / uuid)]
    good += ["magbay-job@nightly.service", idle_unit(300), hook_unit("safe_to_remove", "a-b.c:d")]
    good += [lists_unit("a-b.c:d")]
    for name in good:
        assert any(p.fullmatch(name) for p in patterns), name
    for name in (
        "ssh.service",
        "magbay-unlock@../x.service",
        "mnt-other.mount",
        "magbay-media.service",
        "magbay-hook@x.service",
        "magbay-lists@/x.service",
        "magbay-idle@5s.service",
        "mnt-magbay.mount",
    ):
        assert not any(p.fullmatch(name) for p in patterns), name


def test_mount_table_with_odd_names() -> None:
    text = (
        "36 35 98:0 /mnt1 /mnt/with\\040blank rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        "37 35 0:44 / /mnt/magbay rw - autofs /etc/auto ro\nbroken line\n"
    )
    first, second = parse(text)
    assert (first.path, first.source, first.number, first.read_only) == ("/mnt/with blank", "/dev/root", "98:0", False)
    assert second.read_only and second.fs_type == "autofs"
    assert any(mount.path == "/" for mount in KernelMounts().table())


def test_what_a_device_has_taken_is_counted(tmp_path: Path) -> None:
    mounts = KernelMounts()
    mount = max((m for m in mounts.table() if tmp_path.is_relative_to(m.path)), key=lambda m: len(m.path))
    before = mounts.written(mount)
    if before == 0:
        pytest.skip(f"{mount.path} is on no disk")
    with (tmp_path / "file").open("wb") as file:
        file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    assert mounts.written(mount) - before >= 2048
    assert mounts.written(parse("1 1 0:1 / /x rw - tmpfs none rw\n")[0]) == 0


@given(
    st.dictionaries(st.sampled_from(["MESSAGE", "MAGAZINE", "SLOT"]), st.text(st.characters(exclude_categories=["Cs"])))
)
def test_journal_datagram_can_be_read_back(fields: dict[str, str]) -> None:
    data, found = journal_datagram(fields), {}
    while data:
        key, _, rest = data.partition(b"\n")
        if b"=" in key:
            name, _, value = key.partition(b"=")
            data = rest
        else:
            name, size = key, int.from_bytes(rest[:8], "little")
            value, data = rest[8 : 8 + size], rest[9 + size :]
        found[name.decode()] = value.decode()
    assert found == fields


def test_write_atomic_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    files.write_atomic(target, b"old")
    files.write_atomic(target, b"new", mode=0o600)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["state.json"]
    with pytest.raises(OSError):
        files.write_atomic(tmp_path / "no" / "such", b"")
    blocked = tmp_path / "folder"
    blocked.mkdir()
    (blocked / "x").touch()
    with pytest.raises(OSError):
        files.write_atomic(blocked, b"data")
    assert sorted(os.listdir(tmp_path)) == ["folder", "state.json"], "a failed write leaves no temporary file"


_WRITES = """\
import os, signal, sys
from pathlib import Path
from appliance.host import files
with files.replacing(Path(sys.argv[1]) / "target") as file:
    file.write(b"half")
    file.flush()
    print(flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    input()
"""


def test_what_a_killed_write_left_is_taken_away_by_the_next_process(tmp_path: Path) -> None:
    """And nothing else: not what another process writes just now, not what only looks so, nothing foreign."""
    command = [sys.executable, "-c", _WRITES, str(tmp_path)]
    (tmp_path / "target").write_bytes(b"whole")
    for _ in range(2):
        assert subprocess.run([*command, "killed"], stdout=subprocess.PIPE).returncode == -9
    (dead,) = tmp_path.glob(".magbay-unfinished-*")  # that of the first one was taken away by the second
    with subprocess.Popen([*command, "lives"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin and other.stdout and other.stdout.readline()
        (living,) = tmp_path.glob(".magbay-unfinished-*")
        assert living != dead
        (tmp_path / ".target.x4fjw9_k").write_bytes(b"of an editor")
        (tmp_path / ".magbay-unfinished-notes").write_bytes(b"of a person")
        (tmp_path / ".magbay-unfinished-1-1").mkdir()
        (tmp_path / ".magbay-unfinished-1-2").symlink_to("target")
        (tmp_path / ".magbay-unfinished-1-3").write_bytes(b"has another name")
        os.link(tmp_path / ".magbay-unfinished-1-3", tmp_path / "kept")
        (tmp_path / ".magbay-unfinished-1-4").write_bytes(b"of a dead process")
        before = set(os.listdir(tmp_path))
        code = "import sys; from pathlib import Path; from appliance.host import files; "
        code += "files.write_atomic(Path(sys.argv[1]) / 'second', b'2')"
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
        assert set(os.listdir(tmp_path)) == (before | {"second"}) - {".magbay-unfinished-1-4"}
        assert (tmp_path / "target").read_bytes() == b"whole"
        other.stdin.write(b"\n")
        other.stdin.close()
        assert other.wait() == 0
    assert (tmp_path / "target").read_bytes() == b"half" and not living.exists()


def test_a_process_looks_once_in_each_directory(tmp_path: Path) -> None:
    """At its first write: what it writes itself, it takes away itself."""
    left = tmp_path / ".magbay-unfinished-1-1"
    left.touch()
    files.write_atomic(tmp_path / "one", b"1", durable=False)
    assert not left.exists()
    left.touch()
    files.write_atomic(tmp_path / "two", b"2", durable=False)
    assert left.exists()


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        files.write_atomic(tmp_path / "nowhere" / "file", b"x")
    assert caught.value.filename == str(tmp_path / "nowhere" / "file")


def test_link_atomic_never_shows_a_missing_link(tmp_path: Path) -> None:
    link = tmp_path / "0"
    files.link_atomic(link, Path("a"))
    missing = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not link.is_symlink():
                missing.append(True)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(300):
        files.link_atomic(link, Path(f"v{number}"))
    done.set()
    watcher.join()
    assert not missing and os.readlink(link) == "v299"


def test_lock_is_freed_when_its_holder_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = (
        "import sys,time,pathlib\nfrom appliance.host.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n print('held',flush=True)\n time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with files.locked(lock):
        pass


def test_tools_that_fail_say_their_own_words() -> None:
    assert run(["echo", "hello"], "greeting") == "hello\n"
    with pytest.raises(MagbayError, match=r"listing: ls: .*No such file"):
        run(["ls", "/no/such/file"], "listing")
    with pytest.raises(MagbayError, match="not installed"):
        run(["no-such-tool-at-all"], "trying")
    with pytest.raises(MagbayError, match="did not end within"):
        run(["sleep", "5"], "waiting", timeout=0.05)


def test_key_file_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "magbay.key"
    assert ensure(path) is True
    key = path.read_bytes()
    assert len(key) == 4096 and path.stat().st_mode & 0o777 == 0o400
    assert ensure(path) is False and path.read_bytes() == key
    path.chmod(0o444)
    with pytest.raises(MagbayError, match="can be read by others"):
        check(path)
    short = tmp_path / "short"
    short.write_bytes(b"x")
    short.chmod(0o400)
    with pytest.raises(MagbayError, match="damaged"):
        ensure(short)
