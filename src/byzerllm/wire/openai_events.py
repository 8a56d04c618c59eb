"""Neutral events as OpenAI's chat answers, streamed and whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.events import Event, Failure, Finish, Reasoning, Started, Text, Tokens, ToolCall
from byzerllm.wire.openai import DONE, error_event

_encode = msgspec.json.encode


def usage_object(tokens: Tokens) -> dict[str, Any]:
    """OpenAI's ``usage``; details only where there are any."""
    usage: dict[str, Any] = {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
    }
    if tokens.cached:
        usage["prompt_tokens_details"] = {"cached_tokens": tokens.cached}
    if tokens.reasoning:
        usage["completion_tokens_details"] = {"reasoning_tokens": tokens.reasoning}
    return usage


class StreamEncoder:
    """One answer as server-sent events. ``created`` is Unix time in seconds.

    ``tokens`` has the last counts and ``failure`` the error that the upstream reported, once they came.
    """

    def __init__(self, id: str, model: str, created: int, *, include_usage: bool) -> None:
        self.tokens: Tokens | None = None
        self.failure: UpstreamError | None = None
        self._include_usage = include_usage
        head = _encode({"id": id, "object": "chat.completion.chunk", "created": created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":'
        self._text_head = self._head + b'[{"index":0,"delta":{"content":'
        self._reasoning_head = self._head + b'[{"index":0,"delta":{"reasoning_content":'
        self._begun = False
        self._finished = False

    def encode(self, events: Iterable[Event]) -> bytes:
        """The bytes of these events; may be none."""
        out: list[bytes] = []
        for event in events:
            if not self._begun and isinstance(event, Text | Reasoning | ToolCall | Finish):
                self._begun = True
                out.append(self._chunk({"role": "assistant", "content": ""}))
            if isinstance(event, Text):
                if event.text:
                    out += (self._text_head, _encode(event.text), b'},"finish_reason":null}]}\n\n')
            elif isinstance(event, Reasoning):
                out.append(self._reasoning(event))
            elif isinstance(event, ToolCall):
                out.append(self._chunk({"tool_calls": [_call_piece(event)]}))
            elif isinstance(event, Tokens):
                self.tokens = event
            elif isinstance(event, Finish):
                self._finished = True
                out.append(self._chunk({}, event.reason))
            elif isinstance(event, Failure):
                self.failure = event.error
        return b"".join(out)

    def close(self) -> bytes:
        """The end of the stream: usage if it was asked for and ``[DONE]``, or the error that ended it."""
        if self.failure is None and not self._finished:
            self.failure = UpstreamBroken("The upstream ended its stream before the answer was whole.")
        if self.failure is not None:
            return error_event(self.failure)
        if self._include_usage and self.tokens is not None:
            return self._head + b'[],"usage":' + _encode(usage_object(self.tokens)) + b"}\n\n" + DONE
        return DONE

    def _reasoning(self, event: Reasoning) -> bytes:
        if event.signature:
            delta = {"reasoning_content": event.text, "reasoning_signature": event.signature}
            return self._chunk(delta)
        if not event.text:
            return b""
        return b"".join((self._reasoning_head, _encode(event.text), b'},"finish_reason":null}]}\n\n'))

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choices = _encode([{"index": 0, "delta": delta, "finish_reason": finish}])
        return self._head + choices + b"}\n\n"


def _call_piece(event: ToolCall) -> dict[str, Any]:
    piece: dict[str, Any] = {"index": event.index}
    if event.id:
        piece["id"] = event.id
    if event.name:
        piece["type"] = "function"
    piece["function"] = {**({"name": event.name} if event.name else {}), "arguments": event.arguments}
    if event.signature:
        piece["signature"] = event.signature
    return piece


class Answer:
    """Collects one whole answer. ``created`` is Unix time in seconds; ``tokens`` has the last counts."""

    def __init__(self, id: str, model: str, created: int) -> None:
        self.tokens: Tokens | None = None
        self._id, self._model, self._created = id, model, created
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._signature = ""
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish: str | None = None

    def add(self, event: Event) -> None:
        """Take the next event.

        Raises:
            UpstreamError: the upstream reported an error.
        """
        match event:
            case Text(text):
                self._text.append(text)
            case Reasoning(text, signature):
                self._reasoning.append(text)
                self._signature = signature or self._signature
            case ToolCall():
                join_call(self._calls, event)
            case Tokens():
                self.tokens = event
            case Finish(reason):
                self._finish = reason
            case Failure(error):
                raise error
            case Started(id, model):
                self._id, self._model = id or self._id, model or self._model

    def body(self) -> bytes:
        """The answer's JSON.

        Raises:
            UpstreamBroken: it did not come to its end.
        """
        if self._finish is None:
            raise UpstreamBroken("The upstream's answer is not whole: it does not say why it ended.")
        answer: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "message": self._message(), "logprobs": None, "finish_reason": self._finish}],
        }
        if self.tokens is not None:
            answer["usage"] = usage_object(self.tokens)
        return _encode(answer)

    def _message(self) -> dict[str, Any]:
        content = "".join(self._text) if self._text or not self._calls else None
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._signature:
            message["reasoning_signature"] = self._signature
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        return message


def join_call(calls: dict[int, dict[str, Any]], event: ToolCall) -> None:
    """Add a piece of a tool call to OpenAI's objects, by their index."""
    call = calls.setdefault(event.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call["id"] = call["id"] or event.id
    call["function"]["name"] = call["function"]["name"] or event.name
    call["function"]["arguments"] += event.arguments
    if event.signature:
        call["signature"] = event.signature
