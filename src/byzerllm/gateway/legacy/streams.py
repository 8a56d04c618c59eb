"""The answers that older clients read piece by piece, each under an id that they were given.

Such a client cannot say that it has stopped reading. So a stream that nobody reads is given up after a while, and the
one that was not read for the longest when all hold too much; its request is cancelled then and its slot is free.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from byzerllm.errors import ByzerError, Conflict, InternalError, NotFound, Overloaded
from byzerllm.gateway.legacy.answers import Reply
from byzerllm.wire.events import Event

log = logging.getLogger(__name__)

UNREAD_LIMIT = 120.0  # seconds
MEMORY_LIMIT = 64 * 1024 * 1024  # characters of all streams together

Take = Callable[[Iterable[Event]], None]
Source = Callable[[Take], Awaitable[None]]
"""Gives every event to ``Take`` and returns at the end of the answer; raises what went wrong."""


class Stream:
    """One answer under way. It ends by itself, with an error, or when its task is cancelled."""

    def __init__(self, source: Source, grown: Callable[[], None]) -> None:
        self.reply = Reply()
        self.readers = 0
        self.expiry: asyncio.TimerHandle | None = None
        self._grown = grown
        self._unseen = False
        self._error: ByzerError | None = None
        self._over = False
        self._changed = asyncio.Event()
        self._task = asyncio.ensure_future(self._run(source))
        self._task.add_done_callback(self._ended)  # one that is cancelled at once does not even begin

    async def next(self) -> Reply | None:
        """The answer so far, as soon as there is more of it than last time; None at its end.

        Raises:
            ByzerError: it broke off; what came before was seen.
        """
        while not self._unseen and not self._over:
            self._changed.clear()
            await self._changed.wait()
        if self._unseen:
            self._unseen = False
            return self.reply
        if self._error is not None:
            raise self._error
        return None

    def cancel(self, error: ByzerError | None = None) -> None:
        """End it here; ``error`` is what its reader is told after what has come."""
        self._error = self._error or error
        self._task.cancel()

    async def _run(self, source: Source) -> None:
        try:
            await source(self._take)
        except ByzerError as error:
            self._error = error
        except Exception:
            log.exception("a stream failed")
            self._error = InternalError("Internal error; the log of the instance's actor has the details.")

    def _ended(self, _: asyncio.Future[None]) -> None:
        self._over = True
        self._changed.set()

    def _take(self, events: Iterable[Event]) -> None:
        try:
            self._unseen = self.reply.add(events) or self._unseen
        finally:
            self._changed.set()
        self._grown()


class Streams:
    """All streams of an instance."""

    def __init__(self, unread_limit: float, memory_limit: int = MEMORY_LIMIT) -> None:
        self._unread_limit = unread_limit
        self._memory_limit = memory_limit
        self._streams: dict[str, Stream] = {}  # the one that was not read for the longest is first

    def start(self, id: str, source: Source) -> None:
        """Begin to read an answer.

        Raises:
            Conflict: the id is in use.
        """
        if id in self._streams:
            raise Conflict(f"There is a stream with the id {id} already.", param="gen.request_id")
        stream = self._streams[id] = Stream(source, self._limit_memory)
        self._watch(id, stream)

    async def next(self, id: str) -> Reply | None:
        """See ``Stream.next``. After the end the id is forgotten.

        Raises:
            NotFound: there is no such stream, or no more.
            ByzerError: it broke off.
        """
        stream = self._streams.pop(id, None)
        if stream is None:
            raise NotFound(
                f"There is no stream {id}: it was read to its end or lost in a restart, nobody read it for "
                f"{self._unread_limit:g} s, or the streams that wait to be read hold too much memory."
            )
        self._streams[id] = stream  # now the last
        stream.readers += 1
        if stream.expiry is not None:
            stream.expiry.cancel()
        reply = None
        try:
            reply = await stream.next()
        except asyncio.CancelledError:
            reply = stream.reply  # the reader went away, the stream is still there
            raise
        finally:
            stream.readers -= 1
            if reply is None:
                self._streams.pop(id, None)
            elif not stream.readers and self._streams.get(id) is stream:
                self._watch(id, stream)
        return reply

    def abort(self, id: str) -> None:
        """End the stream, if there is one; its reader finds its end after what has come."""
        stream = self._streams.get(id)
        if stream is not None:
            stream.cancel()

    def close(self) -> None:
        """End them all."""
        for id in list(self._streams):
            self._give_up(id)

    def _watch(self, id: str, stream: Stream) -> None:
        stream.expiry = asyncio.get_running_loop().call_later(self._unread_limit, self._give_up, id)

    def _give_up(self, id: str) -> None:
        stream = self._streams.pop(id, None)
        if stream is not None:
            if stream.expiry is not None:
                stream.expiry.cancel()
            stream.cancel(Overloaded("The stream was given up: those that wait to be read hold too much memory."))
            log.info("stream %s given up", id)

    def _limit_memory(self) -> None:
        while sum(s.reply.size for s in self._streams.values()) > self._memory_limit:
            self._give_up(next(iter(self._streams)))
