"""Secrets in memory: keys and passphrases that show neither in a traceback nor in a core dump.

They reach other programs through pipes only: not by arguments, environment, or files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
from collections.abc import Iterator
from typing import NoReturn

# The least that a pipe of Linux holds (pipe(7)); longer secrets would block the writer.
_PIPE_BYTES = 4096
_FINGERPRINT_DIGITS = 16


class Secret:
    """Bytes that only `reveal` shows. Making one ends core dumps of this process and of the tools it starts."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        forbid_core_dumps()
        self._data = data

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written down")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._data == self._data

    def __hash__(self) -> int:
        return hash(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._data

    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256, as `sha256sum` prints them. For random keys only: of a
        passphrase it would be a hint."""
        return hashlib.sha256(self._data).hexdigest()[:_FINGERPRINT_DIGITS]

    @contextlib.contextmanager
    def descriptor(self) -> Iterator[int]:
        """A pipe that holds the bytes, for one tool that inherits it and reads `/dev/fd/NUMBER` once."""
        if len(self._data) > _PIPE_BYTES:
            raise ValueError(f"a secret of more than {_PIPE_BYTES} bytes does not fit a pipe")
        reading, writing = os.pipe()
        try:
            try:
                os.write(writing, self._data)
            finally:
                os.close(writing)
            yield reading
        finally:
            os.close(reading)


def forbid_core_dumps() -> None:
    """No core of this process from now on. A limit of 1 byte, because the kernel ignores 0 when cores go to a program
    (core(5)): only with 1 it refuses in both cases."""
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    wanted = 1 if limit == resource.RLIM_INFINITY else min(1, limit)
    resource.setrlimit(resource.RLIMIT_CORE, (wanted, wanted))
