"""Small files being replaced: `python -m tests.power.settings files FOLDER`, with the layer.

Enrolments, the slot map and the key file, as the agents and commands change them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.changer import slotmap
from appliance.changer.slotmap import SLOT_MAP, SlotMap
from appliance.config.schema import Config, Enrolment
from appliance.keys import keyfile
from appliance.keys.keyfile import Form
from appliance.keys.secret import Secret
from appliance.magazines import enrolment
from tests.power.jobs import Layer, configure

KEYS = [bytes([number]) * 4096 for number in (1, 2)]
UUIDS = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(1, 5)]


def slots(count: int) -> SlotMap:
    """A slot map of *count* volumes."""
    return SlotMap({(UUIDS[0], f"v-{number}"): number for number in range(1, count + 1)}, {UUIDS[0]: "m-1"})


def change(config: Config, layer: Layer) -> None:
    """What is done; each mark says what is done and must be found from then on."""
    for number, uuid in enumerate(UUIDS[:3]):
        enrolment.enrol(config, Enrolment(f"m-{number}", uuid, uuid))
        layer.mark(f"enrolled {uuid}")
    enrolment.forget(config, "m-1")
    layer.mark(f"forgotten {UUIDS[1]}")
    # A disk is prepared anew, under its own name.
    enrolment.enrol(config, Enrolment("m-0", UUIDS[3], UUIDS[3]), replaces=UUIDS[0])
    layer.mark(f"replaced {UUIDS[0]}")
    for count in (1, 30, 200):
        slotmap.write(config.state_dir / SLOT_MAP, slots(count))
        layer.mark(f"slots {count}")
    for number, key in enumerate(KEYS):
        keyfile.store(config.state_dir / "key", Secret(key), Form.PLAIN)
        layer.mark(f"key {number}")


def main() -> None:
    """Record it; the calls go to FOLDER/log."""
    folder = Path(sys.argv[2])
    layer = Layer()
    config = configure(folder, "files")
    layer.watch(folder / "disk", folder / "log")
    change(config, layer)
    layer.watch(Path("/nowhere"))


if __name__ == "__main__":
    main()
