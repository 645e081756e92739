"""Volume and session labels. Source: volume format, section 4. Times are microseconds since 1970."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from appliance.volumes.errors import UnsupportedError, VolumeError

NAME_LENGTH = 127  # bytes, of every name in a label
PROGRAM_LENGTH = 49  # bytes, of program, version and date
MAX_LABEL = 2048
_TRAILER = struct.Struct(">QIII")  # first data, file alignment, padding, block size


class LabelKind(IntEnum):
    """Negative FileIndex of a label record."""

    PRE_LABEL = -1
    VOL_LABEL = -2
    EOM_LABEL = -3
    SOS_LABEL = -4
    EOS_LABEL = -5
    EOT_LABEL = -6


class Dialect(Enum):
    """Whose label it is: (Id, VerNum). No label satisfies the readers of both."""

    BACULA = (b"Bacula 1.0 immortal\n", 11)
    BAREOS = (b"Bareos 2.0 immortal\n", 20)


_FOREIGN = {
    b"Bacula 0.9 mortal\n": "a volume of Bacula before 2002",
    b"Bacula 1.0 Metadata\n": "an aligned-volume metadata file",
    b"Bacula 1.0 Aligned Data\n": "an aligned data file",
    b"Bacula 1.0 Dedup Metadata\n": "a deduplicated volume",
    b"Bacula 1.0 S3 Cloud Data\n": "a cloud volume",
}


class _Fields:
    """Takes fields off the front of a label; every length is bounded by the bytes left."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def left(self) -> int:
        return len(self.data) - self.at

    def numbers(self, layout: str) -> tuple[int, ...]:
        form = struct.Struct(">" + layout)
        if self.left() < form.size:
            raise VolumeError("a label ends before its last field")
        self.at += form.size
        return form.unpack_from(self.data, self.at - form.size)

    def raw(self) -> bytes:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise VolumeError("a label ends before its last field")
        value = self.data[self.at : end]
        self.at = end + 1
        return value

    def text(self) -> str:
        return self.raw().decode("utf-8", "surrogateescape")


def _packed(value: str, limit: int = NAME_LENGTH) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    if len(data) > limit or b"\0" in data:
        raise VolumeError(f"{value!r} does not fit into a label ({limit} bytes)", hint="Choose a shorter name.")
    return data + b"\0"


def _dialect(identity: bytes, version: int) -> Dialect:
    for dialect in Dialect:
        if dialect.value[0] == identity:
            if dialect.value[1] != version:
                raise UnsupportedError(f"the label has version {version}, not {dialect.value[1]}")
            return dialect
    if identity in _FOREIGN:
        raise UnsupportedError(f"the label says that this is {_FOREIGN[identity]}, which is not supported")
    raise UnsupportedError(f"the label's Id {identity[:32]!r} is unknown")


@dataclass(frozen=True)
class VolumeLabel:
    """Label of a volume; *label_time* when it was labelled, *write_time* when this label was written."""

    name: str
    pool: str
    media_type: str
    label_time: int
    write_time: int
    host: str = ""
    program: str = "magbay"
    program_version: str = ""
    program_date: str = ""
    pool_type: str = "Backup"
    previous: str = ""
    block_size: int = 0
    dialect: Dialect = Dialect.BACULA

    def pack(self, dialect: Dialect | None = None) -> bytes:
        """The data of the label record, in *dialect* (default: its own). Raises `VolumeError` for names too long."""
        identity, version = (dialect or self.dialect).value
        names = (self.name, self.previous, self.pool, self.pool_type, self.media_type, self.host)
        programs = (self.program, self.program_version, self.program_date)
        data = identity + struct.pack(">xIqqdd", version, self.label_time, self.write_time, 0.0, 0.0)
        data += b"".join(map(_packed, names)) + b"".join(_packed(text, PROGRAM_LENGTH) for text in programs)
        if (dialect or self.dialect) is Dialect.BACULA:
            data += b"\0" + _TRAILER.pack(0, 0, 0, self.block_size)
        return data

    @classmethod
    def parse(cls, data: bytes) -> VolumeLabel:
        """From a PRE_LABEL or VOL_LABEL record. `UnsupportedError`: unknown Id or version; `VolumeError`: damage."""
        fields = _Fields(data[:MAX_LABEL])
        identity = fields.raw()
        (version,) = fields.numbers("I")
        dialect = _dialect(identity, version)
        label_time, write_time, _, _ = fields.numbers("qqdd")
        name, previous, pool, pool_type, media_type, host = (fields.text() for _ in range(6))
        program, program_version, program_date = (fields.text() for _ in range(3))
        label = cls(
            name, pool, media_type, label_time, write_time, host, program, program_version, program_date,
            pool_type, previous, 0, dialect,
        )  # fmt: skip
        if fields.left() >= 1 + _TRAILER.size:
            fields.text()
            label = replace(label, block_size=fields.numbers("QIII")[3])
        return label


@dataclass(frozen=True)
class SessionLabel:
    """Start or end of a session.

    *job_type*, *job_level*, *job_status* are single characters; *start_address*, *end_address* bytes on the volume.
    """

    job_id: int
    time: int
    job: str
    job_name: str = ""
    client: str = ""
    fileset: str = ""
    fileset_md5: str = ""
    pool: str = ""
    pool_type: str = "Backup"
    job_type: str = "B"
    job_level: str = "F"
    dialect: Dialect = Dialect.BACULA
    # Of the end of a session only:
    job_files: int = 0
    job_bytes: int = 0
    start_address: int = 0
    end_address: int = 0
    job_errors: int = 0
    job_status: str = "T"

    def pack(self, kind: LabelKind, dialect: Dialect | None = None) -> bytes:
        """The data of an SOS_LABEL or EOS_LABEL record. Raises `VolumeError` for names too long."""
        identity, version = (dialect or self.dialect).value
        data = identity + struct.pack(">xIIqd", version, self.job_id, self.time, 0.0)
        names = (self.pool, self.pool_type, self.job_name, self.client, self.job, self.fileset)
        data += b"".join(map(_packed, names)) + struct.pack(">II", ord(self.job_type), ord(self.job_level))
        data += _packed(self.fileset_md5)
        if kind is LabelKind.EOS_LABEL:
            start, end, low = self.start_address, self.end_address, 0xFFFFFFFF
            data += struct.pack(">IQ", self.job_files, self.job_bytes)
            data += struct.pack(">IIII", start & low, end & low, start >> 32, end >> 32)
            data += struct.pack(">II", self.job_errors, ord(self.job_status))
        return data

    @classmethod
    def parse(cls, kind: LabelKind, data: bytes) -> SessionLabel:
        """From an SOS_LABEL or EOS_LABEL record; the Id is not judged (no reader does). Raises `VolumeError`."""
        fields = _Fields(data[:MAX_LABEL])
        identity = fields.raw()
        version, job_id = fields.numbers("II")
        if version < Dialect.BACULA.value[1]:
            raise UnsupportedError(f"a session label has version {version}")
        time, _ = fields.numbers("qd")
        pool, pool_type, job_name, client, job, fileset = (fields.text() for _ in range(6))
        job_type, job_level = map(_letter, fields.numbers("II"))
        dialect = Dialect.BAREOS if identity == Dialect.BAREOS.value[0] else Dialect.BACULA
        label = cls(
            job_id, time, job, job_name, client, fileset, fields.text(), pool, pool_type, job_type, job_level, dialect
        )
        if kind is not LabelKind.EOS_LABEL:
            return label
        files, size = fields.numbers("IQ")
        start_low, end_low, start_high, end_high, errors, status = fields.numbers("IIIIII")
        return replace(
            label, job_files=files, job_bytes=size, start_address=start_high << 32 | start_low,
            end_address=end_high << 32 | end_low, job_errors=errors, job_status=_letter(status),
        )  # fmt: skip


def _letter(code: int) -> str:
    return chr(code) if 0x20 < code < 0x7F else "?"
