"""The media agent's part in the rotation plan: remembers who came and left, and says once what is due."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.agents.loop import Complaints
from appliance.agents.names import MEDIA as BUS_NAME
from appliance.agents.names import MEDIA_ROOT as ROOT
from appliance.config.schema import Config
from appliance.host.api import Host
from appliance.magazines.attached import enrolments
from appliance.magazines.reports import DiskReport
from appliance.magazines.rotation import SetPlan, Standing, keep_history, news, note, plan, read_history
from appliance.magazines.states import State

SIGNAL = "RotationDue"
SIGNATURE = "sssb"  # set, magazine, day (ISO 8601, empty: now), whether it is overdue
# Of systemd/catalog/magbay.catalog.
_DUE = "6f1f6a3f0d0b4e0bb1a4b37b7c6f9a06"


class Rotation:
    """Called after each look at the disks."""

    def __init__(self, config: Config, host: Host) -> None:
        self.config, self._host = config, host
        self._history = read_history(config.state_dir)
        self._complaints = Complaints(host, priority=4)

    def round(self, reports: Iterable[DiskReport]) -> None:
        """Take in what is in the bays now, and announce what has become due."""
        here = {r.filesystem_uuid for r in reports if r.filesystem_uuid and r.state not in (State.GONE, State.FOREIGN)}
        ours, now = enrolments(self.config), self._host.clock.now()
        rotation, told = self.config.rotation, dict(self._history.told)
        changed = note(self._history, here, now, rotation, ours)
        due = news(plan(rotation, ours, self._history, now), self._history)
        if changed or told != self._history.told:
            self._keep()
        for item in due:
            self._tell(item)

    def _keep(self) -> None:
        try:
            keep_history(self.config.state_dir, self._history)
        except OSError as error:
            self._complaints.tell((f"who came and left cannot be kept: {error}",))
        else:
            self._complaints.tell(())

    def _tell(self, item: SetPlan) -> None:
        overdue = item.standing is Standing.OVERDUE
        day = item.due.isoformat() if item.due else ""
        self._host.journal.send(
            item.sentence(),
            priority=4 if overdue else 5,
            MESSAGE_ID=_DUE,
            MAGAZINE=item.wanted,
            ROTATION_SET=item.name,
            DUE=day,
            STATE=item.standing.value,
        )
        self._host.bus.emit(ROOT, BUS_NAME, SIGNAL, SIGNATURE, [item.name, item.wanted, day, overdue])
