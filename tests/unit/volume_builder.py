"""Volumes for tests: built with the writer, or the shared corpus of real ones."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.volumes.attributes import FileType, pack_attributes
from appliance.volumes.blocks import SessionIds
from appliance.volumes.labels import LabelKind, SessionLabel, VolumeLabel
from appliance.volumes.stat64 import EncodedStat
from appliance.volumes.streams import DIGEST_STREAMS, Stream
from appliance.volumes.writer import SessionWriter, label_block

NOW = 1_795_342_893
IDS = SessionIds(7, NOW)
CORPUS = Path(os.environ.get("MAGBAY_CORPUS", Path(__file__).parents[3] / "shared" / "corpus"))


class Kept:
    """A sink that keeps its blocks."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []

    def write_block(self, block: memoryview, first_index: int, last_index: int) -> None:
        self.blocks.append(bytes(block))


@dataclass
class Job:
    """One session under construction; `blocks` gives what it wrote."""

    ids: SessionIds = IDS
    max_block: int = 64512
    job_id: int = 3
    digest: str | None = "MD5"
    sink: Kept = field(default_factory=Kept)
    index: int = 0
    began: int = NOW

    def __post_init__(self) -> None:
        self.writer = SessionWriter(self.sink, self.ids, max_block=self.max_block)
        self.label = SessionLabel(
            self.job_id, self.began * 10**6, f"job.{self.job_id}", "job", "client", "set", "x", "Default"
        )
        self.writer.write_label(LabelKind.SOS_LABEL, self.job_id, self.label.pack(LabelKind.SOS_LABEL))

    def entry(
        self, kind: FileType, name: bytes, *, mode: int = 0, link: bytes = b"", size: int = 0, **numbers: int
    ) -> int:
        """An attributes record; gives the FileIndex."""
        self.index += 1
        saved = EncodedStat(
            1, self.index, mode, 1, os.getuid(), os.getgid(), 0, size, 4096, 0, 5, 1_000_000, 7, 0, 0, 2
        )
        self.writer.write_record(
            self.index, Stream.UNIX_ATTRIBUTES, pack_attributes(self.index, kind, name, saved._replace(**numbers), link)
        )
        return self.index

    def file(self, name: bytes, data: bytes, *, chunk: int = 65536, mode: int = 0o644, **numbers: int) -> int:
        """A regular file."""
        kind = FileType.REGULAR if data else FileType.EMPTY
        index = self.entry(kind, name, mode=stat.S_IFREG | mode, size=len(data), **numbers)
        for start in range(0, len(data), chunk):
            self.record(Stream.FILE_DATA, data[start : start + chunk])
        self.finish_file(data)
        return index

    def finish_file(self, data: bytes) -> None:
        """The digest record over *data*."""
        if self.digest:
            self.record(DIGEST_STREAMS[self.digest], hashlib.new(self.digest, data).digest())

    def record(self, stream: int, data: bytes) -> None:
        """Any record of the present file."""
        self.writer.write_record(self.index, stream, data)

    def symlink(self, name: bytes, link: bytes) -> int:
        """A symbolic link."""
        return self.entry(FileType.SYMLINK, name, mode=stat.S_IFLNK | 0o777, link=link)

    def directory(self, name: bytes, mode: int = 0o755, **numbers: int) -> int:
        """A directory; *name* ends in a slash."""
        return self.entry(FileType.DIRECTORY, name, mode=stat.S_IFDIR | mode, **numbers)

    def end(self) -> list[bytes]:
        """EOS; the blocks of the session."""
        label = replace(self.label, job_files=self.index, job_bytes=self.writer.job_bytes)
        self.writer.write_label(LabelKind.EOS_LABEL, self.job_id, label.pack(LabelKind.EOS_LABEL))
        self.writer.flush()
        return self.sink.blocks

    def cut(self) -> list[bytes]:
        """The blocks of the session without an end."""
        self.writer.flush()
        return self.sink.blocks


def label_of(path: Path, *, ids: SessionIds = IDS, stream: int = 0, when: int = NOW, **more: Any) -> bytes:
    """The label block for the volume at *path*."""
    return label_block(VolumeLabel(path.name, "Default", "File", when * 10**6, when * 10**6, **more), ids, stream)


def volume(path: Path, *blocks: bytes) -> Path:
    """Write a volume file: its label and *blocks*."""
    path.write_bytes(label_of(path) + b"".join(blocks))
    return path


def one_job(path: Path, fill: Callable[[Job], object], **options: Any) -> Path:
    """A volume with one job, filled by *fill*."""
    job = Job(**options)
    fill(job)
    return volume(path, *job.end())


# The corpus


def corpus(which: str) -> dict[str, dict[str, Any]]:
    """The samples of a corpus by name; skips the test when the corpus is not there."""
    file = CORPUS / which / "manifest.json"
    if not file.exists():
        pytest.skip(f"the sample volumes are not at {CORPUS} (MAGBAY_CORPUS says where)")
    return {sample["name"]: sample for sample in json.loads(file.read_text())["samples"]}


def sample(which: str, name: str) -> tuple[list[Path], dict[str, Any]]:
    """(volume files in order, manifest entry)."""
    entry = corpus(which)[name]
    return [CORPUS / which / name / one["file"] for one in entry["volumes"]], entry


def names_of(which: str) -> list[str]:
    """The names of all samples of a corpus; none where the corpus is not there (`sample` skips then)."""
    file = CORPUS / which / "manifest.json"
    return [sample["name"] for sample in json.loads(file.read_text())["samples"]] if file.exists() else ["(missing)"]


def digest_hex(text: str) -> str:
    """The catalog's base64 without padding as hex."""
    return base64.b64decode(text + "=" * (-len(text) % 4)).hex()
