"""Every combination that is written, read by Bacula's own tools and by the reader: no difference in any byte.

Block size × volumes × sessions at once are separate runs; each holds a file for every compression × digest.
"""

from __future__ import annotations

import itertools
import random
import stat
import struct
import zlib
from pathlib import Path

import pytest

from appliance.storage.extract import Extractor
from appliance.volumes import packing
from appliance.volumes.attributes import FileType
from appliance.volumes.blocks import SessionIds
from appliance.volumes.bsr import parse_bsr
from appliance.volumes.reading import in_order, read_volumes
from appliance.volumes.streams import DIGEST_STREAMS, Stream
from appliance.volumes.verify import ContentCheck
from tests.unit import stocktools
from tests.unit.volume_builder import NOW, Job, label_of

COMPRESSIONS = [Stream.FILE_DATA, Stream.GZIP_DATA, Stream.SPARSE_DATA, Stream.SPARSE_GZIP_DATA]
COMPRESSIONS += [Stream.COMPRESSED_DATA, Stream.SPARSE_COMPRESSED_DATA]  # by LZO
WITH_HOLES = (Stream.SPARSE_DATA, Stream.SPARSE_GZIP_DATA, Stream.SPARSE_COMPRESSED_DATA)
DIGESTS = [None, *DIGEST_STREAMS]
BLOCK_SIZES = [1024, 64512, 1_000_000]
HOLE = 65528


def content(name: str, size: int) -> bytes:
    """Half text, half noise, the same for the same name."""
    noise = random.Random(name)
    return (b"a line of text\n" * (size // 15 + 1))[: size // 2] + noise.randbytes(size - size // 2)


def save(job: Job, name: str, data: bytes, stream: Stream) -> None:
    """One file; those with holes have a block of zeros in front that is left out."""
    sparse = stream in WITH_HOLES
    size = len(data) + (HOLE if sparse else 0)
    job.entry(FileType.REGULAR, name.encode(), mode=stat.S_IFREG | 0o640, size=size, data_stream=stream)
    for start in range(0, len(data), HOLE):
        piece = data[start : start + HOLE]
        front = struct.pack(">Q", start + HOLE) if sparse else b""
        packed = zlib.compress(piece, 1 + start // HOLE % 9) if stream in (4, 7) else piece
        packed = packing.lzo().compress(piece) if stream in (29, 30) else packed
        job.record(stream, front + packed)
    job.finish_file(data)


def one_session(number: int, max_block: int) -> tuple[list[bytes], dict[str, bytes]]:
    """The blocks of a job, and what must come back."""
    # bls takes the labels of job 1 for attributes, whoever wrote them: JobId and stream share a field.
    job = Job(ids=SessionIds(number, NOW), job_id=100 + number, max_block=max_block)
    wanted: dict[str, bytes] = {}
    for at, (stream, digest) in enumerate(itertools.product(COMPRESSIONS, DIGESTS)):
        job.digest = digest
        name = f"/job-{number}/{stream.name}-{digest}"
        data = content(name, (1, 500, 3000, HOLE, 90_000)[at % 5])
        save(job, name, data, stream)
        wanted[name] = (bytes(HOLE) if stream in WITH_HOLES else b"") + data
    return job.end(), wanted


def distribute(folder: Path, blocks: list[bytes], volumes: int) -> list[Path]:
    """The blocks on as many volumes."""
    each = len(blocks) // volumes + 1
    paths = [folder / f"matrix-{number + 1}" for number in range(volumes)]
    for number, path in enumerate(paths):
        label = label_of(path, ids=SessionIds(1, NOW), stream=number + 1 if number else 0, when=NOW + number)
        path.write_bytes(label + b"".join(blocks[number * each : (number + 1) * each]))
    return paths


def tree(top: Path) -> dict[str, bytes]:
    """Files below *top*."""
    return {f"/{path.relative_to(top)}": path.read_bytes() for path in top.rglob("*") if path.is_file()}


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("volumes", [1, 3])
@pytest.mark.parametrize("max_block", BLOCK_SIZES)
def test_stock_tools_and_the_reader_agree(max_block: int, volumes: int, sessions: int, tmp_path: Path) -> None:
    made = [one_session(number + 1, max_block) for number in range(sessions)]
    mixed = [block for row in itertools.zip_longest(*(blocks for blocks, _ in made)) for block in row if block]
    (tmp_path / "volumes").mkdir()
    paths = distribute(tmp_path / "volumes", mixed, volumes)
    quiet = max_block <= 64512
    files = sum(len(wanted) for _, wanted in made)
    assert f"{files} files found" in stocktools.bls(paths, strict=quiet)
    stocktools.bls(paths, "-k", "-v", strict=quiet)

    check = ContentCheck()
    for event in read_volumes(in_order(paths[::-1])):
        check.take(event)
    check.close()
    assert (check.files, check.mismatches, check.unreadable) == (files, [], [])

    for number, (_, wanted) in enumerate(made, 1):
        bsr = tmp_path / f"{number}.bsr"
        entry = 'Volume="{}"\nMediaType="File"\nVolSessionId={}\nVolSessionTime={}\n'
        bsr.write_text("".join(entry.format(path.name, number, NOW) for path in paths))
        stocktools.bextract(paths, tmp_path / f"stock-{number}", bsr=bsr, strict=quiet)
        assert tree(tmp_path / f"stock-{number}") == wanted
        ours = Extractor(tmp_path / f"ours-{number}")
        summary = ours.run(read_volumes(paths, select=parse_bsr(bsr.read_text(), str(bsr))))
        assert (summary.errors, summary.warnings, summary.files) == ([], [], len(wanted))
        assert tree(tmp_path / f"ours-{number}") == wanted
