"""Volumes written by Bacula and Bareos, compared with what their catalogs say."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.volumes.bsr import parse_bsr
from appliance.volumes.compression import decode
from appliance.volumes.errors import UnsupportedError
from appliance.volumes.events import (
    Acl,
    Data,
    Digest,
    Event,
    FileEnd,
    FileEntry,
    FileState,
    Partial,
    SessionEnd,
    VolumeStart,
    Xattr,
)  # fmt: skip
from appliance.volumes.labels import Dialect
from appliance.volumes.reader import Damage
from appliance.volumes.reading import in_order, read_volumes
from appliance.volumes.verify import ContentCheck
from tests.unit.volume_builder import CORPUS, digest_hex, sample

BACULA = ["plain-md5", "sha256-gzip6", "span3", "interleaved", "incr", "bigblock", "sparse-md5", "bpipe"]
BACULA += ["sparse-gzip9-sha512"]
BAREOS = ["plain-md5", "default-blocks", "blocks-64512", "span3", "interleaved", "fd-gzip6", "sparse-md5", "incr"]
BAREOS += ["xf-gzip", "xf-inflate", "sparse-gzip9", "xxh128"]
SAMPLES = [("bacula-9.6", f"{letter}-{name}") for name in BACULA for letter in "ab"]
SAMPLES += [("bareos-26", f"a-{name}") for name in BAREOS]
KINDS = {"dir": "directory"}


@dataclass
class Seen:
    """One file as it came off the volumes."""

    entry: FileEntry
    data: bytearray = field(default_factory=bytearray)
    sent: bytearray = field(default_factory=bytearray)
    digest: tuple[str, str] | None = None
    acls: list[str] = field(default_factory=list)
    xattrs: bytes = b""
    state: FileState | None = None


def collect(events: Iterator[Event]) -> tuple[dict[tuple[int, int], Seen], list[Event]]:
    """Files by (session id, FileIndex), and what else came."""
    files: dict[tuple[int, int], Seen] = {}
    rest: list[Event] = []
    for event in events:
        entry = getattr(event, "entry", None)
        if entry is None:
            rest.append(event)
            continue
        seen = files.setdefault((entry.ids.session_id, entry.file_index), Seen(entry))
        if isinstance(event, Data):
            chunk = decode(event.stream, event.data)
            seen.sent += chunk.data
            if chunk.offset is not None:
                seen.data.extend(bytes(chunk.offset - len(seen.data)))
            seen.data += chunk.data
        elif isinstance(event, Digest):
            seen.digest = (event.algorithm, event.value.hex())
        elif isinstance(event, Acl):
            prefix = "default:" if event.stream == 1007 else ""
            seen.acls += [prefix + line for line in event.data.rstrip(b"\0").decode().splitlines()]
        elif isinstance(event, Xattr):
            seen.xattrs += event.data
        elif isinstance(event, FileEnd):
            seen.state = event.state
            size = entry.attributes.stat.size
            if len(seen.data) < size and entry.attributes.kind == "file":
                seen.data.extend(bytes(size - len(seen.data)))
    return files, rest


@pytest.mark.parametrize(("which", "name"), SAMPLES)
def test_files_are_those_of_the_catalog(which: str, name: str) -> None:
    volumes, manifest = sample(which, name)
    files, rest = collect(read_volumes(in_order(volumes)))
    assert not [event for event in rest if isinstance(event, Damage | Partial)]
    count = 0
    for job in manifest["jobs"]:
        for expected in job["files"]:
            # Deleted entries have FileIndex -n (Bacula) or 0 (Bareos) in the catalog.
            if expected["file_index"] > 0:
                compare(
                    files[job["VolSessionId"], expected["file_index"]],
                    expected,
                    files,
                    job["options"].get("acl", False),
                )
                count += 1
        deleted = {
            seen.entry.path
            for (session, _), seen in files.items()
            if session == job["VolSessionId"] and seen.entry.attributes.kind == "deleted"
        }
        assert deleted == {one["path"] if isinstance(one, dict) else one for one in job.get("deleted", [])}
        count += len(deleted)
        ends = [
            event for event in rest if isinstance(event, SessionEnd) and event.ids.session_id == job["VolSessionId"]
        ]
        assert [end.end.job for end in ends if end.end] == [job["Job"]]
        assert ends[0].end is not None and ends[0].end.job_files == job["JobFiles"]
    assert count == len(files)
    labels = [event.label for event in rest if isinstance(event, VolumeStart)]
    assert [label.name for label in labels if label] == [one["file"] for one in manifest["volumes"]]
    wanted = Dialect.BAREOS if which.startswith("bareos") else Dialect.BACULA
    assert all(label is not None and label.dialect is wanted for label in labels)


def compare(seen: Seen, expected: dict[str, Any], files: dict[tuple[int, int], Seen], extras: bool) -> None:
    """All that the manifest says of one file; *extras*: ACLs and extended attributes were saved."""
    attributes = seen.entry.attributes
    saved = attributes.stat
    assert seen.state is FileState.WHOLE
    assert seen.entry.path == expected["path"]
    kind = "hardlink" if expected["link_fi"] else KINDS.get(expected["type"], expected["type"])
    assert attributes.kind == kind
    assert attributes.ftype == expected["ft"]
    if "mode" not in expected:  # made by a plugin: the catalog's file has content only
        assert hashlib.sha256(seen.data).hexdigest() == expected["sha256"]
        return
    assert oct(saved.mode & 0o7777) == expected["mode"]
    assert (saved.uid, saved.gid, saved.mtime) == (expected["uid"], expected["gid"], expected["mtime"])
    assert saved.link_fi == expected["link_fi"]
    if "target" in expected:
        assert seen.entry.link == expected["target"]
    if expected.get("digest_base64"):
        assert seen.digest is not None and seen.digest[1] == digest_hex(expected["digest_base64"])
    if extras:
        assert sorted(seen.acls) == sorted(expected.get("acl", []))
    for name, value in expected.get("xattr_hex", {}).items() if extras else ():
        assert name.encode() in seen.xattrs and bytes.fromhex(value) in seen.xattrs
    if "sha256" in expected:
        content = files[seen.entry.ids.session_id, saved.link_fi] if saved.link_fi else seen
        assert hashlib.sha256(content.data).hexdigest() == expected["sha256"]
        if seen.digest and not saved.link_fi and seen.digest[0] in ("MD5", "SHA1", "SHA256", "SHA512"):
            assert hashlib.new(seen.digest[0], seen.sent).hexdigest() == seen.digest[1]


@pytest.mark.parametrize("name", ["a-canceled", "b-canceled"])
def test_cancelled_job_has_no_end_but_no_damage(name: str) -> None:
    volumes, manifest = sample("bacula-9.6", name)
    files, rest = collect(read_volumes(volumes))
    assert not [event for event in rest if isinstance(event, Damage | Partial)]
    (end,) = [event for event in rest if isinstance(event, SessionEnd)]
    assert end.end is None and end.start is not None and end.start.job == manifest["jobs"][0]["Job"]
    states = [seen.state for seen in files.values()]
    assert states[-1] is FileState.CUT and set(states[:-1]) == {FileState.WHOLE}


@pytest.mark.parametrize(
    ("which", "name", "algorithm"),
    [
        ("bacula-9.6", "a-lzo-sha1", "LZO"),
        ("bareos-26", "a-fd-lz4", "LZ4"),
        ("bareos-26", "a-fd-lz4hc", "LZ4HC"),
        ("bareos-26", "a-fd-lzfast", "LZFAST"),
        ("bareos-26", "a-pki", "encrypted"),
    ],
)
def test_what_is_not_read_is_named(which: str, name: str, algorithm: str) -> None:
    volumes, _ = sample(which, name)
    with pytest.raises(UnsupportedError, match=algorithm):
        collect(read_volumes(volumes))


@pytest.mark.parametrize("name", ["a-plain-md5", "a-encrypted"])
def test_volume_in_another_block_format_is_refused_by_name(name: str) -> None:
    volumes, _ = sample("bacula-15.0", name)
    with pytest.raises(UnsupportedError, match="BB03"):
        list(read_volumes(volumes))


def test_blocks_in_another_format_behind_are_damage_with_a_name() -> None:
    volumes, _ = sample("bacula-15.0", "a-append-bb02")
    files, rest = collect(read_volumes(volumes))
    (damage,) = [event for event in rest if isinstance(event, Damage)]
    assert "BB03" in damage.what and damage.address + damage.length == volumes[0].stat().st_size
    assert [seen.state for seen in files.values()] == [FileState.WHOLE]


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("which", ["bacula-9.6", "bareos-26"])
def test_spanning_volumes_are_put_in_order(which: str, order: tuple[int, ...]) -> None:
    volumes, _ = sample(which, "a-span3")
    assert in_order([volumes[number] for number in order]) == volumes


def test_middle_volume_alone_is_partial_not_damaged() -> None:
    volumes, manifest = sample("bacula-9.6", "a-span3")
    files, rest = collect(read_volumes(volumes[1:2]))
    assert not [event for event in rest if isinstance(event, Damage)]
    assert len([event for event in rest if isinstance(event, Partial)]) == 1
    (row,) = [
        one for one in manifest["jobs"][0]["jobmedia"] if one["VolumeName"] == volumes[1].name and one["FirstIndex"]
    ]
    # The first file begins on the volume before.
    assert [index for _, index in files] == list(range(row["FirstIndex"] + 1, row["LastIndex"] + 1))
    assert list(files.values())[-1].state is FileState.CUT


def test_missing_middle_volume_is_damage_of_the_file_that_it_cuts() -> None:
    volumes, _ = sample("bacula-9.6", "a-span3")
    files, rest = collect(read_volumes([volumes[0], volumes[2]]))
    what = [event.what for event in rest if isinstance(event, Damage)]
    assert any("is a volume between missing?" in text for text in what) and any("are lost" in text for text in what)
    assert [index for (_, index), seen in files.items() if seen.state is FileState.DAMAGED] == [23]


@pytest.mark.parametrize("name", ["a-plain-md5", "b-span3", "a-interleaved"])
def test_bootstrap_files_of_the_jobs_select_their_files(name: str) -> None:
    volumes, manifest = sample("bacula-9.6", name)
    for file in manifest["bootstraps"]:
        path = CORPUS / "bacula-9.6" / name / file
        files, rest = collect(read_volumes(volumes, select=parse_bsr(path.read_text(), file)))
        assert not [event for event in rest if isinstance(event, Damage | Partial)]
        assert {seen.state for seen in files.values()} == {FileState.WHOLE}
        whole = sum(len(job["files"]) for job in manifest["jobs"])
        if "partial" in file:
            assert 0 < len(files) < whole
        else:
            assert len(files) == (whole if len(manifest["jobs"]) == 1 else len(manifest["jobs"][0]["files"]))


def test_check_verifies_every_digest() -> None:
    volumes, manifest = sample("bacula-9.6", "a-interleaved")
    check = ContentCheck()
    with contextlib.closing(check):
        for event in read_volumes(volumes):
            check.take(event)
    with_digest = [file for job in manifest["jobs"] for file in job["files"] if file.get("digest_base64")]
    assert (check.verified, check.unverified, check.mismatches) == (len(with_digest), 0, [])


def test_corpus_paths_are_regular_files() -> None:
    volumes, manifest = sample("bacula-9.6", "a-plain-md5")
    assert [path.stat().st_size for path in volumes] == [one["size"] for one in manifest["volumes"]]
    assert all(isinstance(path, Path) for path in volumes)
