"""Damaged, cut, foreign and hostile volumes: found, named, and nothing whole is lost beside it."""

from __future__ import annotations

import errno
import os
import random
import struct
import zlib
from pathlib import Path

import pytest

from appliance.errors import MagbayError, NotFoundError, UsageError
from appliance.volumes.blocks import MAX_RECORD, SessionIds
from appliance.volumes.errors import UnsupportedError, VolumeError
from appliance.volumes.events import Data, FileEnd, FileState, Partial, SessionEnd, VolumeStart
from appliance.volumes.labels import Dialect
from appliance.volumes.reader import Block, Damage, VolumeReader
from appliance.volumes.reading import in_order, read_volumes
from tests.unit.volume_builder import IDS, NOW, Job, Kept, label_of, one_job, volume

Content = dict[tuple[int, int], bytes]


def read(*paths: Path) -> tuple[Content, dict[tuple[int, int], FileState], list[str], bool]:
    """(content by file, state by file, damage, whether every session has its end)."""
    content: Content = {}
    states: dict[tuple[int, int], FileState] = {}
    damage: list[str] = []
    ended = True
    for event in read_volumes(paths):
        if isinstance(event, Data):
            key = (event.entry.ids.session_id, event.entry.file_index)
            content[key] = content.get(key, b"") + event.data
        elif isinstance(event, FileEnd):
            key = (event.entry.ids.session_id, event.entry.file_index)
            states[key] = event.state
            content.setdefault(key, b"")
        elif isinstance(event, Damage | Partial):
            damage.append(event.what)
        elif isinstance(event, SessionEnd):
            ended = ended and event.end is not None
    return content, states, damage, ended


def interleaved(path: Path) -> Path:
    """Two sessions, block by block, each of a few files over several small blocks."""
    jobs = [Job(ids=SessionIds(number, NOW), job_id=number, max_block=400) for number in (1, 2)]
    noise = random.Random(5)
    for job in jobs:
        for number in range(5):
            job.file(b"/tree/%d" % number, noise.randbytes(150 * number), chunk=200)
    first, second = (job.end() for job in jobs)
    longest = max(len(first), len(second))
    mixed = [blocks[at] for at in range(longest) for blocks in (first, second) if at < len(blocks)]
    return volume(path, *mixed)


@pytest.mark.parametrize("bad", [{0}, {5}, {700}, {699, 700}, {31, 60}, {300, 330, 360, 1000}, set(range(40, 300))])
def test_a_place_that_the_disk_cannot_read_costs_the_blocks_that_it_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: set[int]
) -> None:
    """*bad*: pages of 4096 bytes; what lies beside them is read, be it a volume's first page."""
    noise = random.Random(6)
    path = one_job(tmp_path / "v", lambda job: [job.file(b"/tree/%d" % n, noise.randbytes(50_000)) for n in range(100)])
    with VolumeReader(path) as volume:
        every = [(item.address, len(item.data)) for item in volume.blocks() if isinstance(item, Block)]
    assert len(every) > 70 and every[-1][0] // 4096 > max(bad)
    lost = {at for at, length in every if bad & set(range(at // 4096, (at + length - 1) // 4096 + 1))}
    plain, asked = os.preadv, []

    def preadv(fd: int, buffers: list[memoryview], at: int) -> int:
        """As Linux does: up to the page, and an error where nothing comes before it."""
        behind = [page for page in bad if page >= at // 4096]
        if behind and min(behind) == at // 4096:
            asked.append(at)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        length = min(len(buffers[0]), min(behind) * 4096 - at) if behind else len(buffers[0])
        return plain(fd, [buffers[0][:length]], at)

    monkeypatch.setattr(os, "preadv", preadv)
    with VolumeReader(path) as volume:
        items = list(volume.blocks())
        found = {item.address for item in items if isinstance(item, Block)}
        label = volume.label()
    told = [item for item in items if isinstance(item, Damage)]
    assert (label is None) == (0 in bad)
    assert found <= {at for at, _ in every} - lost
    missed = {at for at, _ in every} - lost - found
    # A long unreadable stretch is passed over in growing steps, the last of which goes a little too far.
    assert not missed if len(bad) < 50 else len(missed) <= 20
    assert sum(item.length for item in told) + sum(length for at, length in every if at in found) == path.stat().st_size
    assert len(asked) <= 4 * len(bad) and len(asked) <= 40, "each question may take a bad disk seconds"


def test_a_place_that_cannot_be_read_is_tried_a_few_times_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time may take a disk many seconds; and a file of many volumes, or a hostile one, looks like many blocks."""
    job = Job()
    for number in range(40):
        job.file(b"/%d" % number, b"BB02" * 20_000)
    path = volume(tmp_path / "volume", *job.end())
    size, plain, tried = path.stat().st_size, os.preadv, []
    bad = sorted({at for start in range(150_000, size, 400_000) for at in (start, start + 70_000)})

    def preadv(fd: int, buffers: list[memoryview], at: int) -> int:
        stop = next((place for place in bad if at < place + 4096), size)
        if at >= stop:
            tried.append(at)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(fd, [buffers[0][: stop - at]], at)

    monkeypatch.setattr(os, "preadv", preadv)
    with VolumeReader(path) as reader:
        found = list(reader.blocks())
    assert sum(isinstance(item, Damage) for item in found) >= len(bad)
    assert len(bad) <= len(tried) <= 8 * len(bad)


def test_every_flipped_bit_is_found_and_spoils_only_what_it_touches(tmp_path: Path) -> None:
    whole = interleaved(tmp_path / "good")
    expected, states, damage, ended = read(whole)
    assert len(expected) == 10 and set(states.values()) == {FileState.WHOLE} and not damage and ended
    good = whole.read_bytes()
    first_block = struct.unpack_from(">I", good, 4)[0]
    bad = tmp_path / "bad"
    for at in range(0, len(good), 13):  # every bit of other volumes: tests/fuzz/test_bitflips.py
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        bad.write_bytes(data)
        content, states, damage, _ = read(bad)
        assert damage, f"a flipped bit at {at} was not noticed"
        spoiled = {key for key in expected if states.get(key) is not FileState.WHOLE}
        for key, state in states.items():
            if state is FileState.WHOLE:
                assert content[key] == expected[key], f"file {key} is wrong after a flipped bit at {at}"
        if at < first_block:
            assert not spoiled, "the label's block belongs to no file"
        else:
            # One block of one session: its neighbour stays clean.
            assert len({session for session, _ in spoiled}) <= 1, f"a flipped bit at {at} spoiled {spoiled}"
            assert len(spoiled) <= 4


def test_volume_cut_anywhere(tmp_path: Path) -> None:
    whole = interleaved(tmp_path / "good")
    expected, _, _, _ = read(whole)
    good = whole.read_bytes()
    borders, at = set(), 0
    while at < len(good):
        at += struct.unpack_from(">I", good, at + 4)[0]
        borders.add(at)
    bad = tmp_path / "bad"
    for length in range(1, len(good), 19):
        bad.write_bytes(good[:length])
        if length < min(borders):
            with pytest.raises(VolumeError, match=r"no block in it|cut short|ends inside"):
                read(bad)
            continue
        content, states, damage, ended = read(bad)
        assert damage if length not in borders else not damage
        assert not ended or length < sorted(borders)[1]  # nothing of a session is whole then
        for key, state in states.items():
            if state is FileState.WHOLE:
                assert content[key] == expected[key]
            else:
                assert expected[key].startswith(content[key])


@pytest.mark.parametrize("size", [1, 23, 24, 4096])
def test_zeros_behind_the_last_block(tmp_path: Path, size: int) -> None:
    path = interleaved(tmp_path / "v")
    expected, _, _, _ = read(path)
    path.write_bytes(path.read_bytes() + bytes(size))
    content, states, damage, ended = read(path)
    assert content == expected and ended and len(damage) == 1
    assert set(states.values()) == {FileState.WHOLE}


def test_garbage_between_blocks_is_skipped(tmp_path: Path) -> None:
    path = interleaved(tmp_path / "v")
    expected, _, _, _ = read(path)
    good = path.read_bytes()
    border = struct.unpack_from(">I", good, 4)[0]
    junk = b"BB02" * 500 + random.Random(1).randbytes(3000)
    path.write_bytes(good[:border] + junk + good[border:])
    content, states, damage, _ = read(path)
    assert content == expected and set(states.values()) == {FileState.WHOLE}
    assert len(damage) == 1


def test_a_saved_volume_inside_a_damaged_block_is_not_taken_for_blocks(tmp_path: Path) -> None:
    inner = one_job(tmp_path / "inner", lambda job: job.file(b"/inner", b"x" * 100)).read_bytes()

    def fill(job: Job) -> None:
        job.file(b"/before", b"1" * 50)
        job.file(b"/saved-volume", inner)
        job.file(b"/after", b"2" * 70_000)

    outer = one_job(tmp_path / "outer", fill)
    data = bytearray(outer.read_bytes())
    at = data.index(b"/before")
    for spoiled in (at, struct.unpack_from(">I", data, 4)[0] + 12):  # a byte of the contents; the block's Id
        bad = bytearray(data)
        bad[spoiled] ^= 1
        outer.write_bytes(bad)
        names = {event.entry.path for event in read_volumes([outer]) if isinstance(event, FileEnd)}
        assert "/inner" not in names


def patched(path: Path, old: bytes, new: bytes) -> Path:
    """The volume with *old* replaced in its first block, whose checksum is made right again."""
    data = bytearray(path.read_bytes())
    length = struct.unpack_from(">I", data, 4)[0]
    at = data.index(old, 0, length)
    data[at : at + len(old)] = new
    data[:4] = zlib.crc32(data[4:length]).to_bytes(4, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"Bacula 1.0 immortal\n", b"Bacula 9.9 immortal\n", "unknown"),
        (b"Bacula 1.0 immortal\n\0", b"Bacula 1.0 Metadata\n\0", "aligned-volume metadata"),
        (b"immortal\n\0\0\0\0\x0b", b"immortal\n\0\0\0\0\x14", "version 20, not 11"),
        (b"BB02", b"BB01", "BB01"),
    ],
)
def test_unknown_formats_are_named(tmp_path: Path, old: bytes, new: bytes, words: str) -> None:
    path = patched(interleaved(tmp_path / "v"), old, new)
    with pytest.raises(UnsupportedError, match=words) as caught:
        read(path)
    assert str(path) in caught.value.message and caught.value.hint


def test_what_is_no_volume(tmp_path: Path) -> None:
    path = tmp_path / "v"
    path.write_bytes(b"")
    with pytest.raises(VolumeError, match="empty"):
        read(path)
    path.write_bytes(b"a text, no volume at all. " * 1000)
    with pytest.raises(VolumeError, match="is not a volume"):
        read(path)
    with pytest.raises(NotFoundError):
        read(tmp_path / "missing")
    with pytest.raises(MagbayError):
        read(tmp_path)
    with pytest.raises(UsageError, match="twice"):
        good = interleaved(tmp_path / "good")
        in_order([good, good])


def test_both_dialects_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "v"
    for dialect in Dialect:
        path.write_bytes(label_of(path, dialect=dialect))
        (start,) = [event for event in read_volumes([path]) if isinstance(event, VolumeStart)]
        assert start.label is not None and start.label.dialect is dialect and start.label.name == "v"


def raw_block(records: bytes, *, number: int = 1, ids: SessionIds = IDS) -> bytes:
    """A block with a good checksum around any bytes."""
    block = bytearray(struct.pack(">III4sII", 0, 24 + len(records), number, b"BB02", ids.session_id, ids.session_time))
    block += records
    block[:4] = zlib.crc32(block[4:]).to_bytes(4, "big")
    return bytes(block)


def record(index: int, stream: int, data: bytes, length: int | None = None) -> bytes:
    """A record, its length perhaps a lie."""
    return struct.pack(">iiI", index, stream, len(data) if length is None else length) + data


@pytest.mark.parametrize(
    "records",
    [
        record(1, 1, b"1 3 name"),  # no numbers
        record(1, 1, b"1 3 \0A A A A A A A A A A A A A\0"),  # no name
        record(1, 1, b"x y z\0A A A A A A A A A A A A A\0"),
        record(1, 1, b"1 3 n\0A A A\0"),
        record(1, 1, b"1 3 n\0A A A A A A A A A A A A A!\0"),
        record(1, 1, b"1 3 n\0" + b"/" * 5000 + b" A A A A A A A A A A A A\0"),
        record(1, 1, b"9" * 5000 + b" 3 n\0A A A A A A A A A A A A A\0"),
        record(1, 28, b"1 27"),
        record(1, 2, b"data without attributes"),
        record(0, 0, b""),
        record(1, 2, b"", MAX_RECORD),
        record(1, 2, b"", 0xFFFFFFFF),
        record(-4, 3, b"Bacula"),
        record(-4, 3, b"x", 4000),
        record(-5, 3, b"\0" * 20),
        record(-(1 << 31), -(1 << 31), b"x"),
    ],
)
def test_broken_records_in_good_blocks(tmp_path: Path, records: bytes) -> None:
    path = tmp_path / "v"
    good = Job(ids=SessionIds(9, NOW))
    good.file(b"/good", b"content")
    path.write_bytes(label_of(path) + raw_block(records) + b"".join(good.end()))
    content, states, damage, _ = read(path)
    assert content[9, 1] == b"content" and states[9, 1] is FileState.WHOLE
    assert damage or records[:1] == b"\x80"  # labels of unknown kind are passed over


def test_random_bytes_in_good_blocks_only_give_declared_errors(tmp_path: Path) -> None:
    noise = random.Random(11)
    path = tmp_path / "v"
    for _ in range(300):
        blocks = []
        for number in range(3):
            parts = b"".join(
                record(
                    noise.choice([1, 1, 2, 3, 0, -1, -4, -5, 1 << 30]),
                    noise.choice([1, 2, -2, -1, 3, 4, 6, 26, 28, 29, 1998, 1 << 29 | 2]),
                    noise.randbytes(noise.randrange(40)),
                    noise.choice([None, None, 0, 7, 100, 1 << 31]),
                )
                for _ in range(noise.randrange(1, 5))
            )
            blocks.append(raw_block(parts, number=number, ids=SessionIds(noise.randrange(2), 1)))
        path.write_bytes(label_of(path) + b"".join(blocks))
        read(path)


def test_thousands_of_sessions_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v"
    blocks = [raw_block(record(1, 2, b""), ids=SessionIds(number, 1)) for number in range(5000)]
    path.write_bytes(label_of(path) + b"".join(blocks))
    with pytest.raises(VolumeError, match="sessions"):
        read(path)


def test_search_for_blocks_ends_on_hostile_files(tmp_path: Path) -> None:
    """Headers that all claim twenty million bytes: the search must not check them all."""
    path = tmp_path / "v"
    fake = struct.pack(">III4sII", 0, 20_000_000, 0, b"BB02", 1, 1) + struct.pack(">iiI", 1, 2, 8)
    path.write_bytes(label_of(path) + b"x" + fake * 700_000)
    _, _, damage, _ = read(path)
    assert len(damage) == 1


def test_continuation_rules(tmp_path: Path) -> None:
    path = tmp_path / "v"
    begin = record(1, 1, b"1 3 /f\0A A IGk B A A A U A A A A A A A C\0\0\0" + b"0\0")
    cases = [
        (record(1, -2, b"y" * 10), FileState.WHOLE),
        (record(1, -2, b"y" * 9), FileState.DAMAGED),  # not what is missing
        (record(2, -2, b"y" * 10), FileState.DAMAGED),  # another file
        (record(1, -4, b"y" * 10), FileState.DAMAGED),  # another stream
        (record(1, 3, b"y" * 16), FileState.DAMAGED),  # no continuation at all
    ]
    for second, state in cases:
        blocks = raw_block(begin + record(1, 2, b"x" * 10, 20)) + raw_block(second, number=2)
        path.write_bytes(label_of(path) + blocks + raw_block(record(1, 3, b"d" * 16), number=3))
        content, states, damage, _ = read(path)
        assert states[IDS.session_id, 1] is state, second
        assert bool(damage) is (state is FileState.DAMAGED)
        if state is FileState.WHOLE:
            assert content[IDS.session_id, 1] == b"x" * 10 + b"y" * 10


def test_blocks_left_out_on_purpose_show_as_lost_files(tmp_path: Path) -> None:
    """A whole block gone without a trace: nothing is damaged to the eye, the file numbers tell."""
    sink = Kept()
    job = Job(sink=sink, max_block=400)
    for number in range(20):
        job.file(b"/f%d" % number, b"x" * 50)
    blocks = job.end()
    path = volume(tmp_path / "v", *blocks[:3], *blocks[6:])
    _, _, damage, _ = read(path)
    assert any("are lost" in text for text in damage)


@pytest.mark.parametrize("digest", ["MD5", None])
@pytest.mark.parametrize("lost", ["rest", "rest and end"])
def test_a_file_is_whole_when_the_next_one_has_begun(tmp_path: Path, digest: str | None, lost: str) -> None:
    """The attributes of the next file break off in a lost block: that costs the next one, not the one before."""
    job = Job(max_block=600, digest=digest)
    job.file(b"/before", b"x" * 100)
    job.file(b"/" + b"n" * 400, b"y" * 100)
    job.file(b"/behind", b"z" * 500)
    blocks = job.end()
    assert len(blocks) == 3 and b"/nnn" in blocks[0] and b"yyy" in blocks[1]
    kept = [blocks[0], blocks[2]] if lost == "rest" else [blocks[0]]
    content, states, _, _ = read(volume(tmp_path / "v", *kept))
    assert states[7, 1] is FileState.WHOLE and content[7, 1] == b"x" * 100
    assert (7, 2) not in states


def test_a_file_that_may_have_lost_its_end_is_not_whole(tmp_path: Path) -> None:
    job = Job(max_block=600, digest=None)
    job.file(b"/before", b"x" * 900)
    job.file(b"/next", b"y" * 900)
    blocks = job.end()
    at = next(number for number, block in enumerate(blocks) if b"/next" in block)
    _, states, damage, _ = read(volume(tmp_path / "v", *blocks[:at], *blocks[at + 1 :]))
    assert states[7, 1] is FileState.DAMAGED and damage
