"""Patterns of filesets: shell wild cards for paths.

`*` and `?` stand for anything but a slash, `[…]` for one character of a set, `**` for anything with slashes too,
`\\` takes the next character as it is. A pattern that begins with a slash is compared with the whole path,
another one with the last components of it, as many as the pattern has; one that ends in a slash is for
directories only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_ANYWHERE = "(?:.*/)?"
_INSIDE = "(?:/.*)?"


@dataclass(frozen=True)
class Patterns:
    """Compiled patterns. *with_contents*: what lies in a matching directory matches, too."""

    _files: re.Pattern[str]
    _directories: re.Pattern[str]

    @classmethod
    def of(cls, patterns: Sequence[str], *, with_contents: bool = False) -> Patterns:
        """Compile *patterns*."""
        inside = _INSIDE if with_contents else ""
        either = [_translate(p) + inside for p in patterns if not p.endswith("/")]
        only = [_translate(p.rstrip("/")) for p in patterns if p.endswith("/")]
        below = [pattern + "/.*" for pattern in only] if with_contents else []
        return cls(_compiled(either + below), _compiled(either + [pattern + inside for pattern in only]))

    def match(self, path: str, *, directory: bool) -> bool:
        """Whether a pattern matches the absolute *path* (without a slash at its end)."""
        return (self._directories if directory else self._files).fullmatch(path) is not None


def _compiled(expressions: Sequence[str]) -> re.Pattern[str]:
    joined = "|".join(f"(?:{expression})" for expression in expressions)
    return re.compile(joined or r"(?!)", re.DOTALL)


def _translate(pattern: str) -> str:
    anchored = pattern.startswith("/")
    body = pattern.lstrip("/") if anchored else pattern
    found = ["/" if anchored else f"/{_ANYWHERE}"]
    at = 0
    while at < len(body):
        expression, at = _part(body, at)
        found.append(expression)
    return "".join(found)


def _part(body: str, at: int) -> tuple[str, int]:
    """The expression for what begins at *at*, and where the next part begins."""
    letter = body[at]
    if body.startswith("**/", at) and (at == 0 or body[at - 1] == "/"):
        return "(?:.*/)?", at + 3
    if body.startswith("**", at):
        end = at + 2
        while body.startswith("*", end):
            end += 1
        return ".*", end
    if letter == "*":
        return "[^/]*", at + 1
    if letter == "?":
        return "[^/]", at + 1
    if letter == "[":
        return _set(body, at)
    if letter == "\\" and at + 1 < len(body):
        return re.escape(body[at + 1]), at + 2
    return re.escape(letter), at + 1


def _set(body: str, at: int) -> tuple[str, int]:
    """`[abc]`, `[a-z]`, `[!a]`; a bracket that is never closed is itself."""
    begin = at + 1
    negated = body.startswith(("!", "^"), begin)
    first = begin + 1 if negated else begin
    end = body.find("]", first + 1)
    if end < 0:
        return re.escape("["), at + 1
    inner = body[first:end]
    members = []
    position = 0
    while position < len(inner):
        if position + 2 < len(inner) and inner[position + 1] == "-":
            low, high = inner[position], inner[position + 2]
            if low <= high:
                members.append(f"{re.escape(low)}-{re.escape(high)}")
            position += 3
        else:
            members.append(re.escape(inner[position]))
            position += 1
    if not members:
        return ("[^/]" if negated else "(?!)"), end + 1
    return f"(?!/)[{'^' if negated else ''}{''.join(members)}]", end + 1
