"""The token as a USB device that the kernel believes in (/dev/uhid), and the packets of CTAPHID on it.

Sources: include/uapi/linux/uhid.h and Documentation/hid/uhid.rst of Linux; section 8.1 of CTAP 2.0.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator

_CREATE, _OUTPUT, _INPUT, _GET, _GET_ANSWER, _SET, _SET_ANSWER = 11, 6, 12, 9, 10, 13, 14  # enum uhid_event_type
_EVENT = 4380  # bytes; an event is 4 and the largest member of its union
_USB = 3  # libfido2 looks at nothing else
# Usage page FIDO Alliance, a report of 64 bytes in each direction (8.1.8.2).
_DESCRIPTOR = bytes.fromhex("06d0f10901a1010920150026ff007508954081020921150026ff00750895409102c0")
_PACKET = 64
_BROADCAST = 0xFFFFFFFF
_PING, _INIT, _CBOR, _CANCEL, _KEEPALIVE, _ERROR = 0x01, 0x06, 0x10, 0x11, 0x3B, 0x3F
_HAS_CBOR, _NO_U2F = 0x04, 0x08
_WANTS_TOUCH = b"\x02"  # status of a keep-alive


class Hid:
    """One device; it is pulled when the process ends."""

    def __init__(self, name: str) -> None:
        self._fd = os.open("/dev/uhid", os.O_RDWR | os.O_CLOEXEC)
        words = struct.pack("<128s64s64s", name.encode(), b"", b"")
        numbers = struct.pack(
            "<HHIIII", len(_DESCRIPTOR), _USB, 0x1209, 0x0001, 1, 0
        )  # 1209:0001 is for tests (pid.codes)
        self._send(_CREATE, words + numbers + _DESCRIPTOR)
        self._channels = 0
        self.channel = 0  # of the message that is being answered

    def messages(self) -> Iterator[bytes]:
        """The commands of CBOR that come; what else there is is answered here."""
        while True:
            kind, data = self._message()
            if kind == _INIT:
                self._channels += 1
                answer = data[:8] + struct.pack(">IBBBBB", self._channels, 2, 1, 0, 0, _HAS_CBOR | _NO_U2F)
                self.answer(answer, _INIT)
            elif kind == _PING:
                self.answer(data, _PING)
            elif kind == _CBOR:
                yield data
            elif kind != _CANCEL:
                self.answer(b"\x01", _ERROR)

    def answer(self, data: bytes, kind: int = _CBOR) -> None:
        """A whole message on the channel."""
        packet = struct.pack(">IBH", self.channel, 0x80 | kind, len(data)) + data[: _PACKET - 7]
        self._packet(packet)
        for number, start in enumerate(range(_PACKET - 7, len(data), _PACKET - 5)):
            self._packet(struct.pack(">IB", self.channel, number) + data[start : start + _PACKET - 5])

    def cancelled(self, seconds: float) -> bool:
        """Tell that it waits for a touch, wait for *seconds*, and say whether the command was cancelled."""
        self.answer(_WANTS_TOUCH, _KEEPALIVE)
        packet = self._receive(seconds)
        if packet is None:
            return False
        channel, kind = struct.unpack_from(">IB", packet)
        return channel == self.channel and kind == 0x80 | _CANCEL

    # Packets and events ------------------------------------------------------------------------------------------

    def _message(self) -> tuple[int, bytes]:
        while True:
            packet = self._receive(None)
            assert packet is not None
            channel, kind, length = struct.unpack_from(">IBH", packet)
            if not kind & 0x80:
                continue  # the rest of something that is not awaited any more
            self.channel, data = channel, packet[7 : 7 + length]
            while len(data) < length:
                more = self._receive(None)
                assert more is not None
                if struct.unpack_from(">I", more)[0] == channel:
                    data += more[5 : 5 + length - len(data)]
            return kind & 0x7F, data

    def _receive(self, seconds: float | None) -> bytes | None:
        """The next packet; None when none comes within *seconds*."""
        while select.select([self._fd], [], [], seconds)[0]:
            event = os.read(self._fd, _EVENT)
            (kind,) = struct.unpack_from("<I", event)
            if kind == _OUTPUT:
                (size,) = struct.unpack_from("<H", event, 4 + 4096)
                # In front of it stands the number of the report, 0.
                return event[4 : 4 + size][-_PACKET:]
            if kind in (_GET, _SET):  # there are no other reports
                (number,) = struct.unpack_from("<I", event, 4)
                answer = struct.pack("<IHH", number, 5, 0) if kind == _GET else struct.pack("<IH", number, 5)
                self._send(_GET_ANSWER if kind == _GET else _SET_ANSWER, answer)
        return None

    def _packet(self, data: bytes) -> None:
        self._send(_INPUT, struct.pack("<H", _PACKET) + data.ljust(_PACKET, b"\0"))

    def _send(self, kind: int, data: bytes) -> None:
        os.write(self._fd, struct.pack("<I", kind) + data)
