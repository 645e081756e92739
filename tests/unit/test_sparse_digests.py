"""Files that were saved without their holes, by others, compared with what is on the disk."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from appliance.storage import sparse_digests
from appliance.storage.extract import Extractor
from appliance.volumes.attributes import FileType
from appliance.volumes.reading import read_volumes
from tests.unit.volume_builder import sample

SAMPLES = [
    ("bacula-9.6", "a-sparse-md5", "md5"),
    ("bacula-9.6", "b-sparse-gzip9-sha512", "sha512"),
    ("bareos-26", "a-sparse-md5", "md5"),
]


@pytest.mark.parametrize(("corpus", "name", "algorithm"), SAMPLES)
def test_files_of_others_are_as_they_were_saved(corpus: str, name: str, algorithm: str, tmp_path: Path) -> None:
    paths, manifest = sample(corpus, name)
    Extractor(tmp_path).run(read_volumes(paths))
    seen = 0
    for one in manifest["jobs"][0]["files"]:
        digest = one.get("digest_base64")
        if one["ft"] != FileType.REGULAR or not digest:
            continue
        wanted = base64.b64decode(digest + "=" * (-len(digest) % 4))
        place = tmp_path / one["path"].lstrip("/")
        place.chmod(0o600)
        with place.open("r+b") as file:
            assert wanted in list(sparse_digests.candidates(file.fileno(), one["size"], algorithm)), one["path"]
            last = os.pread(file.fileno(), 1, one["size"] - 1)
            os.pwrite(file.fileno(), bytes([last[0] ^ 1]), one["size"] - 1)
            assert wanted not in list(sparse_digests.candidates(file.fileno(), one["size"], algorithm)), one["path"]
        seen += 1
    assert seen > 3
