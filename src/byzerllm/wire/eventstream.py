"""Frames of ``application/vnd.amazon.eventstream``, pure.

A frame is, big endian: length of the whole, length of the headers, CRC-32 of these 8 bytes, headers, payload, CRC-32 of
all before it. A header is its name behind a length byte, a type byte and the value.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from byzerllm.errors import UpstreamBroken

Value = bool | int | bytes | str

_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")
_LENGTH = struct.Struct(">H")
_SMALLEST = _PRELUDE.size + _CRC.size
_MAX_HEADERS = 128 * 1024
_MAX_PAYLOAD = 24 * 1024 * 1024

_TRUE, _FALSE, _BYTES, _STRING = 0, 1, 6, 7
# 8-, 16-, 32- and 64-bit integers, a time in milliseconds, and a UUID as its bytes.
_FIXED = {
    kind: struct.Struct(form) for kind, form in ((2, ">b"), (3, ">h"), (4, ">i"), (5, ">q"), (8, ">q"), (9, "16s"))
}


class Frame(NamedTuple):
    """One message. Names of headers that the protocol itself knows begin with a colon."""

    headers: Mapping[str, Value]
    payload: bytes


class FrameReader:
    """Splits bytes into frames, however they are cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def inside(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that these bytes complete; to be read to the end.

        Raises:
            UpstreamBroken: a checksum or a length is wrong. Nothing that follows can be read.
        """
        self._buffer += data
        while len(self._buffer) >= _PRELUDE.size:
            total, headers_length = _lengths(self._buffer)
            if len(self._buffer) < total:
                return
            frame = bytes(self._buffer[:total])
            del self._buffer[:total]
            if zlib.crc32(frame[: -_CRC.size]) != _CRC.unpack_from(frame, total - _CRC.size)[0]:
                raise _broken("the checksum of a frame is wrong")
            payload_start = _PRELUDE.size + headers_length
            yield Frame(_headers(frame[_PRELUDE.size : payload_start]), frame[payload_start : -_CRC.size])


def _lengths(frame: bytearray) -> tuple[int, int]:
    """Of the whole frame and of its headers, from its beginning. They are checked before more bytes are awaited."""
    total, headers, crc = _PRELUDE.unpack_from(frame)
    if zlib.crc32(frame[: _PRELUDE.size - _CRC.size]) != crc:
        raise _broken("the checksum of a frame's lengths is wrong")
    payload = total - headers - _SMALLEST
    if headers > _MAX_HEADERS or not 0 <= payload <= _MAX_PAYLOAD:
        raise _broken(f"a frame of {total} bytes with {headers} bytes of headers cannot be")
    return total, headers


def _headers(raw: bytes) -> dict[str, Value]:
    found: dict[str, Value] = {}
    at = 0
    try:
        while at < len(raw):
            value_at = at + 1 + raw[at]
            name = raw[at + 1 : value_at].decode("utf-8")
            found[name], at = _value(raw, value_at)
    except (IndexError, KeyError, struct.error, UnicodeDecodeError):
        raise _broken("a frame's headers are malformed") from None
    return found


def _value(raw: bytes, at: int) -> tuple[Value, int]:
    """The value whose type byte is there, and where the next header begins."""
    kind, at = raw[at], at + 1
    if kind in (_STRING, _BYTES):
        start = at + _LENGTH.size
        end = start + _LENGTH.unpack_from(raw, at)[0]
        if end > len(raw):
            raise IndexError(end)
        return (raw[start:end].decode("utf-8") if kind == _STRING else raw[start:end]), end
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    form = _FIXED[kind]
    value: int | bytes = form.unpack_from(raw, at)[0]
    return value, at + form.size


def _broken(what: str) -> UpstreamBroken:
    return UpstreamBroken(f"The upstream's event stream cannot be read: {what}.")
