"""One upstream connection: HTTP/1.1 at protocol level, one exchange at a time.

The bytes of an answer wait here until they are read, no more than ``HIGH_WATER`` of them: above that the socket is
paused, so a slow client slows its upstream and never fills the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from byzerllm.errors import UpstreamBroken, UpstreamError, UpstreamTimeout

if TYPE_CHECKING:
    from byzerllm.relay.target import Target
    from byzerllm.spec import Timeouts

HIGH_WATER = 256 * 1024
IDLE_LIFE = 55.0  # seconds a pooled connection is kept; most vendors close theirs after 60
MAX_HEADER_BYTES = 64 * 1024


class Exchange(Protocol):
    """One request and its answer, whatever carries them. ``Connection`` says what the methods do and raise."""

    status: int
    headers: list[tuple[bytes, bytes]]

    async def read(self) -> bytes: ...

    async def read_all(self, limit: int) -> bytes: ...

    def abort(self) -> None: ...


class Connection(asyncio.Protocol):
    """A connection and the exchange on it. ``status`` and ``headers`` are set once ``head()`` returned."""

    def __init__(self, target: Target, loop: asyncio.AbstractEventLoop) -> None:
        self.target = target
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.reused = False  # an earlier exchange used it, so the upstream may have just closed it
        self.received = False  # at least one byte of this exchange's answer came
        self.done = True  # the answer is whole; the connection is free
        self.closed = False
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._head_done = False
        self._head_bytes = 0
        self._keep_alive = False
        self._until_eof = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._silence = IDLE_LIFE  # seconds of silence allowed now
        self._silence_kind = "first_byte"
        self._last = 0.0  # when the last bytes came or went
        self._total_at = 0.0  # when the whole exchange must be over; 0: no exchange
        self._idle_timeout = IDLE_LIFE
        self._on_closed: Callable[[Connection], None] | None = None

    # -- the exchange -------------------------------------------------------------------------------------------

    def send(self, data: bytes, timeouts: Timeouts) -> None:
        """Begin an exchange: write the request and arm its timeouts. The connection must be free."""
        self._parser = httptools.HttpResponseParser(self)
        self.done = self.received = self._head_done = self._until_eof = False
        self._head_bytes = 0
        self.headers = []
        self._on_closed = None
        now = self._loop.time()
        self._silence, self._silence_kind = timeouts.first_byte, "first_byte"
        self._idle_timeout = timeouts.idle
        self._last, self._total_at = now, now + timeouts.total
        if self._transport is None or self.closed:  # it ended while nobody used it
            self._fail(UpstreamBroken(f"{self.target} closed the connection without an answer."))
            return
        self._arm(now)
        self._transport.write(data)

    async def head(self) -> None:
        """Wait for status and headers.

        Raises:
            UpstreamBroken: the connection ended or sent what is not HTTP.
            UpstreamTimeout: no first byte, or no end, in time.
        """
        while not self._head_done:
            await self._wait()

    async def read(self) -> bytes:
        """The body bytes that have come since the last call; waits for some. ``b""`` is the end of the answer.

        Raises:
            UpstreamBroken: the connection ended before the answer was whole.
            UpstreamTimeout: silence for too long, or the whole takes too long.
        """
        while not self._chunks:
            if self.done:
                return b""
            await self._wait()
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered = 0
        if self._paused and self._transport is not None and not self.closed:
            self._paused = False
            self._last = self._loop.time()
            self._transport.resume_reading()
        return data

    async def read_all(self, limit: int) -> bytes:
        """The rest of the body, cut at ``limit`` bytes (the connection is then given up)."""
        parts: list[bytes] = []
        size = 0
        while chunk := await self.read():
            parts.append(chunk)
            size += len(chunk)
            if size >= limit:
                self.abort()
                break
        return b"".join(parts)[:limit]

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and all of it was read."""
        return self.done and not self._chunks

    @property
    def reusable(self) -> bool:
        return self.complete and self._keep_alive and not self.closed

    def release(self, on_closed: Callable[[Connection], None]) -> None:
        """End of the exchange on a reusable connection: from now on only the idle life is timed.

        ``on_closed`` is called if the connection ends before the next exchange.
        """
        self.reused = True
        self._on_closed = on_closed
        self._parser = None
        self._total_at = 0.0
        self._silence = IDLE_LIFE
        self._last = self._loop.time()
        self._arm(self._last)

    def abort(self) -> None:
        """Give the connection up at once; the upstream sees it close and stops working for it."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        """Until something happened; the caller looks again. Raises the exchange's error, if it has one."""
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: UpstreamError) -> None:
        if self._error is None and not self.done:
            self._error = error
        self.abort()
        self._wake()

    # -- timeouts: one lazy timer a connection, re-armed when it fires -------------------------------------------

    def _arm(self, now: float) -> None:
        due = self._last + self._silence
        if self._total_at:
            due = min(due, self._total_at)
        if self._timer is not None:
            if self._timer_at <= due:
                return  # it fires early enough and looks again
            self._timer.cancel()
        self._timer_at = max(due, now)
        self._timer = self._loop.call_at(self._timer_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._total_at == 0.0:  # pooled
            if now - self._last >= self._silence:
                self.abort()
                return
        elif self.done:
            return  # whole, but not all of it read: only the client is timed now
        else:
            if now >= self._total_at:
                self._fail(_timeout("total", self.target, "the whole answer took too long"))
                return
            if now - self._last >= self._silence and not self._paused:
                what = "no answer began" if self._silence_kind == "first_byte" else "the answer stood still"
                self._fail(_timeout(self._silence_kind, self.target, f"{what} for {self._silence:g} s"))
                return
            if self._paused:  # the client is slow, not the upstream
                self._last = now
        self._arm(now)

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass of it

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if parser is None or self.done:  # bytes that nobody asked for: the connection cannot be trusted
            self.abort()
            return
        self._last = self._loop.time()
        if not self.received:
            self.received = True
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(UpstreamBroken(f"{self.target} sent what is not HTTP."))
            return
        if not self._head_done:  # counted here and not by header, since one header may be endless
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                self._fail(UpstreamBroken(f"{self.target} sent more than {MAX_HEADER_BYTES} bytes of headers."))
                return
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.done:
            if self._head_done and self._until_eof and self._error is None and exc is None:
                self.done = True
            elif self._error is None:
                when = "during its answer" if self.received else "without an answer"
                self._error = UpstreamBroken(f"{self.target} closed the connection {when}.")
        if self._on_closed is not None:
            self._on_closed(self)
        self._wake()

    # -- httptools callbacks ------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:  # otherwise a trailer, or the head of a second answer
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        if self._head_done:  # a second answer behind the first: nobody asked for it
            self._keep_alive = False
            return
        self.status = parser.get_status_code()
        if self.status < 200:  # 100 Continue and the like; the answer follows
            self.headers = []
            return
        self._keep_alive = parser.should_keep_alive()
        self._until_eof = not any(n in (b"content-length", b"transfer-encoding") for n, _ in self.headers)
        self._head_done = True
        self._silence, self._silence_kind = self._idle_timeout, "idle"
        if self._transport is not None and self._timer_at > self._last + self._silence:
            self._arm(self._last)

    def on_body(self, body: bytes) -> None:
        if self.done:
            return
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._head_done:
            self.done = True


def _timeout(kind: str, target: Target, what: str) -> UpstreamTimeout:
    return UpstreamTimeout(f"{target}: {what}.", details={"timeout": kind})
