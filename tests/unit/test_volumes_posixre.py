"""Regular expressions of bootstrap files: as POSIX says, and never slow."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.volumes.errors import VolumeError
from appliance.volumes.posixre import Pattern


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("", ["", "x"], []),
        ("b", ["abc", "b"], ["ac", ""]),
        ("^/etc/", ["/etc/passwd"], ["/x/etc/passwd", "/etc"]),
        (r"\.txt$", ["a.txt", ".txt"], ["a.txt.gz", "atxt"]),
        ("^(/home|/root)/.*\\.(jpg|png)$", ["/home/a/b.jpg", "/root/.png"], ["/home/a.gif", "/srv/a.jpg"]),
        ("^a{2,3}$", ["aa", "aaa"], ["a", "aaaa"]),
        ("^a{2}$", ["aa"], ["a", "aaa"]),
        ("^a{2,}$", ["aa", "aaaaa"], ["a"]),
        ("^(ab?)+$", ["a", "abab", "aab"], ["b", "abb"]),
        ("[^/]+-[0-9]{4}$", ["x-2026"], ["/-2026/x", "x-26"]),
        ("^[]a-]$", ["]", "a", "-"], ["b"]),
        ("^[[:upper:][:digit:]_]+$", ["A_1"], ["a"]),
        ("^[^[:space:]]$", ["x"], [" "]),
        ("^$", [""], ["x"]),
        (r"^\w+\s\S\W$", ["a_1 x-"], ["a- xx"]),
        ("(^a|b$)", ["ax", "xb"], ["xa", "bx"]),
        ("^()*$", [""], ["a"]),
        ("^.$", ["ü", "\udcff", "\n"], ["", "ab"]),
    ],
)
def test_what_matches(pattern: str, matching: list[str], other: list[str]) -> None:
    found = Pattern(pattern)
    assert [text for text in matching if not found.search(text)] == []
    assert [text for text in other if found.search(text)] == []


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "a)", "*", "a|*", "[", "[]", "[a", "[[:nope:]]", "a{", "a{x}", "a{2,1}", "a{999}", "\\", "\\d", "[z-a]"],
)
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(VolumeError):
        Pattern(pattern)


@pytest.mark.parametrize("pattern", ["a" * 3000, "(" * 100 + ")" * 100, "(((a{200}){200}){200}){200}"])
def test_what_is_too_large(pattern: str) -> None:
    with pytest.raises(VolumeError, match="too"):
        Pattern(pattern)


@pytest.mark.parametrize(
    "pattern", ["^(a+)+$", "^(a|a)*$", "(a*)*b", "a*a*a*a*a*a*b", "(.*.*.*)*x", "((a{0,9}){0,9}){0,9}b"]
)
def test_no_pattern_is_slow(pattern: str) -> None:
    """Each of these keeps a backtracking matcher busy for longer than anybody waits."""
    assert Pattern(pattern).search("a" * 2000 + "!") is False


COUNTS = st.sampled_from(["*", "+", "?", "{0,2}", "{2}", "{1,}"])
PATTERNS = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "^", "$", "ab"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{0,2}", "{2}", "{1,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=120, deadline=None)
@given(PATTERNS, st.lists(st.text("abc", max_size=8), min_size=1, max_size=5))
def test_the_same_as_python(pattern: str, texts: list[str]) -> None:
    ours = Pattern(pattern)
    for text in texts:
        # In Python `$` also matches before a last newline; there is none here.
        assert ours.search(text) is (re.search(pattern, text) is not None), (pattern, text)
