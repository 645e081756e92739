"""The configuration of pools and jobs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from appliance.config.filesets import PATTERN, Signature
from appliance.config.kinds import NAME, Choice, ListOf, PathKind, Size, YesNo, setting

# The largest size that fits one label block and some data; smaller volumes would hold nothing.
LEAST_VOLUME_BYTES = 65536


class LabelDialect(Enum):
    """Which family of readers the volume labels are written for (no label suits all)."""

    BACULA = "bacula"
    BAREOS = "bareos"


@dataclass(frozen=True)
class PoolConfig:
    """How the volumes of a pool are made and filled."""

    maximum_volume_bytes: int = setting(
        Size(LEAST_VOLUME_BYTES), "A volume is full at this size.", default=10_000_000_000, example="10GB"
    )
    signature: Signature = setting(
        Choice(Signature), "Digest kept for each file.", default=Signature.MD5, example="MD5"
    )
    label_dialect: LabelDialect = setting(
        Choice(LabelDialect),
        "Readers the labels are for: bacula (also Bareos up to 22) or bareos.",
        default=LabelDialect.BACULA,
        example="bacula",
    )


@dataclass(frozen=True)
class JobConfig:
    """A named backup job: a fileset or paths, and where they go."""

    fileset: str = setting(NAME, "Fileset to save; in its place paths may be given.", default="", example="Default")
    paths: tuple[Path, ...] = setting(
        ListOf(PathKind()), "Files and directories to save, without a fileset.", default=(), example="[]"
    )
    pool: str = setting(NAME, "Pool to write to.", default="Default", example="Default")
    exclude: tuple[str, ...] = setting(
        ListOf(PATTERN), "Patterns of what is left out of paths.", default=(), example="[]"
    )

    accurate: bool = setting(
        YesNo(),
        "Whether incremental and differential backups compare each file with the catalog and note deletions.",
        default=True,
        example="yes",
    )

    def __post_init__(self) -> None:
        if bool(self.fileset) == bool(self.paths):
            raise ValueError("wants either a fileset or at least one of paths")
        if self.fileset and self.exclude:
            raise ValueError("exclude belongs into the fileset")
