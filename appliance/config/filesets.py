"""What a backup saves and how: the configuration of filesets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from appliance.config.kinds import Choice, Duration, ListOf, PathKind, Record, Size, Text, YesNo, setting


class Signature(Enum):
    """Digest kept for each regular file."""

    MD5 = "MD5"
    SHA1 = "SHA1"
    SHA256 = "SHA256"
    SHA512 = "SHA512"
    NONE = "none"


class Compression(Enum):
    """How the data of files are compressed; the digit is zlib's level. Which readers know what: docs/volumes.md."""

    NONE = "none"
    GZIP1 = "gzip1"
    GZIP2 = "gzip2"
    GZIP3 = "gzip3"
    GZIP4 = "gzip4"
    GZIP5 = "gzip5"
    GZIP6 = "gzip6"
    GZIP7 = "gzip7"
    GZIP8 = "gzip8"
    GZIP9 = "gzip9"
    LZO = "lzo"
    LZ4 = "lz4"
    LZ4HC = "lz4hc"
    LZFAST = "lzfast"

    @property
    def level(self) -> int:
        """zlib's level, 0 for anything else."""
        return int(self.value[-1]) if self.value.startswith("gzip") else 0


PATTERN = Text("a pattern")
_PATTERNS = ListOf(PATTERN)


@dataclass(frozen=True)
class PathOptions:
    """Other options for some of the files of a fileset. What is not set here is as in the fileset."""

    match: tuple[str, ...] = setting(
        ListOf(PATTERN, least=1), "Patterns of the paths that these options are for.", example='["*.jpg", "*.mp4"]'
    )
    compression: Compression | None = setting(
        Choice(Compression), "Compression of these files.", default=None, example="none"
    )
    signature: Signature | None = setting(
        Choice(Signature), "Digest kept for these files.", default=None, example="SHA256"
    )
    sparse: bool | None = setting(YesNo(), "Whether holes are kept as holes.", default=None, example="yes")
    noatime: bool | None = setting(
        YesNo(), "Whether reading leaves the access time alone.", default=None, example="yes"
    )


@dataclass(frozen=True)
class FilesetConfig:
    """What a job saves, and how."""

    paths: tuple[Path, ...] = setting(
        ListOf(PathKind(), least=1), "Files and directories to save.", example="[/etc, /home]"
    )
    exclude: tuple[str, ...] = setting(
        _PATTERNS, "Patterns of what is left out; a directory with all that is in it.", default=(), example='["*.tmp"]'
    )
    include: tuple[str, ...] = setting(
        _PATTERNS,
        "If set, only what these patterns match is saved, and the directories on the way to it.",
        default=(),
        example='["/etc", "/home/*/documents", "*.pdf"]',
    )
    one_file_system: bool = setting(
        YesNo(), "Whether each path stays on its own file system.", default=True, example="yes"
    )
    exclude_larger: int | None = setting(Size(), "Files larger than this are left out.", default=None, example="4GiB")
    exclude_older: int | None = setting(
        Duration(), "Files not changed for so long (mtime) are left out.", default=None, example="3650d"
    )
    exclude_caches: bool = setting(
        YesNo(),
        "Whether directories with a valid CACHEDIR.TAG are saved without their contents.",
        default=False,
        example="yes",
    )
    exclude_marked: tuple[str, ...] = setting(
        _PATTERNS,
        "Names of files: a directory that holds one is saved with that file only.",
        default=(),
        example='[".nobackup"]',
    )
    compression: Compression = setting(
        Choice(Compression),
        "Compression: none, gzip1 (quick) to gzip9, lzo; lz4, lz4hc, lzfast (for Bareos and magbay only).",
        default=Compression.NONE,
        example="gzip3",
    )
    signature: Signature | None = setting(
        Choice(Signature), "Digest kept for each file; the pool's if not set.", default=None, example="SHA256"
    )
    sparse: bool = setting(YesNo(), "Whether holes in files are kept as holes.", default=True, example="yes")
    noatime: bool = setting(
        YesNo(), "Whether reading leaves access times alone, where that is permitted.", default=True, example="yes"
    )
    options: tuple[PathOptions, ...] = setting(
        ListOf(Record(PathOptions)), "Other options for some paths; the first entry that matches counts.", default=()
    )

    def __post_init__(self) -> None:
        for name in self.exclude_marked:
            if "/" in name:
                raise ValueError(f"exclude_marked: {name!r} is no name of a file")
