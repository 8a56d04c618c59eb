"""Streams that are read piece by piece, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from byzerllm.errors import Conflict, InternalError, NotFound, Overloaded, UpstreamBroken
from byzerllm.gateway.legacy.streams import Source, Streams, Take
from byzerllm.wire.events import Finish, Text

LONG = 3600.0  # seconds


def text_of(reply: Any) -> str:
    return str(reply.text)


class Scripted:
    """A source that goes on when it is told to."""

    def __init__(self) -> None:
        self.take: Take
        self.begun = asyncio.Event()
        self.over = asyncio.Event()
        self.cancelled = False
        self.error: Exception | None = None

    async def __call__(self, take: Take) -> None:
        self.take = take
        self.begun.set()
        try:
            await self.over.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def started(streams: Streams, id: str = "s") -> Scripted:
    source = Scripted()
    accepted: Source = source
    streams.start(id, accepted)
    await source.begun.wait()
    return source


def test_a_reader_gets_what_is_new_and_then_the_end() -> None:
    async def test() -> None:
        streams = Streams(LONG)
        source = await started(streams)
        source.take([Text("a")])
        source.take([Text("b")])
        assert text_of(await streams.next("s")) == "ab"
        waiting = asyncio.ensure_future(streams.next("s"))
        await asyncio.sleep(0)
        assert not waiting.done()
        source.take([])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()  # nothing new came
        source.take([Text("c"), Finish("stop")])
        assert text_of(await waiting) == "abc"
        source.over.set()
        assert await streams.next("s") is None
        with pytest.raises(NotFound):
            await streams.next("s")

    run(test)


@pytest.mark.parametrize(("raised", "seen"), [(UpstreamBroken("cut"), UpstreamBroken), (KeyError("x"), InternalError)])
def test_an_error_comes_after_what_came_before_it(raised: Exception, seen: type[Exception]) -> None:
    async def test() -> None:
        streams = Streams(LONG)
        source = await started(streams)
        source.take([Text("a")])
        source.error = raised
        source.over.set()
        assert text_of(await streams.next("s")) == "a"
        with pytest.raises(seen):
            await streams.next("s")
        with pytest.raises(NotFound):
            await streams.next("s")

    run(test)


def test_a_stream_that_nobody_reads_is_cancelled_and_forgotten() -> None:
    async def test() -> None:
        streams = Streams(0.0)
        source = await started(streams)
        while not source.cancelled:
            await asyncio.sleep(0)
        with pytest.raises(NotFound):
            await streams.next("s")

    run(test)


def test_a_stream_that_is_waited_for_is_not_given_up() -> None:
    async def test() -> None:
        streams = Streams(0.0)
        source = Scripted()
        streams.start("s", source)
        waiting = asyncio.ensure_future(streams.next("s"))
        await source.begun.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not source.cancelled
        source.take([Text("a")])
        assert text_of(await waiting) == "a"
        while not source.cancelled:  # and now nobody waits
            await asyncio.sleep(0)

    run(test)


def test_a_reader_that_goes_away_leaves_the_stream_for_the_next_one() -> None:
    async def test() -> None:
        streams = Streams(LONG)
        source = await started(streams)
        waiting = asyncio.ensure_future(streams.next("s"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        source.take([Text("a")])
        assert text_of(await streams.next("s")) == "a"
        streams.abort("s")

    run(test)


def test_an_aborted_stream_ends_for_its_reader_even_before_it_began() -> None:
    async def test() -> None:
        streams = Streams(LONG)
        source = await started(streams)
        source.take([Text("a")])
        streams.abort("s")
        assert text_of(await streams.next("s")) == "a"
        assert await streams.next("s") is None
        assert source.cancelled
        streams.start("t", Scripted())
        streams.abort("t")
        assert await streams.next("t") is None
        streams.abort("unknown")

    run(test)


def test_the_longest_unread_stream_makes_room() -> None:
    async def test() -> None:
        streams = Streams(LONG, memory_limit=10)
        first, second = await started(streams, "1"), await started(streams, "2")
        first.take([Text("12345")])
        assert text_of(await streams.next("1")) == "12345"
        second.take([Text("67890")])
        assert not second.cancelled
        waiting = asyncio.ensure_future(streams.next("1"))  # read later than the second
        await asyncio.sleep(0)
        first.take([Text("x")])
        assert text_of(await waiting) == "12345x"
        with pytest.raises(NotFound):
            await streams.next("2")
        waiting = asyncio.ensure_future(streams.next("1"))
        await asyncio.sleep(0)
        first.take([Text("67890")])
        assert text_of(await waiting) == "12345x67890"
        streams.abort("1")

    run(test)


def test_a_reader_whose_stream_made_room_is_told() -> None:
    async def test() -> None:
        streams = Streams(LONG, memory_limit=5)
        first = await started(streams, "1")
        first.take([Text("123")])
        assert text_of(await streams.next("1")) == "123"
        waiting = asyncio.ensure_future(streams.next("1"))
        await asyncio.sleep(0)
        second = await started(streams, "2")
        second.take([Text("456")])
        with pytest.raises(Overloaded):
            await waiting
        second.take([Text("789")])  # too large by itself
        with pytest.raises(NotFound, match="memory"):
            await streams.next("2")

    run(test)


def test_an_id_in_use_is_refused() -> None:
    async def test() -> None:
        streams = Streams(LONG)
        await started(streams)
        with pytest.raises(Conflict):
            streams.start("s", Scripted())
        streams.abort("s")

    run(test)
