"""Names of new volumes: a template such as `{magazine}-{number:4}`."""

from __future__ import annotations

import re

_FIELD = r"\{(?:magazine|changer|pool)\}"
_NUMBER = r"\{number(?::[1-9])?\}"
# One number, anywhere; around it Bacula's alphabet for names, no leading dot or dash.
TEMPLATE = re.compile(
    rf"(?=[A-Za-z0-9_{{])(?:[A-Za-z0-9_.:-]|{_FIELD})*{_NUMBER}(?:[A-Za-z0-9_.:-]|{_FIELD})*", re.ASCII
)
_PLACE = re.compile(r"\{number(?::([1-9]))?\}")


class Names:
    """The names that *template* (which `TEMPLATE` matches) gives for one magazine, changer and pool."""

    def __init__(self, template: str, *, magazine: str = "", changer: str = "", pool: str = "") -> None:
        text = template
        for key, value in (("magazine", magazine), ("changer", changer), ("pool", pool)):
            text = text.replace(f"{{{key}}}", value)
        match = _PLACE.search(text)
        if match is None:
            raise ValueError(f"no number in {template!r}")
        self._before, self._after = text[: match.start()], text[match.end() :]
        self._width = int(match[1] or 1)

    def name(self, number: int) -> str:
        """The name with *number*, padded with zeros to the template's width."""
        return f"{self._before}{number:0{self._width}d}{self._after}"

    def number(self, name: str) -> int | None:
        """The number in *name*, None when it is none of these names."""
        if not (name.startswith(self._before) and name.endswith(self._after)):
            return None
        digits = name[len(self._before) : len(name) - len(self._after)]
        return int(digits) if digits.isascii() and digits.isdigit() and self.name(int(digits)) == name else None
