"""Which paths an extraction itself made: of their versions the last one counts, whatever becomes of older files."""

from __future__ import annotations

import sqlite3

from appliance.errors import MagbayError
from appliance.storage.targets import Parts


class MadeHere:
    """A set of paths of any number in little memory: hashes of 64 bits in a file without a name (SQLite's).

    Raises `MagbayError` when there is no room for it.
    """

    def __init__(self) -> None:
        # An empty name: a database of its own, on the disk only as far as it does not fit in the cache.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("CREATE TABLE made (path INTEGER PRIMARY KEY)")
        self._database.execute("BEGIN")

    def add(self, parts: Parts) -> None:
        """Enter a path."""
        try:
            self._database.execute("INSERT OR IGNORE INTO made VALUES (?)", (hash(parts),))
        except sqlite3.Error as error:
            hint = "Make room where temporary files are, or set SQLITE_TMPDIR."
            raise MagbayError(f"the list of what is restored cannot be written: {error}", hint=hint) from None

    def __contains__(self, parts: Parts) -> bool:
        return self._database.execute("SELECT 1 FROM made WHERE path=?", (hash(parts),)).fetchone() is not None

    def close(self) -> None:
        """Forget all."""
        self._database.close()
