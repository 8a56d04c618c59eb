"""The relay where something goes wrong: connections, answers and timeouts that fail, slow readers, cancellation."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import pytest
from tests.fakes import CLOSE, HANG, RESET, FakeUpstream, Reply, black_hole, json_reply, raw_reply
from tests.harness import free_port
from tests.relaying import POST, QUICK, body_of, failure, fetch, run, target_of, until

from byzerllm.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from byzerllm.relay.connection import HIGH_WATER, MAX_HEADER_BYTES
from byzerllm.relay.pool import Pool
from byzerllm.relay.target import Target
from byzerllm.spec import Timeouts

pytestmark = pytest.mark.usefixtures("no_blocking")


# -- what goes wrong ------------------------------------------------------------------------------------------------


def test_nothing_listens(upstream: FakeUpstream) -> None:
    async def work(pool: Pool) -> None:
        error = await failure(pool, Target(False, "127.0.0.1", free_port()))
        assert isinstance(error, UpstreamUnreachable)
        assert "connection refused" in error.message
        assert pool.opened == 0

    run(work)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".invalid", "bad host"])
def test_a_host_name_that_cannot_be_resolved(host: str) -> None:
    async def work(pool: Pool) -> None:
        error = await failure(pool, Target(False, host, 80))
        assert isinstance(error, UpstreamUnreachable)
        assert "cannot be resolved" in error.message

    run(work)


def test_a_connection_that_closes_as_soon_as_it_is_made_fails_at_once() -> None:
    """The end may come before the request is sent; it must not be waited for until the first-byte timeout."""
    closed = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while not closed.is_set():
                listener.accept()[0].close()

        thread = threading.Thread(target=accept)
        thread.start()

        async def work(pool: Pool) -> None:
            target = Target(False, "127.0.0.1", listener.getsockname()[1])
            began = time.monotonic()
            for _ in range(50):
                assert isinstance(await failure(pool, target), UpstreamBroken)
            connection = await pool._open(target, 1.0)
            await until(lambda: connection.closed)
            connection.send(POST, QUICK)
            with pytest.raises(UpstreamBroken):
                await connection.head()
            assert time.monotonic() - began < QUICK.first_byte

        try:
            run(work)
        finally:
            closed.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()


BROKEN = {
    "closed": (raw_reply(CLOSE), "without an answer"),
    "reset": (raw_reply(RESET), "without an answer"),
    "cut in the status line": (raw_reply(b"HTTP/1.1 20"), "during its answer"),
    "cut in the headers": (raw_reply(b"HTTP/1.1 200 OK\r\ncontent-le"), "during its answer"),
    "cut in the body": (Reply([b"half", CLOSE], headers={"content-length": "8"}), "during its answer"),
    "reset in the body": (Reply([b"half", RESET], headers={"content-length": "8"}), "during its answer"),
    "reset where the end ends it": (Reply([b"half", RESET], framing="close"), "during its answer"),
    "cut in a chunk": (
        raw_reply(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf"),
        "during its answer",
    ),
    "no last chunk": (
        raw_reply(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        "during its ans",
    ),
    "garbage": (raw_reply(b"\x00\x01 this is no HTTP at all\r\n\r\n", HANG), "not HTTP"),
    "a chunk size that is none": (
        raw_reply(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", HANG),
        "not HTTP",
    ),
    "an upgrade": (raw_reply(b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", HANG), "not HTTP"),
    "huge headers": (raw_reply(b"HTTP/1.1 200 OK\r\n", *[b"x: %s\r\n" % (b"y" * 8000)] * 20, HANG), "bytes of headers"),
    "an endless header": (raw_reply(b"HTTP/1.1 200 OK\r\nx: ", *[b"y" * 16_000] * 40, HANG), "bytes of headers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_answer_that_breaks_says_how(upstream: FakeUpstream, case: str) -> None:
    reply, message = BROKEN[case]
    upstream.script(reply)

    async def work(pool: Pool) -> None:
        error = await failure(pool, target_of(upstream))
        assert isinstance(error, UpstreamBroken)
        assert message in error.message
        assert str(upstream.port) in error.message
        assert pool.idle == 0

    run(work)


def test_what_came_before_the_break_is_read_first(upstream: FakeUpstream) -> None:
    upstream.script(Reply([b"half", RESET], framing="chunked"))

    async def work(pool: Pool) -> None:
        connection = await pool.exchange(target_of(upstream), POST, QUICK)
        assert await connection.read() == b"half"
        with pytest.raises(UpstreamBroken):
            await connection.read()
        pool.give_back(connection)

    run(work)


def test_an_endless_error_body_is_cut_and_the_connection_given_up(upstream: FakeUpstream) -> None:
    upstream.script(Reply([b"x" * 100_000, 0.001] * 1000, 500, framing="chunked"))

    async def work(pool: Pool) -> None:
        connection = await pool.exchange(target_of(upstream), POST, QUICK)
        assert await connection.read_all(1000) == b"x" * 1000
        pool.give_back(connection)
        assert pool.idle == 0
        await until(upstream.requests[0].cancelled)

    run(work)


# -- timeouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "timeouts", "kind"),
    [
        (raw_reply(HANG), Timeouts(1, 0.1, 5, 5), "first_byte"),
        (raw_reply(b"HTTP/1.1 200 OK\r\n", HANG), Timeouts(1, 0.1, 5, 5), "first_byte"),
        (Reply([b"some", HANG], framing="chunked"), Timeouts(1, 5, 0.1, 5), "idle"),
        (Reply([b"some", HANG], headers={"content-length": "9"}), Timeouts(1, 5, 0.1, 5), "idle"),
        (Reply([b"more", 0.02] * 100, framing="chunked"), Timeouts(1, 5, 5, 0.2), "total"),
        (raw_reply(HANG), Timeouts(1, 5, 5, 0.1), "total"),
    ],
    ids=["first byte", "half a head", "idle", "idle with a length", "total", "total before the first byte"],
)
def test_each_timeout_ends_the_exchange_and_the_upstream_sees_it(
    upstream: FakeUpstream, reply: Reply, timeouts: Timeouts, kind: str
) -> None:
    upstream.script(reply)

    async def work(pool: Pool) -> None:
        began = time.monotonic()
        error = await failure(pool, target_of(upstream), timeouts)
        assert isinstance(error, UpstreamTimeout)
        assert error.details == {"timeout": kind}
        assert time.monotonic() - began < 2
        await until(upstream.requests[0].cancelled)

    run(work)


def test_silence_shorter_than_the_timeout_is_no_error(upstream: FakeUpstream) -> None:
    upstream.script(Reply([0.15, b"a", 0.15, b"b", 0.15, b"c"], framing="chunked"))

    async def work(pool: Pool) -> None:
        assert await fetch(pool, target_of(upstream), Timeouts(1, 0.4, 0.4, 5)) == (200, b"abc")

    run(work)


def test_a_timeout_of_one_exchange_does_not_reach_the_next(upstream: FakeUpstream) -> None:
    upstream.script(json_reply({}), json_reply({}, 200, 0.4))

    async def work(pool: Pool) -> None:
        await fetch(pool, target_of(upstream), Timeouts(1, 0.2, 0.2, 0.2))
        assert (await fetch(pool, target_of(upstream), QUICK))[0] == 200
        assert pool.opened == 1

    run(work)


def test_a_pooled_connection_is_closed_after_its_idle_life(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byzerllm.relay.connection.IDLE_LIFE", 0.1)

    async def work(pool: Pool) -> None:
        await fetch(pool, target_of(upstream))
        assert pool.idle == 1
        await until(lambda: pool.idle == 0 and upstream.open_connections == 0)

    run(work)


def test_a_connection_that_is_never_made(upstream: FakeUpstream) -> None:
    with black_hole() as url:
        port = int(url.rpartition(":")[2])

        async def work(pool: Pool) -> None:
            error = await failure(pool, Target(False, "127.0.0.1", port), Timeouts(0.1, 5, 5, 5))
            assert isinstance(error, UpstreamTimeout)
            assert error.details == {"timeout": "connect"}

        run(work)


# -- a slow reader --------------------------------------------------------------------------------------------------


def test_an_upstream_faster_than_its_reader_is_paused(upstream: FakeUpstream) -> None:
    piece = b"x" * 64 * 1024
    upstream.script(Reply([piece] * 400, framing="chunked"))

    async def work(pool: Pool) -> None:
        connection = await pool.exchange(target_of(upstream), POST, Timeouts(1, 5, 0.2, 30))
        await until(lambda: connection._paused)
        await asyncio.sleep(0.5)  # longer than the idle timeout: it is the reader who is slow
        sent = upstream.requests[0].sent
        assert sent < 400 * len(piece) / 2  # the rest waits at the upstream
        assert connection._buffered < 4 * HIGH_WATER
        assert len(await body_of(connection)) == 400 * len(piece)
        pool.give_back(connection)
        assert pool.idle == 1

    run(work)


def test_a_whole_answer_may_wait_for_its_reader_without_costing_time(upstream: FakeUpstream) -> None:
    """Once all of it came no timeout of the upstream runs any more, neither into an error nor in a busy loop."""
    upstream.script(json_reply({"all": "here"}))

    async def work(pool: Pool) -> None:
        connection = await pool.exchange(target_of(upstream), POST, Timeouts(1, 0.1, 0.1, 0.2))
        await until(lambda: connection.done)
        cpu = time.process_time()
        await asyncio.sleep(0.6)
        assert time.process_time() - cpu < 0.2
        assert await connection.read() == b'{"all": "here"}'
        pool.give_back(connection)
        assert pool.idle == 1

    run(work)


# -- cancellation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[HANG], [b"some", HANG]], ids=["before the head", "in the body"])
def test_a_cancelled_exchange_closes_its_connection(upstream: FakeUpstream, steps: list[Any]) -> None:
    upstream.script(Reply(steps, framing="chunked"))

    async def work(pool: Pool) -> None:
        task = asyncio.ensure_future(fetch(pool, target_of(upstream)))
        await until(lambda: len(upstream.requests) == 1)
        task.cancel()
        await until(upstream.requests[0].cancelled)
        assert task.cancelled()
        assert pool.idle == 0

    run(work)


def test_a_cancelled_connect_leaves_no_socket() -> None:
    with black_hole() as url:
        port = int(url.rpartition(":")[2])

        async def work(pool: Pool) -> None:
            task = asyncio.ensure_future(fetch(pool, Target(False, "127.0.0.1", port)))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait((task,))
            assert task.cancelled()

        run(work)


def test_a_cancel_at_any_moment_of_connecting_is_not_lost(upstream: FakeUpstream) -> None:
    """Also in the very moment in which the connection is made."""
    upstream.default = raw_reply(HANG)

    async def work(pool: Pool) -> None:
        for turns in range(40):
            task = asyncio.ensure_future(fetch(pool, target_of(upstream)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,), timeout=1)
            assert task.cancelled(), f"after {turns} turns of the loop"
        await until(lambda: upstream.open_connections == 0)

    run(work)


def test_the_limit_on_headers_leaves_room_for_ordinary_ones(upstream: FakeUpstream) -> None:
    upstream.script(Reply([b"{}"], headers={f"x-{n}": "v" * 100 for n in range(MAX_HEADER_BYTES // 200)}))

    async def work(pool: Pool) -> None:
        assert (await fetch(pool, target_of(upstream)))[0] == 200

    run(work)
