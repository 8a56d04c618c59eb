"""The relay over real sockets: one exchange after the other, and connections that are used again."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tests.fakes import CLOSE, HANG, RESET, FakeUpstream, Reply, json_reply, raw_reply, sse_reply
from tests.relaying import POST, QUICK, failure, fetch, run, target_of, until

from byzerllm.errors import UpstreamBroken
from byzerllm.relay.pool import Pool

pytestmark = pytest.mark.usefixtures("no_blocking")


# -- answers that are well ------------------------------------------------------------------------------------------


def test_a_connection_serves_one_exchange_after_the_other(upstream: FakeUpstream) -> None:
    upstream.script(json_reply({"n": 1}), sse_reply({"n": 2}, gap=0.01), json_reply({"n": 3}, 429, retry_after="1"))

    async def work(pool: Pool) -> None:
        assert await fetch(pool, target_of(upstream)) == (200, b'{"n": 1}')
        assert await fetch(pool, target_of(upstream)) == (200, b'data: {"n": 2}\n\ndata: [DONE]\n\n')
        connection = await pool.exchange(target_of(upstream), POST, QUICK)
        assert connection.status == 429
        assert (b"retry-after", b"1") in connection.headers
        assert await connection.read_all(1000) == b'{"n": 3}'
        pool.give_back(connection)
        assert (pool.opened, pool.idle, upstream.connections) == (1, 1, 1)

    run(work)
    assert [r.body for r in upstream.requests] == [b"{}"] * 3


def test_the_bytes_of_a_stream_come_as_they_arrive(upstream: FakeUpstream) -> None:
    second, third = threading.Event(), threading.Event()
    upstream.script(Reply([b"one", second, b"two", third, b"three"], framing="chunked"))

    async def work(pool: Pool) -> None:
        connection = await pool.exchange(target_of(upstream), POST, QUICK)
        assert await connection.read() == b"one"
        second.set()
        assert await connection.read() == b"two"
        third.set()
        assert await connection.read() == b"three"
        assert await connection.read() == b""
        assert connection.complete
        pool.give_back(connection)
        assert pool.idle == 1

    run(work)


def test_an_answer_that_ends_with_its_connection_is_whole(upstream: FakeUpstream) -> None:
    upstream.script(Reply([b"all ", b"of it"], framing="close"), raw_reply(b"HTTP/1.0 200 OK\r\n\r\nold"))

    async def work(pool: Pool) -> None:
        assert await fetch(pool, target_of(upstream)) == (200, b"all of it")
        assert await fetch(pool, target_of(upstream)) == (200, b"old")
        assert (pool.opened, pool.idle) == (2, 0)

    run(work)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", (200, b"ok")),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 201 C\r\ncontent-length: 2\r\n\r\nok", (201, b"ok")),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", (200, b"")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nx-trailer: 1\r\n\r\n",
            (200, b"ok"),
        ),
    ],
    ids=["continue", "early hints", "empty", "no content", "chunk extension and trailer"],
)
def test_unusual_but_well_formed_answers(upstream: FakeUpstream, answer: bytes, expected: tuple[int, bytes]) -> None:
    upstream.script(raw_reply(answer), raw_reply(*(bytes([byte]) for byte in answer)))

    async def work(pool: Pool) -> None:
        for _ in range(2):  # at once, and byte by byte
            assert await fetch(pool, target_of(upstream)) == expected

    run(work)


def test_what_follows_an_answer_is_not_taken_for_its_status_or_headers(upstream: FakeUpstream) -> None:
    second = b"HTTP/1.1 500 No\r\nx-evil: 1\r\ncontent-length: 3\r\n\r\nbad"
    upstream.script(raw_reply(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" + second, HANG))

    async def work(pool: Pool) -> None:
        connection = await pool.exchange(target_of(upstream), POST, QUICK)
        assert (connection.status, await connection.read()) == (200, b"ok")
        assert [name for name, _ in connection.headers] == [b"content-length"]
        pool.give_back(connection)
        assert pool.idle == 0  # it cannot be trusted with another exchange

    run(work)


def test_bytes_on_a_pooled_connection_end_it(upstream: FakeUpstream) -> None:
    said = threading.Event()
    upstream.script(Reply([b"ok", said, b"HTTP/1.1 200 OK\r\n\r\n"], headers={"content-length": "2"}))

    async def work(pool: Pool) -> None:
        await fetch(pool, target_of(upstream))
        assert pool.idle == 1
        said.set()
        await until(lambda: pool.idle == 0)
        assert (await fetch(pool, target_of(upstream)))[0] == 200

    run(work)


# -- reuse ----------------------------------------------------------------------------------------------------------


def test_many_exchanges_at_once_each_have_a_connection_and_they_are_reused(upstream: FakeUpstream) -> None:
    upstream.default = json_reply({}, 200, 0.02)

    async def work(pool: Pool) -> None:
        for _ in range(3):
            await asyncio.gather(*(fetch(pool, target_of(upstream)) for _ in range(20)))
        assert (pool.opened, pool.idle, upstream.connections) == (20, 20, 20)

    run(work)


def test_a_stale_connection_is_replaced_without_an_error(upstream: FakeUpstream) -> None:
    async def work(pool: Pool) -> None:
        await fetch(pool, target_of(upstream))
        upstream.stop()
        upstream.start()
        await until(lambda: pool.idle == 0)
        assert (await fetch(pool, target_of(upstream)))[0] == 200
        assert pool.opened == 2

    run(work)


@pytest.mark.parametrize("fault", [CLOSE, RESET], ids=["closed", "reset"])
def test_a_reused_connection_that_dies_unanswered_is_tried_again_once(upstream: FakeUpstream, fault: Any) -> None:
    upstream.script(json_reply({}), raw_reply(fault), raw_reply(fault), json_reply({}))

    async def work(pool: Pool) -> None:
        await fetch(pool, target_of(upstream))
        error = await failure(pool, target_of(upstream))  # the pooled one, and the fresh one after it
        assert isinstance(error, UpstreamBroken)
        assert "without an answer" in error.message
        assert (await fetch(pool, target_of(upstream)))[0] == 200

    run(work)
    assert len(upstream.requests) == 4


def test_a_request_that_was_partly_answered_is_not_sent_again(upstream: FakeUpstream) -> None:
    upstream.script(json_reply({}), raw_reply(b"HTTP/1.1 2", RESET))

    async def work(pool: Pool) -> None:
        await fetch(pool, target_of(upstream))
        assert "during its answer" in (await failure(pool, target_of(upstream))).message

    run(work)
    assert len(upstream.requests) == 2


def test_a_target_that_is_gone_leaves_nothing_in_the_pool(upstream: FakeUpstream) -> None:
    async def work(pool: Pool) -> None:
        await asyncio.gather(*(fetch(pool, target_of(upstream)) for _ in range(5)))
        upstream.stop()
        await until(lambda: not pool._idle)

    run(work)
