"""The websocket as an exchange, over real sockets: frames, refusals, timeouts, proxies and TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from email.utils import formatdate
from typing import Any

import pytest
import uvloop
from tests.between import Authority, Proxy
from tests.fakes import HANG, RESET, FakeUpstream, black_hole, raw_reply
from tests.harness import eventually, free_port
from tests.relaying import QUICK, outgoing
from tests.spark import FakeSpark
from tests.vendors.spark import error_in_answer, stream

from byzerllm.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from byzerllm.relay.pool import Pool
from byzerllm.relay.target import Target
from byzerllm.relay.websocket import WebSocket
from byzerllm.spec import Timeouts
from byzerllm.wire.events import Finish, Text
from byzerllm.wire.spark import Spark, signed_query

pytestmark = pytest.mark.usefixtures("no_blocking")

FRAMES = stream([Text("one"), Text("two"), Text("three"), Finish("stop")]).splitlines()
HEADERS = {
    "Host": "fake", "User-Agent": "byzerllm/0", "Accept": "*/*", "X-Team": "a", "Content-Type": "application/json",
}  # fmt: skip


@pytest.fixture
def spark() -> Iterator[FakeSpark]:
    with FakeSpark() as spark:
        yield spark


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """In a loop of its own; no connection is left behind."""
    before = outgoing()

    async def main() -> None:
        await work()
        await asyncio.sleep(0.01)

    uvloop.run(main())
    eventually(lambda: outgoing() <= before, 2, "every connection is closed")


def target_of(spark: FakeSpark | FakeUpstream, **more: Any) -> Target:
    return Target(False, "127.0.0.1", spark.port, **more)


def path_of(target: Target) -> str:
    date = formatdate(usegmt=True)
    return "/v3.1/chat?" + signed_query(target.authority, "/v3.1/chat", date, api_key="key", api_secret="secret")


async def opened(target: Target, timeouts: Timeouts = QUICK, path: str = "") -> WebSocket:
    socket = WebSocket(target, timeouts, Spark().is_last)
    await socket.open(path or path_of(target), HEADERS, b'{"a": 1}')
    return socket


async def failure(target: Target, timeouts: Timeouts = QUICK) -> UpstreamError:
    """What opening or reading ends with."""

    async def fetch() -> bytes:
        return await (await opened(target, timeouts)).read_all(1_000_000)

    with pytest.raises(UpstreamError) as caught:
        await fetch()
    return caught.value


def test_one_frame_goes_up_and_the_answer_comes_down_frame_by_frame(spark: FakeSpark) -> None:
    spark.script([FRAMES[0], 0.02, *FRAMES[1:]])

    async def work() -> None:
        pool = Pool()
        socket = await opened(target_of(spark))
        assert socket.status == 200
        assert [await socket.read() for _ in FRAMES] == [frame + b"\n" for frame in FRAMES]
        assert await socket.read() == b""
        pool.give_back(socket)
        assert pool.idle == 0, "it is used once"

    run(work)
    assert spark.received == [b'{"a": 1}']
    [handshake] = spark.handshakes
    assert handshake.headers.get_all("Host") == [f"127.0.0.1:{spark.port}"]
    assert handshake.headers.get_all("User-Agent") == ["byzerllm/0"]
    assert handshake.headers["X-Team"] == "a"
    assert "Content-Type" not in handshake.headers


def test_a_frame_of_several_lines_is_one(spark: FakeSpark) -> None:
    spark.script([b'{"header":\n {"code": 0, "sid": "s",\n "status": 2}}'])

    async def work() -> None:
        assert await (await opened(target_of(spark))).read() == b'{"header":  {"code": 0, "sid": "s",  "status": 2}}\n'

    run(work)


def test_nothing_is_waited_for_after_the_last_frame_or_an_error(spark: FakeSpark) -> None:
    spark.script([*FRAMES, HANG], [error_in_answer("10013", "no").strip(), HANG])

    async def work() -> None:
        for expected in (b"\n".join(FRAMES) + b"\n", error_in_answer("10013", "no")):
            socket = await opened(target_of(spark))
            assert await socket.read_all(1_000_000) == expected
            socket.abort()

    run(work)


def test_an_orderly_close_ends_the_answer_and_a_reset_breaks_it(spark: FakeSpark) -> None:
    spark.script(FRAMES[:1], [*FRAMES[:1], RESET], [RESET])

    async def work() -> None:
        socket = await opened(target_of(spark))
        assert await socket.read_all(1_000_000) == FRAMES[0] + b"\n"
        socket.abort()
        broken = await failure(target_of(spark))
        assert isinstance(broken, UpstreamBroken)
        assert "during its answer" in broken.message
        assert "without an answer" in (await failure(target_of(spark))).message

    run(work)


def test_a_refused_handshake_is_an_answer(spark: FakeSpark) -> None:
    spark.refuse = (403, b'{"message":"HMAC signature does not match"}')

    async def work() -> None:
        socket = await opened(target_of(spark))
        assert socket.status == 403
        assert (b"x-request-id", b"r-1") in socket.headers
        assert await socket.read_all(1000) == b'{"message":"HMAC signature does not match"}'
        assert await socket.read() == b""
        socket.abort()

    run(work)


def test_a_redirect_is_not_followed(spark: FakeSpark, upstream: FakeUpstream) -> None:
    upstream.script(
        raw_reply(b"HTTP/1.1 302 Found\r\nlocation: %b/x\r\ncontent-length: 0\r\n\r\n" % spark.url.encode())
    )

    async def work() -> None:
        socket = await opened(target_of(upstream))
        assert socket.status == 302
        assert await socket.read() == b""

    run(work)
    assert not spark.handshakes


@pytest.mark.parametrize(
    ("script", "timeouts", "kind"),
    [
        ([HANG], Timeouts(first_byte=0.1), "first_byte"),
        ([*FRAMES[:1], HANG], Timeouts(idle=0.1), "idle"),
        ([*[FRAMES[0], 0.05] * 20], Timeouts(idle=1, total=0.3), "total"),
    ],
)
def test_timeouts(spark: FakeSpark, script: list[Any], timeouts: Timeouts, kind: str) -> None:
    spark.script(script)

    async def work() -> None:
        late = await failure(target_of(spark), timeouts)
        assert isinstance(late, UpstreamTimeout)
        assert late.details == {"timeout": kind}

    run(work)


def test_the_time_for_a_connection_covers_the_handshake() -> None:
    async def work(target: Target) -> None:
        late = await failure(target, Timeouts(connect=0.2))
        assert isinstance(late, UpstreamTimeout)
        assert late.details == {"timeout": "connect"}

    with black_hole() as url:
        port = int(url.rpartition(":")[2])
        run(lambda: work(Target(False, "127.0.0.1", port)))
    with FakeUpstream(accept=False) as silent:
        run(lambda: work(target_of(silent)))


def test_what_cannot_be_reached_or_speaks_no_websocket(upstream: FakeUpstream) -> None:
    upstream.script(raw_reply(b"hello\r\n\r\n"), raw_reply(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"))

    async def work() -> None:
        refused = await failure(Target(False, "127.0.0.1", free_port()))
        assert isinstance(refused, UpstreamUnreachable)
        assert "connection refused" in refused.message
        for _ in range(2):
            broken = await failure(target_of(upstream))
            assert isinstance(broken, UpstreamBroken)
            assert "could not be opened" in broken.message

    run(work)


def test_a_cancelled_read_and_a_cancelled_handshake_close_the_socket_at_once(spark: FakeSpark) -> None:
    spark.script([*FRAMES[:1], HANG])

    async def work() -> None:
        async def use() -> None:
            socket = await opened(target_of(spark))
            try:
                while await socket.read():
                    pass
            finally:
                socket.abort()

        using = asyncio.ensure_future(use())
        await asyncio.sleep(0.2)
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
        await asyncio.to_thread(eventually, lambda: len(spark.gone) == 1, 0.5, "the vendor sees it")

    run(work)
    with FakeUpstream(accept=False) as silent:

        async def give_up() -> None:
            opening = asyncio.ensure_future(opened(target_of(silent)))
            await asyncio.sleep(0.05)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening

        run(give_up)


def test_through_a_proxy(spark: FakeSpark) -> None:
    spark.script(FRAMES)
    with Proxy() as proxy:
        proxy.credentials = "user:pass"

        async def work() -> None:
            socket = await opened(target_of(spark, proxy=proxy.url))
            assert await socket.read_all(1_000_000) == b"\n".join(FRAMES) + b"\n"
            socket.abort()
            proxy.status = 403
            refused = await failure(target_of(spark, proxy=proxy.url))
            assert isinstance(refused, UpstreamUnreachable)
            assert "the proxy refused" in refused.message
            assert "pass" not in refused.message

        run(work)
        assert [a.line for a in proxy.asked] == [f"CONNECT 127.0.0.1:{spark.port} HTTP/1.1"] * 2


def test_from_a_local_address(spark: FakeSpark) -> None:
    spark.script(FRAMES)

    async def work() -> None:
        socket = await opened(target_of(spark, local_address="127.0.0.3"))
        await socket.read_all(1_000_000)
        socket.abort()

    run(work)
    assert spark.peers == ["127.0.0.3"]


def test_over_tls(authority: Authority) -> None:
    with FakeSpark(ssl=authority.context()) as spark:
        spark.script(FRAMES)

        async def work() -> None:
            socket = await opened(Target(True, "127.0.0.1", spark.port, ca_file=str(authority.ca)))
            assert (await socket.read_all(1_000_000)).count(b"\n") == len(FRAMES)
            socket.abort()
            untrusted = await failure(Target(True, "127.0.0.1", spark.port))
            assert isinstance(untrusted, UpstreamUnreachable)
            assert "saas.ca_file" in (untrusted.hint or "")

        run(work)
