"""Jobs that start when a magazine arrives: once for each stay of it, and not again within a while."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from appliance.config.jobs import ANY_MAGAZINE, JobConfig
from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.host import files
from appliance.host.api import Host
from appliance.magazines import attached
from appliance.storage.catalog import Catalog
from appliance.storage.timers import service_of

_STATE = "on-attach.json"


class AttachedJobs:
    """Looks at what is attached, and asks systemd to start what is due.

    Which jobs a magazine has had its turn with is kept in run_dir until the magazine goes: a restarted agent starts
    nothing twice, and a machine that boots with a magazine in a bay counts as its arrival.
    """

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host

    async def round(self) -> None:
        """One look. Raises `MagbayError` or `OSError`; what is not done then, the next look does."""
        if not any(job.run_on_attach for job in self._config.jobs.values()):
            return
        here = {magazine.name for magazine in attached.attached(self._config) if magazine.writable}
        before = self._read()
        had = {name: jobs for name, jobs in before.items() if name in here}
        try:
            for magazine, name, job in self._due(here, had):
                await self._start(magazine, name, job)
                had.setdefault(magazine, []).append(name)
        finally:
            if had != before:
                text = json.dumps(had).encode()
                files.write_atomic(self._config.run_dir / _STATE, text, durable=False)

    def _due(self, here: set[str], had: dict[str, list[str]]) -> Iterator[tuple[str, str, JobConfig]]:
        for name, job in self._config.jobs.items():
            for magazine in sorted(here):
                if name not in had.get(magazine, []) and self._wants(job, magazine):
                    yield magazine, name, job

    def _wants(self, job: JobConfig, magazine: str) -> bool:
        for word in job.run_on_attach:
            rotation = self._config.rotation.sets.get(word)
            if word == magazine or (rotation and magazine in rotation.magazines):
                return True
            if word == ANY_MAGAZINE:
                bound = self._config.magazines_of(job.pool)
                if not bound or magazine in bound:
                    return True
        return False

    async def _start(self, magazine: str, name: str, job: JobConfig) -> None:
        last = self._last_start(name)
        # A start that is still to come is of a clock that was wrong.
        if last is not None and last <= time.time() < last + job.attach_interval:
            text = f"magazine {magazine} is here; job {name} is not started, it began less than its interval ago"
            self._host.journal.send(text, MAGAZINE=magazine)
            return
        self._host.journal.send(f"magazine {magazine} is here: job {name} is started", MAGAZINE=magazine)
        await self._host.units.start_unit(service_of(name))

    def _last_start(self, name: str) -> int | None:
        """When the job began last (Unix seconds)."""
        if not Catalog.exists(self._config):
            return None
        with Catalog.of(self._config) as catalog:
            jobs = catalog.jobs(name=name)
        return jobs[0].started if jobs else None

    def _read(self) -> dict[str, list[str]]:
        path = self._config.run_dir / _STATE
        try:
            found = json.loads(path.read_bytes())
            return {str(name): [str(job) for job in jobs] for name, jobs in found.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError):
            hint = "Remove it; then the jobs of magazines that are here start again."
            raise MagbayError(f"{path} is damaged", hint=hint) from None
