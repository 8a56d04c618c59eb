"""Frames of AWS's event stream: the published vectors, every type of header, any cut, and what is broken."""

from __future__ import annotations

import itertools
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vendors.bedrock import frame

from byzerllm.errors import UpstreamBroken
from byzerllm.wire.eventstream import Frame, FrameReader

DELTA = bytes.fromhex(
    "0000009400000057b4ab9aee0b3a6576656e742d74797065070011636f6e74656e74426c6f636b44656c74610d3a636f6e74656e742d7479"
    "70650700106170706c69636174696f6e2f6a736f6e0d3a6d6573736167652d747970650700056576656e747b22636f6e74656e74426c6f63"
    "6b496e646578223a302c2264656c7461223a7b2274657874223a224869227d7d1f944657"
)
THROTTLED = bytes.fromhex(
    "0000008800000061de0175f40f3a657863657074696f6e2d747970650700137468726f74746c696e67457863657074696f6e0d3a636f6e74"
    "656e742d747970650700106170706c69636174696f6e2f6a736f6e0d3a6d6573736167652d74797065070009657863657074696f6e7b226d"
    "657373616765223a22736c6f7720646f776e227d832ee072"
)


def read(data: bytes) -> list[Frame]:
    return list(FrameReader().feed(data))


def raw_frame(headers: bytes, payload: bytes = b"") -> bytes:
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    body = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return body + struct.pack(">I", zlib.crc32(body))


def test_the_published_event() -> None:
    [found] = read(DELTA)
    assert found.headers == {
        ":event-type": "contentBlockDelta",
        ":content-type": "application/json",
        ":message-type": "event",
    }
    assert found.payload == b'{"contentBlockIndex":0,"delta":{"text":"Hi"}}'


def test_the_published_exception() -> None:
    [found] = read(THROTTLED)
    assert found.headers[":message-type"] == "exception"
    assert found.headers[":exception-type"] == "throttlingException"
    assert found.payload == b'{"message":"slow down"}'


def test_the_fakes_frames_are_the_published_ones() -> None:
    for published in (DELTA, THROTTLED):
        [found] = read(published)
        assert frame({name: str(value) for name, value in found.headers.items()}, found.payload) == published


def test_every_type_of_header() -> None:
    headers = (
        b"\x01a\x00" + b"\x01b\x01"
        + b"\x01c\x02\xff" + b"\x01d\x03\xff\xfe" + b"\x01e\x04\xff\xff\xff\xfd" + b"\x01f\x05" + b"\xff" * 8
        + b"\x01g\x06\x00\x02\x00\xff" + b"\x01h\x07\x00\x02\xc3\xa9"
        + b"\x01i\x08\x00\x00\x01\x00\x00\x00\x00\x00" + b"\x01j\x09" + bytes(range(16))
    )  # fmt: skip
    [found] = read(raw_frame(headers, b"x"))
    assert found.headers == {
        "a": True, "b": False, "c": -1, "d": -2, "e": -3, "f": -1, "g": b"\x00\xff", "h": "é", "i": 1 << 40,
        "j": bytes(range(16)),
    }  # fmt: skip
    assert found.payload == b"x"


def test_a_frame_without_headers_and_payload() -> None:
    assert read(raw_frame(b"")) == [Frame({}, b"")]


@given(st.lists(st.binary(max_size=40), max_size=5), st.lists(st.integers(0, 400), max_size=8))
def test_any_cut_gives_the_same_frames(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frame({":message-type": "event", "n": str(i)}, p) for i, p in enumerate(payloads))
    reader = FrameReader()
    places = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    found = [f for start, end in itertools.pairwise(places) for f in reader.feed(data[start:end])]
    assert [f.payload for f in found] == payloads
    assert not reader.inside


def test_a_frame_that_has_begun_is_known() -> None:
    reader = FrameReader()
    assert list(reader.feed(DELTA[:-1])) == []
    assert reader.inside
    assert len(list(reader.feed(DELTA[-1:]))) == 1
    assert not reader.inside


@given(st.integers(0, len(DELTA) * 8 - 1))
def test_any_changed_bit_is_found(bit: int) -> None:
    broken = bytearray(DELTA)
    broken[bit // 8] ^= 1 << bit % 8
    with pytest.raises(UpstreamBroken, match="checksum"):
        read(bytes(broken))


def test_frames_before_a_broken_one_are_given() -> None:
    frames = FrameReader().feed(THROTTLED + DELTA[:-1] + b"\x00")
    assert next(frames).payload == b'{"message":"slow down"}'
    with pytest.raises(UpstreamBroken, match="checksum of a frame is wrong"):
        next(frames)


@pytest.mark.parametrize(
    ("total", "headers"), [(15, 0), (20, 5), (0xFFFFFFFF, 0), (1 << 24, (1 << 17) + 1), (16 + 24 * 1024 * 1024 + 1, 0)]
)
def test_lengths_that_cannot_be_are_refused_before_they_are_awaited(total: int, headers: int) -> None:
    prelude = struct.pack(">II", total, headers)
    with pytest.raises(UpstreamBroken, match=f"a frame of {total} bytes"):
        read(prelude + struct.pack(">I", zlib.crc32(prelude)))


@pytest.mark.parametrize(
    "headers",
    [
        b"\x05ab", b"\x01a", b"\x01a\x0a", b"\x01a\x07\x00", b"\x01a\x07\x00\x05abc", b"\x01a\x06\x00\x05abc",
        b"\x01a\x05\x00", b"\x01\xff\x00", b"\x01a\x07\x00\x01\xff",
    ],
)  # fmt: skip
def test_malformed_headers(headers: bytes) -> None:
    with pytest.raises(UpstreamBroken, match="headers are malformed"):
        read(raw_frame(headers))
