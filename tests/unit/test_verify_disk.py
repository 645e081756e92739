"""The disk compared with the catalog."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.main import main
from appliance.config.schema import Config
from appliance.errors import ExitStatus
from appliance.storage import live
from appliance.storage.catalog import Catalog
from appliance.storage.model import Level
from appliance.volumes.attributes import FileType
from tests.unit.enginehelp import bring_back, magbay, rich_tree, save, set_xattr, sparse_file


def compare(config: Config, **options: Any) -> live.LiveResult:
    """Compare without a command line."""
    return live.run(config, live.LiveRequest(**options), log=lambda text, fields: None)


def told(result: live.LiveResult) -> dict[str, str]:
    """Path to what is said of it."""
    return dict(result.changed) | dict.fromkeys(result.new, "new") | dict.fromkeys(result.missing, "missing")


def test_nothing_changed(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    saved = save(config, tree)
    read: list[int] = []
    total: list[int] = []
    found = live.run(
        config, live.LiveRequest(), log=lambda text, fields: None, progress=read.append, started=total.append
    )
    assert (told(found), found.warnings, found.exit_status) == ({}, [], ExitStatus.DONE)
    assert found.files == saved.files and sum(read) >= total[0] > 10_000_000


CHANGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("plain.txt", lambda path: path.write_text("HELLO\n") and os.utime(path, (5, 5)), "time"),
    ("past", lambda path: path.write_text("older"), "size"),
    ("exact", lambda path: path.chmod(0o600), "mode"),
    ("empty", lambda path: path.unlink(), "missing"),
    ("links/relative", lambda path: (path.unlink(), path.symlink_to("../elsewhere/x")), "size, link"),
    ("brand-new", lambda path: path.write_text("new"), "new"),
    ("fifo", lambda path: (path.unlink(), path.write_text("no fifo")), "type"),
    ("sticky/", lambda path: path.chmod(0o755), "mode"),
    ("new-folder/", lambda path: path.mkdir(), "new"),
]


@pytest.mark.parametrize(("name", "change", "what"), CHANGES, ids=[name for name, _, _ in CHANGES])
def test_each_change(tmp_path: Path, config: Config, name: str, change: Callable[[Path], object], what: str) -> None:
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    change(tree / name)
    found = {
        path: said.replace(", time", "") if said.startswith("size") else said
        for path, said in told(compare(config)).items()
    }
    names = {f"{tree}/{name}"}
    if name == "plain.txt":  # it has other names
        names |= {f"{tree}/links/hard", f"{tree}/hard-2"}
    assert found == dict.fromkeys(names, what)


@pytest.mark.parametrize("with_holes", [False, True])
def test_content_behind_the_same_size_and_time(tmp_path: Path, config: Config, with_holes: bool) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    sparse_file(tree / "file", 3_000_000, {0: b"a" * 500_000, 2_500_000: b"b" * 500_000})
    if not with_holes:
        (tree / "file").write_bytes(os.urandom(3_000_000))
    save(config, tree)
    status = (tree / "file").stat()
    with open(tree / "file", "r+b") as file:
        file.seek(2_700_000)
        file.write(b"!")
    os.utime(tree / "file", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert told(compare(config)) == {f"{tree}/file": "content"}
    assert told(compare(config, contents=False)) == {}


def again(path: Path, make: Callable[[], object]) -> None:
    """Make *path* anew, with the owner, the times and the mode that it had."""
    status = path.lstat()
    path.unlink()
    make()
    os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(status.st_mode & 0o7777)


def test_a_symbolic_link_that_leads_elsewhere(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    again(tree / "links" / "relative", lambda: (tree / "links" / "relative").symlink_to("../plain.doc"))
    assert told(compare(config)) == {f"{tree}/links/relative": "link"}
    again(tree / "links" / "relative", lambda: (tree / "links" / "relative").symlink_to("../plain.txt"))
    assert told(compare(config)) == {}
    with Catalog(config.state_dir) as catalog:  # as a version before entered it: not known
        catalog.change("UPDATE File SET Digest='' WHERE Type=?", (FileType.SYMLINK,))
    again(tree / "links" / "relative", lambda: (tree / "links" / "relative").symlink_to("../plain.doc"))
    assert told(compare(config)) == {}


def test_a_hard_link_that_is_a_file_of_its_own_now(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    with Catalog(config.state_dir) as catalog:
        query = "SELECT Path, Name FROM File JOIN Path USING(PathId) WHERE Type=?"
        links = [Path(os.fsdecode(path + name)) for path, name in catalog.rows(query, (FileType.HARD_LINK,))]
    assert len(links) == 2
    content = links[0].read_bytes()
    again(links[0], lambda: links[0].write_bytes(content))
    set_xattr(links[0], "user.colour", b"green\0blue")
    assert told(compare(config)) == {str(links[0]): "link"}
    (first,) = {tree / "plain.txt", tree / "hard-2", tree / "links" / "hard"} - set(links)
    first.unlink()
    assert told(compare(config)) == {str(first): "missing"}


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
def test_another_device(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    again(tree / "null", lambda: os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 5)))
    again(tree / "loop", lambda: os.mknod(tree / "loop", stat.S_IFBLK | 0o660, os.makedev(7 + 256, 250)))
    assert told(compare(config)) == {f"{tree}/null": "device", f"{tree}/loop": "device"}


def test_a_scan_enters_where_links_lead(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    shutil.rmtree(config.state_dir)
    assert magbay(tmp_path, "volume", "scan", "--all").status == 0
    assert compare(config, contents=False).counts == {"changed": 0, "new": 0, "missing": 0}
    again(tree / "links" / "relative", lambda: (tree / "links" / "relative").symlink_to("../plain.doc"))
    assert told(compare(config)) == {f"{tree}/links/relative": "link"}


@pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
def test_another_owner(tmp_path: Path, config: Config) -> None:
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    os.chown(tree / "past", 1, 1)
    assert told(compare(config)) == {f"{tree}/past": "owner"}


def test_a_chain_counts_as_one_state(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    for name in ("same", "changed", "deleted", "late"):
        (tree / name).write_text(name)
    first = save(config, tree)
    (tree / "changed").write_text("again, and longer")
    (tree / "deleted").unlink()
    (tree / "added").write_text("added")
    with Catalog(config.state_dir) as catalog:
        catalog.change("UPDATE Job SET Started=Started-1000 WHERE JobId=?", (first.job_id,))
    more = save(config, tree, level=Level.INCREMENTAL)
    assert told(compare(config)) == {}
    older = told(compare(config, job=first.job_id))
    assert older.pop(f"{tree}/changed").startswith("size")
    assert older == {f"{tree}/deleted": "missing", f"{tree}/added": "new"}
    (tree / "late").unlink()
    (tree / "deleted").write_text("back")
    assert told(compare(config)) == {f"{tree}/late": "missing", f"{tree}/deleted": "new"}
    assert compare(config).job_id == more.job_id


def test_patterns_excluded_files_and_sockets(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    (tree / "in").mkdir(parents=True)
    for name in ("one.txt", "two.tmp", "in/three.txt"):
        (tree / name).write_text(name)
    save(config, tree, exclude=("*.tmp",))
    (tree / "four.tmp").write_text("not of the job")
    listener = socket.socket(socket.AF_UNIX)
    here = os.open(tree, os.O_RDONLY)
    listener.bind(f"/proc/self/fd/{here}/socket")
    os.close(here)
    listener.close()
    assert told(compare(config)) == {}
    for name in ("one.txt", "in/three.txt"):
        (tree / name).write_text("changed now")
    assert set(told(compare(config, globs=(f"{tree}/in",)))) == {f"{tree}/in/three.txt"}
    done = magbay(tmp_path, "verify", "--disk", "--file", "one.txt", json_output=True)
    assert done.status == 1 and [row["path"] for row in done.document["changed"]] == [f"{tree}/one.txt"]


def test_a_tree_that_is_gone(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    (tree / "file").write_text("x")
    save(config, tree)
    tree.rename(tmp_path / "elsewhere")
    assert told(compare(config)) == {f"{tree}/": "missing", f"{tree}/file": "missing"}


def test_a_restored_tree_is_as_it_was_saved(tmp_path: Path, config: Config) -> None:
    """In its own place, after it was lost."""
    tree = rich_tree(tmp_path / "source")
    save(config, tree)
    tree.rename(tmp_path / "lost")
    assert bring_back(config, Path("/")).exit_status is ExitStatus.DONE
    assert told(compare(config)) == {}


def test_the_command_line(tmp_path: Path, config: Config) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    (tree / "file").write_text("x")
    save(config, tree, name="docs")
    done = magbay(tmp_path, "verify", "--disk", "--latest", "docs")
    assert done.status == 0 and "0 changed, 0 new, 0 missing" in done.stdout
    (tree / "file").write_text("longer")
    (tree / "new\nline").write_text("x")
    done = magbay(tmp_path, "verify", "--disk", "--quick")
    assert (
        done.status == 1 and f"new      {tree}/new\\nline" in done.stdout and f"changed  {tree}/file  (" in done.stdout
    )
    assert config.magazines and compare(config).job_id
    for words in (["--quick"], ["--disk", "--magazine", "m1"], ["--disk", "--rate", "1MB"], ["--latest", "docs"]):
        assert main(["--config", str(tmp_path / "magbay.yaml"), "verify", *words]) == 2, words
    assert main(["--config", str(tmp_path / "magbay.yaml"), "verify", "--disk", "--latest", "nobody"]) == 4
