"""Long operations as NDJSON: progress while they run, one final event, and an end when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from byzerllm.errors import ByzerError, InternalError
from byzerllm.gateway.http import NDJSON, NO_STORE, TEXT, Header, Receive, Send, send_json

log = logging.getLogger(__name__)

Event = dict[str, Any]
Emit = Callable[[Event], None]

_KEEP_ALIVE = 10.0  # seconds without an event after which an empty line is sent


def error_payload(error: ByzerError) -> dict[str, Any]:
    """An error of the admin API: unlike OpenAI's object it keeps the hint and the details apart."""
    return {
        "message": error.message,
        "type": error.kind,
        "code": error.code,
        "param": error.param,
        "hint": error.hint,
        "details": error.details,
    }


async def send_error(send: Send, error: ByzerError) -> None:
    """An error as a whole answer."""
    await send_json(send, error.status, {"error": error_payload(error)})


class Operations:
    """The long operations that run now. ``end()`` cancels them, so that an orderly stop does not wait for them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Future[None]] = set()

    def end(self) -> None:
        for task in self._running:
            task.cancel()

    async def run(self, receive: Receive, send: Send, work: Callable[[Emit], Awaitable[None]]) -> None:
        """Run ``work`` and send what it emits. Before its first event an error is an HTTP error; after it, an event.

        ``work`` is cancelled when the client goes away, and has ended when this returns.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        task = asyncio.ensure_future(work(queue.put_nowait))
        task.add_done_callback(lambda _: queue.put_nowait(None))
        started = False
        async with self._until_gone(receive, task):
            while (event := await _next(queue)) is not None:
                if not started:  # also when it has been silent for long: then the client must see a sign of life
                    started = True
                    await _start(send, NDJSON)
                await _piece(send, msgspec.json.encode(event) + b"\n" if event else b"\n")
            await _finish(task, send, started)

    async def text(self, receive: Receive, send: Send, pieces: AsyncIterator[bytes]) -> None:
        """Send pieces of text until they end or the client goes away."""

        async def pump() -> None:
            first = await anext(pieces, b"")  # what cannot be read is refused before the answer begins
            await _start(send, TEXT)
            await _piece(send, first)
            async for piece in pieces:
                await _piece(send, piece)

        task = asyncio.ensure_future(pump())
        async with self._until_gone(receive, task):
            await asyncio.wait((task,))
            if not task.cancelled():
                task.result()
            await send({"type": "http.response.body", "body": b""})

    @contextlib.asynccontextmanager
    async def _until_gone(self, receive: Receive, task: asyncio.Future[None]) -> AsyncIterator[None]:
        """Cancels ``task`` when the client goes away; it has ended when the block is left."""
        self._running.add(task)
        gone = asyncio.ensure_future(_disconnect(receive))
        gone.add_done_callback(lambda _: task.cancel())
        try:
            yield
        finally:
            gone.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._running.discard(task)


async def _disconnect(receive: Receive) -> None:
    """Return when the client goes away; what is left of its request does not matter."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _next(queue: asyncio.Queue[Event | None]) -> Event | None:
    """The next event, an empty one when none came for a while, or None at the end."""
    try:
        return await asyncio.wait_for(queue.get(), _KEEP_ALIVE)
    except asyncio.TimeoutError:
        return {}


async def _finish(task: asyncio.Future[None], send: Send, started: bool) -> None:
    error = None if task.cancelled() else task.exception()
    if task.cancelled():
        error = ByzerError("The operation was ended by another command, or the server stops.")
    if error is not None and not isinstance(error, ByzerError):
        log.error("an operation failed", exc_info=error)
        error = InternalError("Internal error; the server's log has the details.")
    elif error is not None:
        log.warning("an operation was refused or failed: %s", error)
    if error is not None and not started:
        await send_error(send, error)
        return
    if not started:
        await _start(send, NDJSON)
    if error is not None:
        await _piece(send, msgspec.json.encode({"event": "failed", "error": error_payload(error)}) + b"\n")
    await send({"type": "http.response.body", "body": b""})


async def _start(send: Send, kind: Header) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [kind, NO_STORE]})


async def _piece(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
