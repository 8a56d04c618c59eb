"""Anthropic's Messages format: Claude, and the vendors that are compatible with it.

Facts: platform.claude.com/docs/en/api/messages and /build-with-claude/streaming.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.anthropic_request import messages_body
from byzerllm.wire.anthropic_thinking import signature_of
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.chat import decode_chat
from byzerllm.wire.events import (
    Event,
    Failure,
    Finish,
    FinishReason,
    Reasoning,
    Started,
    StreamDecoder,
    Text,
    Tokens,
    ToolCall,
)
from byzerllm.wire.openai import parse_error
from byzerllm.wire.sse import SseReader

_PATH = "/v1/messages"

_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",  # unfinished: sent back as it is, it goes on
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
# The status that an error would have had before the stream began.
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class _Details(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_details: _Details | None = None

    def update(self, later: _Usage) -> None:
        """Take over what a later event says; it need not repeat what an earlier one said."""
        for name in self.__struct_fields__:
            value = getattr(later, name)
            if value is not None:
                setattr(self, name, value)

    def tokens(self) -> Tokens:
        cached = self.cache_read_input_tokens or 0
        prompt = (self.input_tokens or 0) + (self.cache_creation_input_tokens or 0) + cached
        details = self.output_tokens_details
        return Tokens(prompt, self.output_tokens or 0, cached, (details and details.thinking_tokens) or 0)


class _Block(msgspec.Struct):
    """A content block, whole or as a stream begins it."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    type: str = ""
    id: str | None = None
    model: str | None = None
    content: list[_Block] = []
    stop_reason: str | None = None
    usage: _Usage | None = None


class _StreamEvent(msgspec.Struct):
    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: _Usage | None = None


class _Kind(msgspec.Struct):
    type: str = ""


class _ErrorDetails(msgspec.Struct):
    error_code: str | None = None


class _ErrorObject(msgspec.Struct):
    details: _ErrorDetails | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorObject


_EVENT = msgspec.json.Decoder(_StreamEvent)
_KIND = msgspec.json.Decoder(_Kind)
_MESSAGE = msgspec.json.Decoder(_Message)
_ERROR = msgspec.json.Decoder(_ErrorBody)
_KNOWN = frozenset(
    (
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    )
)


class Anthropic:
    """The upstream side of the Messages API. The base URL is without ``/v1``, as Anthropic's own SDKs have it."""

    name = "anthropic"
    tasks = frozenset((Task.CHAT,))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        return Outgoing(_PATH, messages_body(decode_chat(request), vendor))

    def stream(self) -> StreamDecoder:
        return AnthropicStream()

    def events(self, body: bytes) -> list[Event]:
        try:
            message = _MESSAGE.decode(body)
        except BAD_JSON as error:
            return [Failure(UpstreamBroken(f"The upstream's answer is no Anthropic message: {error}."))]
        if message.type == "error":
            return [Failure(_in_band(body))]
        content = _Content()
        events: list[Event] = [Started(message.id or "", message.model or "")]
        for index, block in enumerate(message.content):
            events += content.start(index, block)
            events += content.stop(index)
        if message.usage is not None:
            events.append(message.usage.tokens())
        events.append(_end(message.stop_reason))
        return events

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return _error(status, headers, body)


class AnthropicStream:
    """Implements ``StreamDecoder``. Events and deltas of unknown types are skipped: the API announces new ones."""

    def __init__(self) -> None:
        self._reader = SseReader()
        self._content = _Content()
        self._usage = _Usage()
        self._stop_reason: str | None = None
        self._over = False

    def feed(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        for sse in self._reader.feed(data):
            events += self._take(sse.data)
        return events

    def close(self) -> list[Event]:
        events: list[Event] = []
        for sse in self._reader.close():
            events += self._take(sse.data)
        if not self._over:
            events.append(self._broken("The upstream ended its stream before message_stop."))
        return events

    def _take(self, data: bytes) -> list[Event]:
        if self._over:
            return []
        try:
            event = _EVENT.decode(data)
        except BAD_JSON as error:
            return [] if _is_unknown(data) else [self._broken(f"The upstream sent a malformed event: {error}.")]
        kind = event.type
        if kind == "content_block_delta":
            return self._content.delta(event.index, event.delta) if event.delta is not None else []
        if kind == "content_block_start":
            return self._content.start(event.index, event.content_block) if event.content_block is not None else []
        if kind == "content_block_stop":
            return self._content.stop(event.index)
        if kind == "error":
            self._over = True
            return [Failure(_in_band(data))]
        return self._take_message(event)

    def _take_message(self, event: _StreamEvent) -> list[Event]:
        if event.type == "message_start" and event.message is not None:
            self._usage.update(event.message.usage or _Usage())
            return [Started(event.message.id or "", event.message.model or "")]
        if event.type == "message_delta":
            if event.delta is not None and event.delta.stop_reason is not None:
                self._stop_reason = event.delta.stop_reason
            if event.usage is None:
                return []
            self._usage.update(event.usage)
            return [self._usage.tokens()]
        if event.type == "message_stop":
            self._over = True
            return [_end(self._stop_reason)]
        return []

    def _broken(self, message: str) -> Failure:
        self._over = True
        return Failure(UpstreamBroken(message))


class _Open:
    """A block that has begun. ``pieces`` are of its thinking, or of its call's arguments."""

    __slots__ = ("block", "call", "pieces")

    def __init__(self, block: _Block) -> None:
        self.block = block
        self.call = -1
        self.pieces: list[str] = []


class _Content:
    """The content blocks of one answer; tool calls are counted without the other blocks between them."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._thinking: list[dict[str, str]] = []
        self._calls = 0

    def start(self, index: int, block: _Block) -> list[Event]:
        opened = self._open[index] = _Open(block)
        if block.type == "text" and block.text:
            return [Text(block.text)]
        if block.type == "thinking" and block.thinking:
            opened.pieces.append(block.thinking)
            return [Reasoning(block.thinking)]
        if block.type == "tool_use":
            opened.call = self._calls
            self._calls += 1
            if block.input:
                opened.pieces.append(msgspec.json.encode(block.input).decode())
            return [ToolCall(opened.call, block.id or "", block.name or "", "".join(opened.pieces))]
        return []

    def delta(self, index: int, delta: _Delta) -> list[Event]:
        if delta.type == "text_delta" and delta.text:
            return [Text(delta.text)]
        opened = self._open.get(index)
        if opened is None:
            return []
        if delta.type == "thinking_delta" and delta.thinking:
            opened.pieces.append(delta.thinking)
            return [Reasoning(delta.thinking)]
        if delta.type == "signature_delta" and delta.signature:
            opened.block.signature = (opened.block.signature or "") + delta.signature
        elif delta.type == "input_json_delta" and delta.partial_json and opened.call >= 0:
            opened.pieces.append(delta.partial_json)
            return [ToolCall(opened.call, arguments=delta.partial_json)]
        return []

    def stop(self, index: int) -> list[Event]:
        opened = self._open.pop(index, None)
        if opened is None:
            return []
        block = opened.block
        if opened.call >= 0 and not opened.pieces:
            return [ToolCall(opened.call, arguments="{}")]
        if block.type == "thinking" and block.signature:
            text = "".join(opened.pieces)
            self._thinking.append({"type": "thinking", "thinking": text, "signature": block.signature})
        elif block.type == "redacted_thinking" and block.data:
            self._thinking.append({"type": "redacted_thinking", "data": block.data})
        else:
            return []
        return [Reasoning("", signature_of(self._thinking))]


def _end(stop_reason: str | None) -> Finish | Failure:
    if stop_reason is None:
        return Failure(UpstreamBroken("The upstream's answer is not whole: it has no stop_reason."))
    return Finish(_REASONS.get(stop_reason, "stop"))


def _error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """An error of Anthropic's has a type, and sometimes a code among its details."""
    error = parse_error(status, headers, body)
    try:
        details = _ERROR.decode(body).error.details
    except BAD_JSON:
        details = None
    error.vendor_code = (details and details.error_code) or error.vendor_code or error.vendor_type
    return error


def _in_band(body: bytes) -> UpstreamError:
    """The error inside an answer or stream that began with status 200."""
    error = _error(502, {}, body)
    error.status = _STATUS.get(error.vendor_type or "", 502)
    return error


def _is_unknown(data: bytes) -> bool:
    """Whether the event is JSON of a type that we do not know, and so of a form that we cannot know."""
    try:
        return _KIND.decode(data).type not in _KNOWN
    except BAD_JSON:
        return False
