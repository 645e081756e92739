"""Restored files under other names: components or a beginning taken away, a beginning added, expressions.

The expressions have the form of Bacula's RegexWhere: `!what!instead!`, several with commas between. Any of _SEPARATORS
may stand for the `!`; behind the last one `i` ignores case, `g` replaces every match and not only the first; `$1` or
`\\1` in the second part is what the first group matched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.errors import UsageError

_SEPARATORS = "!@#%&=~|:;/"
_REFERENCE = re.compile(r"\\(.)|\$(\d)")
_FORM = "Write it as '!what!instead!', for example '!^/home/!/srv/old/!'."


@dataclass(frozen=True)
class Expression:
    """One replacement. *instead*: texts and numbers of groups (0: the whole match), one behind the other."""

    what: re.Pattern[str]
    instead: tuple[str | int, ...]
    every: bool

    def __call__(self, name: str) -> str:
        """The name with the match replaced."""
        return self.what.sub(self._filled, name, count=0 if self.every else 1)

    def _filled(self, match: re.Match[str]) -> str:
        return "".join(part if isinstance(part, str) else match[part] or "" for part in self.instead)


def expressions(text: str) -> tuple[Expression, ...]:
    """The expressions in *text*. Raises `UsageError`."""
    found = []
    rest = text
    while rest:
        separator = rest[0]
        parts = _split(rest[1:], separator) if separator in _SEPARATORS else []
        if len(parts) < 3:
            raise UsageError(f"{text!r} is no expression for names", hint=_FORM)
        what, instead, behind = parts
        flags, comma, rest = behind.partition(",")
        if set(flags) - {"i", "g"} or (comma and not rest):
            raise UsageError(f"{text!r}: {flags!r} is behind an expression, only i and g may be", hint=_FORM)
        found.append(_expression(text, what, instead, flags))
    return tuple(found)


def _split(text: str, separator: str) -> list[str]:
    """At the first two separators that no backslash precedes; the backslash goes, what it protects stays."""
    parts, at = [""], 0
    while at < len(text) and len(parts) < 3:
        if text[at : at + 2] == f"\\{separator}":
            parts[-1] += separator
            at += 2
        elif text[at] == "\\":
            parts[-1] += text[at : at + 2]
            at += 2
        elif text[at] == separator:
            parts.append("")
            at += 1
        else:
            parts[-1] += text[at]
            at += 1
    parts[-1] += text[at:]
    return parts


def _expression(text: str, what: str, instead: str, flags: str) -> Expression:
    try:
        pattern = re.compile(what, re.IGNORECASE if "i" in flags else 0)
    except (re.error, RecursionError) as error:
        raise UsageError(f"{text!r} is no expression for names: {error}", hint=_FORM) from None
    parts: list[str | int] = []
    at = 0
    for found in _REFERENCE.finditer(instead):
        parts.append(instead[at : found.start()])
        number = found[2] or (found[1] if found[1].isdigit() else None)
        parts.append(found[1] if number is None else int(number))
        if number is not None and int(number) > pattern.groups:
            raise UsageError(f"{text!r}: there is no group {number}", hint=_FORM)
        at = found.end()
    return Expression(pattern, (*parts, instead[at:]), "g" in flags)


@dataclass(frozen=True)
class Renaming:
    """What becomes of each stored name, in this order. *strip*: number of leading components that go."""

    strip: int = 0
    strip_prefix: str = ""
    add_prefix: str = ""
    expressions: Sequence[Expression] = ()

    def __bool__(self) -> bool:
        return bool(self.strip or self.strip_prefix or self.add_prefix or self.expressions)

    def __call__(self, stored: bytes) -> bytes:
        """The new name; empty when nothing is left of it. A directory's keeps its slash at the end."""
        if not self:
            return stored
        name = os.fsdecode(stored)
        tail = "/" if name.endswith("/") else ""
        if self.strip:
            name = "/".join([part for part in name.split("/") if part][self.strip :])
        if self.strip_prefix and _is_below(name, self.strip_prefix):
            name = name[len(self.strip_prefix) :]
        if self.add_prefix and name:
            name = f"{self.add_prefix}/{name}" if not name.startswith("/") else self.add_prefix + name
        for expression in self.expressions:
            name = expression(name)
        name = name.rstrip("/")
        return os.fsencode(name + tail) if name else b""


def _is_below(name: str, prefix: str) -> bool:
    """A prefix ends at the border of a component."""
    whole = prefix.rstrip("/")
    return name == whole or name.startswith(f"{whole}/")
