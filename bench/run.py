"""`make bench`: every measurement, each next to its peer in the same run. Prints tables; never judges."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Run the parts one after the other, so that they do not disturb each other."""
    print(f"{platform.platform()}, Python {platform.python_version()}")
    status = 0
    for part in ("bench.engine", "bench.catalog", "bench.changer", "bench.wipe", "bench.media"):
        print(f"\n=== {part}", flush=True)
        status |= subprocess.run([sys.executable, "-m", part, *sys.argv[1:]], cwd=ROOT).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
