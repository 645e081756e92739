"""A set of paths that keeps each component once, however many paths go through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_Node = dict[bytes | None, Any]  # component -> node below it; None -> True: the path that ends here is in the set


class PathSet:
    """Paths as sequences of components. A set of tuples takes the square of a path's depth for it and all above it.

    Threads may share one as they may share a set.
    """

    def __init__(self) -> None:
        self._top: _Node = {}
        self.components = 0  # that are kept; memory goes with them
        self._last: tuple[Sequence[bytes], _Node] = ((), self._top)

    def __contains__(self, parts: Sequence[bytes]) -> bool:
        node = self._find(parts)
        return node is not None and None in node

    def __iter__(self) -> Iterator[tuple[bytes, ...]]:
        """Every path, behind those that it lies below."""
        path: list[bytes] = []
        left: list[tuple[int, bytes, _Node]] = []
        node, depth = self._top, 0
        while True:
            if None in node:
                yield tuple(path)
            left += [(depth, part, below) for part, below in node.items() if part is not None]
            if not left:
                return
            depth, part, node = left.pop()
            path[depth:] = [part]
            depth += 1

    def add(self, parts: Sequence[bytes]) -> None:
        """Enter a path."""
        node, rest = self._from_last(parts)
        for part in rest:
            below = node.get(part)
            if below is None:
                below = node.setdefault(part, {})
                self.components += 1
            node = below
        node[None] = True
        self._last = (parts, node)

    def discard(self, parts: Sequence[bytes]) -> None:
        """Take a path out, if it is there."""
        node = self._find(parts)
        if node is not None:
            node.pop(None, None)

    def clear(self) -> None:
        """Take out all."""
        self._top = {}
        self.components = 0
        self._last = ((), self._top)

    def _from_last(self, parts: Sequence[bytes]) -> tuple[_Node, Sequence[bytes]]:
        """A node on the way, and what is left of the way: most paths are, or lie in, the one before."""
        known, node = self._last
        return (node, parts[len(known) :]) if parts[: len(known)] == known else (self._top, parts)

    def _find(self, parts: Sequence[bytes]) -> _Node | None:
        node, rest = self._from_last(parts)
        for part in rest:
            below = node.get(part)
            if below is None:
                return None
            node = below
        self._last = (parts, node)
        return node
