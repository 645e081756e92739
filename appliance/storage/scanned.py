"""What a scan finds on one volume, entered in the catalog: jobs, their files, and where on the volume they are.

Each volume is taken for itself, in any order. What a job has on several volumes is put together by `settling`: records
that are cut by the end of a volume are kept as loose ones until their other part is found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.storage import clashing, numbers, unsettled
from appliance.storage.catalog import Catalog
from appliance.storage.database import Database
from appliance.storage.digests import digest_text, link_digest
from appliance.storage.model import UNKNOWN, Job, JobStatus, Level, Media
from appliance.storage.saved_files import FileWriter
from appliance.storage.sink import STRETCH_BYTES
from appliance.volumes.attributes import FileType
from appliance.volumes.blocks import MAX_RECORD, RECORD_HEADER, SessionIds
from appliance.volumes.events import Digest, Event, FileEnd, FileStart, Loose, SessionEnd, SessionStart
from appliance.volumes.labels import LabelKind, SessionLabel
from appliance.volumes.reader import Block
from appliance.volumes.streams import ATTRIBUTES, DATA, DIGEST_STREAMS, PLAIN_DATA, TYPE_MASK, Stream

_HEAD = RECORD_HEADER.size
_OFFSET = 8  # bytes of the offset before the data of a sparse record
_LEVELS = {
    "D": Level.DIFFERENTIAL,
    "I": Level.INCREMENTAL,
}  # all others (full, virtual full, base) stand for themselves
_MOST_BYTES = 1 << 48
_MOST_CUT = 1000
_GOES_ON = "a job that goes on here"


@dataclass
class _Span:
    """A stretch as it grows: addresses, FileIndexes, block numbers, bytes of file data."""

    start: int
    number: int
    end: int = 0
    last_number: int = 0
    first: int = 0
    last: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Known:
    """What the catalog has of a job: number of files, and the stretches on its volumes."""

    status: JobStatus
    files: int
    places: tuple[tuple[int, int, int, int, int], ...]


def known_of(catalog: Catalog, job: Job) -> Known:
    """What the catalog has of it now."""
    ((count,),) = catalog.rows("SELECT count(*) FROM File WHERE JobId=?", (job.job_id,))
    query = "SELECT MediaId, FirstIndex, LastIndex, StartAddress, EndAddress FROM JobMedia WHERE JobId=?"
    return Known(job.status, int(count), tuple(sorted(catalog.rows(query, (job.job_id,)))))


@dataclass
class Session:
    """What was found of one session on the volume. *whole*: the catalog has all of it already.

    *known*: what it has of a job that it does not have whole.
    """

    ids: SessionIds
    job_id: int = 0
    whole: bool = False
    name: str = UNKNOWN
    files: int = 0
    label: SessionLabel | None = None  # the end's rather than the start's
    begun: int = 0  # when, by its start label (Unix seconds)
    ended: bool = False
    spans: list[_Span] = field(default_factory=list)
    span: _Span | None = None
    rows: FileWriter | None = None
    digest: str = ""
    known: Known | None = None
    doubtful: Job | None = None  # the job of these ids, which the catalog has without this volume
    # FileIndexes of attributes that a volume's end cuts: where their first part, their last part was found here.
    cut_heads: set[int] = field(default_factory=set)
    cut_tails: set[int] = field(default_factory=set)


class VolumeBook:
    """Takes the blocks and events of one volume. With *dry* nothing is written."""

    def __init__(
        self, catalog: Catalog, media: Media | None, start: int, foreign: set[SessionIds], *, ours: bool, dry: bool
    ) -> None:
        """*media*: its row; may be None in a dry run. *start*: where reading began. *ours*: magbay labelled it.

        *foreign*: sessions that were left out on other volumes; those of this one are added.
        """
        self._foreign = foreign
        self.sessions: dict[SessionIds, Session] = {}
        self.seen: set[SessionIds] = set()  # of all blocks, that of the label too
        self.end = 0  # behind the last good block
        self.clashes: list[str] = []  # sessions that bear the ids of another job of the catalog
        self._catalog = catalog
        self._media = media
        self._start = start
        self._ours = ours
        self._dry = dry
        self._takers: dict[type, Callable[..., None]] = {
            SessionStart: self._session_start,
            SessionEnd: self._session_end,
            FileStart: self._file_start,
            Digest: self._digest,
            FileEnd: self._file_end,
            Loose: self._loose,
        }

    def block(self, block: Block) -> None:
        """Note where the block is and which files are in it; before its events."""
        self.seen.add(block.ids)
        self.end = block.address + len(block.data)
        index, _, _ = RECORD_HEADER.unpack_from(block.data, block.begin)
        if index in (LabelKind.PRE_LABEL, LabelKind.VOL_LABEL):
            return
        session = self._session(block.ids)
        span = session.span
        if span is None:
            span = session.span = _Span(block.address, block.number)
        span.end, span.last_number = self.end - 1, block.number
        _count(span, block)
        if self.end - span.start >= STRETCH_BYTES:
            _end_span(session)

    def take(self, event: Event) -> None:
        """Note what is of use to the catalog."""
        taker = self._takers.get(type(event))
        if taker:
            taker(event)

    def _session(self, ids: SessionIds) -> Session:
        session = self.sessions.get(ids)
        if session is None:
            session = self.sessions[ids] = Session(ids)
            job = self._catalog.job_of(ids)
            if job:
                session.job_id, session.name, session.begun = job.job_id, job.name, job.started
                session.whole = self._has_all(job)
                session.known = None if session.whole else known_of(self._catalog, job)
        return session

    def _has_all(self, job: Job) -> bool:
        if job.status is JobStatus.RUNNING:
            return True  # somebody else's turn
        if not job.status.good or self._media is None:
            return False
        query = "SELECT 1 FROM JobMedia WHERE JobId=? AND MediaId=? AND FirstIndex>0"
        if not list(self._catalog.rows(query, (job.job_id, self._media.media_id))):
            return False
        ((count,),) = self._catalog.rows("SELECT count(*) FROM File WHERE JobId=?", (job.job_id,))
        return bool(count == job.files)

    def _session_start(self, event: SessionStart) -> None:
        session = self._session(event.ids)
        if self._clashes(session, event.label):
            return
        if event.label:
            session.label, session.name = event.label, event.label.job_name
            session.begun = event.label.time // 1_000_000
        if session.whole or self._dry:
            return
        with self._catalog.transaction(durable=False) as db:
            _enter_job(db, session)
            if event.label:
                _note_start(db, session, event.label)
        if not session.doubtful:  # of that one every file is known
            session.rows = FileWriter(self._catalog, session.job_id, again=True)

    def _clashes(self, session: Session, label: SessionLabel | None) -> bool:
        """Whether the ids are those of another job: two machines gave out the same ones. Such a session is left out.

        Where it only goes on here, without a label of its own, that shows later: it is *doubtful* until then.
        """
        job = self._catalog.job(session.job_id) if session.job_id else None
        if job is None or job.name == UNKNOWN:
            return False
        if label is None:
            known = clashing.is_settled(self._catalog, job, self._media.media_id if self._media else None)
            session.doubtful = job if known and not session.whole else None
            return False
        if not clashing.is_anothers(job, text_of(label.job_name), text_of(label.client)):
            return False
        self._leave_out(session, job, f"job {label.job}")
        return True

    def _leave_out(self, session: Session, job: Job, what: str) -> None:
        told = f"{what} has the session ids {session.ids} of job {job.job_id} {job.name}; it is not entered"
        self.clashes.append(told)
        session.whole, session.doubtful = True, None
        self._foreign.add(session.ids)

    def _judge(self, session: Session) -> None:
        """No file that began here spoke against a doubtful session: whether its stretch may be one of the job."""
        job = session.doubtful
        if job and session.spans:
            first, last = session.spans[0].first, session.spans[-1].last
            if session.ids in self._foreign or not clashing.is_between(self._catalog, job, first, last):
                self._leave_out(session, job, _GOES_ON)

    def _session_end(self, event: SessionEnd) -> None:
        session = self._session(event.ids)
        if event.end:
            session.label, session.ended = event.end, True
            if session.name == UNKNOWN:
                session.name = event.end.job_name
        if session.rows is None:
            return
        session.rows.flush()
        if event.end:
            with self._catalog.transaction(durable=False) as db:
                _note_end(db, session, event.end)

    def _file_start(self, event: FileStart) -> None:
        session = self._session(event.entry.ids)
        if session.doubtful and not clashing.is_of(self._catalog, session.doubtful, event.entry):
            self._leave_out(session, session.doubtful, _GOES_ON)
        session.digest = ""
        saved = event.entry.attributes
        stream = saved.stat.data_stream & TYPE_MASK
        if session.span and saved.ftype == FileType.REGULAR and stream in DATA and stream not in PLAIN_DATA:
            session.span.bytes += bounded(saved.stat.size)  # compressed records do not tell

    def _digest(self, event: Digest) -> None:
        if event.algorithm in DIGEST_STREAMS:
            self._session(event.entry.ids).digest = digest_text(event.value)

    def _file_end(self, event: FileEnd) -> None:
        entry = event.entry
        session = self._session(entry.ids)
        session.files += 1
        if session.rows:
            lstat = entry.attributes.stat.pack().decode("ascii")
            digest, session.digest = session.digest, ""
            if entry.attributes.ftype == FileType.SYMLINK:
                digest = link_digest(entry.attributes.link)
            session.rows.add(entry.file_index, entry.attributes.ftype, entry.attributes.name, lstat, digest)

    def _loose(self, event: Loose) -> None:
        session = self._session(event.ids)
        if abs(event.stream) & TYPE_MASK in ATTRIBUTES:
            # One at each end of a volume; what claims to be more is not counted.
            parts = session.cut_tails if event.stream < 0 else session.cut_heads
            if len(parts) < _MOST_CUT:
                parts.add(event.file_index)
        if session.rows:
            self._catalog.change(
                "INSERT INTO Loose VALUES(?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (session.job_id, event.file_index, event.stream, event.missing, event.data),
                durable=False,
            )

    def close(self) -> None:
        """The volume was read to its end: enter where its jobs are on it, and whose sessions they are."""
        for session in self.sessions.values():
            _end_span(session)
            self._judge(session)
        if self._media is None or self._dry:
            return
        with self._catalog.transaction() as db:
            for session in self.sessions.values():
                if not session.whole and session.job_id:
                    self._write_spans(db, session, self._media.media_id)
                    unsettled.add(db, (session.job_id,))
            if self._ours:
                numbers.enter_sessions(db, self.seen)

    def _write_spans(self, db: Database, session: Session, media_id: int) -> None:
        db.execute(
            "DELETE FROM JobMedia WHERE JobId=? AND MediaId=? AND (FirstIndex=0 OR StartAddress>=?)",
            (session.job_id, media_id, self._start),
        )
        db.executemany(
            "INSERT INTO JobMedia(JobId, MediaId, FirstIndex, LastIndex, StartAddress, EndAddress, FirstBlock, "
            "LastBlock, DataBytes) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (session.job_id, media_id, s.first, s.last, s.start, s.end, s.number, s.last_number, bounded(s.bytes))
                for s in session.spans
            ],
        )


def _count(span: _Span, block: Block) -> None:
    """First and last FileIndex in the block, and bytes of file data."""
    view, at = block.data, block.begin
    size = len(view)
    while size - at >= _HEAD:
        index, stream, length = RECORD_HEADER.unpack_from(view, at)
        if index == 0 or length >= MAX_RECORD:
            return
        at += _HEAD
        if index > 0:
            span.first = span.first or index
            span.last = index
            kind = abs(stream) & TYPE_MASK
            if kind in PLAIN_DATA:
                span.bytes += min(length, size - at)
                if kind == Stream.SPARSE_DATA and stream > 0:
                    span.bytes -= min(length, _OFFSET)
        at += length


def _end_span(session: Session) -> None:
    if session.span and session.span.first:
        session.spans.append(session.span)
    session.span = None


def record_digest(stream: int, data: bytes) -> str:
    """The catalog's digest for the data of a digest record; nothing for other streams and other algorithms."""
    return digest_text(data) if stream in DIGEST_STREAMS.values() else ""


def _enter_job(db: Database, session: Session) -> None:
    """A row for the session's job, as failed until `settling` knows better."""
    unsettled.remove(db, session.job_id)
    if not session.job_id:
        session.job_id = numbers.next_job_id(db)
        db.execute(
            "INSERT INTO Job(JobId, Name, Level, JobStatus, Pool, FileSet, FileSetMD5, VolSessionId, VolSessionTime, "
            "Started, Finished) VALUES(?, ?, 'F', ?, '', '', '', ?, ?, ?, ?)",
            (
                session.job_id, UNKNOWN, JobStatus.FAILED.value, session.ids.session_id, session.ids.session_time,
                session.ids.session_time, int(time.time()),
            ),
        )  # fmt: skip
    # Of a good job the catalog knows beginning and end, whatever it lacks of the rest.
    db.execute(
        "INSERT INTO Scanned(JobId, Begun, Ended) SELECT JobId, CASE WHEN JobStatus IN ('T', 'W') THEN 1 ELSE 0 END, "
        "CASE WHEN JobStatus IN ('T', 'W') THEN JobStatus ELSE '' END FROM Job WHERE JobId=? ON CONFLICT DO NOTHING",
        (session.job_id,),
    )


def _renumber(db: Database, session: Session, wanted: int) -> None:
    """Give the job the number that its label has, unless it has its place already or the number is taken."""
    (name,) = db.execute("SELECT Name FROM Job WHERE JobId=?", (session.job_id,)).fetchone()
    if name != UNKNOWN or wanted == session.job_id or not numbers.may_be_kept(wanted):
        return
    if db.execute("SELECT 1 FROM Job WHERE JobId=?", (wanted,)).fetchone():
        return
    for table in ("Job", "File", "JobMedia", "Log", "Loose", "Scanned"):
        db.execute(f"UPDATE {table} SET JobId=? WHERE JobId=?", (wanted, session.job_id))  # noqa: S608
    if session.known:  # it had a row because a copy's job builds on it
        db.execute("UPDATE Job SET BaseJobId=? WHERE BaseJobId=?", (wanted, session.job_id))
    session.job_id = wanted


def _note_labels(db: Database, session: Session, label: SessionLabel) -> None:
    _renumber(db, session, label.job_id)
    db.execute(
        "UPDATE Job SET Name=?, Level=?, Pool=?, FileSetMD5=?, Client=?, Type=? WHERE JobId=? AND Name=?",
        (
            text_of(label.job_name), _LEVELS.get(label.job_level, Level.FULL).value, text_of(label.pool),
            text_of(label.fileset_md5), text_of(label.client), label.job_type, session.job_id, UNKNOWN,
        ),
    )  # fmt: skip
    db.execute("UPDATE Job SET FileSet=? WHERE JobId=? AND FileSet=''", (text_of(label.fileset), session.job_id))


def _note_start(db: Database, session: Session, label: SessionLabel) -> None:
    _note_labels(db, session, label)
    started = label.time // 1_000_000
    db.execute("UPDATE Job SET Started=? WHERE JobId=?", (started, session.job_id))
    db.execute("UPDATE Scanned SET Begun=1 WHERE JobId=?", (session.job_id,))


def _note_end(db: Database, session: Session, label: SessionLabel) -> None:
    before = session.job_id
    _note_labels(db, session, label)
    if session.rows and session.job_id != before:
        session.rows = None  # nothing follows
    db.execute(
        "UPDATE Job SET Finished=?, JobFiles=?, JobBytes=?, Warnings=? WHERE JobId=?",
        (label.time // 1_000_000, label.job_files, bounded(label.job_bytes), label.job_errors, session.job_id),
    )
    db.execute("UPDATE Scanned SET Ended=? WHERE JobId=?", (label.job_status, session.job_id))


def bounded(count: int) -> int:
    """Bytes as a volume claims them, no more than any has: sums of them fit into the database's numbers."""
    return max(0, min(count, _MOST_BYTES))


def text_of(value: str) -> str:
    """Words of a label without bytes that are no text."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "")
