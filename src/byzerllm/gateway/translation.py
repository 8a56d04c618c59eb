"""The relay of an upstream with a format of its own: through neutral events to what clients speak."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import AsyncIterator, Sequence

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.gateway.call import ANSWER_LIMIT, Call, answer_headers, check_held, upstream_error
from byzerllm.gateway.http import JSON, Header, send_bytes
from byzerllm.relay.connection import Exchange
from byzerllm.relay.pool import Pool
from byzerllm.routing.worker import Translated, Worker
from byzerllm.wire.base import EmbeddingTranslator, Outgoing, Request, Task, Usage
from byzerllm.wire.events import StreamDecoder, Tokens
from byzerllm.wire.openai_events import Answer, StreamEncoder

_SSE_HEADER = (b"content-type", b"text/event-stream; charset=utf-8")


async def translate(pool: Pool, call: Call, worker: Worker, upstream: Translated, extra: list[Header]) -> str:
    """One attempt, or two where the first one met a token that has expired; returns the outcome to count.

    Raises:
        InvalidInput: the vendor cannot do what the request asks for.
        UpstreamError: it failed; ``call.first_byte`` tells whether the client has seen some of it.
    """
    outgoing = upstream.wire.request(call.request, upstream.vendor)
    try:
        return await _exchange(pool, call, worker, upstream, outgoing, extra)
    except UpstreamError as error:
        if call.first_byte or upstream.renew is None or not upstream.renew(error):
            raise
    return await _exchange(pool, call, worker, upstream, outgoing, extra)


async def _exchange(
    pool: Pool, call: Call, worker: Worker, upstream: Translated, outgoing: Outgoing, extra: list[Header]
) -> str:
    request = call.request
    connection = await upstream.open(pool, outgoing)
    try:
        if connection.status != 200:
            raise await upstream_error(connection, upstream)
        call.instance.stats.queue_wait.add(call.waited)
        _, headers = answer_headers(call, worker, connection, extra)
        if request.task is Task.CHAT and request.stream:
            return await _stream(call, worker, upstream, connection, headers)
        body = await connection.read_all(ANSWER_LIMIT)
        check_held(upstream, len(body))
        try:
            answer, usage = _whole(call, upstream, body)
        except UpstreamBroken as error:  # it came, and is none
            error.was_answered = True
            raise
        call.instance.succeeded(worker)
        worker.progress += 1
        call.over, call.first_byte = True, time.monotonic()
        await send_bytes(call.send, 200, answer, [JSON, *headers])
        call.instance.stats.count_usage(usage)
        return "ok"
    finally:
        pool.give_back(connection)


def _whole(call: Call, upstream: Translated, body: bytes) -> tuple[bytes, Usage | None]:
    if call.request.task is Task.EMBEDDING:
        assert isinstance(upstream.wire, EmbeddingTranslator)  # its tasks say so
        vectors, tokens = upstream.wire.embeddings(body)
        if not vectors:
            raise UpstreamBroken(f"{upstream.target} answered without embeddings.")
        return _embedding_body(call.request, upstream.model, vectors, tokens), Usage(tokens, 0) if tokens else None
    answer = Answer(f"chatcmpl-{call.id.decode()}", upstream.model, int(time.time()))
    for event in upstream.wire.events(body):
        answer.add(event)
    return answer.body(), _usage(answer.tokens)


async def _stream(call: Call, worker: Worker, upstream: Translated, connection: Exchange, headers: list[Header]) -> str:
    """Relay until the upstream's end. What fails before the first event may still be tried elsewhere."""
    decoder = upstream.wire.stream()
    encoder = StreamEncoder(
        f"chatcmpl-{call.id.decode()}", upstream.model, int(time.time()), include_usage=_wants_usage(call.request)
    )
    send = call.send
    async for piece in _pieces(connection, worker, decoder, encoder):
        if not call.first_byte:
            call.instance.succeeded(worker)
            call.streaming, call.first_byte = True, time.monotonic()
            await send({"type": "http.response.start", "status": 200, "headers": [_SSE_HEADER, *headers]})
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    end = encoder.close()
    call.instance.stats.count_usage(_usage(encoder.tokens))
    if encoder.failure is not None:
        raise encoder.failure
    call.over = True
    await send({"type": "http.response.body", "body": end})
    return "ok"


async def _pieces(
    connection: Exchange, worker: Worker, decoder: StreamDecoder, encoder: StreamEncoder
) -> AsyncIterator[bytes]:
    held = 0
    while chunk := await connection.read():
        worker.progress += 1
        piece = encoder.encode(decoder.feed(chunk))
        held = 0 if piece else held + len(chunk)
        check_held(worker.upstream, held)
        if piece:
            yield piece
        if encoder.failure is not None:
            return
    piece = encoder.encode(decoder.close())
    if piece:
        yield piece


def _wants_usage(request: Request) -> bool:
    options = msgspec.json.decode(request.fields.get("stream_options", b"null"))  # the format has read it already
    return bool(options and options.get("include_usage"))


def _usage(tokens: Tokens | None) -> Usage | None:
    return Usage(tokens.prompt, tokens.completion) if tokens is not None else None


def _embedding_body(request: Request, model: str, vectors: Sequence[Sequence[float]], tokens: int) -> bytes:
    as_base64 = bytes(request.fields.get("encoding_format", b"")) == b'"base64"'
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if as_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def _packed(vector: Sequence[float]) -> str:
    """Little-endian float32, as OpenAI packs them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
