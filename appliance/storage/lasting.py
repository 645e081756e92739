"""A connection to the catalog's database that is made again when it breaks in the middle of a job.

A server is restarted, a network fails for a minute: the job waits, and what it was doing in the catalog then is done
once, neither twice nor never:

* a statement outside of a transaction is a question: it is asked again;
* a transaction is done again, unless the server says that it has kept it (its number was asked for at its beginning);
* what only this connection had (temporary tables), or what a crash of the server may have taken away (commits that were
  not waited for), is made again by those who need it: `Lasting.renewed`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from appliance.storage.database import CatalogError, Database

T = TypeVar("T")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds between two attempts; each is twice as long as the one before


@dataclass(frozen=True)
class Outage:
    """How a job lives through one: *seconds* that it waits, whom it tells, how it lets time pass (which may raise)."""

    seconds: int
    told: Callable[[str], None]
    pause: Callable[[float], None]


class Lasting:
    """Does things in a database, again if need be. Without `outlast` every error goes to the caller."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._outage: Outage | None = None
        self._renewed: list[Callable[[Database], None]] = []
        self._inside = False  # a transaction

    def outlast(self, outage: Outage) -> None:
        """From now on outages are waited for."""
        self._outage = outage

    @property
    def may_break(self) -> bool:
        """Whether the connection may become another one."""
        return self._outage is not None and self.db.remote

    def renewed(self, action: Callable[[Database], None]) -> None:
        """Do *action* in a transaction, now and on every connection that follows."""
        if self.may_break:
            self._renewed.append(action)
        self.attempt(action, durable=False)

    def begin(self, *, durable: bool) -> None:
        """As of `Database`; nothing has happened yet, so it can be tried again."""
        while True:
            try:
                self.db.begin(durable=durable)
                self._inside = True
                return
            except self.db.errors as error:
                self._come_back(error)

    @property
    def inside(self) -> bool:
        """Whether a transaction is under way."""
        return self._inside

    def end(self, how: Callable[[], None]) -> None:
        """Commit or roll back."""
        try:
            how()
        finally:
            self._inside = False

    def attempt(self, action: Callable[[Database], T], *, durable: bool) -> T:
        """Do *action* in a transaction, until the database has kept it."""
        while True:
            self.begin(durable=durable)
            number = self.db.transaction()
            try:
                done = action(self.db)
                self.end(self.db.commit)
                return done
            except self.db.errors as error:
                self._give_up()
                if self._come_back(error, number):
                    return done
            except BaseException:
                self._give_up()
                raise

    def _give_up(self) -> None:
        with contextlib.suppress(*self.db.errors):  # on a connection that is lost the server does it
            self.end(self.db.rollback)

    def ask(self, question: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """The rows of a query. One that breaks behind its first row is not asked again."""
        while True:
            try:
                rows = question()
                first = next(rows, None)
            except self.db.errors as error:
                if self._inside:
                    raise
                self._come_back(error)
                continue
            if first is not None:
                yield first
                yield from rows
            return

    def _come_back(self, error: Exception, number: int = 0) -> bool:
        """Return with a new connection: whether the transaction *number* is in the database.

        Raises *error*, `CatalogError` when the time is up, what `pause` raises.
        """
        outage = self._outage
        if outage is None or not self.db.is_lost(error):
            raise error
        self._outage = None  # when it does not come back nobody waits a second time
        began, pause = time.monotonic(), _FIRST_PAUSE
        outage.told(f"the catalog's database is away, waiting for it, at most {outage.seconds} s: {_line(error)}")
        while (kept := self._back(number)) is None:
            left = began + outage.seconds - time.monotonic()
            if left <= 0:
                raise CatalogError(
                    f"{self.db.name} went away and did not come back within {outage.seconds} s: {_line(error)}",
                    hint="Have the PostgreSQL server run again and start the job once more. What the job has written "
                    "stays on its volumes until the next job is appended there: 'magbay volume scan' enters it.",
                )
            outage.pause(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
        outage.told(f"the catalog's database is back after {time.monotonic() - began:.0f} s")
        self._outage = outage
        return kept

    def _back(self, number: int) -> bool | None:
        """As `_come_back`; None while it is away, or still busy with that transaction."""
        try:
            self.db.reconnect()
            kept = self.db.has_kept(number) if number else False
            if kept is not None:
                for action in self._renewed:
                    self.db.begin(durable=False)
                    action(self.db)
                    self.db.commit()
            return kept
        except self.db.errors as error:
            if self.db.is_lost(error):
                return None
            raise


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
