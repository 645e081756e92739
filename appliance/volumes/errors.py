"""Declared errors of the volume format."""

from __future__ import annotations

from appliance.errors import MagbayError


class VolumeError(MagbayError):
    """A volume, or a part of it, cannot be read (or a thing cannot be put on one)."""


class UnsupportedError(VolumeError):
    """The bytes are whole, but of a kind that this version does not read (format, compression, cipher)."""
