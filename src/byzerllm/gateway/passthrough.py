"""The relay of an upstream that speaks what clients speak: its bytes go to the client as they come."""

from __future__ import annotations

import asyncio
import time

from byzerllm.errors import UpstreamBroken
from byzerllm.gateway.call import SSE, Call, answer_headers, upstream_error
from byzerllm.gateway.http import Header, send_bytes
from byzerllm.relay.connection import Connection
from byzerllm.relay.pool import Pool
from byzerllm.routing.worker import PassThrough, Worker
from byzerllm.wire import stream_usage
from byzerllm.wire.base import StreamEnd, Task
from byzerllm.wire.multipart import Form
from byzerllm.wire.openai import DONE
from byzerllm.wire.stream_usage import UsageFilter

_WHOLE_LIMIT = 64 * 1024  # a whole answer up to here is sent at once, so that a broken one can move elsewhere
_TAIL = 4096  # bytes of a stream's end in which its finish and usage are looked for


async def pass_through(pool: Pool, call: Call, worker: Worker, upstream: PassThrough, extra: list[Header]) -> str:
    """One attempt; returns the outcome to count.

    Raises:
        UpstreamError: it failed; ``call.first_byte`` tells whether the client has seen some of it.
    """
    request = call.request
    asking = None
    if isinstance(request, Form):
        data = upstream.form(request)
    else:
        asking = stream_usage.asking(request, upstream.defaults) if upstream.asks_usage else None
        data = upstream.request(request.task, upstream.wire.body(asking or request, upstream.model, upstream.defaults))
    connection = await pool.exchange(upstream.target, data, upstream.timeouts)
    try:
        if connection.status != 200:
            raise await upstream_error(connection, upstream)
        call.instance.stats.queue_wait.add(call.waited)
        content_type, headers = answer_headers(call, worker, connection, extra)
        headers.append((b"content-type", content_type))
        if content_type.startswith(SSE):
            return await _stream(call, worker, upstream, connection, headers, UsageFilter() if asking else None)
        return await _whole(call, worker, upstream, connection, headers)
    finally:
        pool.give_back(connection)


async def _whole(
    call: Call, worker: Worker, upstream: PassThrough, connection: Connection, headers: list[Header]
) -> str:
    parts: list[bytes] = []
    size = 0
    limit = 1 if call.request.task is Task.SPEECH else _WHOLE_LIMIT  # speech is heard while it is made
    while size < limit:
        chunk = await connection.read()
        if not chunk:
            break
        parts.append(chunk)
        size += len(chunk)
        worker.progress += 1
        if connection.complete:
            break
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    failure = None
    if connection.complete and call.request.task is not Task.RESPONSES:  # whose answer may be a failed response
        failure = upstream.wire.failure(body)
    if failure is not None:
        raise failure
    call.instance.succeeded(worker)
    call.first_byte = time.monotonic()
    tail = body
    send = call.send
    if connection.complete:
        call.over = True
        await send_bytes(send, 200, body, headers)
    else:
        headers += [h for h in connection.headers if h[0] == b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while body:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            body = await connection.read()
            worker.progress += 1
            tail = (tail + body)[-_TAIL:]
        call.over = True
        await send({"type": "http.response.body", "body": b""})
    call.instance.stats.count_usage(upstream.wire.usage(tail))
    return "ok"


async def _stream(
    call: Call,
    worker: Worker,
    upstream: PassThrough,
    connection: Connection,
    headers: list[Header],
    hide: UsageFilter | None,
) -> str:
    chunk = await connection.read()
    if not chunk:
        raise UpstreamBroken(f"{upstream.target} ended its stream before the first event.")
    failure = upstream.wire.failure(chunk)
    if failure is not None:
        raise failure
    call.instance.succeeded(worker)
    call.streaming = True
    call.first_byte = time.monotonic()
    send, read = call.send, connection.read
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    tail = b""
    try:
        while chunk:
            tail += chunk
            if len(tail) > 4 * _TAIL:
                tail = tail[-_TAIL:]
            shown = chunk if hide is None else hide.feed(chunk)
            if shown:
                await send({"type": "http.response.body", "body": shown, "more_body": True})
            worker.progress += 1
            chunk = await read()
    except asyncio.CancelledError:
        # Many clients leave with the last event, and the upstream ends its answer a moment later.
        if not (call.gone and tail.endswith(DONE)):
            raise
    end = upstream.wire.stream_end(tail, call.request.task)
    if end is StreamEnd.TRUNCATED:
        raise UpstreamBroken(f"{upstream.target} ended its stream before the answer was whole.")
    call.over = True
    await send({"type": "http.response.body", "body": b"" if hide is None else hide.close()})
    call.instance.stats.count_usage(upstream.wire.usage(tail))
    return "ok" if end is StreamEnd.COMPLETE else "upstream_error"
