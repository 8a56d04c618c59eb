"""A streamed chat answer, read from server-sent events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from byzerllm.client.admin import described_error
from byzerllm.errors import UpstreamBroken

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from byzerllm.client.admin import AdminClient


class Piece(NamedTuple):
    """A part of an answer: text for the user, or of the model's reasoning before it."""

    text: str
    reasoning: str


def stream_chat(
    client: AdminClient, body: dict[str, Any], path: str = "/v1/chat/completions"
) -> Generator[Piece, None, None]:
    """The pieces of the answer as they arrive, of a chat or, with its path, a completion. Closing the iterator cancels
    the request.

    Raises:
        UpstreamBroken: the stream stopped before the model had finished.
        ByzerError: what the server or the vendor answered, before or amid the stream.
    """
    finished = False
    for data in event_data(client.lines("POST", path, {**body, "stream": True})):
        if data == "[DONE]":
            return
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            raise UpstreamBroken(f"The answer's stream holds what is no JSON object: {data[:80]!r}")
        if chunk.get("error"):
            raise described_error(chunk["error"], 502)
        for choice in chunk.get("choices") or ():
            finished = finished or choice.get("finish_reason") is not None
            delta = choice.get("delta") or {}
            piece = Piece(delta.get("content") or choice.get("text") or "", delta.get("reasoning_content") or "")
            if any(piece):
                yield piece
    if not finished:
        raise UpstreamBroken("The answer broke off before its end.", hint="Ask again.")


def event_data(lines: Iterable[bytes]) -> Iterator[str]:
    """The data of each server-sent event; comments and other fields are skipped."""
    parts: list[str] = []
    for line in lines:
        if line.startswith(b"data:"):
            parts.append(line[5:].decode("utf-8", "replace").removeprefix(" "))
        elif not line and parts:
            yield "\n".join(parts)
            parts = []
