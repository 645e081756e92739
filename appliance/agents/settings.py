"""An agent takes in its configuration anew (`systemctl reload`)."""

from __future__ import annotations

from pathlib import Path

from appliance.config.accepted import InForce, in_force, needs_restart
from appliance.config.schema import Config
from appliance.errors import MagbayError
from appliance.host.api import Host

# Of systemd/catalog/magbay.catalog.
_WRONG = "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a12"


class Reloading:
    """The configuration file *path* of an agent that began with *found*."""

    def __init__(self, path: Path, found: InForce, host: Host) -> None:
        self._path, self._config, self._host = path, found.config, host
        self._tell(found)

    def read(self) -> Config | None:
        """The configuration as it is now; None when that changes nothing, or may not be changed while the agent runs.

        Says in the journal what is wrong, and keeps what was in force.
        """
        try:
            found = in_force(self._path)
        except MagbayError as error:
            self._host.journal.send(f"the configuration stays as it was: {error}", priority=3, MESSAGE_ID=_WRONG)
            return None
        self._tell(found)
        if found.config == self._config:
            return None
        if needs_restart(self._config, found.config):
            text = "state_dir, run_dir and mount_dir stay as they were until the agent is restarted, and all else, too"
            self._host.journal.send(text, priority=4)
            return None
        self._config = found.config
        self._host.journal.send("goes on with the configuration as it is now")
        return found.config

    def _tell(self, found: InForce) -> None:
        if found.trouble:
            self._host.journal.send(found.words, priority=3, MESSAGE_ID=_WRONG)
