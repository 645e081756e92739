"""Which of two jobs is the later one, also when the clock was wrong meanwhile.

Sessions are counted (`Catalog.new_session`), and each new catalog begins its count somewhere below 500 millions. So
jobs of one host whose numbers lie close together were made in the order of these numbers, whatever their times say.
Between two counts (a catalog that was begun anew, another machine, Bacula) only times can tell.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

# Farther apart than this, numbers are of different counts. Two catalogs begin so close together once in some thousands.
_FAR = 100_000
# A job of ours takes its session when it is entered; daemons of Bacula have one time for all sessions.
_AT_ONCE = 5  # seconds


class Dated(Protocol):
    """What a job must tell of itself; times are Unix seconds."""

    @property
    def job_id(self) -> int: ...
    @property
    def client(self) -> str: ...
    @property
    def session_id(self) -> int: ...
    @property
    def session_time(self) -> int: ...
    @property
    def started(self) -> int: ...


J = TypeVar("J", bound=Dated)


def times(jobs: Iterable[Dated]) -> dict[int, int]:
    """By JobId when each job began (Unix seconds): not before any that was counted before it.

    A time that is still to come says nothing about the jobs behind it.
    """
    now = time.time()
    found = {}
    for count in _counts(jobs):
        known = [job.started for job in count if job.started <= now]
        latest = known[0] if known else None
        for job in count:
            if latest is None:
                found[job.job_id] = job.started
                continue
            if job.started <= now:
                latest = max(latest, job.started)
            found[job.job_id] = latest
    return found


def oldest_first(jobs: Iterable[J]) -> list[J]:
    """The jobs in the order in which they were made."""
    jobs = list(jobs)
    began = times(jobs)
    return sorted(jobs, key=lambda job: (began[job.job_id], job.session_id, job.job_id))


def _counts(jobs: Iterable[Dated]) -> Iterator[Sequence[Dated]]:
    """The jobs of each count by their numbers; one of which that cannot be said by itself."""
    near: list[Dated] = []
    for job in sorted(jobs, key=lambda job: (job.client, job.session_id, job.job_id)):
        if not job.client or not 0 <= job.started - job.session_time <= _AT_ONCE:
            yield [job]
            continue
        if near and (near[-1].client != job.client or job.session_id - near[-1].session_id > _FAR):
            yield from _if_one(near)
            near = []
        near.append(job)
    yield from _if_one(near)


def _if_one(near: Sequence[Dated]) -> Iterator[Sequence[Dated]]:
    """Numbers that come twice are of two counts at least: an older catalog was put back."""
    if len({job.session_id for job in near}) == len(near):
        yield near
    else:
        yield from ([job] for job in near)
