"""Which volumes of a catalog are ours: those of the Media Type of our Storage resource.

Names alone would not do: a catalog may know volumes of the same name on tapes or on another machine.
"""

from __future__ import annotations

import re

from appliance.config.schema import DirectorConfig
from appliance.director.console import Console
from appliance.director.plan import quoted

# Bacula: `MediaType=x StorageId=1` on one line. Bareos: `Media Type = "x"` on a line of its own.
_MEDIA_TYPE = re.compile(r'Media ?Type *= *(?:"([^"\n]+)"|(.+?)(?= \w+=|\s*$))', re.MULTILINE)


def our_media_type(settings: DirectorConfig) -> str:
    """What our own pieces call it. Without blanks: Bacula 9 does not find volumes whose Media Type has some."""
    return settings.media_type or settings.storage.replace(" ", "-")


def media_type(settings: DirectorConfig, console: Console) -> str:
    """`director.media_type`, else what the Director says of our Storage, else what our own pieces call it.

    The Director must have that Storage: for a name that it does not know it may show another. Raises `MagbayError`.
    """
    if settings.media_type:
        return settings.media_type
    match = _MEDIA_TYPE.search(console.send(f"show storage={quoted(settings.storage)}"))
    return (match[1] or match[2]).strip() if match else our_media_type(settings)
