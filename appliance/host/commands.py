"""Running the system's own tools. Secrets are never among the arguments: tools read key files themselves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from appliance.errors import MagbayError


def run(argv: Sequence[str], what: str, *, timeout: float = 600, hint: str = "") -> str:
    """Run *argv* and give its standard output; *what* says in words what it was for.

    Raises `MagbayError` with the tool's own last words when it is missing, fails or exceeds *timeout* seconds.
    """
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    if os.environ.get("SOURCE_DATE_EPOCH"):
        environment["SOURCE_DATE_EPOCH"] = os.environ["SOURCE_DATE_EPOCH"]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise MagbayError(
            f"{what}: {argv[0]} is not installed", hint=f"Install the package that has {argv[0]}."
        ) from None
    except subprocess.TimeoutExpired:
        raise MagbayError(f"{what}: {argv[0]} did not end within {timeout:.0f} s", hint=hint) from None
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise MagbayError(f"{what}: {argv[0]}: {words}", hint=hint)
    return done.stdout
