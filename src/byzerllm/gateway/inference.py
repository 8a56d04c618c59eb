"""The hot path: one model request, from the client's bytes to the worker's and back.

Until the first byte has gone to the client a failed attempt may move to another worker; after that the stream ends
with an error event. Whenever the client goes away the upstream request is cancelled and the slot is free.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any

from byzerllm.errors import ByzerError, InvalidInput, Overloaded, UpstreamBroken, UpstreamError
from byzerllm.gateway.http import JSON, ClientGone, Header, Receive, Scope, Send, header, read_body, send_bytes
from byzerllm.gateway.protocol import BoundedProtocol
from byzerllm.relay.connection import Connection
from byzerllm.relay.pool import Pool
from byzerllm.routing.failover import retry_delay
from byzerllm.routing.instance import Instance
from byzerllm.routing.table import Table
from byzerllm.routing.worker import Worker
from byzerllm.wire.base import Request, StreamEnd, Task, decode_request
from byzerllm.wire.openai import error_body, error_event, internal_error

log = logging.getLogger(__name__)

_ERROR_LIMIT = 64 * 1024
_WHOLE_LIMIT = 64 * 1024  # a whole answer up to here is sent at once, so that a broken one can move elsewhere
_TAIL = 4096  # bytes of a stream's end in which its finish and usage are looked for
_PASSED_ON = frozenset((b"openai-processing-ms", b"openai-organization", b"openai-version", b"retry-after"))
_RATE_LIMIT = b"x-ratelimit-"
_SSE = b"text/event-stream"


class Call:
    """One request of one client."""

    __slots__ = ("first_byte", "gone", "id", "instance", "over", "queue_ms", "request", "send", "started", "streaming")

    def __init__(self, id: bytes, send: Send, started: float) -> None:
        self.id = id
        self.send = send
        self.started = started
        self.request: Request
        self.instance: Instance
        self.first_byte = 0.0  # when the first byte went to the client; 0: none yet
        self.queue_ms = 0
        self.streaming = False
        self.gone = False  # the client went away
        self.over = False


class Inference:
    """Answers the model requests of all listeners."""

    def __init__(self, table: Table, pool: Pool, max_body: int) -> None:
        self._table = table
        self._pool = pool
        self._max_body = max_body
        self._prefix = secrets.token_hex(4)
        self._count = 0

    async def handle(
        self, task: Task, scope: Scope, receive: Receive, send: Send, *, served_model: str | None, extra: list[Header]
    ) -> None:
        """One request whose key is checked. ``extra`` headers go on its answer (CORS)."""
        call = Call(self._request_id(scope), send, time.monotonic())
        try:
            body = await read_body(scope, receive, self._max_body)
            call.request = decode_request(task, body, served_model=served_model)
            call.instance = self._table.get(call.request.model)
            _check_task(task, call.instance)
        except ClientGone:
            return
        except ByzerError as error:
            await _send_error(call, error, extra)
            return
        await self._while_connected(call, scope["byzerllm.connection"], extra)

    async def _while_connected(self, call: Call, connection: BoundedProtocol, extra: list[Header]) -> None:
        """Answer the call; when the client goes away, in whatever state that is, this very task is cancelled."""
        owner = asyncio.current_task()
        assert owner is not None

        def client_left() -> None:
            if not call.over:
                call.gone = True
                owner.cancel()

        if not connection.watch(client_left):
            return
        try:
            await self._answer(call, extra)
        except asyncio.CancelledError:
            call.instance.stats.outcomes["cancelled"] += 1
            if not call.gone:
                raise
        finally:
            call.over = True
            connection.on_lost = None

    async def _answer(self, call: Call, extra: list[Header]) -> None:
        instance, outcome = call.instance, "ok"
        try:
            outcome = await self._attempts(call, extra)
        except ByzerError as error:
            outcome = error.code
            await _send_error(call, error, extra)
        except Exception:
            outcome = "internal_error"
            log.exception("%s failed", call.id.decode())
            await _send_error(call, internal_error(call.id.decode()), extra)
            raise
        finally:
            call.over = True
        now = time.monotonic()
        stats = instance.stats
        stats.outcomes[outcome] += 1
        stats.latency.add(now - call.started)
        if call.streaming:
            stats.first_byte.add(call.first_byte - call.started)

    async def _attempts(self, call: Call, extra: list[Header]) -> str:
        """Lease and try, and try again where that can help; returns the outcome to count."""
        instance = call.instance
        avoid: Worker | None = None
        failure: UpstreamError | None = None
        attempt = 0
        while True:
            try:
                lease = instance.lease_nowait(avoid) or await instance.lease(avoid)
            except Overloaded as refused:  # after a failed attempt, what went wrong there tells more
                raise failure or refused from None
            with lease:
                worker = lease.worker
                waited = time.monotonic() - call.started
                try:
                    return await self._attempt(call, worker, waited, extra)
                except UpstreamError as error:
                    instance.failed(worker, error)
                    if call.first_byte:
                        raise
                    elsewhere = any(w.in_rotation and w.upstream is not worker.upstream for w in instance.workers)
                    delay = retry_delay(error, attempt, worker.upstream.max_retries, elsewhere=elsewhere)
                    if delay is None:
                        raise
                    log.info("%s: attempt %d failed: %s", call.id.decode(), attempt + 1, error.message)
                    instance.forget_attempt(worker)
                    failure = error
            avoid = worker
            attempt += 1
            if delay:
                await asyncio.sleep(delay)

    async def _attempt(self, call: Call, worker: Worker, waited: float, extra: list[Header]) -> str:
        upstream, request = worker.upstream, call.request
        data = upstream.request(request.task, upstream.wire.body(request, upstream.model, upstream.defaults))
        connection = await self._pool.exchange(upstream.target, data, upstream.timeouts)
        try:
            if connection.status != 200:
                raise await _upstream_error(connection, worker)
            call.instance.stats.queue_wait.add(waited)
            call.queue_ms = int(waited * 1000)
            content_type, headers = _answer_headers(call, worker, connection, extra)
            if content_type.startswith(_SSE):
                return await self._relay_stream(call, worker, connection, headers)
            return await self._relay_whole(call, worker, connection, headers)
        finally:
            self._pool.give_back(connection)

    async def _relay_whole(self, call: Call, worker: Worker, connection: Connection, headers: list[Header]) -> str:
        parts: list[bytes] = []
        size = 0
        while size < _WHOLE_LIMIT:
            chunk = await connection.read()
            if not chunk:
                break
            parts.append(chunk)
            size += len(chunk)
            worker.progress += 1
            if connection.complete:
                break
        call.instance.succeeded(worker)
        call.first_byte = time.monotonic()
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        tail = body[-_WHOLE_LIMIT:]
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
        call.instance.stats.count_usage(worker.upstream.wire.usage(tail))
        return "ok"

    async def _relay_stream(self, call: Call, worker: Worker, connection: Connection, headers: list[Header]) -> str:
        chunk = await connection.read()
        if not chunk:
            raise UpstreamBroken(f"{worker.upstream.target} ended its stream before the first event.")
        call.instance.succeeded(worker)
        call.streaming = True
        call.first_byte = time.monotonic()
        send, read = call.send, connection.read
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        tail = b""
        while chunk:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            worker.progress += 1
            tail += chunk
            if len(tail) > 4 * _TAIL:
                tail = tail[-_TAIL:]
            chunk = await read()
        end = worker.upstream.wire.stream_end(tail)
        if end is StreamEnd.TRUNCATED:
            raise UpstreamBroken(f"{worker.upstream.target} ended its stream before the answer was whole.")
        call.over = True
        await send({"type": "http.response.body", "body": b""})
        call.instance.stats.count_usage(worker.upstream.wire.usage(tail))
        return "ok" if end is StreamEnd.COMPLETE else "upstream_error"

    def _request_id(self, scope: Scope) -> bytes:
        given = header(scope, b"x-request-id")
        if given is not None and 0 < len(given) <= 128 and given.isascii() and b" " not in given:
            return given
        self._count += 1
        return f"req-{self._prefix}{self._count:08x}".encode()


def _check_task(task: Task, instance: Instance) -> None:
    if instance.task is Task.EMBEDDING and task is not Task.EMBEDDING:
        raise InvalidInput(
            f"{instance.name} is an embedding instance: it has no {task.value}.", hint="Use /v1/embeddings."
        )


async def _upstream_error(connection: Connection, worker: Worker) -> UpstreamError:
    body = await connection.read_all(_ERROR_LIMIT)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in connection.headers}
    error = worker.upstream.wire.error(connection.status, headers, body)
    if error.status < 400:
        where = f" to {headers['location']}" if "location" in headers else ""
        error.message = f"the upstream answered with status {error.status}{where} where 200 was expected"
        error.status = 502
    return error


def _answer_headers(
    call: Call, worker: Worker, connection: Connection, extra: list[Header]
) -> tuple[bytes, list[Header]]:
    content_type = b"application/json"
    headers: list[Header] = [
        (b"x-request-id", call.id),
        (b"x-byzerllm-worker", b"%d" % worker.index),
        (b"x-byzerllm-queue-ms", b"%d" % call.queue_ms),
        *extra,
    ]
    for pair in connection.headers:
        name = pair[0]
        if name == b"content-type":
            content_type = pair[1]
            headers.append(pair)
        elif name == b"x-request-id":
            headers.append((b"x-upstream-request-id", pair[1]))
        elif name in _PASSED_ON or name == b"content-encoding" or name.startswith(_RATE_LIMIT):
            headers.append(pair)
    return content_type, headers


async def _send_error(call: Call, error: ByzerError, extra: list[Header]) -> None:
    """As an answer, or as the last event of a stream that has begun; a whole answer that has begun is cut off."""
    call.over = True
    if call.first_byte:
        if call.streaming:
            await call.send({"type": "http.response.body", "body": error_event(error), "more_body": True})
            await call.send({"type": "http.response.body", "body": b""})
        return
    headers: list[Any] = [JSON, (b"x-request-id", call.id), *extra]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after))))
    await send_bytes(call.send, error.status, error_body(error), headers)
