"""`magbay volume …` as a person and as a program sees it."""

from __future__ import annotations

import argparse
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import volume as noun
from appliance.cli.output import Output
from appliance.errors import ExitStatus, MagbayError
from appliance.volumes.attributes import FileType
from tests.unit.volume_builder import Job, digest_hex, one_job, sample, volume


def run(*words: object, as_json: bool = False) -> int:
    """One `magbay volume` command; gives its exit status, declared errors included."""
    parser = argparse.ArgumentParser()
    noun.register(parser.add_subparsers(required=True))
    args = parser.parse_args(["volume", *map(str, words)])
    try:
        return int(args.run(args, Output(json=as_json)))
    except MagbayError as error:
        print(error.message)
        return int(error.status)


def document(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    """Exit status and the JSON document."""
    capsys.readouterr()
    status = run(*words, as_json=True)
    return status, json.loads(capsys.readouterr().out)


def test_list_of_a_real_volume(capsys: pytest.CaptureFixture[str]) -> None:
    volumes, manifest = sample("bacula-9.6", "a-sha256-gzip6")
    status, found = document(capsys, "list", *volumes)
    assert status == 0 and found["damage"] == []
    (job,) = manifest["jobs"]
    assert [one["path"] for one in found["files"]] == [one["path"] for one in job["files"]]
    for one, expected in zip(found["files"], job["files"], strict=True):
        assert (one["uid"], one["gid"], one["mtime"]) == (expected["uid"], expected["gid"], expected["mtime"])
        assert oct(one["mode"] & 0o7777) == expected["mode"]
        assert one["job_id"] == job["JobId"] and one["file_index"] == expected["file_index"]
        assert one["volume"] == volumes[0].name
        if expected.get("digest_base64"):
            assert one["digest"] == {"algorithm": "SHA256", "hex": digest_hex(expected["digest_base64"])}
        else:
            assert one["digest"] is None
        if "size" in expected:
            assert one["size"] == expected["size"]
        if "target" in expected:
            assert one["type"] == "symlink" and one["link"] == expected["target"]
    (listed,) = found["jobs"]
    assert (listed["job_id"], listed["job"], listed["status"]) == (job["JobId"], job["Job"], "T")
    assert run("list", *volumes) == 0
    assert f"{len(job['files'])} files" in capsys.readouterr().out


def test_odd_names_survive_json_and_text(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = one_job(tmp_path / "v", lambda job: [job.file(b"/\xff\xfe\n", b"x"), job.file(b"/  two  ", b"")])
    assert run("list", path, as_json=True) == 0
    found = json.loads(capfdbinary.readouterr().out)
    assert [one["path"].encode("utf-8", "surrogateescape") for one in found["files"]] == [b"/\xff\xfe\n", b"/  two  "]
    assert run("list", path) == 0
    assert b"/\xff\xfe\\n\n" in capfdbinary.readouterr().out


def test_types_of_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fill(job: Job) -> None:
        job.file(b"/empty", b"")
        first = job.file(b"/file", b"x", nlink=2)
        job.entry(FileType.HARD_LINK, b"/again", link=b"/file", link_fi=first)
        job.symlink(b"/link", b"file")
        job.directory(b"/dir/")
        for name, bits in ((b"/fifo", 0o010644), (b"/tty", 0o020644), (b"/disk", 0o060644)):
            job.entry(FileType.SPECIAL, name, mode=bits)
        job.entry(FileType.DELETED, b"/gone")
        job.entry(FileType.PLUGIN, b"/made")

    _, found = document(capsys, "list", one_job(tmp_path / "v", fill))
    types = {one["path"]: one["type"] for one in found["files"]}
    assert types == {
        "/empty": "file",
        "/file": "file",
        "/again": "hardlink",
        "/link": "symlink",
        "/dir/": "directory",
        "/fifo": "fifo",
        "/tty": "character-device",
        "/disk": "block-device",
        "/gone": "deleted",
        "/made": "plugin",
    }


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    volumes, manifest = sample("bareos-26", "a-span3")
    status, found = document(capsys, "show", *reversed(volumes))
    assert status == 0
    assert [one["label"]["name"] for one in found["volumes"]] == [path.name for path in volumes]
    assert {one["label"]["dialect"] for one in found["volumes"]} == {"bareos"}
    assert [job["job"] for job in found["jobs"]] == [manifest["jobs"][0]["Job"]]
    assert run("show", *volumes) == 0
    assert manifest["jobs"][0]["Job"] in capsys.readouterr().out


def test_extract_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = one_job(tmp_path / "v", lambda job: [job.file(b"/a/%d" % number, b"x" * number) for number in range(5)])
    status, found = document(capsys, "extract", path, "--to", tmp_path / "out")
    assert (status, found["files"], found["bytes"], found["errors"]) == (0, 5, 10, [])
    assert (tmp_path / "out/a/4").read_text() == "xxxx"
    status, found = document(capsys, "check", path)
    assert status == 0 and found["counts"] == {"files": 5, "bytes": 10, "verified": 5, "unverified": 0}
    assert run("extract", path, "--to", tmp_path / "out2", "--file", "/a/[34]") == 0
    assert sorted(os.listdir(tmp_path / "out2/a")) == ["3", "4"]


def test_enciphered_volume_with_and_without_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volumes, manifest = sample("bacula-15.0", "a-encrypted")
    status, found = document(capsys, "list", *volumes)
    assert status == 1 and not found["files"] and "--volume-key" in found["damage"][0]["what"]
    key = volumes[0].parent / manifest["volumes"][0]["key_file"]
    for place in (key, key.parent):
        status, found = document(capsys, "check", "--volume-key", place, *volumes)
        assert status == 0 and found["counts"]["verified"] == 16 and not found["damage"]
    assert run("extract", *volumes, "--to", tmp_path / "out", "--volume-key", key, "--file", "*.txt") == 0
    assert run("show", "--volume-key", tmp_path / "missing", *volumes) == 4
    assert key.read_text().split("cipher_key: ")[1][:20] not in capsys.readouterr().out


def test_data_encrypted_by_the_client_are_told_file_by_file(capsys: pytest.CaptureFixture[str]) -> None:
    volumes, manifest = sample("bareos-26", "a-pki")
    secret = [one["path"] for one in manifest["jobs"][0]["files"] if one.get("size") and not one["link_fi"]]
    status, found = document(capsys, "list", *volumes)
    assert status == 0 and [one["path"] for one in found["files"] if one["encrypted"]] == secret
    assert run("list", *volumes) == 0
    assert f"{len(secret)} of them encrypted by the client" in capsys.readouterr().out
    status, found = document(capsys, "check", *volumes)
    assert status == 3 and [text.partition(":")[0] for text in found["unreadable"]] == secret


def test_selection_by_bootstrap_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = one_job(tmp_path / "v", lambda job: [job.file(b"/%d" % number, b"x") for number in range(5)])
    bsr = tmp_path / "b.bsr"
    bsr.write_text('Volume="v"\nFileIndex=2-3\n')
    _, found = document(capsys, "list", path, "--bsr", bsr)
    assert [one["path"] for one in found["files"]] == ["/1", "/2"]
    assert run("extract", path, "--bsr", bsr, "--to", tmp_path / "out") == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["1", "2"]
    bsr.write_text("nonsense")
    assert run("list", path, "--bsr", bsr) == ExitStatus.FAILED
    assert run("list", path, "--bsr", tmp_path / "missing") == ExitStatus.NOT_FOUND


def damaged(tmp_path: Path) -> Path:
    """A volume with a flipped bit in the second of three files."""
    job = Job(max_block=1000)
    for name in (b"/a", b"/b", b"/c"):
        job.file(name, name * 1500, chunk=500)
    path = volume(tmp_path / "v", *job.end())
    data = bytearray(path.read_bytes())
    data[data.index(b"/b" * 100) + 1500] ^= 4
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("verb", ["list", "check", "extract", "show"])
def test_damage_is_told_with_place_files_and_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    path = damaged(tmp_path)
    words = [verb, path, *(["--to", tmp_path / "out"] if verb == "extract" else [])]
    assert run(*words) == ExitStatus.FAILED
    told = capsys.readouterr().err
    assert f"{path}: at address" in told and "checksum" in told and "/b" in told and "another job" in told
    assert "/a" not in told.replace(str(path), "") and "/c" not in told.replace(str(path), "")
    status, found = document(capsys, *words)
    (damage,) = [one for one in found["damage"] if one["length"]]
    assert status == 1 and damage["files"] == ["/b"]
    length = struct.unpack_from(">I", path.read_bytes(), damage["address"] + 4)[0]
    assert damage["length"] == length and path.read_bytes()[damage["address"] + 12 :][:4] == b"BB02"


def test_check_finds_content_that_does_not_match_its_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fill(job: Job) -> None:
        job.entry(FileType.REGULAR, b"/bad", mode=0o100600, size=4)
        job.record(2, b"evil")
        job.finish_file(b"good")

    assert run("check", one_job(tmp_path / "v", fill)) == ExitStatus.FAILED
    assert "/bad" in capsys.readouterr().err


def test_job_without_an_end_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volumes, _ = sample("bacula-9.6", "a-canceled")
    status, found = document(capsys, "list", *volumes)
    assert status == 0 and found["damage"] == [] and "cancelled" in found["jobs"][0]["note"]
    assert found["jobs"][0]["status"] is None
    assert run("check", *volumes) == ExitStatus.WARNINGS
    assert run("extract", *volumes, "--to", tmp_path / "out") == ExitStatus.WARNINGS


def test_volume_that_begins_in_the_middle_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    volumes, _ = sample("bacula-9.6", "a-span3")
    assert run("list", volumes[2]) == ExitStatus.WARNINGS
    assert "give the volume before it" in capsys.readouterr().err


def test_exit_status_of_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = one_job(tmp_path / "v", lambda job: job.file(b"/a", b"x"))
    assert run("list", tmp_path / "missing") == ExitStatus.NOT_FOUND
    assert run("list", path, "--file", "/nothing*") == ExitStatus.NOT_FOUND
    assert run("extract", path, "--file", "/nothing*", "--to", tmp_path / "out") == ExitStatus.NOT_FOUND
    assert run("list", path, path) == ExitStatus.USAGE
    (tmp_path / "text").write_text("no volume" * 100)
    assert run("list", tmp_path / "text") == ExitStatus.FAILED
    told = capsys.readouterr().out
    assert "is not a volume" in told and str(tmp_path / "missing") in told


def test_replace_never_keeps_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = one_job(tmp_path / "v", lambda job: job.file(b"/a", b"saved"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_text("mine")
    status, found = document(capsys, "extract", path, "--to", tmp_path / "out", "--replace", "never")
    assert (status, found["files"], found["skipped"]) == (0, 0, 1)
    assert (tmp_path / "out/a").read_text() == "mine"
