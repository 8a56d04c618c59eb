"""Helpers for tests of the relay: a pool in a loop of its own, and single exchanges over it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import uvloop

from byzerllm.errors import UpstreamError
from byzerllm.relay.connection import Connection
from byzerllm.relay.pool import Pool
from byzerllm.relay.target import Target
from byzerllm.spec import Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.fakes import FakeUpstream

QUICK = Timeouts(connect=5, first_byte=5, idle=5, total=10)
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: fake\r\nContent-Length: 2\r\n\r\n{}"


class RecordingPool(Pool):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[Connection] = []

    async def _connect(self, target: Target) -> Connection:
        self.made.append(await super()._connect(target))
        return self.made[-1]


def run(work: Callable[[Pool], Coroutine[Any, Any, None]]) -> None:
    """Run ``work`` with a pool in a loop of its own; nothing that it opened is left behind."""

    async def main() -> None:
        pool = RecordingPool()
        try:
            await work(pool)
        finally:  # a loop that is closed over open connections may hang
            pool.close()
            for connection in pool.made:
                connection.abort()
            await asyncio.sleep(0.01)

    before = outgoing()
    uvloop.run(main())
    assert outgoing() <= before


def outgoing() -> int:
    """The connections that this process has made to somewhere, black holes' fillers included."""
    found = psutil.Process().net_connections("tcp")
    listening = {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN}
    return sum(1 for c in found if c.raddr and c.laddr.port not in listening)


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.002)


def target_of(upstream: FakeUpstream) -> Target:
    return Target(False, "127.0.0.1", upstream.port)


async def body_of(connection: Connection) -> bytes:
    parts = []
    while chunk := await connection.read():
        parts.append(chunk)
    return b"".join(parts)


async def fetch(pool: Pool, target: Target, timeouts: Timeouts = QUICK) -> tuple[int, bytes]:
    connection = await pool.exchange(target, POST, timeouts)
    try:
        return connection.status, await body_of(connection)
    finally:
        pool.give_back(connection)


async def failure(pool: Pool, target: Target, timeouts: Timeouts = QUICK) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await fetch(pool, target, timeouts)
    return caught.value
