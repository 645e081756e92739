"""Disks of strangers: images of everything that a person may push into a dock and that is no magazine."""

from __future__ import annotations

from tests.strangers.kinds import Ours, Stranger, strangers

__all__ = ["Ours", "Stranger", "strangers"]
