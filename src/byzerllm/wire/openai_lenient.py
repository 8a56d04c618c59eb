"""OpenAI's chat format from vendors that leave out what clients rely on: finish reasons, ids, the index of a tool call.

The request passes as it is, but for the model's name; the answer goes through neutral events and comes out whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor, with_model
from byzerllm.wire.chat import ImagePart, decode_chat
from byzerllm.wire.events import Event, Failure, Finish, FinishReason, Reasoning, Started, Text, Tokens, ToolCall
from byzerllm.wire.openai import PATHS, failure, parse_error
from byzerllm.wire.sse import ServerSentEvent
from byzerllm.wire.sse_json import SseJsonDecoder, malformed
from byzerllm.wire.stream_usage import asking

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | _Call | None = None  # Spark sends one without a list around it


class _Choice(msgspec.Struct):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    id: Any = None
    sid: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)


class OpenAILenient:
    """Whatever the client sets goes to the vendor; what its table says it has not, is refused."""

    name = "openai_lenient"
    tasks = frozenset((Task.CHAT,))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        chat = decode_chat(request)
        if any(isinstance(part, ImagePart) for message in chat.messages for part in message.parts):
            vendor.needs("vision", "messages")
        if chat.tools:
            vendor.needs("tools", "tools")
        if chat.json_schema is not None:
            vendor.needs("json_schema", "response_format")
        asked = asking(request, {}) if vendor.asks_usage else None
        return Outgoing(PATHS[request.task], with_model(asked or request, vendor.model, {}))

    def stream(self) -> SseJsonDecoder:
        return _Decoder(self.events)

    def events(self, body: bytes) -> list[Event]:
        answer = _Answer()
        try:
            events = answer.events(body)
        except BAD_JSON as error:
            return [malformed(error)]
        if events and isinstance(events[-1], Failure):
            return events
        if not answer.chose:
            return [Failure(UpstreamBroken("The upstream's answer has no choices."))]
        return [*events, Finish(answer.reason)]

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return parse_error(status, headers, body)


class _Answer:
    """What is known of one answer so far."""

    def __init__(self) -> None:
        self.chose = False
        self.finished = False
        self._called = False
        self._reason = ""
        self._started = False

    @property
    def reason(self) -> FinishReason:
        """The vendor's, or what the answer itself suggests."""
        return _REASONS.get(self._reason) or ("tool_calls" if self._called else "stop")

    def events(self, data: bytes) -> list[Event]:
        found = failure(data)
        if found is not None:
            return [Failure(found)]
        chunk = _CHUNK.decode(data)
        events: list[Event] = []
        if not self._started:
            self._started = True
            events.append(Started(str(chunk.id or chunk.sid or ""), chunk.model or ""))
        for choice in chunk.choices or ():
            self.chose = True
            if choice.finish_reason:
                self._reason, self.finished = choice.finish_reason, True
            events += self._pieces(choice.delta or choice.message or _Message())
        if chunk.usage is not None:
            events.append(_tokens(chunk.usage))
        return events

    def _pieces(self, message: _Message) -> list[Event]:
        events: list[Event] = []
        if message.reasoning_content:
            events.append(Reasoning(message.reasoning_content))
        if message.content:
            events.append(Text(message.content))
        calls = message.tool_calls or []
        for position, call in enumerate([calls] if isinstance(calls, _Call) else calls):
            self._called = True
            function = call.function or _Function()
            index = position if call.index is None else call.index
            events.append(ToolCall(index, call.id or "", function.name or "", function.arguments or ""))
        return events


class _Decoder(SseJsonDecoder):
    def __init__(self, whole: Any) -> None:
        super().__init__(whole)
        self._answer = _Answer()

    def _chunk(self, event: ServerSentEvent) -> list[Event]:
        if event.data.strip() == b"[DONE]":
            return [Finish(self._answer.reason)] if self._answer.chose else [self._cut_off()]
        return self._answer.events(event.data)

    def _cut_off(self) -> Event:
        return Finish(self._answer.reason) if self._answer.finished else super()._cut_off()


def _tokens(usage: _Usage) -> Tokens:
    prompt, completion = usage.prompt_tokens_details or _Details(), usage.completion_tokens_details or _Details()
    return Tokens(
        usage.prompt_tokens, usage.completion_tokens, prompt.cached_tokens or 0, completion.reasoning_tokens or 0
    )
