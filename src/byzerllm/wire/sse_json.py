"""Streams of vendors that answer with one JSON body where no stream comes about: a refusal, mostly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from byzerllm.errors import UpstreamBroken
from byzerllm.wire.base import BAD_JSON
from byzerllm.wire.events import Event, Failure, Finish
from byzerllm.wire.sse import ServerSentEvent, SseReader


class SseJsonDecoder(ABC):
    """Implements ``StreamDecoder``. A format gives ``_chunk``, and ``whole``: the events of a body that is no stream.
    A stream is over at its first ``Finish`` or ``Failure``; what follows is not looked at."""

    def __init__(self, whole: Callable[[bytes], list[Event]]) -> None:
        self._whole = whole
        self._reader = SseReader()
        self._body: list[bytes] | None = None  # of an answer that is no stream
        self._begun = False
        self._over = False

    def feed(self, data: bytes) -> list[Event]:
        if not self._begun:
            data = data.lstrip()
            if not data:
                return []
            self._begun = True
            self._body = [] if data.startswith(b"{") else None
        if self._body is not None:
            self._body.append(data)
            return []
        return self._events(self._reader.feed(data))

    def close(self) -> list[Event]:
        if self._body is not None:
            return self._whole(b"".join(self._body))
        events = self._events(self._reader.close())
        return events if self._over else [*events, self._cut_off()]

    def _events(self, received: list[ServerSentEvent]) -> list[Event]:
        events: list[Event] = []
        for event in received:
            if self._over:
                break
            try:
                events += self._chunk(event)
            except BAD_JSON as error:
                events.append(malformed(error))
            self._over = bool(events) and isinstance(events[-1], Finish | Failure)
        return events

    @abstractmethod
    def _chunk(self, event: ServerSentEvent) -> list[Event]:
        """The events of one chunk; a ``Finish`` or ``Failure`` is the last.

        Raises:
            one of ``BAD_JSON``: it is not of the vendor's form.
        """

    def _cut_off(self) -> Event:
        """What an end without a terminal marker means."""
        return Failure(UpstreamBroken("The upstream ended its stream before the answer was whole."))


def malformed(error: Exception) -> Failure:
    """For an answer that is not of the vendor's form."""
    return Failure(UpstreamBroken(f"The upstream's answer is not of its form: {error}."))
