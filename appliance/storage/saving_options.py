"""How the data of one file are saved: the options of a fileset for a path."""

from __future__ import annotations

import os
from dataclasses import dataclass

from appliance.config.filesets import Compression, FilesetConfig, PathOptions, Signature
from appliance.storage.patterns import Patterns
from appliance.volumes import packing
from appliance.volumes.packing import Packing
from appliance.volumes.streams import Stream


@dataclass(frozen=True)
class FileOptions:
    """*algorithm* of the digest (None: none); *packing*: how the data are compressed (None: not at all)."""

    algorithm: str | None = None
    packing: Packing | None = None
    sparse: bool = True
    noatime: bool = True

    def stream(self, *, sparse: bool) -> Stream:
        """Of the data records."""
        if self.packing is None:
            return Stream.SPARSE_DATA if sparse else Stream.FILE_DATA
        return self.packing.sparse_stream if sparse else self.packing.stream


class SavingOptions:
    """Chooses for each path."""

    def __init__(self, fileset: FilesetConfig, signature: Signature) -> None:
        """*signature*: of the pool, for where the fileset has none."""
        general = fileset.signature or signature
        self._general = _options(fileset.compression, general, fileset.sparse, fileset.noatime)
        self._special = [
            (Patterns.of(one.match, with_contents=True), _special(fileset, one, general)) for one in fileset.options
        ]

    def of(self, path: bytes) -> FileOptions:
        """The options for what is no directory."""
        if self._special:
            name = os.fsdecode(path)
            for patterns, options in self._special:
                if patterns.match(name, directory=False):
                    return options
        return self._general


def _special(fileset: FilesetConfig, one: PathOptions, signature: Signature) -> FileOptions:
    return _options(
        one.compression or fileset.compression,
        one.signature or signature,
        fileset.sparse if one.sparse is None else one.sparse,
        fileset.noatime if one.noatime is None else one.noatime,
    )


def _options(compression: Compression, signature: Signature, sparse: bool, noatime: bool) -> FileOptions:
    algorithm = None if signature is Signature.NONE else signature.value
    return FileOptions(algorithm, _packing(compression), sparse, noatime)


def _packing(compression: Compression) -> Packing | None:
    if compression is Compression.NONE:
        return None
    made = _PACKINGS.get(compression)
    return made() if made else packing.gzip(compression.level)


_PACKINGS = {
    Compression.LZO: packing.lzo,
    Compression.LZ4: packing.lz4,
    Compression.LZ4HC: packing.lz4hc,
    Compression.LZFAST: packing.lzfast,
}
