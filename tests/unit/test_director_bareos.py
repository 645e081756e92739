"""Bareos' console through the real python-bareos, against a listener that speaks the Director's side of the protocol.

Debian has no Bareos Director; what is tested is our use of the client: the login, prompts inside a command, replies
with a line that looks like their end, a wrong password, a Director that is away.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config.schema import DirectorConfig, DirectorKind
from appliance.director.console import open_console
from appliance.errors import MagbayError

base64 = pytest.importorskip("bareos.util.bareosbase64", reason="python-bareos is not installed")

PASSWORD = "bareos-secret-9"
EOD, SUB_PROMPT = -1, -27  # signals in place of a length, as python-bareos names them
LABEL = (
    "Connecting to Storage daemon\n3000 OK label. VolBytes=214\nCatalog record for Volume a-1 successfully created\n"
)


class Listener:
    """Answers one session after the other."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.got: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _address = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(EOFError, ConnectionError):
                self._session(connection)

    def _session(self, connection: socket.socket) -> None:
        assert _receive(connection).startswith(b"Hello *UserAgent* calling")
        challenge = "<1.2@t-dir>"
        _send(connection, f"auth cram-md5 {challenge} ssl=0\n")
        if _receive(connection).rstrip(b"\0") != _proof(challenge):
            _send(connection, "1999 Authorization failed.\n")
            return
        _send(connection, "1000 OK auth\n")
        theirs = _receive(connection).split(b" ")[2].decode()
        connection.sendall(_frame(_proof(theirs)))
        _receive(connection)
        _send(connection, "1000\x1eOK: t-dir Version: 25.1\n")
        _send(connection, "1002\x1einfo\n")
        while True:
            line = _receive(connection).decode()
            self.got.append(line)
            if line == "status slots":
                continue  # a storage daemon that hangs
            if line.startswith("label"):
                _send(connection, "Do you want to label these Volumes? (yes|no): ")
                connection.sendall(struct.pack("!i", SUB_PROMPT))
                continue
            _send(connection, LABEL if line == "yes" else f"reply to {line}\n")
            connection.sendall(struct.pack("!i", EOD))


def _proof(challenge: str) -> bytes:
    key = hashlib.md5(PASSWORD.encode()).hexdigest().encode()
    digest = hmac.new(key, challenge.encode(), hashlib.md5).digest()
    return bytes(base64.BareosBase64().string_to_base64(bytearray(digest)))


def _frame(data: bytes) -> bytes:
    return struct.pack("!i", len(data)) + data


def _send(connection: socket.socket, text: str) -> None:
    connection.sendall(_frame(text.encode()))


def _receive(connection: socket.socket) -> bytes:
    while True:
        length = struct.unpack("!i", _exactly(connection, 4))[0]
        if length > 0:
            return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()
    yield found
    found.close()


def settings(tmp_path: Path, port: int, password: str = PASSWORD, timeout: int = 5) -> DirectorConfig:
    path = tmp_path / "bconsole.conf"
    path.write_text(
        f'Director {{\n  Name = t-dir\n  Port = {port}\n  Address = 127.0.0.1\n  Password = "{password}"\n}}\n'
    )
    return DirectorConfig(kind=DirectorKind.BAREOS, console_config=path, timeout=timeout)


def test_commands_prompts_and_replies(tmp_path: Path, listener: Listener) -> None:
    reply = open_console(settings(tmp_path, listener.port)).send(".pools", "label barcodes", "yes", "version")
    # The reply that holds "3000 OK" half way does not push the later ones out of step.
    first, second = reply.index("reply to .pools"), reply.index("successfully created")
    assert first < second < reply.index("reply to version")
    assert listener.got[-4:] == [".pools", "label barcodes", "yes", "version"]


def test_a_wrong_password_is_said_and_not_shown(tmp_path: Path, listener: Listener) -> None:
    with pytest.raises(MagbayError, match="refused the password") as caught:
        open_console(settings(tmp_path, listener.port, "wrong-secret")).send("version")
    assert "wrong-secret" not in str(caught.value) + caught.value.hint


def test_a_director_that_is_away(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(MagbayError, match=r"talking to the Director: 127\.0\.0\.1"):
        open_console(settings(tmp_path, port)).send("version")


def test_a_director_that_hangs(tmp_path: Path, listener: Listener) -> None:
    with pytest.raises(MagbayError, match=r"no answer within 1 s to '\.pools', 'status slots', 'version'"):
        open_console(settings(tmp_path, listener.port, timeout=1)).send(".pools", "status slots", "version")
    assert listener.got[-2:] == [".pools", "status slots"]
