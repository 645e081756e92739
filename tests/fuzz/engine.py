"""The loop: take an input, change it, run it; keep what reaches new lines (when asked to look), stop at what fails."""

from __future__ import annotations

import hashlib
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzz.make_seeds import SEEDS
from tests.fuzz.mutate import Mutator
from tests.fuzz.parts import Blk, Rec, take_apart
from tests.fuzz.targets import PARSERS, Volume

PATIENCE = 5.0  # seconds of this process's time for one input
MEMORY = 400 << 20  # bytes that all inputs together may add
_ROOT = str(Path(__file__).parents[2] / "appliance")
_KINDS = {1: "attributes", 28: "attributes", 1998: "extras", 1008: "extras", 1007: "extras"}
_BSR = b"""Volume="made"
MediaType="File"
VolSessionId=7-9
VolSessionTime=1795342893
VolAddr=0-5000
FileIndex=1-3,5
Count=4
Stream=1,2
JobId=3
FileRegex="^/(home|root)/([a-z]+)*[^/]{2,}x?$"
"""


class Fault(AssertionError):
    """An input that breaks a rule; *data* is kept."""

    def __init__(self, target: str, data: bytes, error: BaseException) -> None:
        super().__init__(f"{target}: {type(error).__name__}: {error} ({len(data)} bytes, sha256 {name_of(data)})")
        self.target, self.data = target, data


class Hung(Exception):
    """One input takes too long."""


def name_of(data: bytes) -> str:
    """A short name for an input."""
    return hashlib.sha256(data).hexdigest()[:16]


def seeds() -> dict[str, bytes]:
    """The kept inputs by file name; the part behind the last dot is the target."""
    return {path.name: path.read_bytes() for path in sorted(SEEDS.iterdir())}


@contextmanager
def watched() -> Iterator[None]:
    """An input that runs for `PATIENCE` seconds raises `Hung`; more memory than `MEMORY` fails at the end."""

    def alarm(_number: int, _frame: FrameType | None) -> None:
        raise Hung

    before = signal.signal(signal.SIGVTALRM, alarm)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) * 1024
    assert grown < MEMORY, f"memory grew by {grown >> 20} MiB"


def run(target: str, action: Callable[[bytes], None], data: bytes) -> None:
    """One input. Raises `Fault`."""
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        action(data)
    except Exception as error:
        raise Fault(target, data, error) from error


def _lines(code: CodeType) -> set[int]:
    """The lines of a function's body."""
    return {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno}


class Coverage:
    """Lines of the product that were reached; code all of whose lines were seen is not traced any more."""

    def __init__(self) -> None:
        self._left: dict[CodeType, set[int]] = {}
        self.reached = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Trace what happens inside."""
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(None)

    def share(self, file: str) -> float:
        """Part of the lines of all functions that were called, in the product's *file*, that were reached."""
        lines = left = 0
        for code, rest in self._left.items():
            if code.co_filename.endswith(file):
                lines += len(_lines(code))
                left += len(rest)
        return (lines - left) / lines

    def missed(self) -> dict[str, list[int]]:
        """Lines of called functions that were not reached, by file."""
        found: dict[str, list[int]] = {}
        for code, rest in self._left.items():
            if rest:
                found.setdefault(code.co_filename, []).extend(rest)
        return {name: sorted(lines) for name, lines in sorted(found.items())}

    def _enter(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        code = frame.f_code
        left = self._left.get(code)
        if left is None:
            ours = code.co_filename.startswith(_ROOT)
            left = self._left[code] = _lines(code) if ours else set()
        return self._line if left else None

    def _line(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        left = self._left[frame.f_code]
        if frame.f_lineno in left:
            left.discard(frame.f_lineno)
            self.reached += 1
        return self._line if left else None


class Fuzzer:
    """Changes of the kept inputs, drawn from *seed*; the same seed gives the same inputs."""

    def __init__(self, seed: int, *, guided: bool = False) -> None:
        self.noise = random.Random(seed)
        found = seeds()
        taken = (take_apart(data) for name, data in found.items() if name.endswith(".volume"))
        self.volumes: list[list[Blk]] = [blocks for blocks in taken if blocks]  # some are cut before their first block
        records = [record for blocks in self.volumes for block in blocks for record in block.records]
        self.mutator = Mutator(self.noise, records)
        self.parts = {kind: _parts(kind, records) for kind in PARSERS}
        self.parts["bootstrap"] = [_BSR]
        for kind, parts in self.parts.items():
            parts += [data for name, data in found.items() if name.endswith(f".{kind}")]
        self.volume = Volume()
        self.coverage = Coverage() if guided else None
        self.kept: dict[str, bytes] = {}

    def close(self) -> None:
        """Free the file in memory."""
        self.volume.close()

    def read_volume(self, *, extract: bool = False) -> None:
        """One changed volume, read or extracted."""
        blocks = self.noise.choice(self.volumes)
        data = self.mutator.volume(blocks)
        action = self.volume.extract if extract else self.volume.read
        if self._is_new("volume", action, data):
            if blocks := take_apart(data):
                self.volumes.append(blocks)
            self.kept[f"{name_of(data)}.volume"] = data

    def parse(self, kind: str) -> None:
        """One changed input for a parser."""
        data = self.mutator.bytes(self.noise.choice(self.parts[kind]))[:4096]
        if self._is_new(kind, PARSERS[kind], data):
            self.parts[kind].append(data)
            self.kept[f"{name_of(data)}.{kind}"] = data

    def _is_new(self, target: str, action: Callable[[bytes], None], data: bytes) -> bool:
        if self.coverage is None:
            run(target, action, data)
            return False
        before = self.coverage.reached
        with self.coverage.watching():
            run(target, action, data)
        return self.coverage.reached > before


def _parts(kind: str, records: list[Rec]) -> list[bytes]:
    if kind == "labels":
        return [record.data for record in records if record.index < 0]
    if kind == "lzo":
        return [record.data[12:] for record in records if record.stream == 29 and record.data[:3] in (b"LZO", b"FZF")]
    if kind == "streams":
        return [record.data for record in records if record.index > 0 and 2 <= record.stream & 0x7FF <= 33]
    return [record.data for record in records if record.index > 0 and _KINDS.get(record.stream) == kind]


def replay(fuzzer: Fuzzer) -> int:
    """Run every kept input as it is; gives their number."""
    found = seeds()
    for name, data in found.items():
        target = name.rpartition(".")[2]
        if target == "volume":
            run(target, fuzzer.volume.read, data)
            run(target, fuzzer.volume.extract, data)
        else:
            run(target, PARSERS[target], data)
    return len(found)


def forever(seconds: float, seed: int, keep: Path) -> None:
    """Guided by coverage for *seconds*; new inputs and the one that fails are written below *keep*."""
    keep.mkdir(parents=True, exist_ok=True)
    fuzzer, began, count = Fuzzer(seed, guided=True), time.monotonic(), 0
    try:
        with watched():
            while time.monotonic() - began < seconds:
                for _ in range(20):
                    fuzzer.read_volume(extract=count % 20 == 0)
                    count += 1
                for kind in PARSERS:
                    fuzzer.parse(kind)
                    count += 1
                if count % 13000 < 26:
                    _tell(fuzzer, count, began)
    except Fault as fault:
        path = keep / f"fault-{name_of(fault.data)}.{fault.target}"
        path.write_bytes(fault.data)
        print(f"the input is kept as {path}")
        raise
    finally:
        for name, data in fuzzer.kept.items():
            (keep / name).write_bytes(data)
        _tell(fuzzer, count, began)
        for file, lines in fuzzer.coverage.missed().items() if fuzzer.coverage else ():
            print(f"not reached: {file}: {', '.join(map(str, lines))}")
        fuzzer.close()


def _tell(fuzzer: Fuzzer, count: int, began: float) -> None:
    assert fuzzer.coverage is not None
    spent = time.monotonic() - began
    print(f"{count} inputs, {count / spent:.0f}/s, {fuzzer.coverage.reached} lines, {len(fuzzer.kept)} new", flush=True)


def main() -> None:
    """`python -m tests.fuzz.engine [SECONDS [SEED]]`."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    forever(seconds, seed, Path(__file__).parents[2] / "build" / "fuzz")


if __name__ == "__main__":
    main()
