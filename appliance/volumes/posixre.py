"""POSIX extended regular expressions, searched in time that only grows with the length of the text.

Bootstrap files come with volumes, and a pattern made to do harm keeps a backtracking matcher busy for ever. Here a
pattern becomes a graph of states, of which all that are possible are followed at once. Source: POSIX.1-2017, XBD 9.4,
with GNU's \\w, \\W, \\s, \\S. Groups are not reported; extended expressions have no back references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from appliance.volumes.errors import VolumeError

_LONGEST = 2000  # characters of a pattern
_MOST_STATES = 3000  # counted repetitions multiply
_MOST_REPEATS = 255  # RE_DUP_MAX of POSIX
_DEEPEST = 50
_REMEMBERED = 5000  # steps from set to set that are kept
_CLASSES: dict[str, Callable[[str], bool]] = {
    "alpha": str.isalpha,
    "digit": str.isdigit,
    "alnum": str.isalnum,
    "upper": str.isupper,
    "lower": str.islower,
    "space": str.isspace,
    "blank": " \t".__contains__,
    "punct": lambda one: one.isprintable() and not one.isalnum() and not one.isspace(),
    "print": str.isprintable,
    "graph": lambda one: one.isprintable() and not one.isspace(),
    "cntrl": lambda one: ord(one) < 32 or ord(one) == 127,
    "xdigit": "0123456789abcdefABCDEF".__contains__,
}

_Test = Callable[[str], bool]
_ESCAPES: dict[str, _Test] = {
    "w": lambda one: one.isalnum() or one == "_",
    "W": lambda one: not (one.isalnum() or one == "_"),
    "s": str.isspace,
    "S": lambda one: not one.isspace(),
}


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit()


@dataclass
class _State:
    """*test* accepts a character on the way to *after*; without one, *after* are reached at once, if *anchor* holds."""

    test: _Test | None = None
    anchor: str = ""  # "^" or "$"
    after: list[int] = field(default_factory=list)


# A piece of a pattern: given the state behind it, it makes its own states and gives the first.
_Piece = Callable[[int], int]


class Pattern:
    """A compiled pattern. Raises `VolumeError` for one that is not well formed or too large."""

    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST:
            raise VolumeError(f"a regular expression of {len(text)} characters is too long")
        self._text, self._at, self._depth = text, 0, 0
        self._states: list[_State] = []
        self._goal = self._new()
        piece = self._alternatives()
        if self._at < len(text):
            raise VolumeError(f"the regular expression has a ')' too many: {text[:60]!r}")
        self._first = piece(self._goal)
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def search(self, text: str) -> bool:
        """Whether any part of *text* matches."""
        present = self._closure([self._first], at_start=True, at_end=not text)
        for number, one in enumerate(text, 1):
            if self._goal in present:
                return True
            at_end = number == len(text)
            step = None if at_end else self._steps.get((present, one))
            if step is None:
                step = self._step(present, one, at_end)
            present = step
        return self._goal in present

    def _step(self, present: frozenset[int], one: str, at_end: bool) -> frozenset[int]:
        reached = [self._first]  # a match may begin anywhere
        for number in present:
            state = self._states[number]
            if state.test is not None and state.test(one):
                reached += state.after
        found = self._closure(reached, at_start=False, at_end=at_end)
        if not at_end:
            if len(self._steps) >= _REMEMBERED:
                self._steps.clear()
            self._steps[present, one] = found
        return found

    def _closure(self, numbers: Iterable[int], *, at_start: bool, at_end: bool) -> frozenset[int]:
        """All states reached without a character."""
        found: set[int] = set()
        left = list(numbers)
        while left:
            number = left.pop()
            if number in found:
                continue
            found.add(number)
            state = self._states[number]
            if state.test is None and (not state.anchor or (at_start if state.anchor == "^" else at_end)):
                left += state.after
        return frozenset(found)

    # Parsing

    def _new(self, test: _Test | None = None, anchor: str = "", after: list[int] | None = None) -> int:
        if len(self._states) >= _MOST_STATES:
            raise VolumeError("a regular expression is too large")
        self._states.append(_State(test, anchor, after or []))
        return len(self._states) - 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _alternatives(self) -> _Piece:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise VolumeError("a regular expression is nested too deeply")
        branches = [self._branch()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._branch())
        self._depth -= 1
        if len(branches) == 1:
            return branches[0]
        return lambda then: self._new(after=[branch(then) for branch in branches])

    def _branch(self) -> _Piece:
        pieces: list[_Piece] = []
        while self._peek() not in ("", "|", ")"):
            pieces.append(self._repeated(self._atom()))

        def build(then: int) -> int:
            for piece in reversed(pieces):
                then = piece(then)
            return then

        return build

    def _atom(self) -> _Piece:
        one = self._peek()
        self._at += 1
        if one == "(":
            inner = self._alternatives()
            if self._peek() != ")":
                raise VolumeError(f"the regular expression lacks a ')': {self._text[:60]!r}")
            self._at += 1
            return inner
        if one in "^$":
            return lambda then: self._new(anchor=one, after=[then])
        if one in "*+?{":
            raise VolumeError(f"the regular expression has {one!r} with nothing before it: {self._text[:60]!r}")
        test = self._test(one)
        return lambda then: self._new(test, after=[then])

    def _test(self, one: str) -> _Test:
        if one == ".":
            return lambda _other: True
        if one == "[":
            return self._bracket()
        if one == "\\":
            one = self._peek()
            self._at += 1
            if one in _ESCAPES:
                return _ESCAPES[one]
            if not one or one.isalnum():
                raise VolumeError(f"the regular expression has an unknown escape: {self._text[:60]!r}")
        return one.__eq__

    def _repeated(self, piece: _Piece) -> _Piece:
        while self._peek() and self._peek() in "*+?{":
            least, most = self._counts()
            piece = self._times(piece, least, most)
        return piece

    def _counts(self) -> tuple[int, int | None]:
        one = self._peek()
        self._at += 1
        if one != "{":
            return (1 if one == "+" else 0), (1 if one == "?" else None)
        text, closed, _ = self._text[self._at :].partition("}")
        self._at += len(text) + 1
        low, comma, high = text.partition(",")
        if (
            not closed
            or not (low.isascii() and low.isdigit())
            or not (high == "" or (high.isascii() and high.isdigit()))
        ):
            raise VolumeError(f"the regular expression has a wrong count {{{text[:20]}}}")
        least, most = int(low[:9]), int(high[:9]) if high else None if comma else int(low[:9])
        if least > _MOST_REPEATS or (most is not None and not least <= most <= _MOST_REPEATS):
            raise VolumeError(f"the regular expression has a wrong count {{{text[:20]}}}")
        return least, most

    def _times(self, piece: _Piece, least: int, most: int | None) -> _Piece:
        def build(then: int) -> int:
            if most is None:
                loop = self._new(after=[then])
                self._states[loop].after.append(piece(loop))
                then = loop
            else:
                end = then
                for _ in range(most - least):
                    then = self._new(after=[end, piece(then)])
            for _ in range(least):
                then = piece(then)
            return then

        return build

    def _bracket(self) -> _Test:
        negated = self._peek() == "^"
        self._at += negated
        singles: set[str] = set()
        ranges: list[tuple[str, str]] = []
        classes: list[_Test] = []
        first = True
        while first or self._peek() != "]":
            first = False
            self._member(singles, ranges, classes)
        self._at += 1

        def test(one: str) -> bool:
            inside = one in singles or any(a <= one <= b for a, b in ranges) or any(kind(one) for kind in classes)
            return inside is not negated

        return test

    def _member(self, singles: set[str], ranges: list[tuple[str, str]], classes: list[_Test]) -> None:
        """One member of a bracket: a class, a range or a character."""
        rest = self._text[self._at :]
        if rest.startswith("[:"):
            name, closed, _ = rest[2:].partition(":]")
            if not closed or name not in _CLASSES:
                raise VolumeError(f"the regular expression has an unknown class [:{name[:20]}:]")
            classes.append(_CLASSES[name])
            self._at += len(name) + 4
        elif len(rest) < 2:
            raise VolumeError(f"the regular expression lacks a ']': {self._text[:60]!r}")
        elif rest[1] == "-" and len(rest) > 2 and rest[2] != "]":
            if rest[0] > rest[2]:
                raise VolumeError(f"the regular expression has a range that runs backwards: {rest[:3]!r}")
            ranges.append((rest[0], rest[2]))
            self._at += 3
        else:
            singles.add(rest[0])
            self._at += 1
