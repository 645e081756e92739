"""From blocks to events: the records of each session joined, grouped into files, damage assigned to what it touches.

Source: volume format, sections 3.2, 4.3, 10, 11.4. Never holds more than the records that are cut at a block's end.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.volumes.attributes import Attributes, FileType, parse_attributes, parse_restore_object
from appliance.volumes.blocks import MAX_RECORD, RECORD_HEADER, SessionIds
from appliance.volumes.bsr import Bootstrap
from appliance.volumes.errors import VolumeError
from appliance.volumes.events import (
    Event,
    FileEnd,
    FileEntry,
    FileStart,
    FileState,
    Loose,
    Other,
    Partial,
    SessionEnd,
    SessionStart,
)
from appliance.volumes.labels import LabelKind, SessionLabel
from appliance.volumes.opensession import REMEMBERED, OpenRecord, OpenSession, record_event
from appliance.volumes.reader import Block, Damage
from appliance.volumes.stat64 import EncodedStat
from appliance.volumes.streams import (
    ATTRIBUTES,
    DATA,
    OF_FILES,
    TYPE_MASK,
    Stream,
    stream_name,
)

_HEAD = RECORD_HEADER.size
_MAX_SESSIONS = 4096  # open at once
_MAX_OPEN_BYTES = 256 << 20  # of all records that are cut at a block's end
_SESSION_LABELS = {LabelKind.SOS_LABEL, LabelKind.EOS_LABEL}
_WITH_DATA = {FileType.REGULAR, FileType.RAW, FileType.FIFO, FileType.PLUGIN}


class SessionReader:
    """Feed it blocks and damage in order of the volumes; it yields events. *select*: a bootstrap file's wishes.

    *loose*: records whose file or other part is on a volume that is not read come as `Loose`.
    Raises `VolumeError` only where no volume can be like this (thousands of sessions without an end).
    """

    def __init__(self, select: Bootstrap | None = None, *, loose: bool = False) -> None:
        self._select = select
        self._loose = loose
        self._sessions: dict[SessionIds, OpenSession] = {}
        self._volume = ""
        self._open_bytes = 0
        self._damage: list[Damage] = []  # the last ones on the present volume
        self._reports: list[Damage | Partial | Loose] = []  # to be yielded next

    def begin_volume(self, path: str) -> None:
        """The blocks that follow are of this volume."""
        self._volume = path
        self._damage = []

    def skip(self, ids: SessionIds) -> None:
        """A block of *ids* was left out on request: what is missing then is no damage."""
        session = self._sessions.get(ids)
        if session:
            session.skipped = session.is_cut = True
            self._drop_record(session)

    def damage(self, damage: Damage) -> Iterator[Event]:
        """Bytes between blocks are lost; which sessions that touches shows at their next block."""
        self._damage = [*self._damage, damage][-REMEMBERED:]
        for session in self._sessions.values():
            session.suspect = [*session.suspect, damage][-REMEMBERED:]
        yield damage

    def block(self, block: Block) -> Iterator[Event]:
        """The events of one block."""
        view, at = block.data, block.begin
        end = len(view)
        first = RECORD_HEADER.unpack_from(view, at)[0]
        if first < 0 and first not in _SESSION_LABELS:
            return  # a volume label; its ids are those of a session that need not have any other block here
        session = self._sessions.get(block.ids)
        if session is None:
            session = self._enter(block.ids)
            if first != LabelKind.SOS_LABEL:
                yield SessionStart(session.ids, None, self._volume)
        self._settle(session, block.number)
        while end - at >= _HEAD:
            index, stream, length = RECORD_HEADER.unpack_from(view, at)
            where = block.address + at
            at += _HEAD
            if index == 0 or length >= MAX_RECORD:
                what = f"a record with FileIndex {index} and {length} bytes; the rest of its block is not used"
                self._lose_rest(session, where, end - at, what)
                yield from self._take_reports()
                return
            part = view[at : at + length]
            at += len(part)
            if index > 0:
                entry = session.entry
                # Most records are whole, and one more of the file in hand.
                if (
                    entry is not None
                    and index == session.last_index
                    and stream >= 0
                    and len(part) == length
                    and session.record is None
                    and self._select is None
                    and index != session.ignored
                    and entry.attributes.ftype != FileType.PLUGIN_OBJECT
                ):
                    yield record_event(session, entry, stream, part)
                    continue
                yield from self._piece(session, (index, stream, length), part, where)
            elif index in _SESSION_LABELS:
                yield from self._label(session, LabelKind(index), part, length, where)
                if session.ids not in self._sessions and end - at >= _HEAD:
                    session = self._enter(block.ids)

    def _piece(
        self, session: OpenSession, header: tuple[int, int, int], part: memoryview, where: int
    ) -> Iterator[Event]:
        whole = self._join(session, header, part, where)
        if self._reports:
            yield from self._take_reports()
        if whole is not None:
            yield from self._deliver(session, header[0], abs(header[1]), whole, where)

    def finish(self) -> Iterator[Event]:
        """No more blocks: end the sessions that are still open."""
        for session in list(self._sessions.values()):
            yield from self._leave(session, None)

    # Sessions

    def _take_reports(self) -> list[Damage | Partial | Loose]:
        reports, self._reports = self._reports, []
        return reports

    def _report(self, session: OpenSession, address: int, length: int, what: str, *, touches: bool = True) -> None:
        """Damage inside good blocks; *touches*: the open file. What an earlier damage explains is not told again."""
        damage = Damage(self._volume, address, length, what)
        if not session.suspect:
            self._reports.append(damage)
        if touches:
            session.touch(session.suspect or [damage])

    def _enter(self, ids: SessionIds) -> OpenSession:
        if len(self._sessions) >= _MAX_SESSIONS:
            raise VolumeError(f"{self._volume}: more than {_MAX_SESSIONS} sessions without an end; this is no volume")
        session = self._sessions[ids] = OpenSession(ids, [self._volume], list(self._damage))
        return session

    def _settle(self, session: OpenSession, number: int) -> None:
        """Judge damage since the session's last block: with the next number in order, none of its blocks was lost."""
        if session.suspect and session.number is not None and number == session.number + 1:
            session.suspect = []
        elif not session.has_all:
            session.touch(session.suspect)
        session.number = number
        if session.volumes[-1] != self._volume:
            session.volumes.append(self._volume)

    def _lose_rest(self, session: OpenSession, where: int, length: int, what: str) -> None:
        damage = Damage(self._volume, where, length, what)
        self._reports.append(damage)
        session.touch([damage])
        self._drop_record(session)
        session.suspect = [*session.suspect, damage][-REMEMBERED:]
        session.number = None

    def _label(
        self, session: OpenSession, kind: LabelKind, part: memoryview, length: int, where: int
    ) -> Iterator[Event]:
        try:
            if len(part) < length:
                raise VolumeError("a session label runs over the end of its block")
            label = SessionLabel.parse(kind, bytes(part))
        except VolumeError as error:
            self._report(session, where, len(part), error.message)
            yield from self._take_reports()
            return
        if kind is LabelKind.SOS_LABEL:
            session.start = label
            yield SessionStart(session.ids, label, self._volume)
            return
        if session.suspect and session.last_index < label.job_files and not session.skipped:
            lost = f"files {session.last_index + 1} to {label.job_files} of job {label.job_id} are lost"
            yield Damage(self._volume, where, 0, lost)
        yield from self._leave(session, label)

    def _leave(self, session: OpenSession, end: SessionLabel | None) -> Iterator[Event]:
        self._sessions.pop(session.ids, None)
        if session.record and end:
            self._break_off(session)
            yield from self._take_reports()
        if end is None and not session.has_all:
            session.touch(session.suspect)
            kind = session.entry.attributes.ftype if session.entry else 0
            session.is_cut = session.is_cut or session.record is not None or kind in _WITH_DATA
        yield from self._close(session)
        if session.record:
            record = session.record
            self._set_loose(session, record.file_index, record.stream, memoryview(record.data), record.missing)
            yield from self._take_reports()
        self._drop_record(session)
        yield SessionEnd(session.ids, session.start, end, session.last_index, tuple(session.volumes))

    # Records

    def _drop_record(self, session: OpenSession) -> None:
        if session.record:
            self._open_bytes -= len(session.record.data)
            session.record = None

    def _break_off(self, session: OpenSession) -> None:
        """The open record does not go on as it must."""
        record = session.record
        assert record is not None
        self._drop_record(session)
        what = f"a record of file {record.file_index} breaks off, {record.missing} bytes of it are missing"
        address = record.address
        if record.volume != self._volume:
            what += f" (it begins on {record.volume}; is a volume between missing?)"
            address = 0
        self._report(session, address, 0, what, touches=record.file_index == session.last_index)

    def _join(
        self, session: OpenSession, header: tuple[int, int, int], part: memoryview, where: int
    ) -> memoryview | None:
        """The whole data of a record; None while parts are missing, or for parts whose beginning is missing."""
        index, stream, length = header
        record, has_all = session.record, session.has_all
        if record is not None:
            if (index, -stream, length) == (record.file_index, record.stream, record.missing):
                record.data += part
                record.missing -= len(part)
                self._open_bytes += len(part)
                if record.missing:
                    return None
                self._drop_record(session)
                return memoryview(record.data)
            self._break_off(session)
        if stream < 0:
            self._headless(session, index, where, touches=not has_all)
            if index == session.partial and len(part) == length:
                self._set_loose(session, index, stream, part)
            return None
        if not (session.last_index or session.start or session.suspect) and stream & TYPE_MASK in OF_FILES:
            self._headless(
                session, index, where, touches=True
            )  # the volume before ended between two records of the file
        if len(part) < length:
            self._keep(session, OpenRecord(index, stream, length - len(part), bytearray(part), where, self._volume))
            return None
        return part

    def _headless(self, session: OpenSession, index: int, where: int, *, touches: bool) -> None:
        """A continuation without its beginning: by damage, or because reading began in the middle. *touches*: an open
        file before it, too."""
        what = f"file {index} of {session.name()} begins before what was read; its beginning is missing"
        if session.entry and session.entry.file_index == index:
            self._report(session, where, 0, what)
        elif session.ignored != index:
            session.ignored = index
            if session.last_index or session.suspect:
                self._report(session, where, 0, what, touches=touches)
            elif self._select is None:
                session.partial = index
                self._reports.append(Partial(self._volume, where, what))

    def _passed_over(self, session: OpenSession, index: int, stream: int, data: memoryview) -> Iterator[Event]:
        if index == session.partial:
            self._set_loose(session, index, stream, data)
            yield from self._take_reports()

    def _set_loose(self, session: OpenSession, index: int, stream: int, data: memoryview, missing: int = 0) -> None:
        if self._loose and abs(stream) & TYPE_MASK not in DATA:
            self._reports.append(Loose(session.ids, index, stream, bytes(data), missing))

    def _keep(self, session: OpenSession, record: OpenRecord) -> None:
        if self._open_bytes + len(record.data) > _MAX_OPEN_BYTES:
            self._report(session, record.address, len(record.data), "too many records are open at the same time")
            return
        self._open_bytes += len(record.data)
        session.record = record

    # Files

    def _deliver(self, session: OpenSession, index: int, stream: int, data: memoryview, where: int) -> Iterator[Event]:
        if index != session.last_index:
            yield from self._close(session)
            yield from self._next_file(session, index, where)
        if index == session.ignored:
            yield from self._passed_over(session, index, stream, data)
            return
        if self._select is not None and not self._select.wants_record(session.start, index, stream):
            return
        kind = stream & TYPE_MASK
        if session.entry is not None:
            if kind not in ATTRIBUTES or session.entry.attributes.ftype != FileType.PLUGIN_OBJECT:
                yield record_event(session, session.entry, stream, data)
                return
            yield from self._close(session)
        try:
            entry = self._begin(session, index, stream, data)
        except VolumeError as error:
            session.ignored = index
            yield Damage(self._volume, where, len(data), f"file {index} of {session.name()}: {error.message}")
            return
        if entry is not None:
            session.entry = entry
            yield FileStart(entry)
            if kind not in ATTRIBUTES:
                yield Other(entry, stream, data)
        elif kind in OF_FILES and session.ignored != index:
            session.ignored = index
            yield from self._without_beginning(session, index, where, len(data))

    def _without_beginning(self, session: OpenSession, index: int, where: int, length: int) -> Iterator[Event]:
        what = f"file {index} of {session.name()} has no attributes; its beginning is missing"
        if not session.in_middle:
            yield Damage(self._volume, where, length, what)
        elif self._select is None:
            yield Partial(self._volume, where, what)

    def _begin(self, session: OpenSession, index: int, stream: int, data: memoryview) -> FileEntry | None:
        kind = stream & TYPE_MASK
        if kind in ATTRIBUTES:
            found = parse_attributes(bytes(data))
        elif kind == Stream.RESTORE_OBJECT:
            found = parse_restore_object(bytes(data))
        elif kind == Stream.PLUGIN_NAME or kind in OF_FILES:
            return None
        else:  # something of a plugin, or of a kind that nobody knows
            found = Attributes(index, FileType.PLUGIN_OBJECT, stream_name(stream).encode(), EncodedStat(size=len(data)))
        job_id = session.start.job_id if session.start else 0
        update = kind == Stream.UNIX_ATTRIBUTE_UPDATE
        if found.file_index != index:
            found = found._replace(file_index=index)
        entry = FileEntry(session.ids, job_id, self._volume, found, update)
        if self._select is not None and not self._select.wants_name(entry.path):
            session.ignored = index
            return None
        return entry

    def _next_file(self, session: OpenSession, index: int, where: int) -> Iterator[Event]:
        """Go on to file *index*; report numbers left out, unless that was on request or where reading began."""
        session.in_middle = session.start is None and not session.last_index and not session.suspect
        expected = session.last_index + 1
        if index != expected and not session.skipped and (session.suspect or session.last_index):
            if index > expected:
                what = f"files {expected} to {index - 1} of {session.name()} are lost"
            else:
                what = f"file {index} of {session.name()} comes after file {session.last_index}"
            yield Damage(self._volume, where, 0, what)
        session.last_index = index
        session.suspect = []
        session.skipped = False

    def _close(self, session: OpenSession) -> Iterator[Event]:
        entry, flaws = session.entry, tuple(dict.fromkeys(session.flaws))
        state = FileState.DAMAGED if flaws else FileState.CUT if session.is_cut else FileState.WHOLE
        session.entry, session.flaws, session.has_digest, session.is_cut = None, [], False, False
        if entry is not None:
            yield FileEnd(entry, state, flaws)
