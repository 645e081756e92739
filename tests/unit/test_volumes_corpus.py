"""Volumes written by Bacula and Bareos, compared with what their catalogs say."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import NotFoundError
from appliance.volumes import digests, optional
from appliance.volumes.bb03 import VolumeKeys
from appliance.volumes.bsr import parse_bsr
from appliance.volumes.compression import decode
from appliance.volumes.errors import UnsupportedError, VolumeError
from appliance.volumes.events import (
    Acl,
    Data,
    Digest,
    Event,
    FileEnd,
    FileEntry,
    FileState,
    Other,
    Partial,
    SessionEnd,
    VolumeStart,
    Xattr,
)  # fmt: skip
from appliance.volumes.labels import Dialect
from appliance.volumes.reader import Damage
from appliance.volumes.reading import in_order, read_volumes
from appliance.volumes.streams import Stream, is_encrypted
from appliance.volumes.verify import ContentCheck
from tests.unit.volume_builder import CORPUS, digest_hex, names_of, sample

# What is special about a sample. All others must be read to the last byte without a complaint.
CANCELLED = {"a-canceled", "b-canceled"}
ENCRYPTED_BY_CLIENT = {"a-pki"}
DAMAGED_BY_BAREOS = {"a-xf-sparse"}
SAMPLES = [(which, name) for which in ("bacula-9.6", "bacula-15.0", "bareos-26") for name in names_of(which)]
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
    object: bytes = b""
    encrypted: bool = False
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
        if isinstance(event, Data) and is_encrypted(event.stream):
            seen.encrypted = True
            with pytest.raises(UnsupportedError, match="encrypted by the client"):
                decode(event.stream, event.data)
        elif isinstance(event, Data):
            chunk = decode(event.stream, event.data)
            seen.sent += chunk.data
            at = len(seen.data) if chunk.offset is None else chunk.offset
            seen.data.extend(bytes(max(0, at - len(seen.data))))
            seen.data[at : at + len(chunk.data)] = chunk.data
        elif isinstance(event, Digest):
            seen.digest = (event.algorithm, event.value.hex())
        elif isinstance(event, Acl):
            prefix = "default:" if event.stream == 1007 else ""
            seen.acls += [prefix + line for line in event.data.rstrip(b"\0").decode().splitlines()]
        elif isinstance(event, Xattr):
            seen.xattrs += event.data
        elif isinstance(event, Other) and event.stream == Stream.RESTORE_OBJECT:
            seen.object = bytes(event.data)
        elif isinstance(event, FileEnd):
            seen.state = event.state
            size = entry.attributes.stat.size
            if len(seen.data) < size and entry.attributes.kind == "file":
                seen.data.extend(bytes(size - len(seen.data)))
    return files, rest


@pytest.mark.parametrize(("which", "name"), SAMPLES)
def test_every_sample_is_what_its_manifest_says(which: str, name: str) -> None:
    """Names, attributes, content, digests, ACLs, objects, deleted entries, labels; nothing missing, nothing new."""
    volumes, manifest = sample(which, name)
    keys = VolumeKeys([CORPUS / which / name])
    files, rest = collect(read_volumes(in_order(volumes, keys), keys=keys))
    assert not [event for event in rest if isinstance(event, Damage | Partial)]
    seen: set[tuple[int, int]] = set()
    for job in manifest["jobs"]:
        session = job["VolSessionId"]
        # Deleted entries have FileIndex -n (Bacula) or 0 (Bareos) in the catalog.
        for expected in (one for one in job["files"] if one["file_index"] > 0):
            compare(files[session, expected["file_index"]], expected, files, job["options"].get("acl", False), name)
            seen.add((session, expected["file_index"]))
        for one in job.get("restore_objects", []):
            found = files[session, one["FileIndex"]]
            assert (found.entry.path, found.entry.attributes.ftype) == (one["ObjectName"], one["ObjectType"])
            assert found.entry.attributes.stat.size == one["ObjectFullLength"]
            assert found.object.endswith(b"\0" + base64.b64decode(one["Object_base64"]) + b"\0")
            seen.add((session, one["FileIndex"]))
        rows = {key: one for key, one in files.items() if key[0] == session}
        deleted = {key: one.entry.path for key, one in rows.items() if one.entry.attributes.kind == "deleted"}
        expected_names = {one["path"] if isinstance(one, dict) else one for one in job.get("deleted", [])}
        assert set(deleted.values()) == expected_names
        seen |= set(deleted)
        ends = [event for event in rest if isinstance(event, SessionEnd) and event.ids.session_id == session]
        judge_end(ends, job, rows, name)
        if name in CANCELLED:  # nothing, or not all, came into the catalog
            seen |= set(rows)
    # Bacula 15 saves the plugin's configuration without a row that the manifest shows.
    extra = {key for key in set(files) - seen if files[key].entry.attributes.kind != "plugin"}
    assert not extra and len(files) - len(seen) == (1 if (which, name) == ("bacula-15.0", "a-bpipe") else 0)
    labels = [event.label for event in rest if isinstance(event, VolumeStart)]
    # A volume that was copied under another name keeps its label.
    names = {(one["file"]) for one in manifest["volumes"]}
    assert {label.name for label in labels if label} <= names
    wanted = Dialect.BAREOS if which.startswith("bareos") else Dialect.BACULA
    assert all(label is not None and label.dialect is wanted for label in labels)


def judge_end(ends: list[SessionEnd], job: dict[str, Any], rows: dict[tuple[int, int], Seen], name: str) -> None:
    """The end label of a job; a cancelled one has none and stops inside its last file, what came before is whole."""
    (end,) = ends
    if name not in CANCELLED:
        assert end.end is not None and (end.end.job, end.end.job_files) == (job["Job"], job["JobFiles"])
        return
    assert end.end is None and end.start is not None and end.start.job == job["Job"]
    states = [one.state for one in rows.values()]
    assert states[-1] is FileState.CUT and set(states[:-1]) == {FileState.WHOLE}


def compare(seen: Seen, expected: dict[str, Any], files: dict[tuple[int, int], Seen], extras: bool, name: str) -> None:
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
    if "sha256" not in expected:
        return
    content = files[seen.entry.ids.session_id, saved.link_fi] if saved.link_fi else seen
    assert content.encrypted is (name in ENCRYPTED_BY_CLIENT and expected["size"] > 0)
    if content.encrypted:
        return
    # What Bareos damaged comes as it is on the volume, and its digest says that it is damaged.
    spoiled = "on_volume" in expected
    assert not spoiled or name in DAMAGED_BY_BAREOS
    assert hashlib.sha256(content.data).hexdigest() == (expected["on_volume"] if spoiled else expected)["sha256"]
    if seen.digest and not saved.link_fi:
        digest = digests.new(seen.digest[0])
        digest.update(seen.sent)
        assert (digest.digest().hex() == seen.digest[1]) is not spoiled


@pytest.mark.parametrize("name", ["a-encrypted", "a-encrypted-strong"])
def test_enciphered_volume_without_its_key_is_named(name: str, tmp_path: Path) -> None:
    volumes, _ = sample("bacula-15.0", name)
    files, rest = collect(read_volumes(volumes))
    (damage,) = [event for event in rest if isinstance(event, Damage)]
    assert not files and "no key" in damage.what
    assert damage.address + damage.length == volumes[0].stat().st_size
    (start,) = [event for event in rest if isinstance(event, VolumeStart)]
    assert start.label is not None and start.label.name == volumes[0].name


@pytest.mark.parametrize("other", ["a-encrypted", "a-encrypted-strong"])
def test_wrong_key_gives_no_data(other: str) -> None:
    volumes, _ = sample("bacula-15.0", "a-encrypted")
    key = next((CORPUS / "bacula-15.0" / other).glob("*.key"))
    files, rest = collect(read_volumes(volumes, keys=VolumeKeys([key])))
    damage = [event for event in rest if isinstance(event, Damage)]
    if other == "a-encrypted":
        assert files and not damage
    else:
        assert not files and "not the key" in damage[0].what


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cipher: AES_128_XTS\n",
        "cipher: AES_128_XTS\ncipher_key: !!!\n",
        "cipher: AES_128_XTS\ncipher_key: AAAA\n",
        "cipher: AES_256_XTS\ncipher_key: " + "A" * 43 + "=\n",
        "cipher: AES_128_XTS\ncipher_key: " + "A" * 43 + "=\n",  # both halves are the same
        "cipher: DES\ncipher_key: " + "B" * 43 + "=\n",
    ],
)
def test_key_files_that_are_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_text(text)
    with pytest.raises(VolumeError, match=str(path)) as caught:
        VolumeKeys([path])
    assert "AAA" not in caught.value.message + caught.value.hint
    with pytest.raises(NotFoundError):
        VolumeKeys([tmp_path / "missing"])


def test_keys_are_found_by_the_name_of_the_volume(tmp_path: Path) -> None:
    volumes, _ = sample("bacula-15.0", "a-encrypted")
    key = next(volumes[0].parent.glob("*.key"))
    for name in (volumes[0].name, f"{volumes[0].name}.key"):
        (tmp_path / name).write_bytes(key.read_bytes())
        moved = tmp_path / "volume-under-another-name"
        moved.write_bytes(volumes[0].read_bytes())
        files, rest = collect(read_volumes([moved], keys=VolumeKeys([tmp_path])))
        assert len(files) == 32 and not [event for event in rest if isinstance(event, Damage)]
        (tmp_path / name).unlink()
    assert repr(VolumeKeys([key]).of(volumes[0], "")) == "(VolumeKey(),)"


@pytest.mark.parametrize(
    ("which", "name", "module", "package"),
    [
        ("bacula-15.0", "a-plain-md5", "xxhash", "python3-xxhash"),
        ("bareos-26", "a-fd-lz4", "lz4.block", "python3-lz4"),
    ],
)
def test_missing_library_is_named(
    which: str, name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes, _ = sample(which, name)
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    optional.find.cache_clear()
    try:
        with pytest.raises(UnsupportedError) as caught:
            collect(read_volumes(volumes))
        assert package in caught.value.hint
        if module == "xxhash":
            _, rest = collect(read_volumes(sample(which, "a-append-bb02")[0]))
            (damage,) = [event for event in rest if isinstance(event, Damage)]
            assert "xxhash" in damage.what
            assert "XXH128" not in digests.computable()
    finally:
        optional.find.cache_clear()


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
