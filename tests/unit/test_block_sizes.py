"""Blocks of other sizes than the usual one, written by whole jobs over several volumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import MagbayError
from appliance.storage import scanning
from appliance.storage.scanning import ScanRequest
from appliance.volumes.reader import Block, VolumeReader
from tests.unit import stocktools
from tests.unit.enginehelp import assert_same, below, bring_back, configuration, rich_tree, save, volume


@pytest.mark.parametrize("size", [4096, 65536, 1_000_000, 4_000_000])
def test_a_job_in_blocks_of_that_size(size: int, tmp_path: Path) -> None:
    tree = rich_tree(tmp_path / "source")
    for number in range(3):
        (tree / f"large-{number}").write_bytes(bytes(range(256)) * 12_000)
    config = configuration(tmp_path, f"maximum_volume_bytes: 5MB, maximum_block_size: {size}, signature: SHA256")
    done = save(config, tree)
    paths = [volume(config, name) for name in done.volumes]
    assert len(paths) >= 2
    lengths = []
    for path in paths:
        with VolumeReader(path) as one:
            lengths += [len(item.data) for item in one.blocks() if isinstance(item, Block)]
    assert max(lengths) == size

    assert f"{done.files} files found" in stocktools.bls(paths, strict=False)
    stocktools.bextract(paths, tmp_path / "stock", strict=False)
    for number in range(3):
        name = f"large-{number}"
        assert (below(tmp_path / "stock", tree) / name).read_bytes() == (tree / name).read_bytes()
    bring_back(config, tmp_path / "out")
    assert_same(tree, below(tmp_path / "out", tree))
    (config.state_dir / "catalog.db").unlink()
    assert scanning.run(config, ScanRequest((), everything=True), log=lambda text, fields: None).errors == []
    bring_back(config, tmp_path / "again")
    assert_same(tree, below(tmp_path / "again", tree))


@pytest.mark.parametrize(
    "words", ["maximum_block_size: 4MiB", "maximum_volume_bytes: 65536, maximum_block_size: 65536"]
)
def test_sizes_that_no_volume_can_have(words: str, tmp_path: Path) -> None:
    with pytest.raises(MagbayError, match="maximum_block_size"):
        configuration(tmp_path, words)
