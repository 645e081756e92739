"""Where things are, what is said while building, and how a command is run."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

IMAGE = Path(__file__).resolve().parent.parent
CHECKOUT = IMAGE.parent


class BuildError(Exception):
    """Expected trouble of a build, in a sentence for a person."""


def cache_directory() -> Path:
    """`$MAGBAY_CACHE`, or `magbay` in the user's cache directory; made when missing."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(os.environ.get("MAGBAY_CACHE") or base / "magbay").absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def read_list(path: Path) -> list[str]:
    """The words of a file with one word a line, without comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def hash_of(*parts: str | Path) -> str:
    """A key of 16 hex digits over texts, files, and directories with all in them (names, executable bits, contents)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(f"text {len(part)} {part}".encode())
            continue
        files: Iterable[Path] = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
        for file in files:
            name, data = file.relative_to(part.parent), file.read_bytes()
            digest.update(f"file {name} {os.access(file, os.X_OK)} {len(data)} ".encode() + data)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """One builder at a time; a second one waits."""
    with (cache_directory() / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """One line of progress on stderr; stdout belongs to the result."""
    print(f"image: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Announce a step and, when it is done, say how long it took."""
    say(f"{name} …")
    start = time.monotonic()
    yield
    say(f"{name}: {time.monotonic() - start:.0f} s")


def run(
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    progress: str | None = None,
) -> None:
    """Run *command*, all its output going to the end of *log*; lines that start with *progress* show on a terminal.

    Raises BuildError, with the last lines and the path of the log, when the command fails.
    """
    terminal = sys.stderr.isatty()
    with log.open("a") as file:
        file.write(f"+ {' '.join(str(word) for word in command)}\n")
        file.flush()
        with subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                if terminal and progress and line.startswith(progress):
                    print(f"\r\033[K  {line.strip()[:100]}", end="", file=sys.stderr, flush=True)
    if terminal and progress:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if process.returncode != 0:
        tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-15:])
        raise BuildError(f"{command[0]} failed with status {process.returncode}. Full log: {log}\n  {tail}")
