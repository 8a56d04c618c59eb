"""One client's request on its way, and what every kind of upstream has in common."""

from __future__ import annotations

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.gateway.http import Header, Send
from byzerllm.relay.connection import Exchange
from byzerllm.routing.instance import Instance
from byzerllm.routing.worker import Media, PassThrough, Translated, Upstream, Worker
from byzerllm.wire.base import Request

SSE = b"text/event-stream"
ANSWER_LIMIT = 64 * 1024 * 1024  # bytes of an answer that are held at a time, decoded or not
_ERROR_LIMIT = 64 * 1024
_PASSED_ON = frozenset((b"openai-processing-ms", b"openai-organization", b"openai-version", b"retry-after"))
_RATE_LIMIT = b"x-ratelimit-"


class Call:
    """One request of one client."""

    __slots__ = ("first_byte", "gone", "id", "instance", "over", "request", "send", "started", "streaming", "waited")

    def __init__(self, id: bytes, send: Send, started: float) -> None:
        self.id = id
        self.send = send
        self.started = started
        self.request: Request
        self.instance: Instance
        self.first_byte = 0.0  # when the first byte went to the client; 0: none yet
        self.waited = 0.0  # seconds until it had a slot
        self.streaming = False
        self.gone = False  # the client went away
        self.over = False


async def upstream_error(connection: Exchange, upstream: PassThrough | Translated | Media) -> UpstreamError:
    """What the upstream's answer with another status than 200 says."""
    body = await connection.read_all(_ERROR_LIMIT)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in connection.headers}
    error = upstream.wire.error(connection.status, headers, body)
    if error.status < 400:
        where = f" to {headers['location']}" if "location" in headers else ""
        error.message = f"the upstream answered with status {error.status}{where} where 200 was expected"
        error.status = 502
    return error


def check_held(upstream: Upstream, size: int) -> None:
    """Refuse to hold so many bytes of an answer.

    Raises:
        UpstreamBroken: they are too many.
    """
    if size >= ANSWER_LIMIT:
        raise UpstreamBroken(
            f"{upstream.target} sent {ANSWER_LIMIT // (1024 * 1024)} MiB of an answer that cannot be passed on.",
            was_answered=True,
        )


def answer_headers(call: Call, worker: Worker, connection: Exchange, extra: list[Header]) -> tuple[bytes, list[Header]]:
    """The upstream's content type, and the headers of our answer but for that."""
    content_type = b"application/json"
    headers: list[Header] = [
        (b"x-request-id", call.id),
        (b"x-byzerllm-worker", b"%d" % worker.index),
        (b"x-byzerllm-queue-ms", b"%d" % int(call.waited * 1000)),
        *extra,
    ]
    for pair in connection.headers:
        name = pair[0]
        if name == b"content-type":
            content_type = pair[1]
        elif name == b"x-request-id":
            headers.append((b"x-upstream-request-id", pair[1]))
        elif name in _PASSED_ON or name == b"content-encoding" or name.startswith(_RATE_LIMIT):
            headers.append(pair)
    return content_type, headers
