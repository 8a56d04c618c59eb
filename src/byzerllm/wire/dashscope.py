"""DashScope's own API: chats, streamed and not, on the text and the multimodal path, and embeddings.

Facts: alibabacloud.com/help/en/model-studio/qwen-api-via-dashscope. In a stream each frame has the cumulative usage,
and a comment with the HTTP status that an error inside the stream would have had. No frame ends the stream but the
one with a ``finish_reason``; ``"null"`` is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.chat import decode_chat
from byzerllm.wire.dashscope_request import chat_fields, embedding_fields
from byzerllm.wire.embedding import decode_embedding
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
from byzerllm.wire.sse import ServerSentEvent
from byzerllm.wire.sse_json import SseJsonDecoder, malformed

_EMBEDDING = "/services/embeddings/text-embedding/text-embedding"
_SSE = {"X-DashScope-SSE": "enable", "Accept": "text/event-stream"}
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}
_UNFINISHED = ("null", "", None)
_STATUS = b"HTTP_STATUS/"
DEFAULT_STATUS = 400  # of an error that comes without: what the vendor's SDK takes


class DashScope:
    """Implements ``EmbeddingTranslator``."""

    name = "dashscope"
    tasks = frozenset((Task.CHAT, Task.EMBEDDING))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        if request.task is Task.EMBEDDING:
            fields = embedding_fields(decode_embedding(request), vendor)
            return Outgoing(_EMBEDDING, msgspec.json.encode(fields))
        path, fields = chat_fields(decode_chat(request), vendor)
        return Outgoing(path, msgspec.json.encode(fields), _SSE if request.stream else {})

    def stream(self) -> StreamDecoder:
        return _Stream(self.events)

    def events(self, body: bytes) -> list[Event]:
        try:
            return _Decoder().feed(body, DEFAULT_STATUS)
        except BAD_JSON as error:
            return [malformed(error)]

    def embeddings(self, body: bytes) -> tuple[list[list[float]], int]:
        try:
            answer = _EMBEDDINGS.decode(body)
        except BAD_JSON as error:
            raise UpstreamBroken(f"DashScope's answer cannot be read: {error}.") from None
        if answer.code:
            raise parse_error(DEFAULT_STATUS, {}, body)
        found = sorted(answer.output.embeddings, key=lambda e: e.text_index)
        return [e.embedding for e in found], answer.usage.total_tokens

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return parse_error(status, headers, body)


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    function: _Function
    index: int | None = None
    id: str | None = None


class _Message(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Output(msgspec.Struct):
    choices: list[_Choice] | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Frame(msgspec.Struct):
    output: _Output | None = None
    usage: _Usage | None = None
    request_id: str = ""
    code: str | None = None


class _Embedding(msgspec.Struct):
    embedding: list[float]
    text_index: int = 0


class _EmbeddingOutput(msgspec.Struct):
    embeddings: list[_Embedding] = []


class _EmbeddingUsage(msgspec.Struct):
    total_tokens: int = 0


class _Embeddings(msgspec.Struct):
    output: _EmbeddingOutput = msgspec.field(default_factory=_EmbeddingOutput)
    usage: _EmbeddingUsage = msgspec.field(default_factory=_EmbeddingUsage)
    code: str | None = None


_FRAME = msgspec.json.Decoder(_Frame)
_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)


class _Decoder:
    """Turns the frames of one answer into events; a whole answer is one frame."""

    def __init__(self) -> None:
        self._begun = False
        self._calls: set[int] = set()
        self._usage: _Usage | None = None

    def feed(self, data: bytes, status: int) -> list[Event]:
        """The events of the next frame. ``status`` is what an error in it means.

        Raises:
            one of ``BAD_JSON``: it is none of DashScope's.
        """
        frame = _FRAME.decode(data)
        if frame.code:
            return self.fail(parse_error(status, {}, data))
        events: list[Event] = []
        if not self._begun:
            self._begun = True
            events.append(Started(frame.request_id))
        self._usage = frame.usage or self._usage
        if frame.output is not None and frame.output.choices:
            self._choice(frame.output.choices[0], events)
        return events

    def fail(self, error: UpstreamError) -> list[Event]:
        """The answer's end with an error; what it cost is still said."""
        return [*self._tokens(), Failure(error)]

    def _choice(self, choice: _Choice, events: list[Event]) -> None:
        message = choice.message
        if message.reasoning_content:
            events.append(Reasoning(message.reasoning_content))
        content = message.content or ""
        for part in [{"text": content}] if isinstance(content, str) else content:
            text = part.get("text")
            if not isinstance(text, str) and any(part.values()):
                what = f"DashScope answered with a part of {', '.join(part)}, which a chat cannot hold."
                events += self.fail(UpstreamError(what, was_answered=True))
                return
            if text:
                events.append(Text(text))
        for position, call in enumerate(message.tool_calls or ()):
            self._call(position if call.index is None else call.index, call, events)
        self._finish(choice.finish_reason, events)

    def _call(self, index: int, call: _Call, events: list[Event]) -> None:
        """A call's later pieces repeat its id and name, or have empty ones."""
        arguments = call.function.arguments or ""
        if index in self._calls:
            events.append(ToolCall(index, arguments=arguments))
        else:
            self._calls.add(index)
            events.append(ToolCall(index, call.id or f"call_{index}", call.function.name or "", arguments))

    def _finish(self, reason: str | None, events: list[Event]) -> None:
        if reason in _UNFINISHED:
            return
        events += self._tokens()
        known = _FINISH.get(reason or "")
        if known is None:
            error = UpstreamError(f"DashScope stopped: {reason}", vendor_code=reason, was_answered=True)
            events.append(Failure(error))
        else:
            events.append(Finish(known))

    def _tokens(self) -> list[Event]:
        usage = self._usage
        if usage is None:
            return []
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
        reasoning = usage.output_tokens_details.reasoning_tokens if usage.output_tokens_details else None
        return [Tokens(usage.input_tokens, usage.output_tokens, cached or 0, reasoning or 0)]


class _Stream(SseJsonDecoder):
    def __init__(self, whole: Callable[[bytes], list[Event]]) -> None:
        super().__init__(whole)
        self._decoder = _Decoder()

    def _chunk(self, event: ServerSentEvent) -> list[Event]:
        if event.name == b"error":
            return self._decoder.fail(parse_error(frame_status(event), {}, event.data))
        return self._decoder.feed(event.data, frame_status(event))


def frame_status(frame: ServerSentEvent) -> int:
    """The HTTP status that a frame's comment names, where it is an error's."""
    text = frame.comment.strip().removeprefix(_STATUS)
    status = int(text) if text.isdigit() and len(text) == 3 else 0
    return status if 400 <= status < 600 else DEFAULT_STATUS
