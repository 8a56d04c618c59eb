"""Gemini's own API: ``generateContent``, streamed and not, and embeddings.

Facts: ai.google.dev/api/generate-content. Every chunk of a stream is of the whole answer's form. Nothing but its
``finishReason`` marks the last one; the end of the connection is the end of the stream. A thought's signature comes
with a thought, a text or a function call, and goes back with the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.chat import decode_chat
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
from byzerllm.wire.gemini_request import chat_fields, embedding_fields, model_path
from byzerllm.wire.openai import parse_error
from byzerllm.wire.sse import ServerSentEvent
from byzerllm.wire.sse_json import SseJsonDecoder, malformed

_FINISH: dict[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",  # it paused, and would go on if asked
    **dict.fromkeys(
        ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR"), "content_filter"
    ),
    **dict.fromkeys(("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "IMAGE_OTHER"), "content_filter"),
}  # the others are defects of the answer, as MALFORMED_FUNCTION_CALL
_DELAY = re.compile(r"(\d+(?:\.\d+)?)s")


class Gemini:
    """Implements ``EmbeddingTranslator``."""

    name = "gemini"
    tasks = frozenset((Task.CHAT, Task.EMBEDDING))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        vendor = msgspec.structs.replace(vendor, model=vendor.model.removeprefix("models/"))
        if request.task is Task.EMBEDDING:
            method, fields = embedding_fields(decode_embedding(request), vendor)
        else:
            method = "streamGenerateContent?alt=sse" if request.stream else "generateContent"
            fields = chat_fields(decode_chat(request), vendor)
        return Outgoing(f"{model_path(vendor)}:{method}", msgspec.json.encode(fields))

    def stream(self) -> StreamDecoder:
        return _Stream(self.events)

    def events(self, body: bytes) -> list[Event]:
        try:
            return _Decoder().feed(body)
        except BAD_JSON as error:
            return [malformed(error)]

    def embeddings(self, body: bytes) -> tuple[list[list[float]], int]:
        try:
            answer = _EMBEDDINGS.decode(body)
        except BAD_JSON as error:
            raise UpstreamBroken(f"Gemini's answer cannot be read: {error}.") from None
        if answer.error is not None:
            raise _error(_http_status(answer.error), {}, body)
        found = answer.embeddings if answer.embedding is None else [answer.embedding]
        return [e.values for e in found], 0

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return _error(status, headers, body)


class _Detail(msgspec.Struct, rename="camel"):
    reason: str = ""  # of an ErrorInfo
    retry_delay: str = ""  # of a RetryInfo


class _Status(msgspec.Struct):
    status: str = ""
    details: list[_Detail] = []


class _ErrorBody(msgspec.Struct):
    error: _Status


class _Code(msgspec.Struct):
    code: int = 0


class _FunctionCall(msgspec.Struct):
    name: str
    id: str = ""
    args: msgspec.Raw = msgspec.Raw(b"{}")


class _Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    thought: bool = False
    thought_signature: str = ""
    function_call: _FunctionCall | None = None
    inline_data: msgspec.Raw = msgspec.Raw()


class _Content(msgspec.Struct):
    parts: list[_Part] = []


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str = ""


class _Usage(msgspec.Struct, rename="camel"):
    prompt_token_count: int = 0
    candidates_token_count: int = 0
    thoughts_token_count: int = 0
    cached_content_token_count: int = 0


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str = ""
    block_reason_message: str = ""


class _Chunk(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate] = []
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Usage | None = None
    model_version: str = ""
    response_id: str = ""
    error: _Code | None = None


class _Embedding(msgspec.Struct):
    values: list[float]


class _Embeddings(msgspec.Struct):
    embedding: _Embedding | None = None
    embeddings: list[_Embedding] = []
    error: _Code | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)
_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)
_ERROR_BODY = msgspec.json.Decoder(_ErrorBody | list[_ErrorBody])


class _Decoder:
    """Turns the chunks of one answer into events; a whole answer is one chunk."""

    def __init__(self) -> None:
        self._id = ""
        self._begun = False
        self._calls = 0
        self._usage: _Usage | None = None

    def feed(self, data: bytes) -> list[Event]:
        """The events of the next chunk.

        Raises:
            one of ``BAD_JSON``: it is none of Gemini's.
        """
        chunk = _CHUNK.decode(data)
        if chunk.error is not None:
            return self._fail(_error(_http_status(chunk.error), {}, data))
        events: list[Event] = []
        if not self._begun:
            self._begun, self._id = True, chunk.response_id
            events.append(Started(chunk.response_id, chunk.model_version))
        self._usage = chunk.usage_metadata or self._usage
        if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason:
            return events + self._fail(_blocked(chunk.prompt_feedback, data))
        if chunk.candidates:
            self._candidate(chunk.candidates[0], events)
        return events

    def _fail(self, error: UpstreamError) -> list[Event]:
        """The answer's end with an error; what it cost is still said."""
        return [*self._tokens(), Failure(error)]

    def _candidate(self, candidate: _Candidate, events: list[Event]) -> None:
        for part in candidate.content.parts if candidate.content is not None else ():
            if part.inline_data:
                events += self._fail(_spoiled("Gemini answered with a file, which a chat's answer cannot hold."))
                return
            self._part(part, events)
        if candidate.finish_reason is None:
            return
        reason = _FINISH.get(candidate.finish_reason)
        if reason is None:
            code = candidate.finish_reason
            events += self._fail(_spoiled(candidate.finish_message or f"Gemini stopped: {code}", code))
            return
        events += self._tokens()
        events.append(Finish("tool_calls" if self._calls and reason == "stop" else reason))

    def _part(self, part: _Part, events: list[Event]) -> None:
        call = part.function_call
        if call is not None:
            index = self._calls
            self._calls += 1
            id = call.id or f"call_{self._id}_{index}"  # not all models give one
            events.append(ToolCall(index, id, call.name, bytes(call.args).decode(), part.thought_signature))
        elif part.thought:
            events.append(Reasoning(part.text or "", part.thought_signature))
        else:
            if part.text:
                events.append(Text(part.text))
            if part.thought_signature:
                events.append(Reasoning("", part.thought_signature))

    def _tokens(self) -> list[Event]:
        usage = self._usage
        if usage is None:
            return []
        completion = usage.candidates_token_count + usage.thoughts_token_count
        cached, reasoning = usage.cached_content_token_count, usage.thoughts_token_count
        return [Tokens(usage.prompt_token_count, completion, cached, reasoning)]


class _Stream(SseJsonDecoder):
    def __init__(self, whole: Callable[[bytes], list[Event]]) -> None:
        super().__init__(whole)
        self._decoder = _Decoder()

    def _chunk(self, event: ServerSentEvent) -> list[Event]:
        return self._decoder.feed(event.data)


def _spoiled(message: str, code: str | None = None) -> UpstreamError:
    """An answer that was made, and cannot be used."""
    return UpstreamError(message, vendor_code=code, was_answered=True)


def _blocked(feedback: _Feedback, data: bytes) -> UpstreamError:
    """A prompt that was refused, which Gemini says with status 200 and without candidates."""
    reason = feedback.block_reason
    message = feedback.block_reason_message or f"Gemini blocked the prompt: {reason}"
    return UpstreamError(message, status=400, vendor_code=reason, vendor_type="content_filter", body=data)


def _http_status(error: _Code) -> int:
    return error.code if 400 <= error.code < 600 else 502


def _error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    error = parse_error(status, headers, body)
    try:
        decoded = _ERROR_BODY.decode(body)
    except BAD_JSON:  # not Gemini's own: a proxy's
        return error
    for told in decoded if isinstance(decoded, list) else [decoded]:
        error.vendor_code = told.error.status or error.vendor_code
        for detail in told.error.details:
            delay = _DELAY.fullmatch(detail.retry_delay)
            if delay and error.retry_after is None:
                error.retry_after = float(delay[1])
            if detail.reason == "API_KEY_INVALID":  # with status 400; whoever chooses among keys must see it
                error.status, error.vendor_code = 401, detail.reason
    return error
