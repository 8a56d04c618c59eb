"""The tokens of a stream, for the accounts: engines tell them when they are asked to, which most clients do not do.

So the question is added, and the event that answers it is kept from a client that has not asked: its ``choices`` are
empty, which not every client is prepared for.
"""

from __future__ import annotations

import re

import msgspec

from byzerllm.wire.base import BAD_JSON, Request, Task

_FIELD, _ASKED = "stream_options", "include_usage"
_OPTIONS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_EMPTY = re.compile(rb'"choices": ?\[\]')  # not so in the texts of an answer, whose quotes are escaped
_USAGE = re.compile(rb'"usage": ?\{')


def asking(request: Request) -> Request | None:
    """The request with the question for its tokens; None where the client asks itself, or where it cannot be asked."""
    if not request.stream or request.task not in (Task.CHAT, Task.COMPLETION):
        return None
    given = request.fields.get(_FIELD, msgspec.Raw(b"null"))
    try:
        options = {} if bytes(given) == b"null" else _OPTIONS.decode(given)
    except BAD_JSON:
        return None  # the engine says what is wrong with it
    if bytes(options.get(_ASKED, b"false")) not in (b"false", b"null"):
        return None
    asked = msgspec.Raw(msgspec.json.encode({**options, _ASKED: True}))
    return Request(request.task, {**request.fields, _FIELD: asked}, request.model, request.stream)


class UsageFilter:
    """Takes the event that tells the tokens out of the pieces of one stream."""

    def __init__(self) -> None:
        self._held = b""  # the beginning of that event

    def feed(self, piece: bytes) -> bytes:
        """What the client is to see of a piece. An event that it has seen the beginning of it sees to the end."""
        if self._held:
            piece, self._held = self._held + piece, b""
        found = _EMPTY.search(piece)
        if found is None:
            return piece
        start = piece.rfind(b"\n\n", 0, found.start())
        start = start + 2 if start >= 0 else 0
        if not piece.startswith(b"data:", start):
            return piece
        end = piece.find(b"\n\n", found.end())
        if end < 0:
            self._held = piece[start:]
            return piece[:start]
        if not _USAGE.search(piece, start, end):
            return piece
        return piece[:start] + piece[end + 2 :]
