"""Paths that could not be looked at: of them, and of all that lies below them, nobody knows whether they are gone."""

from __future__ import annotations


class Unread:
    """A set of such paths (bytes, with or without a slash at their end)."""

    def __init__(self) -> None:
        self._paths: set[bytes] = set()

    def add(self, path: bytes) -> None:
        """*path* could not be looked at."""
        self._paths.add(path.rstrip(b"/"))

    def covers(self, path: bytes) -> bool:
        """Whether *path* is one of them or lies below one."""
        path = path.rstrip(b"/")
        while self._paths and path:
            if path in self._paths:
                return True
            path = path.rpartition(b"/")[0]
        return b"" in self._paths
