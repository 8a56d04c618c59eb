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

from byzerllm.errors import ByzerError, InvalidInput, Overloaded, UpstreamError
from byzerllm.gateway.call import Call
from byzerllm.gateway.http import JSON, ClientGone, Header, Receive, Scope, Send, header, read_body, send_bytes
from byzerllm.gateway.media import relay_media
from byzerllm.gateway.passthrough import pass_through
from byzerllm.gateway.protocol import BoundedProtocol
from byzerllm.gateway.steps import take_steps
from byzerllm.gateway.translation import translate
from byzerllm.relay.pool import Pool
from byzerllm.routing.failover import outcome_of, retry_delay
from byzerllm.routing.table import Table
from byzerllm.routing.worker import Media, PassThrough, Translated, Worker
from byzerllm.wire.base import Request, Task, decode_request
from byzerllm.wire.multipart import decode_form
from byzerllm.wire.openai import SURFACES, error_body, error_event, internal_error

log = logging.getLogger(__name__)


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
        call = Call(self.request_id(scope), send, time.monotonic())
        try:
            body = await read_body(scope, receive, self._max_body)
            call.request = _decode(task, header(scope, b"content-type"), body, served_model)
            call.instance = self._table.get(call.request.model)
            if call.instance.workers:  # without one nobody can tell yet
                _check_task(call, call.instance.workers[0])
        except ClientGone:
            return
        except ByzerError as error:
            await _send_error(call, error, extra)
            return
        call.started = time.monotonic()  # a slow upload is neither waiting nor answering
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
        running = call.instance.running
        running.add(owner)
        try:
            await self._answer(call, extra)
        except asyncio.CancelledError:
            call.instance.stats.outcomes["cancelled"] += 1
            refused = None if call.gone else call.instance.refusal()
            if refused is not None:  # the instance was taken away
                await _send_error(call, refused, extra)
            elif not call.gone:
                raise
        finally:
            running.discard(owner)
            call.over = True
            connection.on_lost = None

    async def _answer(self, call: Call, extra: list[Header]) -> None:
        instance, outcome = call.instance, "ok"
        try:
            outcome = await self._attempts(call, extra)
        except ByzerError as error:
            outcome = outcome_of(error)
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
                    error.hide(worker.upstream.secrets)
                    instance.failed(worker, error)
                    if call.first_byte:
                        raise
                    elsewhere = worker is not avoid and any(  # if it is, the others have no free slot
                        w.in_rotation and w.upstream is not worker.upstream for w in instance.workers
                    )
                    upstream = worker.upstream
                    delay = retry_delay(
                        error, attempt, upstream.max_retries, elsewhere=elsewhere, watched=upstream.watched
                    )
                    if delay is None:
                        raise
                    log.info(
                        "%s: %s, worker %d: attempt %d failed: %s",
                        *(call.id.decode(), instance.name, worker.index, attempt + 1, error.message),
                    )
                    instance.forget_attempt(worker)
                    failure = error
            avoid = worker
            attempt += 1
            if delay:
                await asyncio.sleep(delay)

    async def _attempt(self, call: Call, worker: Worker, waited: float, extra: list[Header]) -> str:
        upstream = worker.upstream
        call.waited = waited
        _check_task(call, worker)  # while an instance is replaced, its workers are not all alike
        if isinstance(upstream, PassThrough):
            adapter = upstream.wire.adapters.get(call.request.task)
            steps = adapter(call.request, upstream.model, int(time.time())) if adapter is not None else None
            if steps is not None:
                return await take_steps(self._pool, call, worker, upstream, steps, extra)
            return await pass_through(self._pool, call, worker, upstream, extra)
        if isinstance(upstream, Media):
            return await relay_media(self._pool, call, worker, upstream, extra)
        assert isinstance(upstream, Translated)
        return await translate(self._pool, call, worker, upstream, extra)

    def request_id(self, scope: Scope) -> bytes:
        """The client's own id of its request where it is usable, else a new one."""
        given = header(scope, b"x-request-id")
        if given is not None and 0 < len(given) <= 128 and given.isascii() and b" " not in given:
            return given
        self._count += 1
        return f"req-{self._prefix}{self._count:08x}".encode()


def _decode(task: Task, content_type: bytes | None, body: bytes, served_model: str | None) -> Request:
    if task is Task.TRANSCRIPTION:
        return decode_form(task, content_type or b"", body, served_model=served_model)
    return decode_request(task, body, served_model=served_model)


def _check_task(call: Call, worker: Worker) -> None:
    """Refuse what the worker is not for."""
    task, tasks = call.request.task, worker.upstream.tasks
    if task in tasks:
        return
    has = [t for t in Task if t in tasks]
    raise InvalidInput(
        f"{call.instance.name} has no {task.value}. It has: {', '.join(t.value for t in has)}.",
        hint=f"Use {' or '.join(SURFACES[t] for t in has)}.",
    )


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
