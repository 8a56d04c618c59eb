"""uvicorn's HTTP protocol with the limits that a server in the open needs: slow, silent and oversized clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024
HEADER_TIMEOUT = 30.0  # seconds for the request line and headers, from the connection's or request's first byte
BODY_SILENCE = 60.0  # seconds without a byte of a body that is still to come
WRITE_STALL = 120.0  # seconds that a client may leave its socket full


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request does not come to its end, or whose client does not read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0
        self._receiving = False  # a request has begun and is not complete
        self._in_body = False
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self.on_lost: Callable[[], None] | None = None  # whoever answers a request is told when its client is gone

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEADER_TIMEOUT, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is not None and (self._in_body or not self._receiving):
            self._deadline.cancel()
            self._deadline = None
        if self._receiving and self._deadline is None and not self.transport.is_closing():
            limit = BODY_SILENCE if self._in_body else HEADER_TIMEOUT
            self._deadline = self.loop.call_later(limit, self._give_up)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["byzerllm.connection"] = self  # type: ignore[typeddict-unknown-key]
        self._receiving, self._in_body, self._header_bytes = True, False, 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._receiving = self._in_body = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(WRITE_STALL, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def watch(self, on_lost: Callable[[], None]) -> bool:
        """Have ``on_lost`` called when the client goes away, until ``on_lost`` is set to None; false if it is gone.

        Costs nothing a request, unlike a task that waits for ASGI's disconnect message.
        """
        if self.transport.is_closing():
            return False
        self.flow.resume_reading()  # a socket that is not read does not tell that its other end is gone
        self.on_lost = on_lost
        return True

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:  # the parser turns it into a 400 and the connection is closed
            raise ValueError("the request's headers are too large")

    def _give_up(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            if self._receiving and self._in_body:
                self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()

    def _cancel_timers(self) -> None:
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()
        self._deadline = self._stall = None
