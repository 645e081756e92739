"""Digests that threads compute while the next file is written: each file is judged by its own, none is forgotten."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.storage.extract import Extractor
from appliance.storage.outcome import FileResult, Outcome
from appliance.storage.output import Cancelled
from appliance.volumes import verify
from appliance.volumes.attributes import FileType
from appliance.volumes.events import Data, Digest, Event, FileEnd
from appliance.volumes.reading import read_volumes
from appliance.volumes.streams import Stream
from appliance.volumes.verify import ContentCheck, DigestPlan, FileDigest, Pieces
from tests.unit.volume_builder import IDS, Job, one_job, volume

MIB = 1 << 20


def test_each_file_is_judged_by_its_own_digest(tmp_path: Path) -> None:
    pick = random.Random(4)
    contents = {f"/{number}": pick.randbytes(pick.choice([0, 5, MIB, MIB + 1, 3 * MIB + 7])) for number in range(24)}
    wrong = {"/3", "/11", "/23"}

    def fill(job: Job) -> None:
        for name, content in contents.items():
            job.entry(FileType.REGULAR, name.encode(), mode=0o100644, size=len(content))
            for at in range(0, len(content), 65536):
                job.record(Stream.FILE_DATA, content[at : at + 65536])
            job.finish_file(b"another" if name in wrong else content)

    told: list[FileResult] = []
    path = one_job(tmp_path / "volume", fill)
    summary = Extractor(tmp_path / "out", on_result=told.append).run(read_volumes([path]))
    assert sorted(summary.errors) == sorted(
        f"{name}: is kept, but its content does not match its digest" for name in wrong
    )
    assert {one.path for one in told if one.outcome is Outcome.FAILED} == wrong and len(told) == 24
    for name, content in contents.items():
        assert (tmp_path / "out" / name[1:]).read_bytes() == content
    check = ContentCheck()
    for event in read_volumes([path]):
        check.take(event)
    check.close()
    assert (check.verified, len(check.mismatches)) == (21, 3)


def test_more_open_files_than_there_is_memory_for(tmp_path: Path) -> None:
    jobs = [Job(ids=IDS._replace(session_id=number), digest="SHA1") for number in range(100, 140)]
    contents = [random.Random(number).randbytes(2 * MIB + number) for number in range(40)]
    for job, content in zip(jobs, contents, strict=True):
        job.file(b"/%d" % job.ids.session_id, content)
    blocks = [job.end() for job in jobs]
    path = volume(tmp_path / "volume", *(mine[at] for at in range(len(blocks[0])) for mine in blocks))
    summary = Extractor(tmp_path / "out").run(read_volumes([path]))
    assert summary.files == 40 and not summary.errors and not summary.warnings and not summary.unverified
    for job, content in zip(jobs, contents, strict=True):
        assert (tmp_path / "out" / f"{job.ids.session_id}").read_bytes() == content


def test_what_has_its_place_is_judged_when_the_restore_is_cancelled(tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        for number in range(3):
            job.entry(FileType.REGULAR, b"/%d" % number, mode=0o100644, size=8 * MIB)
            for _ in range(8):
                job.record(Stream.FILE_DATA, bytes(MIB))
            job.finish_file(b"another")

    def events() -> Iterator[Event]:
        ends = 0
        for event in read_volumes([one_job(tmp_path / "volume", fill)]):
            if ends == 2 and isinstance(event, Data):
                raise Cancelled
            yield event
            ends += isinstance(event, FileEnd)

    extractor = Extractor(tmp_path / "out", algorithm="MD5")
    with pytest.raises(Cancelled):
        extractor.take(events())
    extractor.close()
    assert [line[:2] for line in extractor.summary.errors] == ["/0", "/1"]


def digest_of(pieces: Pieces) -> FileDigest:
    digest = DigestPlan("SHA256", pieces).start(IDS)
    assert isinstance(digest, FileDigest)
    return digest


@pytest.mark.parametrize("sizes", [[MIB], [MIB, 1], [65536] * 100, [3 * MIB + 1, 0, 5, 2 * MIB], [1] * 50, []])
def test_any_cut_of_the_data(sizes: list[int]) -> None:
    pieces = Pieces()
    for memory in (True, False):
        if not memory:
            while pieces.take() is not None:  # all are being filled by others
                pass
        digest, plain = digest_of(pieces), hashlib.sha256()
        for number, size in enumerate(sizes):
            data = bytes([number % 256]) * size
            digest.update(memoryview(data))
            plain.update(data)
        assert digest.judged("SHA256", plain.digest()).result(60) is True
        assert digest.matches("SHA256", plain.digest()[::-1]) is False
        assert digest.matches("MD5", b"") is None
        digest.drop()


def test_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_MOST_PIECES", 3)
    monkeypatch.setattr(verify, "_MOST_HELD", 2)
    pieces = Pieces()
    plan = DigestPlan("MD5", pieces)
    for number in range(20):
        digest = plan.start(IDS)
        digest.update(memoryview(bytes(3 * MIB + 5)))
        digest.update(memoryview(bytes(3 * MIB + 5)))
        if number % 3:
            digest.drop()  # in the middle
        else:
            assert digest.matches("MD5", hashlib.md5(bytes(6 * MIB + 10)).digest())
    plan.close()
    held = [pieces.take(), pieces.take()]
    assert None not in held and pieces.take() is None


def test_a_digest_of_a_kind_that_is_not_computed(tmp_path: Path) -> None:
    """The first large file of a job with another digest than the catalog has: told as not verified, not as wrong."""

    def fill(job: Job) -> None:
        for number in range(3):
            job.file(b"/%d" % number, bytes(2 * MIB))

    path = one_job(tmp_path / "volume", fill, digest="SHA512")
    summary = Extractor(tmp_path / "out", algorithm="MD5").run(read_volumes([path]))
    assert (summary.files, summary.unverified) == (3, 1) and not summary.errors
    assert sum(isinstance(event, Digest) for event in read_volumes([path])) == 3
