"""The tokens of a stream, for the accounts: upstreams tell them when they are asked to, which most clients do not do.

So the question is added, and what answers it is kept from a client that has not asked: an event whose ``choices`` are
empty, which not every client is prepared for, and a ``usage`` of null in each of the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from byzerllm.wire.base import BAD_JSON, Request, Task

LONGEST = 4096  # bytes of an event that can be the one with the tokens

_FIELD, _ASKED = "stream_options", "include_usage"
_OPTIONS = msgspec.json.Decoder(dict[str, msgspec.Raw])
# None of these is found in the texts of an answer, whose quotes are escaped.
_EMPTY = re.compile(rb'"choices": ?\[\]')
_USAGE = re.compile(rb'"usage": ?\{')
_NULLS = (b',"usage":null', b', "usage": null')
_BETWEEN = re.compile(rb"(?<=\n\n)|(?<=\n\r\n)")


def asking(request: Request, defaults: Mapping[str, msgspec.Raw]) -> Request | None:
    """The request with the question for its tokens; None where the client is to see them, or where it cannot be asked.
    ``defaults`` are the instance owner's fields."""
    if not request.stream or request.task not in (Task.CHAT, Task.COMPLETION):
        return None
    given = request.fields.get(_FIELD) or defaults.get(_FIELD) or msgspec.Raw(b"null")
    try:
        options = {} if bytes(given) == b"null" else _OPTIONS.decode(given)
    except BAD_JSON:
        return None  # the upstream says what is wrong with it
    if bytes(options.get(_ASKED, b"false")) not in (b"false", b"null"):
        return None
    asked = msgspec.Raw(msgspec.json.encode({**options, _ASKED: True}))
    return Request(request.task, {**request.fields, _FIELD: asked}, request.model, request.stream)


class UsageFilter:
    """Takes the answer to that question out of the pieces of one stream."""

    def __init__(self) -> None:
        self._held = b""  # the beginning of an event

    def feed(self, piece: bytes) -> bytes:
        """What the client is to see of the events that the piece completes. A long one it sees as it comes."""
        if self._held:
            piece = self._held + piece
        end = len(piece) if piece.endswith(b"\n\n") else _end_of_events(piece)
        if len(piece) - end >= LONGEST:
            end = len(piece)
        self._held = piece[end:]
        return _shown(piece[:end])

    def close(self) -> bytes:
        """The same for a last event that nothing follows, not even its empty line."""
        return _shown(self._held)


def _end_of_events(piece: bytes) -> int:
    """Where the last whole event ends; 0: there is none."""
    found = max(piece.rfind(b"\n\n"), piece.rfind(b"\n\r\n"))
    return piece.index(b"\n", found + 1) + 1 if found >= 0 else 0


def _shown(events: bytes) -> bytes:
    if events.find(b'"usage"') < 0:
        return events
    for null in _NULLS:
        events = events.replace(null, b"")
    if not _EMPTY.search(events):
        return events
    return b"".join(e for e in _BETWEEN.split(events) if not (_EMPTY.search(e) and _USAGE.search(e)))
