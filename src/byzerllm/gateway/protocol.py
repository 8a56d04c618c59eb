"""uvicorn's HTTP protocol with the limits that a server in the open needs: slow, silent and oversized clients.

Besides, it tells whoever answers a request when the client is gone, and it serves a client that offers an upgrade
(HTTP/2, a websocket) as the plain HTTP/1.1 that its request also is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 * 1024  # of a request's head, beyond those that came with its first bytes
MAX_PIPELINED = 16  # requests that may wait on a connection before it is not read any further
HEADER_TIMEOUT = 30.0  # seconds for the request line and headers, from the connection's or request's first byte
BODY_SILENCE = 60.0  # seconds without a byte of a body that is still to come
WRITE_STALL = 120.0  # seconds that a client may leave its socket full


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request does not come to its end, or whose client does not read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._receiving = False  # a request has begun and is not complete
        self._in_body = False
        self._running: RequestResponseCycle | None = None  # uvicorn's ``cycle`` is the newest, which may wait for it
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self.on_lost: Callable[[], None] | None = None  # whoever answers a request is told when its client is gone

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEADER_TIMEOUT, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        was_in_head = self._receiving and not self._in_body
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("This is no HTTP request.")
        if was_in_head and self._receiving and not self._in_body:  # one header may be endless: count its bytes here
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The headers of the request are too large.")
        self._set_deadline()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["byzerllm.connection"] = self  # type: ignore[typeddict-unknown-key]
        self._receiving, self._in_body, self._head_bytes = True, False, 0

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_body = True
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle
        elif len(self.pipeline) < MAX_PIPELINED:
            self.flow.resume_reading()  # uvicorn has stopped it; see ``watch``

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._receiving = self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()

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

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:  # the parser has skipped the body: read it again without the offer
            method = self.parser.get_method()
            if method == b"CONNECT":
                raise httptools.HttpParserError("no proxy") from None
            head = [b"%b %b HTTP/1.1" % (method, self.url)]
            head += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self._feed(b"\r\n".join([*head, b"", data[offer.args[0] :]]))

    def _set_deadline(self) -> None:
        """Time whatever the client has to send now; the time that an answer of ours takes is not its affair."""
        waiting = self._receiving or self.cycle is None or self.cycle.response_complete
        if self._deadline is not None and (self._in_body or not waiting):
            self._deadline.cancel()
            self._deadline = None
        if waiting and self._deadline is None and not self.transport.is_closing():
            limit = BODY_SILENCE if self._in_body else HEADER_TIMEOUT
            self._deadline = self.loop.call_later(limit, self._give_up)

    def _give_up(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            if self._in_body and not self.cycle.response_started:
                self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()

    def _cancel_timers(self) -> None:
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()
        self._deadline = self._stall = None
