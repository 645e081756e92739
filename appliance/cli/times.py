"""Moments on the command line."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta

AT_HELP = "as it was at this time (2026-11-24, '2026-11-24 18:30'): of the jobs that had begun by then"


def moment(text: str) -> int:
    """Unix seconds of an ISO date or date and time, local unless it says otherwise; a date means its end."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date such as 2026-11-24 or '2026-11-24 18:30'") from None
    if len(text) <= len("2026-11-24"):
        when += timedelta(days=1, seconds=-1)
    return int(when.timestamp())
