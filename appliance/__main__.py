"""`magbay` and `python -m appliance`."""

from __future__ import annotations

import sys


def main() -> int:
    """Entry point of the `magbay` command."""
    try:
        from appliance.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # before there was anybody to make words of it: loading takes a moment
        if "--json" in sys.argv:
            print('{"error": "interrupted", "hint": "", "status": 130}', flush=True)
        print("magbay: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
