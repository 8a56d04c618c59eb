"""OpenAI's Responses API as the upstream of a chat.

Facts: platform.openai.com/docs/api-reference/responses and /responses-streaming. The usage is in a stream's last event,
and no ``[DONE]`` follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.anthropic_thinking import signature_of
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
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
from byzerllm.wire.in_band import status_of
from byzerllm.wire.openai import PATHS, parse_error
from byzerllm.wire.responses_request import responses_body
from byzerllm.wire.sse import ServerSentEvent
from byzerllm.wire.sse_json import SseJsonDecoder, malformed

# Why an answer is not whole; "length" for what is announced later, since the answer lacks its end.
_INCOMPLETE: dict[str | None, FinishReason] = {"max_output_tokens": "length", "content_filter": "content_filter"}
# The status that an error would have had before the answer began; other codes count as the vendor's own failure.
_STATUS: dict[Any, int] = {
    **dict.fromkeys(("bio_policy", "data_residency_mismatch", "invalid_prompt", "misalignment_policy_violation"), 400),
    **dict.fromkeys(("invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url"), 400),
    **dict.fromkeys(("image_too_large", "image_too_small", "image_parse_error", "invalid_image_mode"), 400),
    **dict.fromkeys(("image_content_policy_violation", "image_file_too_large", "image_file_not_found"), 400),
    **dict.fromkeys(("unsupported_image_media_type", "empty_image_file", "failed_to_download_image"), 400),
    "context_length_exceeded": 400,
    "invalid_api_key": 401,
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "vector_store_timeout": 504,
}


class _Part(msgspec.Struct):
    """Of a message's content, or of reasoning."""

    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    """What the model put out: a message, reasoning or a call."""

    type: str = ""
    id: str | None = None
    content: list[_Part] | None = None
    summary: list[_Part] | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _ReasoningTokens(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _CachedTokens | None = None
    output_tokens_details: _ReasoningTokens | None = None

    def tokens(self) -> Tokens:
        prompt, completion = self.input_tokens_details, self.output_tokens_details
        cached = (prompt and prompt.cached_tokens) or 0
        return Tokens(self.input_tokens, self.output_tokens, cached, (completion and completion.reasoning_tokens) or 0)


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    status: str | None = None
    output: list[msgspec.Raw] = []
    usage: _Usage | None = None
    error: dict[str, Any] | None = None
    incomplete_details: _Incomplete | None = None


class _StreamEvent(msgspec.Struct):
    """``item`` and ``response`` are read where the event's type is known: others may have other forms of them."""

    type: str = ""
    output_index: int = 0
    summary_index: int = 0
    delta: Any = None
    item: msgspec.Raw = msgspec.Raw(b"{}")
    response: msgspec.Raw = msgspec.Raw(b"{}")


class _Kind(msgspec.Struct):
    type: str = ""


_EVENT = msgspec.json.Decoder(_StreamEvent)
_RESPONSE = msgspec.json.Decoder(_Response)
_KIND = msgspec.json.Decoder(_Kind)
_ITEM = msgspec.json.Decoder(_Item)
_ITEMS = frozenset(("message", "reasoning", "function_call"))
_LAST = {"response.completed": "completed", "response.incomplete": "incomplete", "response.failed": "failed"}


class Responses:
    """Chats as responses. The base URL is with ``/v1``, as OpenAI's SDKs have it."""

    name = "responses"
    tasks = frozenset((Task.CHAT,))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        return Outgoing(PATHS[Task.RESPONSES], responses_body(request, vendor))

    def stream(self) -> StreamDecoder:
        return ResponsesStream()

    def events(self, body: bytes) -> list[Event]:
        return _whole(body)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return parse_error(status, headers, body)


class ResponsesStream(SseJsonDecoder):
    """Implements ``StreamDecoder``. Events and items of unknown types are skipped: the API announces new ones."""

    def __init__(self) -> None:
        super().__init__(_whole)
        self._output = _Output()

    def _chunk(self, event: ServerSentEvent) -> list[Event]:
        received = _EVENT.decode(event.data)
        kind = received.type
        if isinstance(received.delta, str):
            return self._delta(received, received.delta)
        if kind == "response.output_item.added":
            return self._output.begin(received.output_index, _item(received.item))
        if kind == "response.output_item.done":
            return self._output.done(received.output_index, _item(received.item))
        if kind == "response.created":
            response = _RESPONSE.decode(received.response)
            return [Started(response.id or "", response.model or "")]
        if kind in _LAST:
            return self._output.end(_LAST[kind], _RESPONSE.decode(received.response))
        return [_failure(_error_event(event.data))] if kind == "error" else []

    def _delta(self, event: _StreamEvent, text: str) -> list[Event]:
        kind, place = event.type, event.output_index
        if kind == "response.output_text.delta":
            return [Text(text)]
        if kind == "response.function_call_arguments.delta":
            return self._output.arguments(place, text)
        if kind == "response.reasoning_summary_text.delta":
            return self._output.reasoning((place, event.summary_index), text)
        if kind == "response.reasoning_text.delta":
            return self._output.reasoning((place, -1), text)
        return self._output.refusal(text) if kind == "response.refusal.delta" else []


class _Output:
    """The items of one answer, by their place in it; calls are counted without the other items between them."""

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}
        self._said: set[int] = set()  # the calls of which arguments came
        self._thought: tuple[int, int] | None = None  # the part of the reasoning that came last
        self._encrypted: list[dict[str, str]] = []
        self._refused = False

    def begin(self, place: int, item: _Item | None) -> list[Event]:
        """An item that is still to be filled: its content comes by deltas, or with its end."""
        if item is None or item.type != "function_call" or place in self._calls:
            return []
        number = self._calls[place] = len(self._calls)
        return [ToolCall(number, item.call_id or item.id or "", item.name or "")]

    def arguments(self, place: int, text: str) -> list[Event]:
        if place not in self._calls:
            return []
        self._said.add(place)
        return [ToolCall(self._calls[place], arguments=text)]

    def reasoning(self, part: tuple[int, int], text: str) -> list[Event]:
        """Parts have nothing between them but are paragraphs."""
        apart = "" if self._thought in (None, part) else "\n\n"
        self._thought = part
        return [Reasoning(apart + text)]

    def refusal(self, text: str) -> list[Event]:
        """A refusal is text to read, and not the answer that was asked for."""
        self._refused = True
        return [Text(text)]

    def done(self, place: int, item: _Item | None) -> list[Event]:
        """What only the end of an item tells: arguments that came in no delta, and reasoning in encrypted form."""
        if item is None:
            return []
        if item.type == "function_call":
            events = self.begin(place, item)
            return events if place in self._said else events + self.arguments(place, item.arguments or "{}")
        if not item.encrypted_content:
            return []
        encrypted = {"type": "reasoning", "id": item.id or "", "encrypted_content": item.encrypted_content}
        self._encrypted.append(encrypted)
        return [Reasoning("", signature_of(self._encrypted))]

    def whole(self, place: int, item: _Item | None) -> list[Event]:
        """The events of an item that came at once."""
        if item is None:
            return []
        events: list[Event] = []
        for part in item.content or ():
            if item.type == "reasoning":
                events += self.reasoning((place, -1), part.text or "")
            elif part.refusal:
                events += self.refusal(part.refusal)
            elif part.text:
                events.append(Text(part.text))
        for number, part in enumerate(item.summary or ()):
            events += self.reasoning((place, number), part.text or "")
        return events + self.done(place, item)

    def end(self, status: str | None, response: _Response) -> list[Event]:
        """The last events: the counts, and how it ended."""
        events: list[Event] = [response.usage.tokens()] if response.usage is not None else []
        if response.error is not None:
            return [*events, _failure(response.error)]
        if status == "incomplete":
            details = response.incomplete_details or _Incomplete()
            return [*events, Finish(_INCOMPLETE.get(details.reason, "length"))]
        if status != "completed":
            return [*events, Failure(UpstreamBroken(f"The upstream's answer is not whole: its status is {status}."))]
        if self._refused:
            return [*events, Finish("content_filter")]
        return [*events, Finish("tool_calls" if self._calls else "stop")]


def _whole(body: bytes) -> list[Event]:
    """The events of an answer that is no stream."""
    output = _Output()
    try:
        response = _RESPONSE.decode(body)
        events: list[Event] = [Started(response.id or "", response.model or "")]
        for place, raw in enumerate(response.output):
            events += output.whole(place, _item(raw))
    except BAD_JSON as error:
        return [malformed(error)]
    return events + output.end(response.status, response)


def _item(raw: msgspec.Raw) -> _Item | None:
    """The item, or None for one of another type."""
    return _ITEM.decode(raw) if _KIND.decode(raw).type in _ITEMS else None


def _error_event(data: bytes) -> dict[str, Any]:
    """The error of an ``error`` event: documented as the event's own fields, and met as an object inside it."""
    event: dict[str, Any] = msgspec.json.decode(data)
    inner = event.get("error")
    return inner if isinstance(inner, dict) else {**event, "type": None}


def _failure(fields: dict[str, Any]) -> Failure:
    """An error inside an answer that began with status 200."""
    error = parse_error(502, {}, msgspec.json.encode({"error": fields}))
    error.status = _STATUS.get(error.vendor_code) or status_of(error.vendor_code)
    return Failure(error)
