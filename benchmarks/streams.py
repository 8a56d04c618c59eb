"""Paced streams: many endless streams of time stamps, and how late each stamp arrives."""

from __future__ import annotations

import asyncio
import time
from array import array
from typing import cast

from benchmarks.load import MAX_CONNECTIONS, Load

_STAMP = b'"content":" '  # the mock's token is the monotonic clock when it was sent, in nanoseconds


class Streams:
    """``delays`` (nanoseconds) and ``errors`` since the last ``reset``."""

    def __init__(self, load: Load) -> None:
        if load.connections > MAX_CONNECTIONS:
            raise ValueError("too many streams")
        self.load = load
        self.delays: array[int] = array("q")
        self.errors = 0
        self.first_error = ""
        self._clients: list[_Stream] = []
        self._stopped = False

    async def start(self) -> None:
        """Open the streams one by one, 3 ms apart: chunks every 20 ms then fall evenly on the timers' milliseconds."""
        loop = asyncio.get_running_loop()
        request = self.load.request
        for _ in range(self.load.connections):
            _, client = await loop.create_connection(lambda: _Stream(self, request), "127.0.0.1", self.load.port)
            self._clients.append(client)
            await asyncio.sleep(0.003)

    def reset(self) -> None:
        del self.delays[:]

    def fail(self, reason: str) -> None:
        if not self._stopped:
            self.errors += 1
            self.first_error = self.first_error or reason

    def stop(self) -> None:
        self._stopped = True
        for client in self._clients:
            client.transport.abort()


class _Stream(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, streams: Streams, request: bytes) -> None:
        self._streams = streams
        self._request = request
        self._rest = b""
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self._begun:
            self._begun = True
            if not data.startswith(b"HTTP/1.1 200"):
                self._streams.fail(f"answer began with {data[:80]!r}")
        data = self._rest + data
        end = data.rfind(b"\n\n")  # what follows the last whole event is kept until the rest of it is here
        if end < 0:
            self._rest = data
            return
        self._rest = data[end:]
        for piece in data[:end].split(_STAMP)[1:]:
            self._streams.delays.append(now - int(piece[: piece.index(b'"')]))
        if b"[DONE]" in data:
            self._streams.fail("a stream ended, which should be endless")

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.fail(f"a stream was cut ({exc or 'closed'})")
