"""Streamed answers of a real engine: how many tokens a second all streams get, and how long each first one takes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from array import array
from dataclasses import dataclass, field
from typing import cast

import httptools

PATH = "/v1/chat/completions"
MAX_SECONDS = 300.0
ACCEPTED_SECONDS = 0.01  # then a connection is to the server what one is that a client has kept
_FIRST = re.compile(rb'"content": ?"[^"]')


@dataclass(frozen=True)
class Endpoint:
    """Who is asked: a loopback port, and what it knows the model and its caller by."""

    name: str
    port: int
    model: str
    key: str = ""

    def request(self, tokens: int) -> bytes:
        """The HTTP request, the same each time, for an answer of so many tokens."""
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": "Say it again, please."}],
                "max_tokens": tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass
class Answers:
    """What came within ``seconds``: tokens, and seconds to the first one of each answer."""

    tokens: int = 0
    seconds: float = 0.0
    first: array[float] = field(default_factory=lambda: array("d"))
    errors: int = 0
    first_error: str = ""

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def fail(self, reason: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or reason


async def ask(endpoint: Endpoint, *, connections: int, requests: int, tokens: int) -> Answers:
    """``requests`` answers of ``tokens`` tokens each, so many at a time. One that is not whole is an error.

    Raises:
        RuntimeError: nothing listens there, or it takes too long.
    """
    answers = Answers()
    left = iter(range(requests))
    request = endpoint.request(tokens)
    began = time.perf_counter()

    async def work() -> None:
        for _ in left:
            await _one(endpoint.port, request, tokens, answers)

    try:
        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(connections))), MAX_SECONDS)
    except (OSError, asyncio.TimeoutError) as error:
        raise RuntimeError(f"{endpoint.name}, port {endpoint.port}: {error or 'it took too long'}") from None
    answers.seconds = time.perf_counter() - began
    return answers


async def _one(port: int, request: bytes, tokens: int, answers: Answers) -> None:
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    transport, client = await loop.create_connection(lambda: _Client(request, over), "127.0.0.1", port)
    try:
        await asyncio.sleep(ACCEPTED_SECONDS)
        client.send()
        await over
    finally:
        transport.abort()
    got = _tokens(client.body) if client.status == 200 else 0
    if got == tokens:
        answers.tokens += got
        answers.first.append(client.first - client.began)
    else:
        answers.fail(f"status {client.status}, {got} tokens, {client.body[-300:]!r}")


def _tokens(stream: bytes) -> int:
    """The tokens of a whole stream as its last usage says; 0 where one is not whole."""
    events = [line[5:].strip() for line in stream.split(b"\n") if line.startswith(b"data:")]
    chunks = [json.loads(event) for event in events if event != b"[DONE]"]
    ended = any(choice.get("finish_reason") == "length" for chunk in chunks for choice in chunk.get("choices") or ())
    usage: dict[str, int] = next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), {})
    return int(usage.get("completion_tokens", 0)) if ended else 0


class _Client(asyncio.Protocol):
    """One request on a connection of its own, once ``send`` is called."""

    def __init__(self, request: bytes, over: asyncio.Future[None]) -> None:
        self._request = request
        self._over = over
        self._parser = httptools.HttpResponseParser(self)
        self.body = b""
        self.first = 0.0

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        self.began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body
        if not self.first and _FIRST.search(self.body):
            self.first = time.perf_counter()

    def on_message_complete(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_message_complete()
