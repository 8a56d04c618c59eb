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
import uvloop

PATH = "/v1/chat/completions"
MAX_SECONDS = 300.0
REST_SECONDS = 0.01  # before a burst: by then a caller knows of connections that the server closed
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


class Callers:
    """So many callers of an endpoint. Each keeps its connection as long as the server does, as the pool of an HTTP
    client does: one that has to be opened anew is part of the time to the first token."""

    def __init__(self, endpoint: Endpoint, count: int) -> None:
        self.endpoint = endpoint
        self._clients = [_Client(endpoint.port) for _ in range(count)]
        self._loop = uvloop.new_event_loop()

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def burst(self, tokens: int) -> Answers:
        """An answer of ``tokens`` tokens for each, begun together. One that is not whole is an error.

        Raises:
            RuntimeError: nothing listens there, or it takes too long.
        """
        return self._loop.run_until_complete(self._burst(tokens))

    async def _burst(self, tokens: int) -> Answers:
        request = self.endpoint.request(tokens)
        await asyncio.sleep(REST_SECONDS)
        began = time.perf_counter()
        asked = asyncio.gather(*(client.ask(request) for client in self._clients))
        try:
            await asyncio.wait_for(asked, MAX_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            where = f"{self.endpoint.name}, port {self.endpoint.port}"
            raise RuntimeError(f"{where}: {error or 'it took too long'}") from None
        answers = Answers(seconds=time.perf_counter() - began)
        for client in self._clients:
            _count(answers, client, tokens)
        return answers


def _count(answers: Answers, client: _Client, tokens: int) -> None:
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
    """One caller: a request at a time, on one connection while that is open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    async def ask(self, request: bytes) -> None:
        """``body``, ``status``, ``began`` and ``first`` are set when it returns."""
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self.body, self.first, self.began = b"", 0.0, time.perf_counter()
        if self._transport is None or self._transport.is_closing():
            await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        assert self._transport is not None
        self._transport.write(request)
        await self._over

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body
        if not self.first and _FIRST.search(self.body):
            self.first = time.perf_counter()

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if not self._over.done():
            self._over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self._over.done():
            self._over.set_result(None)
