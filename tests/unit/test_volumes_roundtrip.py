"""What the writer packs the reader unpacks: any records and block sizes, interleaved sessions, changes of volume."""

from __future__ import annotations

import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.volumes.attributes import Attributes, FileType, pack_attributes, parse_attributes, parse_restore_object
from appliance.volumes.blocks import SessionIds
from appliance.volumes.bsr import parse_bsr
from appliance.volumes.compression import decode
from appliance.volumes.errors import UnsupportedError, VolumeError
from appliance.volumes.events import Data, Digest, FileEnd, FileStart, FileState, Other, SessionEnd
from appliance.volumes.labels import Dialect, LabelKind, SessionLabel, VolumeLabel
from appliance.volumes.reader import Damage
from appliance.volumes.reading import read_volumes
from appliance.volumes.stat64 import EncodedStat, decode_number, encode_number
from appliance.volumes.streams import Stream, digest_name
from appliance.volumes.writer import SessionWriter
from tests.unit.volume_builder import NOW, Kept, label_of

MAGICS = (b"GZIP", b"LZOX", b"LZOY", b"FZFZ", b"FZ4L", b"FZ4H")
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name)


@given(NUMBERS)
def test_numbers(value: int) -> None:
    assert decode_number(encode_number(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, b"A"),
        (63, b"/"),
        (64, b"BA"),
        (4096, b"BAA"),
        (65024, b"P4A"),
        (0o100644, b"IGk"),
        (-259200, b"-/SA"),
        (-1, b"-B"),
    ],
)
def test_numbers_as_real_clients_write_them(value: int, text: bytes) -> None:
    assert encode_number(value) == text and decode_number(text) == value


@pytest.mark.parametrize("text", [b"", b"-", b"A A", b"=", b"/" * 12, b"--A", b"\xff"])
def test_numbers_that_are_none(text: bytes) -> None:
    with pytest.raises(VolumeError):
        decode_number(text)


_WORDS = st.lists(
    st.integers(0, (1 << 60) - 1).map(encode_number) | NUMBERS.map(encode_number)
    | st.text("AB/z9-=+ \n.", max_size=17).map(str.encode),
    min_size=12, max_size=18,
)  # fmt: skip


@given(_WORDS)
def test_numbers_read_together_are_those_read_one_by_one(words: list[bytes]) -> None:
    text = b" ".join(words)
    fields = text.split(b" ", 17)[:16]
    try:
        expected = EncodedStat(*map(decode_number, fields)) if len(fields) >= 13 else None
    except VolumeError:
        expected = None
    if expected is None:
        with pytest.raises(VolumeError):
            EncodedStat.parse(text)
    else:
        assert EncodedStat.parse(text) == expected


@given(NAMES, NAMES | st.just(b""), st.lists(NUMBERS, min_size=16, max_size=16))
def test_attributes(name: bytes, link: bytes, numbers: list[int]) -> None:
    saved = EncodedStat(*numbers)
    data = pack_attributes(12, FileType.REGULAR, name, saved, link)
    assert parse_attributes(data) == Attributes(12, FileType.REGULAR, name, saved, link)


def test_attributes_of_the_reference() -> None:
    data = b"8 4 /data/sample-a/links/rel-link\0P4A ycBL KH/ B A A A S BAA A BrAsTE BrAsTE BrAsTE A A C"
    data += b"\0../docs/readme.txt\0\0"
    found = parse_attributes(data + b"0\0")
    assert (found.file_index, found.kind, found.link) == (8, "symlink", b"../docs/readme.txt")
    assert stat.S_ISLNK(found.stat.mode) and found.stat.size == 18 and found.stat.data_stream == 2
    assert pack_attributes(8, 4, found.name, found.stat, found.link) == data + b"0\0"


@pytest.mark.parametrize("tail", [b"", b"\0", b"\0\0", b"\0\0\0", b"\0\0\0x\0", b"\0\0\0" + b"9" * 5000 + b"\0"])
def test_attributes_with_a_short_or_odd_tail(tail: bytes) -> None:
    found = parse_attributes(b"1 3 a  b \0" + b" ".join([b"A"] * 13) + tail)
    assert found.name == b"a  b " and found.delta_seq == 0


def test_restore_object() -> None:
    found = parse_restore_object(b"3 27 -1 5 900 1 plugin:opt=a b\0object\0\0\1\2\0\3\0")
    assert (found.name, found.stat.size, found.kind, found.file_index) == (b"object", 900, "plugin", 3)


@given(st.text(max_size=40), st.sampled_from(Dialect), st.integers(0, 1 << 62))
def test_labels(text: str, dialect: Dialect, when: int) -> None:
    name = text.replace("\0", "").encode("utf-8", "ignore").decode()[:30]
    label = VolumeLabel(name, "pool", "File", when, when + 1, "host", "program", "1", "today", dialect=dialect)
    assert VolumeLabel.parse(label.pack()) == label
    session = SessionLabel(
        7, when, name, "n", "c", "f", "m", "p", "Backup", "B", "I", dialect, 5, 1 << 40, 230, 1 << 33
    )
    assert SessionLabel.parse(LabelKind.EOS_LABEL, session.pack(LabelKind.EOS_LABEL)) == session


def test_names_too_long_for_labels() -> None:
    with pytest.raises(VolumeError, match="127"):
        VolumeLabel("x" * 128, "p", "File", 0, 0).pack()


RECORDS = st.lists(st.integers(0, 2500) | st.sampled_from([0, 1, 12, 64, 65]), max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(100, 1024), min_size=1, max_size=3),
    files=st.lists(st.tuples(st.integers(0, 2), RECORDS), max_size=12),
    cuts=st.sets(st.integers(1, 60), max_size=3),
    order=st.randoms(use_true_random=False),
)
def test_records_come_back(sizes: list[int], files: list[tuple[int, list[int]]], cuts: set[int], order: object) -> None:
    sinks = [Kept() for _ in sizes]
    writers = [
        SessionWriter(sink, SessionIds(n + 1, NOW), max_block=size)
        for n, (sink, size) in enumerate(zip(sinks, sizes, strict=True))
    ]
    expected: dict[tuple[int, int], list[bytes]] = {}
    indexes = [0] * len(sizes)
    for which, records in files:
        which %= len(sizes)
        indexes[which] += 1
        index = indexes[which]
        writers[which].write_record(index, 1, pack_attributes(index, 3, b"/f", EncodedStat()))
        chunks = [bytes([index & 255]) * length for length in records]
        for chunk in chunks:
            writers[which].write_record(index, Stream.FILE_DATA, chunk)
        writers[which].write_record(index, Stream.MD5_DIGEST, bytes(16))
        expected[which + 1, index] = chunks
    for writer in writers:
        writer.flush()
    queues = [list(sink.blocks) for sink in sinks]
    mixed = []
    while any(queues):
        queue = order.choice([one for one in queues if one])  # type: ignore[attr-defined]
        mixed.append(queue.pop(0))
    with TemporaryDirectory() as folder:
        paths, begin = [], 0
        for number, end in enumerate([*sorted(cut for cut in cuts if cut < len(mixed)), len(mixed)]):
            paths.append(Path(folder, f"v{number}"))
            paths[-1].write_bytes(label_of(paths[-1], stream=number + 1) + b"".join(mixed[begin:end]))
            begin = end
        found: dict[tuple[int, int], list[bytes]] = {}
        for event in read_volumes(paths):
            assert not isinstance(event, Damage | Other)
            if isinstance(event, FileStart):
                found[event.entry.ids.session_id, event.entry.file_index] = []
            elif isinstance(event, Data):
                found[event.entry.ids.session_id, event.entry.file_index].append(bytes(event.data))
            elif isinstance(event, FileEnd):
                assert event.state is FileState.WHOLE
            elif isinstance(event, Digest):
                assert event.algorithm == "MD5" and event.value == bytes(16)
            elif isinstance(event, SessionEnd):
                assert event.last_index == indexes[event.ids.session_id - 1]
    assert found == expected


@pytest.mark.parametrize(
    ("stream", "data", "error"),
    [
        (4, b"not zlib", VolumeError),
        (4, b"x\x9c\x03\x00\x00\x00\x00\x01more", VolumeError),
        (4, b"", VolumeError),
        (6, b"short", VolumeError),
        (6, b"\xff" * 8 + b"x", VolumeError),
        (29, b"GZIP", VolumeError),
        (29, b"GZIP\0\0\0\x01\0\x06\0\x01ab", VolumeError),  # wrong length
        (29, b"GZIP\0\0\0\x02\0\x06\0\x02ab", VolumeError),  # wrong version
        (29, b"????\0\0\0\x02\0\x06\0\x01ab", VolumeError),
        *((29, magic + b"\0\0\0\x02\0\x06\0\x01ab", VolumeError) for magic in MAGICS),
        *((29, magic + b"\0\0\0\0\0\x06\0\x01", VolumeError) for magic in MAGICS),
        (20, b"cipher", UnsupportedError),
        (2 | 1 << 27, b"delta", UnsupportedError),
        (13, b"fork", UnsupportedError),
    ],
)
def test_data_that_cannot_be_decoded(stream: int, data: bytes, error: type[VolumeError]) -> None:
    with pytest.raises(VolumeError) as caught:
        decode(stream, memoryview(data))
    assert type(caught.value) is error


def test_expansion_is_bounded() -> None:
    import zlib

    bomb = zlib.compress(bytes(40 << 20), 1)
    with pytest.raises(VolumeError, match="beyond"):
        decode(4, memoryview(bomb))


def test_digest_names() -> None:
    assert [digest_name(stream, 16) for stream in (3, 40, 2)] == ["MD5", "XXH128", None]
    assert digest_name(40, 8) == "XXH3_64"


# Bootstrap files


BSR = """
# a comment
Storage="File"
Volume="one|two"
MediaType="File"
VolSessionId=1-2,7
VolSessionTime=100
VolAddr=230-1000
FileIndex=5
FileIndex=11-12
Count=3

volume=three
FILEINDEX=1
"""


def test_bootstrap_criteria() -> None:
    bootstrap = parse_bsr(BSR, "b.bsr")
    assert bootstrap.span("one") == bootstrap.span("two") == (230, 1000)
    assert bootstrap.span("three") == (0, None) and bootstrap.span("four") == (0, -1)
    ids = SessionIds(2, 100)
    assert bootstrap.wants_block("two", ids, 1000)
    assert [index for index in range(1, 20) if bootstrap.wants_record(None, index, 1)] == [5, 11, 12]
    for volume, other, last in (("two", ids, 1001), ("two", SessionIds(3, 100), 500), ("two", SessionIds(7, 99), 500)):
        assert not bootstrap.wants_block(volume, other, last)
    assert bootstrap.wants_block("three", SessionIds(99, 9), 1 << 40)
    assert bootstrap.wants_record(None, 1, 2) and not bootstrap.wants_record(None, 5, 2)


def test_bootstrap_by_job_stream_and_name() -> None:
    bootstrap = parse_bsr('Volume="v"\nJobId=3\nClient="c"\nStream=1,2\nFileRegex="\\.txt$"\n', "b.bsr")
    label = SessionLabel(3, 0, "job", client="c")
    assert bootstrap.wants_block("v", SessionIds(1, 1), 0)
    assert bootstrap.wants_record(label, 1, 2) and not bootstrap.wants_record(label, 1, 3)
    assert bootstrap.wants_name("/a.txt") is False  # the record asked for last is not wanted
    assert bootstrap.wants_record(label, 1, 1) and bootstrap.wants_name("/a.txt") and not bootstrap.wants_name("/a.c")
    assert not bootstrap.wants_record(None, 1, 1)
    assert not bootstrap.wants_record(SessionLabel(4, 0, "job", client="c"), 1, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no volume"),
        ("FileIndex=1", "names no volume"),
        ("Volume=v\nFileindex=x", "line 2.*not a number"),
        ("Volume=v\nFileIndex=9-1", "backwards"),
        ("Volume=v\nNonsense=1", "'nonsense' is unknown"),
        ("Volume=v\nFileIndex", "keyword=value"),
        ("Volume=v\nFileRegex=(", "FileRegex"),
        ("Volume=v\nStream=a", "streams"),
    ],
)
def test_bootstrap_files_with_faults(text: str, words: str) -> None:
    with pytest.raises(VolumeError, match=words) as caught:
        parse_bsr(text, "b.bsr")
    assert "b.bsr" in caught.value.message
