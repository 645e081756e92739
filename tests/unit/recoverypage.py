"""The blocks of docs/recovery.md, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "recovery.md"
_BLOCK = re.compile(r"^```(\w+)( \w+)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str, kind: str = "") -> list[str]:
    """The blocks in *language* that are marked as of *kind*."""
    found = [text for lang, mark, text in _BLOCK.findall(PAGE.read_text()) if (lang, mark.strip()) == (language, kind)]
    assert found, f"the page has no block of {language} {kind}"
    return found


def program(work: Path) -> Path:
    """The Python program of the page, written to where the page says."""
    (text,) = blocks("python")
    work.mkdir(parents=True, exist_ok=True)
    (work / "rescue.py").write_text(text)
    return work / "rescue.py"


def run(magazine: Path, place: Path, *more: str, timeout: int = 60) -> str:
    """Run all blocks of the shell, and then *more*, in one shell with the directories of a test."""
    program(place / "work")
    values = {"M": str(magazine), "OUT": str(place / "out"), "WORK": str(place / "work")}
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join([*blocks("sh"), *more])],
        env={**os.environ, **values, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        errors="backslashreplace",  # what fails is shown, and a report must be sendable
        timeout=timeout,
    )
    log = place / "work" / "log"  # of the Director, where one ran
    told = log.read_text(errors="backslashreplace") if log.exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + told
    return done.stdout
