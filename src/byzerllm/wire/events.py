"""The neutral form between wire formats: what an answer consists of, whoever gave it and whoever gets it.

A format that is not OpenAI's turns its answers into these events, and ``openai_events.py`` turns them into OpenAI's
format. So N formats of vendors and M of clients cost N + M.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from byzerllm.errors import UpstreamError

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Started(msgspec.Struct, frozen=True, gc=False):
    """The upstream's id of the answer and its name of the model; either may be empty."""

    id: str = ""
    model: str = ""


class Text(msgspec.Struct, frozen=True, gc=False):
    """A piece of the visible answer."""

    text: str


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """A piece of the reasoning before it. ``signature`` is what some vendors want to see again with it."""

    text: str
    signature: str = ""


class ToolCall(msgspec.Struct, frozen=True, gc=False):
    """A piece of a tool call. The first one of an ``index`` has ``id`` and ``name``; ``arguments`` are JSON text to be
    joined. ``signature``: as for reasoning."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    signature: str = ""


class Tokens(msgspec.Struct, frozen=True, gc=False):
    """Counts as the upstream gives them; a later one replaces an earlier one."""

    prompt: int
    completion: int
    cached: int = 0  # of the prompt
    reasoning: int = 0  # of the completion


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The answer is whole."""

    reason: FinishReason


class Failure(msgspec.Struct, frozen=True):
    """The upstream reported an error inside the answer; nothing follows it."""

    error: UpstreamError


Event = Started | Text | Reasoning | ToolCall | Tokens | Finish | Failure


class StreamDecoder(Protocol):
    """Turns the bytes of one streamed answer into events, however the bytes are cut."""

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete."""
        ...

    def close(self) -> list[Event]:
        """The upstream's body has ended: what is still to be said. A stream that is not whole ends with a Failure."""
        ...
