"""What the `volume` verbs have in common to tell: labels, jobs, damage and the files that it touches."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.cli.output import Output, human_bytes, one_line
from appliance.errors import ExitStatus
from appliance.volumes.events import Event, FileEnd, FileState, Partial, SessionEnd, VolumeStart
from appliance.volumes.labels import Dialect, VolumeLabel
from appliance.volumes.reader import Damage

_OPEN_ENDED = "no end on these volumes: cancelled, still running, or it goes on on a volume that was not given"
_SHOWN = 50  # touched files printed for people; the JSON document has all
_MOST = 10_000  # damaged places, and such that are only partly here, that are kept; the others are counted


def iso_time(seconds: float) -> str:
    """Seconds since 1970 as UTC text; years that no calendar knows as a number."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(int(seconds))


class Report:
    """Watches the events of a reading. *not_kept*: places beyond those that are kept, however many there are."""

    def __init__(self) -> None:
        self.not_kept = 0
        self.volumes: list[tuple[str, VolumeLabel | None]] = []
        self.jobs: list[SessionEnd] = []
        self.damages: dict[Damage, list[str]] = {}
        self.partials: list[Partial] = []
        self.cut: list[str] = []

    def take(self, event: Event) -> None:
        """Look at one event."""
        if isinstance(event, FileEnd):
            for damage in event.damage:
                self._keep(damage, event.entry.path)
            if event.state is FileState.CUT:
                self.cut.append(event.entry.path)
        elif isinstance(event, Damage):
            self.not_kept += not self._keep(event)
        elif isinstance(event, Partial):
            if len(self.partials) < _MOST:
                self.partials.append(event)
            else:
                self.not_kept += 1
        elif isinstance(event, SessionEnd):
            self.jobs.append(event)
        elif isinstance(event, VolumeStart):
            self.volumes.append((event.path, event.label))

    def _keep(self, damage: Damage, *paths: str) -> bool:
        files = self.damages.get(damage)
        if files is None and len(self.damages) < _MOST:
            files = self.damages[damage] = []
        if files is not None:
            files += paths
        return files is not None

    @property
    def open_ended(self) -> bool:
        """Whether a job has no end."""
        return any(job.end is None for job in self.jobs)

    def document(self) -> dict[str, Any]:
        """The lists `jobs`, `damage`, `partial` of the JSON documents, and how much of the latter two was not kept."""
        return {
            "jobs": [_job_document(job) for job in self.jobs],
            "damage": [
                {"volume": one.volume, "address": one.address, "length": one.length, "what": one.what, "files": files}
                for one, files in self.damages.items()
            ],
            "partial": [{"volume": one.volume, "address": one.address, "what": one.what} for one in self.partials],
            "not_kept": self.not_kept,
        }

    def volumes_document(self) -> list[dict[str, Any]]:
        """A document for each volume."""
        return [
            {"file": path, "size": Path(path).stat().st_size, "label": _label_document(label) if label else None}
            for path, label in self.volumes
        ]

    def print_volumes(self, out: Output) -> None:
        """The labels, for people."""
        for path, label in self.volumes:
            if label is None:
                out.line(f"{path}: its label is damaged")
                continue
            told = f"volume {label.name}, pool {label.pool}, media type {label.media_type}"
            out.line(f"{path}: {one_line(told)}")
            when, dialect = iso_time(label.label_time / 1e6), label.dialect.name.title()
            out.line(
                f"  {dialect} label, labelled {when} by {one_line(label.program)} on {one_line(label.host) or '?'}"
            )

    def print_jobs(self, out: Output) -> None:
        """The jobs, for people."""
        for job in self.jobs:
            label = job.end or job.start
            name = (
                f"job {label.job_id} {one_line(label.job)}" if label else f"session {job.ids} (its start is not here)"
            )
            if job.end is None:
                out.line(f"{name}: {_OPEN_ENDED}")
            else:
                out.line(
                    f"{name}: level {job.end.job_level}, status {job.end.job_status}, {job.end.job_files} files, "
                    f"{human_bytes(job.end.job_bytes)}, ended {iso_time(job.end.time / 1e6)}"
                )

    def hint(self) -> str:
        """What to do about damage."""
        return "Restore the files it touches from another job; everything else here can be extracted."

    def print(self, out: Output) -> ExitStatus:
        """Damage, what is only partly here, and jobs without an end, on stderr; gives the exit status."""
        for damage, files in self.damages.items():
            out.warn(f"magbay: {damage}")
            for path in files[:_SHOWN]:
                out.warn(f"        touches {path}")
            if len(files) > _SHOWN:
                out.warn(f"        and {len(files) - _SHOWN} more")
        for partial in self.partials:
            out.warn(f"magbay: {partial}; give the volume before it, too")
        if self.not_kept:
            out.warn(f"magbay: and {self.not_kept} more such places, which are not listed")
        for job in self.jobs:
            if job.end is None:
                out.warn(f"note: {f'job {job.start.job_id}' if job.start else f'session {job.ids}'} has {_OPEN_ENDED}")
        for path in self.cut:
            out.warn(f"note: {path} is not whole")
        if self.damages:
            out.warn(f"        {self.hint()}")
            return ExitStatus.FAILED
        return ExitStatus.WARNINGS if self.partials else ExitStatus.DONE


def _label_document(label: VolumeLabel) -> dict[str, Any]:
    return {
        "name": label.name,
        "dialect": "bareos" if label.dialect is Dialect.BAREOS else "bacula",
        "pool": label.pool,
        "pool_type": label.pool_type,
        "media_type": label.media_type,
        "labelled": label.label_time / 1e6,
        "written": label.write_time / 1e6,
        "host": label.host,
        "program": label.program,
        "program_version": label.program_version,
    }


def _job_document(job: SessionEnd) -> dict[str, Any]:
    label, end = job.start or job.end, job.end
    document: dict[str, Any] = {"session_id": job.ids.session_id, "session_time": job.ids.session_time}
    document |= dict.fromkeys(("job_id", "job", "name", "client", "fileset", "level", "type"))
    if label:
        document |= {"job_id": label.job_id, "job": label.job, "name": label.job_name, "client": label.client}
        document |= {"fileset": label.fileset, "level": label.job_level, "type": label.job_type}
    return document | {
        "started": job.start.time / 1e6 if job.start else None,
        "ended": end.time / 1e6 if end else None,
        "status": end.job_status if end else None,
        "files": end.job_files if end else None,
        "bytes": end.job_bytes if end else None,
        "last_file_index": job.last_index,
        "volumes": list(job.volumes),
        "note": None if end else _OPEN_ENDED,
    }
