"""`python3 -m authenticator SEED_FILE [--pin FILE] [--touch FILE]`: a token that is plugged in until this ends.

With --touch it waits until somebody makes FILE, and removes it; each touch is asked for on standard output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from authenticator.ctap import Authenticator, Refused, Status
from authenticator.hid import Hid


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=Path)
    parser.add_argument("--pin", type=Path)
    parser.add_argument("--touch", type=Path)
    args = parser.parse_args()
    hid = Hid("magbay test token")

    def touch(what: str) -> None:
        print(f"touch: {what}", flush=True)
        while args.touch is not None:
            if hid.cancelled(0.1):
                raise Refused(Status.KEEPALIVE_CANCEL)
            if args.touch.exists():
                args.touch.unlink()
                break

    token = Authenticator(args.seed.read_bytes(), args.pin.read_text().strip() if args.pin else "", touch)
    for message in hid.messages():
        hid.answer(token.command(message))


if __name__ == "__main__":
    main()
