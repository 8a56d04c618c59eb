"""HTTP on ASGI, as little as the host needs: a request that was read, and the three forms of an answer.

The work on an answer ends as soon as the client is gone, whether it streams or not.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from byzerllm.errors import ByzerError, InternalError, InvalidInput, TooLarge

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY = 256 * 1024 * 1024  # bytes: images and sound come inside
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client closed its connection before the request was whole."""


@dataclass(frozen=True)
class HttpRequest:
    """A request that was read to its end, at the Unix time ``at``. Header names are in lower case."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes
    at: int

    def json(self) -> dict[str, Any]:
        """The body as an object.

        Raises:
            InvalidInput: it is none.
        """
        try:
            text = self.body.decode()
            value = json.loads(text, parse_constant=_no_number)
            if "\\u" in text:  # an escape may be half a character, which cannot be written anywhere again
                json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"The request body is no JSON: {error}.") from None
        if not isinstance(value, dict):
            raise InvalidInput("The request body must be a JSON object.")
        return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


@dataclass(frozen=True)
class Whole:
    """An answer in one piece; ``content`` that is no bytes goes out as JSON."""

    content: Any
    status: int = 200
    content_type: bytes = b"application/json"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass(frozen=True)
class Events:
    """An answer as server-sent events, each a JSON object, ended by ``[DONE]``."""

    source: AsyncGenerator[dict[str, Any], None]


Answer = Whole | Events


def encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


def known(error: Exception) -> ByzerError:
    """What the client is told of an error; the log has the cause of one that nobody has foreseen."""
    if isinstance(error, ByzerError):
        return error
    if isinstance(error, RecursionError):  # what was read with few frames on the stack is walked through with more
        return InvalidInput("The request is nested too deeply.")
    traceback.print_exception(error, file=sys.stdout)
    sys.stdout.flush()
    return InternalError("The engine failed; its log has the cause.")


def error_body(error: ByzerError) -> dict[str, Any]:
    """OpenAI's error object."""
    fields = {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}
    return {"error": fields}


def error_answer(error: ByzerError) -> Whole:
    headers = [(b"retry-after", str(int(error.retry_after)).encode())] if error.retry_after else []
    return Whole(error_body(error), error.status, headers=headers)


async def read(scope: Message, receive: Receive, now: float) -> HttpRequest:
    """The whole request.

    Raises:
        ClientGone: it broke off.
        TooLarge: its body is over the limit.
    """
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise TooLarge(f"The request body is over {MAX_BODY} bytes.")
        more = message.get("more_body", False)
    return HttpRequest(scope["method"], scope["path"], dict(scope["headers"]), b"".join(parts), int(now))


async def until_gone(work: Awaitable[None], receive: Receive) -> None:
    """Do ``work``, or drop it when the client goes away."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    try:
        await working
    except asyncio.CancelledError:
        if not gone.done() or gone.cancelled():
            raise


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_answer(answer: Answer, send: Send) -> None:
    """Send an answer to its end. Nothing was sent if it raises."""
    if isinstance(answer, Whole):
        await _send_whole(answer, send)
        return
    async with aclosing(answer.source) as source:
        # Nothing is sent before the first event is there, so that an error until then has a status of its own.
        first = await anext(source, None)
        await _start(send, 200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")])
        if first is not None:
            await _send_events(first, source, send)
        await send({"type": "http.response.body", "body": DONE})


async def _send_events(first: dict[str, Any], rest: AsyncGenerator[dict[str, Any], None], send: Send) -> None:
    try:
        await _send_event(first, send)
        async for event in rest:
            await _send_event(event, send)
    except Exception as error:  # noqa: BLE001  # of any kind: the status has gone out, the client reads it in the stream
        await _send_event(error_body(known(error)), send)


async def _send_event(event: dict[str, Any], send: Send) -> None:
    await send({"type": "http.response.body", "body": b"data: %b\n\n" % encode(event), "more_body": True})


async def _send_whole(answer: Whole, send: Send) -> None:
    body = answer.content if isinstance(answer.content, bytes) else encode(answer.content)
    headers = [(b"content-type", answer.content_type), (b"content-length", b"%d" % len(body)), *answer.headers]
    await _start(send, answer.status, headers)
    await send({"type": "http.response.body", "body": body})


async def _start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
