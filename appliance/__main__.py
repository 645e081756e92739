"""`magbay` and `python -m appliance`."""

from __future__ import annotations

import sys


def main() -> int:
    """Entry point of the `magbay` command."""
    from appliance.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
