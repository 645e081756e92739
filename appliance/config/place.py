"""Where the configuration is. Apart from all else, because reading it takes longer than most commands run."""

from __future__ import annotations

from pathlib import Path

DEFAULT_PATH = Path("/etc/magbay/magbay.yaml")
