"""The part of CBOR (RFC 8949) that CTAP uses: integers, strings, arrays, maps, booleans; in its canonical form."""

from __future__ import annotations

from typing import Any


def dumps(value: Any) -> bytes:
    """*value* as bytes; the keys of maps in order of length, then bytes (section 6 of CTAP 2.0)."""
    if value is False or value is True:
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    if isinstance(value, (list, tuple)):
        return _head(4, len(value)) + b"".join(map(dumps, value))
    if isinstance(value, dict):
        pairs = sorted(((dumps(key), dumps(item)) for key, item in value.items()), key=lambda pair: _order(pair[0]))
        return _head(5, len(pairs)) + b"".join(key + item for key, item in pairs)
    raise TypeError(f"no CBOR for {type(value)}")


def loads(data: bytes) -> Any:
    """The value in *data*, all of it. Raises `ValueError`."""
    value, rest = _load(memoryview(data))
    if rest:
        raise ValueError("bytes behind the end")
    return value


def _order(key: bytes) -> tuple[int, int, bytes]:
    return key[0] >> 5, len(key), key


def _head(kind: int, number: int) -> bytes:
    if number < 24:
        return bytes([kind << 5 | number])
    for extra, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << 8 * width:
            return bytes([kind << 5 | extra]) + number.to_bytes(width, "big")
    raise ValueError("too large")


def _load(data: memoryview) -> tuple[Any, memoryview]:
    if not data:
        raise ValueError("cut")
    kind, low, data = data[0] >> 5, data[0] & 31, data[1:]
    if kind == 7:
        if low not in (20, 21):
            raise ValueError("unknown simple value")
        return low == 21, data
    if low > 27:
        raise ValueError("indefinite length")
    width = 0 if low < 24 else 1 << (low - 24)
    if len(data) < width:
        raise ValueError("cut")
    number = low if low < 24 else int.from_bytes(data[:width], "big")
    return _value(kind, number, data[width:])


def _value(kind: int, number: int, data: memoryview) -> tuple[Any, memoryview]:
    if kind in (0, 1):
        return number if kind == 0 else -1 - number, data
    if kind in (2, 3):
        if len(data) < number:
            raise ValueError("cut")
        text = bytes(data[:number])
        return text if kind == 2 else text.decode(), data[number:]
    if kind == 6:
        raise ValueError("a tag")
    items = []
    for _ in range(number * (2 if kind == 5 else 1)):
        item, data = _load(data)
        items.append(item)
    return (items if kind == 4 else dict(zip(items[::2], items[1::2], strict=True))), data
