"""A websocket as an exchange: one text frame goes up, the answer's frames come down, and the connection is over.

The library does handshake, frames and proxies; timeouts and errors are those of every other upstream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, ProxyError, WebSocketException

from byzerllm.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from byzerllm.relay.pool import unreachable
from byzerllm.relay.target import Target, tls_context
from byzerllm.spec import Timeouts

_MAX_FRAME = 16 * 1024 * 1024
_NOT_SENT = ("host", "content-type", "accept")  # of the headers of a POST: the handshake has its own, or none

logging.getLogger("websockets").setLevel(logging.WARNING)  # below, it logs addresses, and these are signed


class _Connect(connect):
    """Follows no redirect, since the address is signed for its host: the caller is told of it."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class WebSocket:
    """Implements ``Exchange``. A refused handshake is an answer with its status; else the status is 200 and the body
    is the text frames, each ended by a line feed, up to the one that ``is_last``."""

    def __init__(self, target: Target, timeouts: Timeouts, is_last: Callable[[bytes], bool]) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._target = target
        self._timeouts = timeouts
        self._is_last = is_last
        self._loop = asyncio.get_running_loop()
        self._socket: ClientConnection | None = None
        self._silence, self._silence_kind = timeouts.first_byte, "first_byte"
        self._total_at = 0.0
        self._late = ""  # the timeout that ended the exchange
        self._refusal = b""
        self._over = False

    async def open(self, path: str, headers: Mapping[str, str], frame: bytes) -> None:
        """Connect and send the request. ``headers`` are for the handshake; those that only a POST has
        are left out.

        Raises:
            UpstreamError: unreachable, broken or too late. Nothing is left open then, nor when it is cancelled.
        """
        self._total_at = self._loop.time() + self._timeouts.total
        try:
            self._socket = await self._connect(path, headers)
        except InvalidStatus as refused:
            answer = refused.response
            self.status, self._refusal, self._over = answer.status_code, bytes(answer.body or b""), True
            self.headers = [(n.lower().encode(), v.encode()) for n, v in answer.headers.raw_items()]
            return
        self.status = 200
        try:
            with self._limits():
                await self._socket.send(frame, text=True)
        except BaseException:
            self.abort()
            raise

    async def read(self) -> bytes:
        """The next frame, or ``b""`` after the last one. A connection that the upstream closes in order ends the
        answer too; whether it is whole is for the format to say.

        Raises:
            UpstreamBroken: the connection broke off.
            UpstreamTimeout: silence for too long, or the whole takes too long.
        """
        if self._refusal:
            body, self._refusal = self._refusal, b""
            return body
        if self._over or self._socket is None:
            return b""
        try:
            with self._limits():
                frame = await self._socket.recv(decode=False)
        except ConnectionClosed:
            self._over = True
            return b""
        self._silence, self._silence_kind = self._timeouts.idle, "idle"
        self._over = self._is_last(frame)
        return frame.replace(b"\n", b" ") + b"\n"  # JSON has line ends between its tokens at most

    async def read_all(self, limit: int) -> bytes:
        """The rest of the answer, cut after ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        while size < limit and (frame := await self.read()):
            parts.append(frame)
            size += len(frame)
        return b"".join(parts)

    def abort(self) -> None:
        """Close the connection at once; the upstream sees it and stops working for it."""
        self._over = True
        if self._socket is not None:
            self._socket.transport.abort()

    async def _connect(self, path: str, headers: Mapping[str, str]) -> ClientConnection:
        target = self._target
        context = await asyncio.to_thread(tls_context, target.ca_file) if target.tls else None
        try:
            return await _Connect(
                f"{'wss' if target.tls else 'ws'}://{target.authority}{path}",
                additional_headers={n: v for n, v in headers.items() if n.lower() not in _NOT_SENT},
                user_agent_header=None,
                compression=None,
                proxy=target.proxy or None,
                open_timeout=self._timeouts.connect,
                ping_interval=None,  # silence has its own limits
                max_size=_MAX_FRAME,
                ssl=context,
                local_addr=(target.local_address, 0) if target.local_address else None,
            )
        except InvalidStatus:
            raise
        except asyncio.TimeoutError:  # another class than the built-in one before Python 3.11
            limit = f"{self._timeouts.connect:g} s"
            raise UpstreamTimeout(f"{target}: no connection within {limit}.", details={"timeout": "connect"}) from None
        except (OSError, UnicodeError) as error:
            raise unreachable(target, error) from None
        except ProxyError as error:
            raise UpstreamUnreachable(f"{target}: the proxy refused the connection: {error}.") from None
        except WebSocketException as error:
            raise UpstreamBroken(f"{target}: the websocket could not be opened: {error}.") from None

    @contextlib.contextmanager
    def _limits(self) -> Iterator[None]:
        """Ends what takes too long by closing the connection under it, and says why it was closed."""
        now = self._loop.time()
        left = self._total_at - now
        kind, seconds = (self._silence_kind, self._silence) if self._silence <= left else ("total", left)
        timer = self._loop.call_later(max(seconds, 0), self._expire, kind)
        try:
            yield
        except ConnectionClosed as closed:
            if self._late:
                raise self._timeout() from None
            if closed.rcvd is None:
                raise self._broken() from None
            raise
        finally:
            timer.cancel()

    def _expire(self, kind: str) -> None:
        self._late = kind
        self.abort()

    def _timeout(self) -> UpstreamError:
        what = {"first_byte": "no answer began", "idle": "the answer stood still"}.get(self._late)
        what = f"{what} for {self._silence:g} s" if what else "the whole answer took too long"
        return UpstreamTimeout(f"{self._target}: {what}.", details={"timeout": self._late})

    def _broken(self) -> UpstreamError:
        when = "during its answer" if self._silence_kind == "idle" else "without an answer"
        return UpstreamBroken(f"{self._target} closed the connection {when}.")
