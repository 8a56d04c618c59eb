"""The load generator: N connections to one loopback port, each sending its next request when the last answer is whole.

An answer counts only when its status is 200 and all of its text arrived; everything else is an error.
"""

from __future__ import annotations

import asyncio
import re
import time
from array import array
from dataclasses import dataclass, field
from typing import cast

import httptools
import msgspec

from byzerllm.providers.mock_replies import counted

PATH = "/v1/chat/completions"
MODEL = "bench"
MAX_CONNECTIONS = 2000
MAX_SECONDS = 120.0
MAX_ERRORS = 1000
_CONTENT = re.compile(rb'"content": ?"([^"]*)"')


@dataclass(frozen=True)
class Load:
    """What to send. ``tokens`` is the length of every answer, which is checked."""

    port: int
    stream: bool
    tokens: int
    connections: int
    key: str = ""

    @property
    def request(self) -> bytes:
        """The HTTP request, the same each time."""
        messages = [{"role": "user", "content": "Say it again, please."}]
        body = msgspec.json.encode(
            {"model": MODEL, "messages": messages, "max_tokens": self.tokens, "stream": self.stream}
        )
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass
class Result:
    """What came back within ``seconds``. Latencies are of whole answers, in seconds."""

    requests: int = 0
    errors: int = 0
    seconds: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    first_error: str = ""

    @property
    def rate(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0

    def fail(self, reason: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or reason


def percentile(values: array[float] | array[int], share: float) -> float:
    """The value that ``share`` of the values do not exceed; 0 when there is none."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * share))]) if ordered else 0.0


async def closed_loop(load: Load, *, seconds: float = 0.0, requests: int = 0) -> Result:
    """Send until ``seconds`` have passed or ``requests`` answers have come, whichever is given.

    Raises:
        RuntimeError: the first connection cannot be made, or nothing is whole.
        ValueError: more than this generator is allowed to do.
    """
    if not 0 < load.connections <= MAX_CONNECTIONS or not 0 <= seconds <= MAX_SECONDS:
        raise ValueError("the load is out of bounds")
    run = _Run(load, requests)
    began = time.perf_counter()
    for _ in range(load.connections):
        await run.connect()
    try:
        await asyncio.wait_for(run.over.wait(), seconds or MAX_SECONDS)
    except asyncio.TimeoutError:
        if not seconds:
            run.result.fail(f"{requests} requests took more than {MAX_SECONDS:g} s")
    run.result.seconds = time.perf_counter() - began
    run.stop()
    await asyncio.sleep(0.05)  # the transports close
    if not run.result.requests:
        raise RuntimeError(f"port {load.port}: no whole answer; first error: {run.result.first_error or 'none'}")
    return run.result


class _Run:
    def __init__(self, load: Load, requests: int) -> None:
        self.load = load
        self.request = load.request
        self.result = Result()
        self.over = asyncio.Event()
        self._limit = requests
        self._clients: set[_Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._text = "".join(counted(load.tokens)).encode()

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, client = await loop.create_connection(lambda: _Client(self), "127.0.0.1", self.load.port)
        except OSError as error:
            raise RuntimeError(f"port {self.load.port}: {error}") from None
        self._clients.add(client)

    def answered(self, status: int, body: bytes, latency: float) -> bool:
        """Count one answer; whether to send the next request."""
        if self.over.is_set():
            return False
        if status == 200 and self._whole(body):
            self.result.requests += 1
            self.result.latencies.append(latency)
        else:
            self.result.fail(f"status {status}, {len(body)} bytes: {body[:200]!r}")
        if self.result.errors >= MAX_ERRORS or (self._limit and self.result.requests >= self._limit):
            self.over.set()
        return not self.over.is_set()

    def _whole(self, body: bytes) -> bool:
        text = b"".join(_CONTENT.findall(body))
        return text == self._text and b'"length"' in body and (not self.load.stream or b"data: [DONE]" in body)

    def lost(self, client: _Client) -> None:
        """A connection ended while an answer was due: an error, and a new connection."""
        self._clients.discard(client)
        if self.over.is_set():
            return
        self.result.fail("the connection was closed before the answer was whole")
        if self.result.errors >= MAX_ERRORS:
            self.over.set()
            return
        task = asyncio.get_running_loop().create_task(self.connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        self.over.set()
        for client in self._clients:
            client.transport.abort()


class _Client(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, run: _Run) -> None:
        self._run = run

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._began = time.perf_counter()
        self.transport.write(self._run.request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        latency = time.perf_counter() - self._began
        if self._run.answered(self._parser.get_status_code(), b"".join(self._body), latency):
            # Not now: the parser is still inside its callback.
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if not self.transport.is_closing():
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.lost(self)
