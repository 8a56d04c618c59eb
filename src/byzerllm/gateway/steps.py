"""The relay of what an upstream answers in several steps, or in another form than clients know."""

from __future__ import annotations

import time

from byzerllm.errors import UpstreamBroken
from byzerllm.gateway.call import ANSWER_LIMIT, Call, answer_headers, check_held, upstream_error
from byzerllm.gateway.http import JSON, Header, send_bytes
from byzerllm.relay.pool import Pool
from byzerllm.routing.worker import PassThrough, Worker
from byzerllm.wire.base import Steps


async def take_steps(
    pool: Pool, call: Call, worker: Worker, upstream: PassThrough, steps: Steps, extra: list[Header]
) -> str:
    """One attempt, of one exchange or more; returns the outcome to count.

    Raises:
        InvalidInput: the upstream cannot do what the request asks for.
        UpstreamError: it failed, and the client has seen nothing of it.
    """
    step = next(steps)
    while True:
        connection = await pool.exchange(upstream.target, upstream.step(step), upstream.timeouts)
        try:
            if connection.status != 200:
                raise await upstream_error(connection, upstream)
            _, headers = answer_headers(call, worker, connection, extra)
            body = await connection.read_all(ANSWER_LIMIT)
        finally:
            pool.give_back(connection)
        check_held(upstream, len(body))
        worker.progress += 1
        try:
            step = steps.send(body)
        except StopIteration as end:
            answer: bytes = end.value
            break
        except UpstreamBroken as error:  # it came, and is none
            error.was_answered = True
            raise
    call.instance.stats.queue_wait.add(call.waited)
    call.instance.succeeded(worker)
    call.over, call.first_byte = True, time.monotonic()
    await send_bytes(call.send, 200, answer, [JSON, *headers])
    call.instance.stats.count_usage(upstream.wire.usage(answer))
    return "ok"
