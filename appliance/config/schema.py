"""The configuration as frozen dataclasses: the one place that says which keys exist and what they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from appliance.config.care import HealthConfig, RotationConfig
from appliance.config.filesets import FilesetConfig
from appliance.config.jobs import JobConfig, PoolConfig
from appliance.config.kinds import (
    NAME,
    RESOURCE,
    UUID,
    Choice,
    Duration,
    Integer,
    ListOf,
    MapOf,
    PathKind,
    Record,
    Size,
    Text,
    YesNo,
    setting,
)
from appliance.config.names import TEMPLATE

# Bareos carries the slot count as a signed 16-bit number (reference changer.md, 1.9).
MOST_SLOTS = 32767
# FIRST-LAST, both included.
_RANGE = re.compile(r"\d{1,5}-\d{1,5}")
# An address of libpq (PostgreSQL manual, 34.1.1.2), and one with a password.
_DATABASE = re.compile(r"postgres(ql)?://.*")
_PASSWORD = re.compile(r"//[^/?]*:[^/?]*@|[?&]password=")
# Permissions as chmod(1) takes them.
_MODE = re.compile(r"[0-7]{3,4}")


@dataclass(frozen=True)
class ChangerConfig:
    """The virtual autochanger."""

    name: str = setting(
        NAME, "Name of the changer; prefix of the names of new volumes.", default="magbay", example="c0"
    )
    volume_names: str = setting(
        Text("a template with one {number} or {number:DIGITS}, and {magazine}, {changer}, {pool}", TEMPLATE),
        "How new volumes are called; zeros pad the number to that many digits, so that names sort as they were made.",
        default="{magazine}-{number:4}",
        example='"{pool}-{magazine}-{number:5}"',
    )
    drives: int = setting(
        Integer(1, 99), "Number of virtual drives (0-based paths below run_dir).", default=2, example="2"
    )
    slots: int = setting(
        Integer(1, MOST_SLOTS),
        "Number of slots that is told to a Director; it must not grow while one runs.",
        default=1000,
        example="1000",
    )
    drive_dir: Path | None = setting(
        PathKind(), "Directory of the virtual drives; run_dir/drives if not set.", default=None, example="/run/drives"
    )
    drive_folders: bool = setting(
        YesNo(),
        "Whether drive N is drive_dir/N/driveN, as with vchanger 0.8; the Changer Command is told anyway.",
        default=False,
        example="no",
    )
    drives_listed: int = setting(
        Integer(0, 99), "Drives that listall names though they are empty (0: all).", default=0, example="0"
    )
    numbered: bool = setting(
        YesNo(),
        "Whether the number that ends a volume's name is its place in its magazine's slots.",
        default=False,
        example="no",
    )
    unlabelled: bool = setting(
        YesNo(),
        "Whether files that do not begin with a label are offered too, as vchanger does.",
        default=False,
        example="no",
    )
    vchanger_disks: bool = setting(
        YesNo(), "Whether loads that vchanger 0.8 left on its disks are undone.", default=False, example="no"
    )


@dataclass(frozen=True)
class MagazineConfig:
    """A magazine named in the configuration: a plain directory. Disks are enrolled by `magbay prepare` instead."""

    name: str = setting(NAME, "Name of the magazine, as a person calls it.", example="m1")
    directory: Path = setting(PathKind(), "Directory that holds the volumes.", example="m1")
    filesystem_uuid: str = setting(
        UUID,
        "UUID of a file system that others mount, best on that directory; while it is not mounted, it is away.",
        default="",
        example="0b9a0000-1111-2222-3333-444455556666",
    )
    create: bool = setting(YesNo(), "Whether the directory is made at its first use.", default=True, example="yes")
    slots: str = setting(
        Text("a range of slots such as 1-10", _RANGE),
        "Slots for the volumes of this magazine.",
        default="",
        example="1-10",
    )

    def __post_init__(self) -> None:
        if self.slots and not (0 < self.slot_range.start < self.slot_range.stop <= MOST_SLOTS + 1):
            raise ValueError(f"slots: {self.slots} is no range of slots from 1 to {MOST_SLOTS}")

    @property
    def slot_range(self) -> range:
        """The slots that are kept for this magazine; empty when any will do."""
        first, _, last = self.slots.partition("-")
        return range(int(first), int(last) + 1) if self.slots else range(0)


@dataclass(frozen=True)
class PrepareConfig:
    """How `magbay prepare` leaves a new magazine."""

    owner: str = setting(Text("a user name"), "User that owns the volumes.", default="magbay", example="bacula")
    group: str = setting(
        Text("a group name"), "Group that may read and write the volumes.", default="tape", example="tape"
    )
    mode: str = setting(
        Text("three or four octal digits such as 2770", _MODE),
        "Mode of the magazine's directory; with 2770 owner and group write volumes, which get the group.",
        default="2770",
        example="2770",
    )
    volumes: int = setting(Integer(0, 9999), "Volumes that are created on a new magazine.", default=4, example="4")
    pool: str = setting(
        NAME, "Pool of these volumes; Default or the first of all if not set.", default="", example="Default"
    )


@dataclass(frozen=True)
class MountsConfig:
    """How magazines are mounted."""

    idle_timeout: int = setting(
        Integer(5, 86400),
        "Seconds after which a magazine that nobody uses is unmounted: then it may be pulled without asking.",
        default=300,
        example="300",
    )


@dataclass(frozen=True)
class EjectConfig:
    """What `magbay eject` does at the end."""

    power_down: bool = setting(
        YesNo(), "Whether the disk is told to stop its motor and park its heads.", default=True, example="yes"
    )


@dataclass(frozen=True)
class HooksConfig:
    """Commands for lamps and sounds, each a list of words. They run as `magbay-hook@.service`, which says what they
    may do; the environment has MAGBAY_EVENT, MAGBAY_MAGAZINE, MAGBAY_STATE and MAGBAY_REASON."""

    arrived: tuple[str, ...] = setting(
        ListOf(Text("a word of a command")), "When a magazine is ready.", default=(), example="[/usr/bin/aplay, in.wav]"
    )
    safe_to_remove: tuple[str, ...] = setting(
        ListOf(Text("a word of a command")),
        "When a disk may be pulled after an eject.",
        default=(),
        example="[/usr/bin/aplay, out.wav]",
    )
    failed: tuple[str, ...] = setting(
        ListOf(Text("a word of a command")),
        "When a magazine cannot be used.",
        default=(),
        example="[/usr/bin/aplay, bad.wav]",
    )
    pulled: tuple[str, ...] = setting(
        ListOf(Text("a word of a command")),
        "When a disk went away without an eject.",
        default=(),
        example="[/usr/bin/aplay, gone.wav]",
    )


class DirectorKind(Enum):
    """Which Director is told of changes."""

    NONE = "none"
    BACULA = "bacula"
    BAREOS = "bareos"


@dataclass(frozen=True)
class DirectorConfig:
    """The Director whose catalog is kept true. Its passwords stand in its own console configuration, never here."""

    kind: DirectorKind = setting(
        Choice(DirectorKind), "Director to tell: none, bacula or bareos.", default=DirectorKind.NONE, example="bacula"
    )
    console_config: Path = setting(
        PathKind(),
        "Configuration of the console: names the Director and holds the password (readable by the agent only).",
        default=Path("/etc/magbay/bconsole.conf"),
        example="/etc/magbay/bconsole.conf",
    )
    console_program: str = setting(Text("a program"), "The console's program.", default="bconsole", example="bconsole")
    timeout: int = setting(Integer(1, 3600), "Seconds to wait for the Director.", default=30, example="30")
    storage: str = setting(
        RESOURCE, "Name of the Director's Storage resource and of our Autochanger.", default="magbay", example="magbay"
    )
    media_type: str = setting(
        NAME,
        "Media Type of our volumes; others are never touched. Unset: that of the Director's Storage.",
        default="",
        example="magbay",
    )
    pool: str = setting(RESOURCE, "Pool that new volumes are labelled into.", default="Default", example="Default")
    pools: Mapping[str, str] = setting(
        MapOf(RESOURCE), "Pool of the new volumes of single magazines.", default={}, example="{m1: Monthly}"
    )
    label: bool = setting(
        YesNo(), "Whether new volumes are labelled through the Director.", default=True, example="yes"
    )


@dataclass(frozen=True)
class CatalogConfig:
    """The catalog of jobs and files."""

    database: str = setting(
        Text("an address such as postgresql:///magbay, without a password", _DATABASE),
        "PostgreSQL database that holds the catalog, for this machine alone; a file in state_dir if not set. Its "
        "password, if any, stands in ~/.pgpass, a service file, or the credential pgpass.",
        default="",
        example="postgresql:///magbay",
    )
    wait_for_database: int = setting(
        Duration(),
        "How long a running job waits for a PostgreSQL server that goes away in the middle of it; 0: not at all.",
        default=600,
        example="10m",
    )
    copies: bool = setting(
        YesNo(),
        "Whether each job leaves a copy of what the catalog knows of it on its magazines, beside the volumes.",
        default=True,
        example="yes",
    )

    def __post_init__(self) -> None:
        if _PASSWORD.search(self.database):
            raise ValueError("database: a password stands in ~/.pgpass or a service file, not in the address")


@dataclass(frozen=True)
class Enrolment:
    """A disk that belongs to us: written by `magbay prepare` below `state_dir/magazines/`, one file each."""

    name: str = setting(NAME, "Name of the magazine.", example="offsite-1")
    filesystem_uuid: str = setting(UUID, "UUID of the file system inside.", example="0b9a…")
    luks_uuid: str = setting(UUID, "UUID of the LUKS container.", example="77ac…")
    serial: str = setting(Text(), "Serial number of the disk, for people.", default="", example="WD-1234")
    model: str = setting(Text(), "Model of the disk, for people.", default="", example="WDC WD40")
    size: int = setting(Size(), "Size of the disk in bytes.", default=0, example="4TB")
    prepared: str = setting(Text(), "When it was prepared (ISO 8601, UTC).", default="", example="2026-11-24T12:00:00Z")


@dataclass(frozen=True)
class EnrolmentList:
    """What `magbay magazine export` writes."""

    enrolments: tuple[Enrolment, ...] = setting(ListOf(Record(Enrolment)), "Enrolled magazines.")

    def __post_init__(self) -> None:
        _unique("enrolments", [item.name for item in self.enrolments])
        _unique("file systems", [item.filesystem_uuid for item in self.enrolments])


@dataclass(frozen=True)
class Config:
    """The whole configuration."""

    state_dir: Path = setting(
        PathKind(), "Enrolments, slot map, catalog.", default=Path("/var/lib/magbay"), example="/var/lib/magbay"
    )
    run_dir: Path = setting(
        PathKind(), "Sockets, virtual drives, published answers.", default=Path("/run/magbay"), example="/run/magbay"
    )
    mount_dir: Path = setting(
        PathKind(),
        "Where autofs mounts magazines, by file-system UUID.",
        default=Path("/mnt/magbay"),
        example="/mnt/magbay",
    )
    key_file: Path = setting(
        PathKind(),
        "Key file that opens the LUKS containers (4096 random bytes, root only).",
        default=Path("/etc/magbay/keys/magbay.key"),
        example="/etc/magbay/keys/magbay.key",
    )
    changer: ChangerConfig = setting(Record(ChangerConfig), "The virtual autochanger.", default=ChangerConfig())
    prepare: PrepareConfig = setting(Record(PrepareConfig), "How new magazines are made.", default=PrepareConfig())
    mounts: MountsConfig = setting(Record(MountsConfig), "How magazines are mounted.", default=MountsConfig())
    eject: EjectConfig = setting(Record(EjectConfig), "How magazines are ejected.", default=EjectConfig())
    hooks: HooksConfig = setting(Record(HooksConfig), "Commands at events.", default=HooksConfig())
    magazines: tuple[MagazineConfig, ...] = setting(
        ListOf(Record(MagazineConfig)), "Magazines that are plain directories.", default=()
    )
    pools: Mapping[str, PoolConfig] = setting(
        MapOf(Record(PoolConfig)), "Pools of volumes, by name.", default={"Default": PoolConfig()}
    )
    director: DirectorConfig = setting(
        Record(DirectorConfig), "The Bacula or Bareos Director.", default=DirectorConfig()
    )
    filesets: Mapping[str, FilesetConfig] = setting(
        MapOf(Record(FilesetConfig)), "What jobs save, by name.", default={}
    )
    jobs: Mapping[str, JobConfig] = setting(MapOf(Record(JobConfig)), "Backup jobs, by name.", default={})
    catalog: CatalogConfig = setting(Record(CatalogConfig), "The catalog of jobs and files.", default=CatalogConfig())
    rotation: RotationConfig = setting(
        Record(RotationConfig), "Which magazine is due in a bay, and when.", default=RotationConfig()
    )
    health: HealthConfig = setting(Record(HealthConfig), "What is made of a disk's own health.", default=HealthConfig())

    def __post_init__(self) -> None:
        _unique("magazines", [magazine.name for magazine in self.magazines])
        _unique("directories of magazines", [str(magazine.directory) for magazine in self.magazines])
        slots = [slot for magazine in self.magazines for slot in magazine.slot_range]
        if len(slots) != len(set(slots)):
            raise ValueError("two magazines have the same slots")
        for name, pool in self.pools.items():
            _named(f"pool {name}", "scratch pool", pool.scratch, self.pools, "pools")
            _named(f"pool {name}", "rotation set", pool.rotation_set, self.rotation.sets, "rotation.sets")
        for name, job in self.jobs.items():
            _named(f"job {name}", "pool", job.pool, self.pools, "pools")
            _named(f"job {name}", "fileset", job.fileset, self.filesets, "filesets")

    def magazines_of(self, pool: str) -> tuple[str, ...]:
        """Names of the magazines that the pool is bound to; empty when any will do."""
        bound = self.pools[pool]
        return self.rotation.sets[bound.rotation_set].magazines if bound.rotation_set else bound.magazines

    @property
    def drive_dir(self) -> Path:
        """Where the virtual drives are."""
        return self.changer.drive_dir or self.run_dir / "drives"

    @property
    def enrolment_dir(self) -> Path:
        """Where enrolments are kept, one YAML file each, named by the file-system UUID."""
        return self.state_dir / "magazines"


def _unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two {what} are called {name}")


def _named(who: str, what: str, name: str, known: Mapping[str, object], where: str) -> None:
    if name and name not in known:
        raise ValueError(f"{who} names the {what} {name}, which is not under {where}")
