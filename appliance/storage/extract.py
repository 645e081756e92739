"""From the events of volumes to files below a target directory, each compared with its digest on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from appliance.errors import MagbayError
from appliance.storage.branch import Branch, Settings
from appliance.storage.creating import Rules
from appliance.storage.outcome import FileResult, Replace, Summary
from appliance.storage.renaming import Renaming
from appliance.storage.selection import Key
from appliance.storage.small import berths
from appliance.storage.targets import Target
from appliance.storage.versions import Versions
from appliance.storage.writeout import Writeout
from appliance.volumes.events import Event, FileEntry


class Extractor:
    """Writes the files of an event stream below *target* (made if missing; "/" restores to where they came from).

    *select*: which entries (default all). *aliases*: from `selection.link_aliases`. *algorithm*: digest of the job, if
    known. *on_result* is told what became of each file. *trusted*: see `Target`. *limit*: most bytes of data in all.
    *renaming*: other names; messages have the stored ones. *versions*: a file may come more than once (and not from
    several branches); of what there was not before the newest one counts, whatever *replace* says.
    *in_turn* False: jobs come in no order, from several branches.
    One extractor for one run.
    """

    def __init__(
        self,
        target: Path,
        *,
        select: Callable[[FileEntry], bool] | None = None,
        replace: Replace = Replace.ALWAYS,
        aliases: Mapping[Key, bytes] | None = None,
        algorithm: str | None = None,
        on_result: Callable[[FileResult], None] | None = None,
        trusted: bool = True,
        limit: int | None = None,
        renaming: Renaming | None = None,
        versions: bool = False,
        in_turn: bool = True,
    ) -> None:
        self.summary = Summary()
        self._made = Versions() if versions else None
        rules = Rules(replace, bool(renaming), made=self._made, in_turn=in_turn)
        self._target = Target(target, trusted=trusted, gives_way=rules.gives_way)
        self._select, self._aliases = select, aliases or {}
        self._settings = Settings(
            rules,
            renaming or Renaming(),
            algorithm,
            limit,
            on_result,
            # With a limit every file is made when its turn has come.
            berths() if limit is None else [],
        )
        self._branches: list[Branch] = []
        self._lost: OSError | None = None  # what did not reach the disk, of which the kernel tells once only

    def branch(self, select: Callable[[FileEntry], bool] | None, aliases: Mapping[Key, bytes]) -> Branch:
        """One for a thread of its own, with the same target and settings; `Branch.close` and `absorb` it."""
        branch = Branch(self._settings, self._target.branch(), Summary(), select, aliases)
        self._branches.append(branch)
        return branch

    def absorb(self, branch: Branch) -> None:
        """A branch is done: what it restored counts here."""
        self._branches.remove(branch)
        self.summary.add(branch.summary)
        self._target.foreign += branch.target.foreign

    def run(self, events: Iterable[Event]) -> Summary:
        """Consume *events*; gives the summary. `MagbayError` when the target is full; others as the events do."""
        try:
            with self.writing_out():
                self.take(events)
            self.finish()
        finally:
            self.close()
        return self.summary

    def take(self, events: Iterable[Event]) -> None:
        """Consume *events*, all but the attributes of directories. Raises as `run`."""
        with self._own_branch(self._select, self._aliases) as branch:
            branch.take(events)

    @contextlib.contextmanager
    def _own_branch(self, select: Callable[[FileEntry], bool] | None, aliases: Mapping[Key, bytes]) -> Iterator[Branch]:
        branch = self.branch(select, aliases)
        try:
            yield branch
        finally:
            branch.close()
            self.absorb(branch)

    @contextlib.contextmanager
    def writing_out(self) -> Iterator[None]:
        """What the branches restore goes to the disk while that is done. `finish` tells what did not."""
        writeout = Writeout(self._target.flush, self._done)
        try:
            yield
        finally:
            writeout.stop()
            self._lost = writeout.trouble

    def _done(self) -> tuple[int, int]:
        summaries = [self.summary, *(branch.summary for branch in self._branches)]
        return sum(one.files for one in summaries), sum(one.bytes for one in summaries)

    def close(self) -> None:
        """Close the target."""
        self._target.close()
        if self._made is not None:
            self._made.close()

    def finish(self) -> None:
        """At the end, when no branch runs any more: attributes of directories, and everything to the disk.

        Raises as `run`.
        """
        with self._own_branch(None, {}) as branch:
            branch.finish()
        try:
            if self._lost:
                raise self._lost
            self._target.flush()
        except OSError as error:
            text = f"{self._target.root}: what was restored may not be on the disk: {error.strerror}"
            raise MagbayError(text, hint="Look at the disk, and restore again.") from None
        if self._target.foreign:
            told = "belong to other users or groups, and only root can give them back"
            self.summary.warn(f"{self._target.foreign} of the restored files {told}: they are yours now")
