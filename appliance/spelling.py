"""Names that may be meant by one that does not exist."""

from __future__ import annotations

from collections.abc import Iterable

_MOST = 3


def near(word: str, names: Iterable[str], otherwise: str) -> str:
    """A hint: which of *names* are spelt nearly like *word*; *otherwise* when none is."""
    from difflib import get_close_matches  # only trouble needs it

    known = {name.lower(): name for name in names}
    found = [known[name] for name in get_close_matches(word.lower(), known, _MOST)]
    return f"Do you mean {' or '.join(found)}? {otherwise}" if found else otherwise
