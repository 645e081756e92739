"""Makes `seeds/` out of the sample volumes: `python -m tests.fuzz.make_seeds`. The seeds are kept in the repository.

A seed is a small volume of real records: label, start and end of the session, and the smallest file for each different
row of streams.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import zstandard

from appliance.volumes.attributes import pack_attributes
from appliance.volumes.labels import LabelKind, SessionLabel, VolumeLabel
from appliance.volumes.stat64 import EncodedStat
from tests.fuzz.parts import Blk, Rec, put_together, take_apart
from tests.unit.volume_builder import NOW, names_of, sample

SEEDS = Path(__file__).parent / "seeds"
LARGEST = 700  # bytes of one file
_DIGESTS = ((10, 20), (17, 32), (18, 64), (39, 8), (40, 8), (40, 16), (41, 16))
FILES = 7  # of one session in one seed


def shrink(blocks: list[Blk]) -> list[Blk]:
    """The label and, for each session, one block with its labels and a few small files of different kinds."""
    label, sessions = blocks[0], {}
    for block in blocks[1:]:
        sessions.setdefault((block.session, block.time), []).append(block)
    return [label, *(_session(found) for found in list(sessions.values())[:2])]


def _session(blocks: list[Blk]) -> Blk:
    files: dict[int, list[Rec]] = {}
    ends: list[Rec] = []
    cut: set[int] = set()
    for record in (one for block in blocks for one in block.records):
        if record.index < 0:
            ends.append(record)
        else:
            files.setdefault(record.index, []).append(record)
            if record.length is not None or record.stream < 0:
                cut.add(record.index)
    kinds: dict[tuple[object, ...], list[Rec]] = {}
    for found in sorted(files.values(), key=_size):
        if found[0].index not in cut and _size(found) <= LARGEST:
            kinds.setdefault((found[0].data.split(b" ")[1], *(one.stream for one in found)), found)
    kept = sorted(list(kinds.values())[-FILES:], key=lambda records: records[0].index)
    records = [replace(record, index=number) for number, found in enumerate(kept, 1) for record in found]
    first = blocks[0]
    return Blk(1, first.session, first.time, [*ends[:1], *records, *ends[1:]], first.magic, first.options & 1 or 1)


def _size(records: list[Rec]) -> int:
    return sum(len(one.data) for one in records)


def attributes(index: int, name: bytes, size: int) -> Rec:
    """The attributes record of a regular file."""
    saved = EncodedStat(1, index, 0o100644, 1, 0, 0, 0, size, 4096, 8, 1, 2, 3, 0, 0, 2)
    return Rec(index, 1, pack_attributes(index, 3, name, saved))


def framed(magic: bytes, body: bytes) -> bytes:
    """A record of stream 29."""
    return struct.pack(">4sIHH", magic, len(body), 1, 1) + body


def odd_streams() -> list[Rec]:
    """Files with records that the samples have not, or not small enough."""
    text = b"some text, some text, some text; " * 8
    frame = b"FastLZ\0" + struct.pack("<BII", 0x18, len(text), len(text)) + text + b"FastLZ\0\xc8" + bytes(8)
    xattr = struct.pack(">II", 0x005C5884, 8) + b"user.one" + struct.pack(">I", 3) + b"two"
    records = [
        *(Rec(1, 26, b"1 1 0 bpipe:/x:cat:of=x\0"), attributes(1, b"/x", -1), Rec(1, 2, text)),
        *(Rec(1, 3, hashlib.md5(text).digest()), Rec(1, 26, b"1 0")),
        *(
            Rec(2, 26, b"2 1 0 python3:a=b\0"),
            Rec(2, 28, b"2 27 -1 5 5 0 python3:a=b\0object\0one\0\1\0"),
            Rec(2, 26, b"2 0"),
        ),
        *(attributes(3, b"/zstd", len(text)), Rec(3, 29, framed(b"LZOY", zstandard.compress(text)))),
        *(attributes(4, b"/frames", len(text)), Rec(4, 29, framed(b"FZ4L", frame)), Rec(4, 29, framed(b"FZFZ", frame))),
        *(attributes(5, b"/all-digests", 1), Rec(5, 2, b"x")),
        *(
            Rec(5, stream, bytes(size))
            for stream, size in ((10, 20), (17, 32), (18, 64), (39, 8), (40, 8), (40, 16), (41, 16))
        ),
        *(
            attributes(6, b"/windows", 1),
            Rec(6, 11, b"x" * 20),
            Rec(6, 12, zlib.compress(text)),
            Rec(6, 31, framed(b"GZIP", b"")),
        ),
        *(attributes(7, b"/flags", 99), Rec(7, 2 | 1 << 26, bytes(7) + b"\x05data"), Rec(7, 2 | 1 << 27, b"delta")),
        *(attributes(8, b"/pki", 16), Rec(8, 22, b"0\x03abc"), Rec(8, 32, b"c" * 32), Rec(8, 19, b"0\x03abc")),
        *(attributes(9, b"/xattr", 0), Rec(9, 1998, xattr), Rec(9, 1008, b"user::rw-\ngroup::r--\nother::r--\n\0")),
    ]
    return records


def made() -> dict[str, list[Blk]]:
    """Volumes that no sample gives."""
    name = "made"
    label = VolumeLabel(name, "Default", "File", NOW * 10**6, NOW * 10**6).pack()
    session = SessionLabel(3, NOW * 10**6, "job.3", "job", "client", "set", "x", "Default")
    start, end = (Rec(kind, 3, session.pack(kind)) for kind in (LabelKind.SOS_LABEL, LabelKind.EOS_LABEL))
    head = Blk(0, 7, NOW, [Rec(-2, 0, label)])
    odd = [head, Blk(1, 7, NOW, [start, *odd_streams(), end])]
    secret = [replace(head, magic=b"BB03", options=3), replace(odd[1], magic=b"BB03", options=7)]
    body = bytes(range(200))
    split = [head, Blk(1, 7, NOW, [start, attributes(1, b"/split", 200), Rec(1, 2, body[:50], 200)])]
    split += [Blk(1, 8, NOW, [start, attributes(1, b"/other", 200), Rec(1, 2, body[:80], 200)])]
    split += [Blk(2, 7, NOW, [Rec(1, -2, body[50:90], 150)]), Blk(2, 8, NOW, [Rec(1, -2, body[80:], 120), end])]
    split += [Blk(3, 7, NOW, [Rec(1, -2, body[90:], 110), Rec(1, 3, hashlib.md5(body).digest()), end])]
    return {"made-odd": odd, "made-enciphered": secret, "made-split": split}


def main() -> None:
    """Write all seeds; equal ones once."""
    SEEDS.mkdir(exist_ok=True)
    for which in ("bacula-9.6", "bacula-15.0", "bareos-26"):
        for name in names_of(which):
            if name.startswith(("b-", "a-xf-")) or "encrypted" in name:
                continue
            volumes, _ = sample(which, name)
            seed = put_together(shrink(take_apart(volumes[0].read_bytes())))
            (SEEDS / f"{which}-{name}.volume").write_bytes(seed)
    for name, blocks in made().items():
        (SEEDS / f"{name}.volume").write_bytes(put_together(blocks))


if __name__ == "__main__":
    main()
