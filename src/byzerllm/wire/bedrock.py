"""Amazon Bedrock's Converse and ConverseStream, and the embeddings of InvokeModel.

Facts: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html and API_runtime_ConverseStream.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.anthropic_thinking import signature_of
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.bedrock_request import converse_body, embedding_body
from byzerllm.wire.chat import decode_chat
from byzerllm.wire.embedding import decode_embedding
from byzerllm.wire.events import Event, Failure, Finish, FinishReason, Reasoning, StreamDecoder, Text, Tokens, ToolCall
from byzerllm.wire.eventstream import Frame, FrameReader
from byzerllm.wire.openai import parse_error

_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
}
_MALFORMED = ("malformed_model_output", "malformed_tool_use")

# The status that the same exception has as an answer of its own.
_STATUS = {
    "validationException": 400,
    "accessDeniedException": 403,
    "resourceNotFoundException": 404,
    "modelTimeoutException": 408,
    "modelStreamErrorException": 424,
    "throttlingException": 429,
    "modelNotReadyException": 429,
    "serviceUnavailableException": 503,
}


class _Shape(msgspec.Struct, rename="camel", frozen=True):
    pass


class _ReasoningText(_Shape, frozen=True):
    text: str = ""
    signature: str = ""


class _ReasoningBlock(_Shape, frozen=True):
    reasoning_text: _ReasoningText = _ReasoningText()
    redacted_content: str = ""


class _ReasoningDelta(_ReasoningText, frozen=True):
    redacted_content: str = ""


class _ToolUse(_Shape, frozen=True):
    tool_use_id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _ToolInput(_Shape, frozen=True):
    input: str = ""


class _Block(_Shape, frozen=True):
    text: str = ""
    reasoning_content: _ReasoningBlock | None = None
    tool_use: _ToolUse | None = None


class _Delta(_Shape, frozen=True):
    text: str = ""
    reasoning_content: _ReasoningDelta | None = None
    tool_use: _ToolInput | None = None


class _Usage(_Shape, frozen=True):
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0

    def tokens(self) -> Tokens:
        """Bedrock counts cached tokens apart from the input's others."""
        cached = self.cache_read_input_tokens
        return Tokens(self.input_tokens + cached + self.cache_write_input_tokens, self.output_tokens, cached)


class _Message(_Shape, frozen=True):
    content: list[_Block] = []


class _Output(_Shape, frozen=True):
    message: _Message = _Message()


class _Answer(_Shape, frozen=True):
    stop_reason: str
    output: _Output = _Output()
    usage: _Usage | None = None


class _Payload(_Shape, frozen=True):
    """Of any event of a stream."""

    content_block_index: int = 0
    delta: _Delta = _Delta()
    start: _Block = _Block()
    stop_reason: str = ""
    usage: _Usage | None = None


class _Vectors(_Shape, frozen=True):
    """Titan's one vector, or Cohere's, which are by type where the request names types."""

    embedding: list[float] | None = None
    embeddings: list[list[float]] | dict[str, list[list[float]]] = []
    input_text_token_count: int = 0


_PAYLOAD = msgspec.json.Decoder(_Payload)


class BedrockConverse:
    """Chat with every model that Converse has, and embeddings of Titan's and Cohere's models."""

    name = "bedrock"
    tasks = frozenset((Task.CHAT, Task.EMBEDDING))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        model = f"/model/{quote(vendor.model, safe='')}"  # an ARN has slashes, and a version a colon
        if request.task is Task.EMBEDDING:
            return Outgoing(f"{model}/invoke", msgspec.json.encode(embedding_body(decode_embedding(request), vendor)))
        body = msgspec.json.encode(converse_body(decode_chat(request), vendor))
        return Outgoing(f"{model}/{'converse-stream' if request.stream else 'converse'}", body)

    def stream(self) -> StreamDecoder:
        return ConverseStream()

    def events(self, body: bytes) -> list[Event]:
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except BAD_JSON as error:
            return [Failure(UpstreamBroken(f"The upstream's answer is none of Converse: {error}."))]
        events: list[Event] = []
        thoughts: list[dict[str, str]] = []
        calls = 0
        for block in answer.output.message.content:
            if block.tool_use is not None:
                tool = block.tool_use
                events.append(ToolCall(calls, tool.tool_use_id, tool.name, bytes(tool.input).decode()))
                calls += 1
            elif block.reasoning_content is not None:
                said = block.reasoning_content.reasoning_text
                thought = _Thought([said.text], said.signature, block.reasoning_content.redacted_content)
                events += [Reasoning(said.text)] if said.text else []
                events += thought.signed(thoughts)
            elif block.text:
                events.append(Text(block.text))
        if answer.usage is not None:
            events.append(answer.usage.tokens())
        return [*events, _finish(answer.stop_reason)]

    def embeddings(self, body: bytes) -> tuple[list[list[float]], int]:
        try:
            answer = msgspec.json.decode(body, type=_Vectors)
        except BAD_JSON as error:
            raise UpstreamBroken(f"The upstream's answer has no embeddings: {error}.") from None
        found = answer.embeddings
        vectors = found.get("float", []) if isinstance(found, dict) else found
        if answer.embedding is not None:
            vectors = [answer.embedding]
        if not vectors:
            raise UpstreamBroken("The upstream's answer has no embeddings of type float.")
        return vectors, answer.input_text_token_count

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        error = parse_error(status, headers, body)
        kind = headers.get("x-amzn-errortype", "").partition(":")[0]  # its documentation's address may follow
        error.vendor_code = kind or error.vendor_code
        error.request_id = headers.get("x-amzn-requestid") or error.request_id
        return error


@dataclass
class _Thought:
    """One block of reasoning: text, or what only the vendor can read."""

    pieces: list[str] = field(default_factory=list)
    signature: str = ""
    redacted: str = ""

    def signed(self, thoughts: list[dict[str, str]]) -> list[Event]:
        """The signature of the answer's reasoning up to this block, which joins ``thoughts``. Models other than
        Claude sign nothing."""
        if self.redacted:
            thoughts.append({"type": "redacted_thinking", "data": self.redacted})
        elif self.signature:
            thoughts.append({"type": "thinking", "thinking": "".join(self.pieces), "signature": self.signature})
        else:
            return []
        return [Reasoning("", signature_of(thoughts))]


def _finish(reason: str) -> Event:
    if reason in _MALFORMED:
        message = f"The model's answer cannot be used: it ended with {reason}."
        return Failure(UpstreamError(message, vendor_code=reason, was_answered=True))
    return Finish(_FINISH.get(reason, "stop"))


class ConverseStream:
    """Decodes one answer of ConverseStream. Its usage comes after the reason why it stopped."""

    def __init__(self) -> None:
        self._frames = FrameReader()
        self._calls: dict[int, int] = {}  # the block's index among all -> among the tool calls
        self._without_input: set[int] = set()
        self._thinking: dict[int, _Thought] = {}  # by the block's index, until it is whole
        self._thoughts: list[dict[str, str]] = []
        self._finished = False
        self._failed = False
        self._handlers: dict[object, Callable[[_Payload], list[Event]]] = {
            "contentBlockDelta": self._delta,
            "contentBlockStart": self._start,
            "contentBlockStop": self._stop,
            "messageStop": self._message_stop,
            "metadata": self._metadata,
        }

    def feed(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        if self._failed:
            return events
        try:
            for frame in self._frames.feed(data):
                events += self._frame(frame)
                if events and isinstance(events[-1], Failure):
                    break
        except UpstreamBroken as error:
            events.append(self._fail(error))
        except BAD_JSON as error:
            events.append(self._fail(UpstreamBroken(f"The upstream's event stream has what is no event: {error}.")))
        return events

    def close(self) -> list[Event]:
        if self._failed or self._finished:
            return []
        where = "inside a frame" if self._frames.inside else "without messageStop"
        return [self._fail(UpstreamBroken(f"The upstream's event stream ended {where}."))]

    def _frame(self, frame: Frame) -> list[Event]:
        if frame.headers.get(":message-type") != "event":
            return [self._fail(_exception(frame))]
        handler = self._handlers.get(frame.headers.get(":event-type"))
        return handler(_PAYLOAD.decode(frame.payload)) if handler is not None else []

    def _fail(self, error: UpstreamError) -> Event:
        self._failed = True
        return Failure(error)

    def _delta(self, payload: _Payload) -> list[Event]:
        delta = payload.delta
        if delta.text:
            return [Text(delta.text)]
        if delta.reasoning_content is not None:
            return self._reasoning(payload.content_block_index, delta.reasoning_content)
        if delta.tool_use is None or not delta.tool_use.input or payload.content_block_index not in self._calls:
            return []
        self._without_input.discard(payload.content_block_index)
        return [ToolCall(self._calls[payload.content_block_index], arguments=delta.tool_use.input)]

    def _reasoning(self, index: int, delta: _ReasoningDelta) -> list[Event]:
        thought = self._thinking.setdefault(index, _Thought())
        thought.pieces.append(delta.text)
        thought.signature += delta.signature
        thought.redacted += delta.redacted_content
        return [Reasoning(delta.text)] if delta.text else []

    def _start(self, payload: _Payload) -> list[Event]:
        tool = payload.start.tool_use
        if tool is None:
            return []
        index = self._calls.setdefault(payload.content_block_index, len(self._calls))
        self._without_input.add(payload.content_block_index)
        return [ToolCall(index, tool.tool_use_id, tool.name)]

    def _stop(self, payload: _Payload) -> list[Event]:
        """A call without arguments may come without any input, where clients expect an object."""
        thought = self._thinking.pop(payload.content_block_index, None)
        if thought is not None:
            return thought.signed(self._thoughts)
        if payload.content_block_index not in self._without_input:
            return []
        self._without_input.remove(payload.content_block_index)
        return [ToolCall(self._calls[payload.content_block_index], arguments="{}")]

    def _message_stop(self, payload: _Payload) -> list[Event]:
        event = _finish(payload.stop_reason)
        self._finished = True
        self._failed = isinstance(event, Failure)
        return [event]

    def _metadata(self, payload: _Payload) -> list[Event]:
        return [payload.usage.tokens()] if payload.usage is not None else []


def _exception(frame: Frame) -> UpstreamError:
    """Of an ``exception`` frame, whose payload has the message, or an ``error`` frame, which is headers only."""
    headers = frame.headers
    code = str(headers.get(":exception-type") or headers.get(":error-code") or "")
    error = parse_error(_STATUS.get(code, 500), {}, frame.payload)
    said = headers.get(":error-message")
    error.message = str(said) if said else error.message
    error.vendor_code = code or error.vendor_code
    return error
