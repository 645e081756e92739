"""What the media agent says of one disk, or of one magazine that is away."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.config.schema import Enrolment
from appliance.magazines.disks import Disk
from appliance.magazines.health import Health
from appliance.magazines.holders import Holder
from appliance.magazines.states import State, Verdict


@dataclass(frozen=True)
class DiskReport:
    """What is published of one disk or of one absent magazine."""

    node: str
    serial: str
    model: str
    size: int
    state: State
    reason: str
    hint: str
    magazine: str
    luks_uuid: str
    filesystem_uuid: str
    read_only: bool
    checked: str = ""  # what the check of the file system found, in words; empty before
    sequence: int = 0  # plug number of the disk
    health: Health | None = None
    holders: tuple[Holder, ...] = ()  # who keeps it from being ejected
    busy: bool = field(default=False, compare=False)  # more is to come soon: look again in a second

    def document(self) -> dict[str, object]:
        """For JSON."""
        names = ("node", "serial", "model", "size", "reason", "hint", "magazine", "luks_uuid", "filesystem_uuid")
        facts: dict[str, object] = {"state": self.state.value, "read_only": self.read_only, "checked": self.checked}
        facts["health"] = self.health.document() if self.health else None
        facts["holders"] = [holder.document() for holder in self.holders]
        return facts | {name: getattr(self, name) for name in names}


def report_of(
    disk: Disk,
    verdict: Verdict,
    *,
    read_only: bool = False,
    checked: str = "",
    holders: tuple[Holder, ...] = (),
    busy: bool = False,
) -> DiskReport:
    """The report of a disk that is here."""
    device, enrolment = disk.device, disk.enrolment
    return DiskReport(
        node=device.node,
        serial=device.serial,
        model=device.model,
        size=device.size,
        state=verdict.state,
        reason=verdict.reason,
        hint=verdict.hint,
        magazine=enrolment.name if enrolment else "",
        luks_uuid=device.fs_uuid if device.fs_type == "crypto_LUKS" else "",
        filesystem_uuid=enrolment.filesystem_uuid if enrolment and not disk.refusal else "",
        read_only=read_only or device.read_only,
        checked=checked,
        sequence=device.sequence,
        holders=holders,
        busy=busy,
    )


def report_away(enrolment: Enrolment, *, leftovers: bool) -> DiskReport:
    """The report of a magazine that is in no bay; *leftovers*: its mount or mapping is still being cleared away."""
    return DiskReport(
        node="",
        serial=enrolment.serial,
        model=enrolment.model,
        size=enrolment.size,
        state=State.GONE,
        reason="pulled; what it left behind is being cleared away" if leftovers else "",
        hint="",
        magazine=enrolment.name,
        luks_uuid=enrolment.luks_uuid,
        filesystem_uuid=enrolment.filesystem_uuid,
        read_only=False,
        busy=leftovers,
    )
