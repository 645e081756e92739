"""A catalog being set aside: `python -m tests.power.asides NAME FOLDER`, with the layer.

The last transactions are in its write-ahead log only. Marks: `row NAME` for a volume that was entered durably, `aside`
when the catalog was set aside.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from appliance.storage import recovering
from appliance.storage.catalog import Catalog
from tests.power.jobs import Layer, configure


def main() -> None:
    """Record it; the calls go to FOLDER/log."""
    folder = Path(sys.argv[2])
    layer = Layer()
    config = configure(folder, sys.argv[1])
    layer.watch(folder / "disk", folder / "log")
    first = Catalog.of(config)
    for name in ("old-1", "old-2"):
        first.add_media(name, "m1", "directory:m1", "Default", 0)
        layer.mark(f"row {name}")
    # It is not closed: that would take the log in. So it is where a process was killed.
    assert recovering.set_aside(config)
    layer.mark("aside")
    second = Catalog.of(config)
    second.add_media("new-1", "m1", "directory:m1", "Default", 0)
    layer.mark("row new-1")
    layer.watch(Path("/nowhere"))
    os._exit(0)


if __name__ == "__main__":
    main()
