"""Units of systemd made from the configuration: timers of schedules, and limits as drop-ins of the jobs' services.

A timer for each job, level and random delay; its name stays the same while times are edited, so that systemd knows when
it ran last (`Persistent=`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from appliance.config.jobs import JobConfig
from appliance.config.schedules import JobLevel, LimitsConfig
from appliance.config.schema import Config
from appliance.magazines import attached

_WANTS = "timers.target.wants"


def service_of(job: str, level: JobLevel | None = None) -> str:
    """The unit that runs the job, at its own or another *level*."""
    return f"magbay-job@{job}@{level.value}.service" if level else f"magbay-job@{job}.service"


def timer_of(job: str, level: JobLevel, delay: int = 0) -> str:
    """The unit that starts the job at *level*, up to *delay* seconds late."""
    late = f"-within-{delay}s" if delay else ""
    return f"magbay-schedule-{job}-{level.value}{late}.timer"


def events(job: JobConfig) -> dict[JobLevel, list[str]]:
    """The calendar events of a job by level, in the order of the configuration."""
    found: dict[JobLevel, list[str]] = {}
    for entry in job.schedule:
        found.setdefault(entry.level or job.level, []).append(entry.at)
    return found


def units(config: Config, source: Path) -> dict[str, str]:
    """Name (a path below a generator's directory) to text. *source*: the configuration file, for people."""
    found = {}
    for name, job in config.jobs.items():
        due: dict[tuple[JobLevel, int], list[str]] = {}
        for entry in job.schedule:
            due.setdefault((entry.level or job.level, entry.delay), []).append(entry.at)
        for (level, delay), times in due.items():
            found[timer_of(name, level, delay)] = _timer(name, level, delay, times, source)
        limits = _limits(job.limits, config)
        if limits:
            for service in (service_of(name), *(service_of(name, level) for level in JobLevel)):
                found[f"{service}.d/50-limits.conf"] = "".join(_lines(f"{_made_from(source)}\n[Service]", limits))
    return found


def write(config: Config, source: Path, directory: Path) -> None:
    """Write all units below *directory*, each timer wanted by timers.target. Raises `OSError`."""
    for name, text in units(config, source).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if path.suffix == ".timer":
            wants = directory / _WANTS
            wants.mkdir(exist_ok=True)
            (wants / name).symlink_to(Path("..", name))


def written(directory: Path) -> dict[str, str]:
    """The units below *directory* that `write` wrote there, as `units` gives them; others are left out."""
    found = {}
    for pattern in ("magbay-schedule-*.timer", "magbay-job@*.service.d/50-limits.conf"):
        for path in directory.glob(pattern):
            found[str(path.relative_to(directory))] = path.read_text(encoding="utf-8")
    return found


def _made_from(source: Path) -> str:
    return f"# Made by magbay-schedule-generator from {source}."


def _timer(name: str, level: JobLevel, delay: int, times: list[str], source: Path) -> str:
    settings = [("OnCalendar", at) for at in times]
    settings += [("AccuracySec", "1s"), ("Persistent", "yes"), ("Unit", service_of(name, level))]
    if delay:
        settings.append(("RandomizedDelaySec", f"{delay}s"))
    head = (
        f"{_made_from(source)}\n[Unit]\nDescription=magbay: {level.value} backup {name}\nSourcePath={source}\n\n[Timer]"
    )
    return "".join(_lines(head, settings))


def _limits(limits: LimitsConfig, config: Config) -> list[tuple[str, str]]:
    found = []
    if limits.cpu_weight:
        found.append(("CPUWeight", str(limits.cpu_weight)))
    if limits.cpu_quota:
        found.append(("CPUQuota", f"{limits.cpu_quota}%"))
    if limits.io_weight:
        found.append(("IOWeight", str(limits.io_weight)))
    if limits.memory:
        found.append(("MemoryMax", str(limits.memory)))
    if limits.write_bandwidth:
        found += [("IOWriteBandwidthMax", f"{place} {limits.write_bandwidth}") for place in _places(config)]
    return found


def _places(config: Config) -> Iterator[str]:
    """Paths that lead to the block devices of magazines.

    Links in /dev only for what is mounted by others than us: PID 1 follows them, and must never wait for autofs.
    """
    for magazine in config.magazines:
        yield f"/dev/disk/by-uuid/{magazine.filesystem_uuid}" if magazine.filesystem_uuid else str(magazine.directory)
    for enrolment in attached.enrolments(config):
        yield f"/dev/magbay/by-uuid/{enrolment.filesystem_uuid}"


def _lines(head: str, settings: list[tuple[str, str]]) -> Iterator[str]:
    yield head + "\n"
    for key, value in settings:
        yield f"{key}={value.replace('%', '%%') if key != 'CPUQuota' else value}\n"
