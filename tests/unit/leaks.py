"""Every test is searched for the keys it used: its output, the command lines it ran, its state files.

The keys are those that passed through `Secret` and those that `lukshelp` made. A test that shows a key on purpose has
the mark `shows_key`; its command lines and state files are searched all the same.
"""

from __future__ import annotations

import base64
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import appliance.host.commands as commands
from appliance.keys.secret import Secret

_LEAST, _PART = 16, 15  # bytes: shorter secrets would be found by chance; 15 bytes are whole base64 and base32 letters
_MOST_FILE = 1 << 20
_WATCH = pytest.StashKey["Watch"]()


class Watch:
    """What one test used and what it said."""

    def __init__(self) -> None:
        self.secrets: set[bytes] = set()
        self.words: list[str] = []
        self.output: list[str] = []
        self.folders: list[Path] = []

    def add(self, secret: bytes) -> None:
        if len(secret) >= _LEAST:
            self.secrets.add(secret)

    def forms(self) -> list[bytes]:
        """The beginnings of all secrets, as they are and in the usual encodings."""
        parts = [secret[:_PART] for secret in self.secrets if secret.strip(b"\0")]
        coded = [f(part) for part in parts for f in (base64.b64encode, base64.b32encode, lambda p: p.hex().encode())]
        # As repr() has them, and as pytest shows bytes that are no text (the last ones may belong to a cut character).
        shown = [repr(part)[2:-1].encode() for part in parts]
        return parts + coded + shown + [part.decode("utf-8", "replace")[:-3].encode() for part in parts]

    def leaks(self, output: str, *, shows: bool) -> list[str]:
        """Where a secret shows; *output* is what pytest captured."""
        forms = self.forms()
        texts = {"a command line": "\n".join(self.words)}
        if not shows:
            texts["the output"] = output + "\n".join(self.output)
        found = [where for where, text in texts.items() if _in(text.encode("utf-8", "surrogateescape"), forms)]
        for folder in self.folders:
            for path in folder.rglob("*"):
                searched = path.is_file() and path.suffix != ".img" and path.stat().st_size <= _MOST_FILE
                if searched and _in(path.read_bytes(), forms):
                    found.append(str(path))
        return found


def _in(text: bytes, forms: list[bytes]) -> bool:
    return any(form in text for form in forms)


_current: list[Watch] = []


def remember(secret: bytes) -> None:
    """A key that a test made without `Secret`."""
    for watch in _current:
        watch.add(secret)


@pytest.fixture(autouse=True)
def watch_for_keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Notes every secret, every command line and everything that the test itself reads of its output."""
    watch = request.node.stash[_WATCH] = Watch()
    made, ran, read = Secret.__init__, commands.subprocess.run, pytest.CaptureFixture.readouterr

    def noting(self: Secret, data: bytes) -> None:
        made(self, data)
        watch.add(data)

    def running(argv: Any, *args: Any, **more: Any) -> Any:
        watch.words.append("\0".join(map(str, argv)) + "\0" + repr(more.get("env")))
        return ran(argv, *args, **more)

    def reading(self: Any) -> Any:
        told = read(self)
        watch.output.extend(str(part) for part in told)
        return told

    monkeypatch.setattr(Secret, "__init__", noting)
    monkeypatch.setattr(commands.subprocess, "run", running)
    monkeypatch.setattr(pytest.CaptureFixture, "readouterr", reading)
    if "tmp_path" in request.fixturenames:
        folder = request.getfixturevalue("tmp_path")
        watch.folders = [folder / name for name in ("state", "run", "headers")]
    _current.append(watch)
    yield
    _current.remove(watch)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Fail a test in whose traces one of its keys is."""
    report = yield
    watch = item.stash.get(_WATCH, None)
    if report.when == "call" and watch is not None and watch.secrets:
        output = "".join(text for _, text in report.sections) + report.longreprtext
        found = watch.leaks(output, shows=item.get_closest_marker("shows_key") is not None)
        if found:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: a key shows in {', '.join(found)}"
            report.sections.clear()
    return report
