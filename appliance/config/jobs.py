"""The configuration of pools and jobs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from appliance.config.filesets import PATTERN, Signature
from appliance.config.kinds import NAME, Choice, Duration, Integer, ListOf, PathKind, Record, Size, YesNo, setting
from appliance.config.schedules import SCHEDULES, HooksConfig, JobLevel, LimitsConfig, ScheduleConfig

# The word in run_on_attach for every magazine that the pool may write on.
ANY_MAGAZINE = "any"
# The largest size that fits one label block and some data; smaller volumes would hold nothing.
LEAST_VOLUME_BYTES = 65536
# A label must fit into one block; Bacula's tools take blocks up to that size.
LEAST_BLOCK, LARGEST_BLOCK = 4096, 4_000_000


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
    maximum_block_size: int = setting(
        Size(LEAST_BLOCK),
        "Blocks of new jobs have this size (at most 4MB); every reader takes 64512 bytes silently.",
        default=64512,
        example="64512",
    )
    signature: Signature = setting(
        Choice(Signature), "Digest kept for each file.", default=Signature.MD5, example="MD5"
    )
    maximum_volumes: int = setting(
        Integer(0, 999_999), "Most volumes of the pool (0: any number).", default=0, example="0"
    )
    maximum_jobs: int = setting(
        Integer(0, 999_999), "A volume with so many jobs takes no more (0: any number).", default=0, example="0"
    )
    use_duration: int | None = setting(
        Duration(), "So long after its first use a volume takes no more jobs.", default=None, example="7d"
    )
    retention: int | None = setting(
        Duration(), "So long jobs are kept at least; for ever if not set.", default=None, example="90d"
    )
    recycle: bool = setting(
        YesNo(),
        "Whether a volume that holds only jobs that are beyond their retention, failed or were cancelled is written "
        "anew, when a job finds no other room.",
        default=True,
        example="yes",
    )
    keep_newest: bool = setting(
        YesNo(), "Whether the newest good backup of each job is kept beyond its retention.", default=True, example="yes"
    )
    scratch: str = setting(
        NAME, "Pool whose unused volumes are taken before new ones are made.", default="", example="Default"
    )
    magazines: tuple[str, ...] = setting(
        ListOf(NAME), "Magazines that the pool writes on; any, if not set.", default=(), example="[]"
    )
    rotation_set: str = setting(
        NAME, "Rotation set (rotation.sets) on whose magazines the pool writes.", default="", example="Default"
    )
    label_dialect: LabelDialect = setting(
        Choice(LabelDialect),
        "Readers the labels are for: bacula (also Bareos up to 22) or bareos.",
        default=LabelDialect.BACULA,
        example="bacula",
    )

    def __post_init__(self) -> None:
        if self.magazines and self.rotation_set:
            raise ValueError("wants either magazines or rotation_set")
        if self.maximum_block_size > min(LARGEST_BLOCK, self.maximum_volume_bytes - LEAST_BLOCK // 4):
            raise ValueError("maximum_block_size: wants at most 4MB, and less than maximum_volume_bytes")


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

    level: JobLevel = setting(
        Choice(JobLevel), "Level of runs for which none is said.", default=JobLevel.FULL, example="full"
    )
    accurate: bool = setting(
        YesNo(),
        "Whether incremental and differential backups compare each file with the catalog and note deletions.",
        default=True,
        example="yes",
    )

    wait_for_magazine: int | None = setting(
        Duration(),
        "How long the job waits for a magazine. If not set: 2h when it needs another one, not at all for the first.",
        default=None,
        example="2h",
    )

    schedule: tuple[ScheduleConfig, ...] = setting(SCHEDULES, "When systemd starts the job.", default=())
    run_on_attach: tuple[str, ...] = setting(
        ListOf(NAME),
        "Magazines or rotation sets whose arrival starts the job; any: those that the pool writes on.",
        default=(),
        example="[offsite-1]",
    )
    attach_interval: int = setting(
        Duration(), "An arrival so soon after the job's last start starts nothing.", default=3600, example="12h"
    )
    retries: int = setting(Integer(0, 100), "Further attempts when the job fails.", default=0, example="2")
    retry_pause: int = setting(Duration(), "Pause before each further attempt.", default=300, example="5m")
    hooks: HooksConfig = setting(Record(HooksConfig), "Commands before and after the job.", default=HooksConfig())
    limits: LimitsConfig = setting(
        Record(LimitsConfig), "Limits of the job's service (systemd.resource-control(5)).", default=LimitsConfig()
    )

    def __post_init__(self) -> None:
        if bool(self.fileset) == bool(self.paths):
            raise ValueError("wants either a fileset or at least one of paths")
        if self.fileset and self.exclude:
            raise ValueError("exclude belongs into the fileset")
