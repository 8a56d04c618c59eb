"""CPU time a chunk of a stream costs in each wire format: decoded, turned into OpenAI's events and encoded again.

One chunk is what one token comes in. The pass-through line is what the relay itself does with a chunk of OpenAI's own
format besides moving it: nothing but keeping the stream's end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks import report
from tests.vendors import fakes
from tests.vendors.base import FakeVendor

from byzerllm.wire import translator
from byzerllm.wire.events import Event, Finish, Text, Tokens
from byzerllm.wire.openai_events import StreamEncoder

CHUNKS = 2000
ROUNDS = 5
LIMIT = 15.0  # microseconds


def _script() -> list[Event]:
    return [*(Text(f" token{number}") for number in range(CHUNKS)), Tokens(9, CHUNKS), Finish("stop")]


def _pieces(fake: FakeVendor) -> list[bytes]:
    """The stream cut about where the vendor's own writes end."""
    data = fake.stream(_script())
    size = max(1, len(data) // CHUNKS)
    return [data[start : start + size] for start in range(0, len(data), size)]


def _microseconds(work: Callable[[], object]) -> float:
    """CPU time of the best of a few rounds, for one chunk."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best / CHUNKS * 1e6


def _translate(fake: FakeVendor, pieces: list[bytes]) -> int:
    decoder = translator(fake.wire).stream()
    encoder = StreamEncoder("id", "model", 0, include_usage=True)
    size = sum(len(encoder.encode(decoder.feed(piece))) for piece in pieces)
    return size + len(encoder.encode(decoder.close())) + len(encoder.close())


def _pass_through(pieces: list[bytes]) -> int:
    tail = b""
    for piece in pieces:
        tail += piece
        if len(tail) > 16384:
            tail = tail[-4096:]
    return len(tail)


def run() -> int:
    """Returns the number of formats over the limit."""
    encoder = StreamEncoder("id", "model", 0, include_usage=True)
    own = [encoder.encode([event]) for event in _script()]
    rows: list[report.Row] = [
        {"format": "openai (passes through)", "us_per_chunk": _microseconds(lambda: _pass_through(own))}
    ]
    for fake in fakes():
        pieces = _pieces(fake)
        cost = _microseconds(lambda f=fake, p=pieces: _translate(f, p))  # type: ignore[misc]
        rows.append({"format": fake.wire, "us_per_chunk": cost})
    worst = max(row["us_per_chunk"] for row in rows)
    report.table("wire: CPU time of one chunk of a stream", rows)
    print(f"the dearest format: {report.verdict(worst, LIMIT, at_least=False)} us")
    report.write("wire", rows, limit_us=LIMIT)
    report.bars("wire", {"us a chunk": {row["format"].partition(" ")[0]: row["us_per_chunk"] for row in rows}})
    return sum(1 for row in rows if row["us_per_chunk"] > LIMIT)
