"""`python3 -c … main` PATH: what root's eject unit runs, as the owner of a magazine, right before it unmounts it there.

It reads no configuration and imports little: somebody waits for the disk.
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.magazines import leaflet


def main() -> int:
    """Make the lists on the magazine at the path of the command line tell of its volumes as they are."""
    try:
        leaflet.relist(Path(sys.argv[1]))
    except OSError as error:
        print(f"the lists on {sys.argv[1]} are not made anew: {error.strerror}", file=sys.stderr)
        return 1
    return 0
