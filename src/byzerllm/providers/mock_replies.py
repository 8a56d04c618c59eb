"""What the built-in mock upstream answers: knobs, OpenAI's request and answer shapes, and the HTTP bytes of a reply.

Pure, except that the knob ``stamp`` reads the clock: a request in, a ``Reply`` out. ``mock.py`` has the sockets.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec

from byzerllm.wire.base import BAD_JSON

MODELS = ("mock-chat", "mock-embedding", "mock-speech", "mock-transcription", "mock-image", "mock-rerank")
_COUNT = (" one", " two", " three", " four", " five", " six", " seven", " eight", " nine", " ten")
_WORD = re.compile(r"\s*\S+(?:\s+\Z)?")
_TOOL = re.compile(r"\btool\b", re.IGNORECASE)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"x-request-id: mock-%d\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: mock-%d\r\nContent-Length: %d\r\n\r\n"
_GARBAGE = b"\x00\x01 the mock upstream was told to send garbage \xff\xfe\r\n\r\n"
_encode = msgspec.json.Encoder().encode

Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Knobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the mock answers one request. Times are in seconds."""

    latency: Seconds = 0.0  # before the first byte
    itl: Seconds = 0.0  # between the tokens of a stream
    tokens: Count | None = None  # length of the answer; by default it echoes the last user message
    reply: str = ""  # this text instead
    stamp: bool = False  # each streamed token is the time it was sent, in monotonic nanoseconds
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 8
    models: str = ""  # comma-separated names: these exist and no others
    api_key: str = ""  # demand this key
    fail_status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    fail_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0  # the share that fails, evenly spread
    fail_every: Count = 0  # every Nth request fails; wins over fail_rate
    retry_after: Seconds = 0.0  # the Retry-After header of such a failure
    drop: Count = 0  # every Nth request is cut before any byte
    cut_after: Count | None = None  # the connection is closed after so many tokens
    stall_after: Count | None = None  # nothing more is sent after so many tokens
    malformed: bool = False  # a stream sends garbage for events, any other answer garbage for HTTP

    def failing_status(self, number: int) -> int | None:
        """The status that request ``number`` (counted from 1) is to fail with, or None."""
        if self.fail_every:
            fails = number % self.fail_every == 0
        else:
            fails = int(number * self.fail_rate) > int((number - 1) * self.fail_rate)
        return self.fail_status if fails else None


class Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part["text"] for part in self.content if isinstance(part.get("text"), str))
        return self.content or ""


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Function(msgspec.Struct):
    name: str


class Tool(msgspec.Struct):
    function: Function


class Generation(msgspec.Struct, kw_only=True):
    """What chat and text completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class ChatRequest(Generation, kw_only=True):
    messages: list[Message]
    tools: list[Tool] | None = None
    tool_choice: Any = None


class CompletionRequest(Generation, kw_only=True):
    prompt: str | list[Any] = ""


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    model: str
    input: str | list[Any]
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=65_536)] | None = None
    encoding_format: str | None = None


_decode_chat = msgspec.json.Decoder(ChatRequest).decode
_decode_completion = msgspec.json.Decoder(CompletionRequest).decode
_decode_embedding = msgspec.json.Decoder(EmbeddingRequest).decode


class Refusal(Exception):
    """The request gets an OpenAI error body; caught where the answer is made."""

    def __init__(self, status: int, message: str, code: str | None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


class Reply(msgspec.Struct):
    """What to write: ``parts`` after ``delay`` seconds, ``gap`` seconds apart, and what to do at their end."""

    parts: Iterator[bytes]
    delay: float = 0.0
    gap: float = 0.0
    then: Literal["next", "close", "stall"] = "next"
    single: bool = False


def whole(data: bytes, delay: float = 0.0, then: Literal["next", "close", "stall"] = "next") -> Reply:
    """A reply in one part."""
    return Reply(iter((data,)), delay=delay, then=then, single=True)


def read(decode: Callable[[bytes], Any], body: bytes) -> Any:
    """The request that the body holds; a ``Refusal`` where it holds none."""
    try:
        return decode(body)
    except BAD_JSON as error:
        raise Refusal(400, f"The request body is not valid: {error}", "invalid_request") from None


def check_model(model: str, knobs: Knobs) -> None:
    """Refuse a model that the knobs do not have."""
    if knobs.models and model not in knobs.models.split(","):
        raise Refusal(404, f"The model {model!r} does not exist.", "model_not_found", "model")


def model_list(knobs: Knobs) -> Reply:
    """The reply to GET /models."""
    names = knobs.models.split(",") if knobs.models else MODELS
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "mock"} for name in names]
    return whole(response(0, {"object": "list", "data": data}))


class Answer(msgspec.Struct):
    """The generated tokens, or the call of ``tool``, with the numbers that go with them."""

    tokens: list[str]
    finish: str
    prompt_tokens: int
    tool: str = ""

    @property
    def usage(self) -> dict[str, int]:
        made = len(self.tokens)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }


def counted(length: int) -> list[str]:
    """So many tokens; neighbours differ, since some gateways take repetition for a broken model."""
    turns, rest = divmod(length, len(_COUNT))
    tokens = [*_COUNT * turns, *_COUNT[:rest]]
    return [tokens[0].strip(), *tokens[1:]] if tokens else tokens


def _generate(request: Generation, prompt: str, prompt_tokens: int, knobs: Knobs) -> Answer:
    limit = request.max_completion_tokens or request.max_tokens
    if knobs.reply:
        tokens = _WORD.findall(knobs.reply)
    elif knobs.tokens is not None:
        tokens = counted(knobs.tokens)
    else:
        tokens = _WORD.findall(f"You said: {prompt}")
    if limit is not None and len(tokens) > limit > 0:
        return Answer(tokens[:limit], "length", prompt_tokens)
    return Answer(tokens, "stop", prompt_tokens)


def chat(body: bytes, knobs: Knobs, number: int, now: float) -> Reply:
    """The reply to a chat completion; ``number`` makes its ids, ``now`` is in seconds since 1970."""
    request: ChatRequest = read(_decode_chat, body)
    check_model(request.model, knobs)
    texts = [message.text for message in request.messages]
    said = [t for t, m in zip(texts, request.messages, strict=True) if m.role == "user"]
    prompt = said[-1] if said else ""
    answer = _generate(request, prompt, sum(len(text.split()) for text in texts), knobs)
    if request.tools and request.tool_choice != "none" and not knobs.reply and _TOOL.search(prompt):
        answer = Answer(["{}"], "tool_calls", answer.prompt_tokens, request.tools[0].function.name)
    head = {"id": f"chatcmpl-mock-{number}", "created": int(now), "model": request.model}
    if request.stream:
        return _stream(answer, request, knobs, number, {**head, "object": "chat.completion.chunk"}, _chat_piece)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.tokens)}
    if answer.tool:
        message = {"role": "assistant", "content": None, "tool_calls": [_tool_call(number, answer.tool, "{}")]}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
    completion = {**head, "object": "chat.completion", "choices": [choice], "usage": answer.usage}
    return plain(response(number, completion), answer.tokens, knobs)


def complete(body: bytes, knobs: Knobs, number: int, now: float) -> Reply:
    """The reply to a text completion."""
    request: CompletionRequest = read(_decode_completion, body)
    check_model(request.model, knobs)
    prompt = _inputs(request.prompt)[0]
    answer = _generate(request, prompt, len(prompt.split()), knobs)
    head = {
        "id": f"cmpl-mock-{number}",
        "object": "text_completion",
        "created": int(now),
        "model": request.model,
    }
    if request.stream:
        return _stream(answer, request, knobs, number, head, _text_piece)
    choice = _text_piece("".join(answer.tokens), answer.finish)
    return plain(response(number, {**head, "choices": [choice], "usage": answer.usage}), answer.tokens, knobs)


def embed(body: bytes, knobs: Knobs, number: int) -> Reply:
    """The reply to an embedding request."""
    request: EmbeddingRequest = read(_decode_embedding, body)
    check_model(request.model, knobs)
    texts = _inputs(request.input)
    size = request.dimensions or knobs.dimensions
    data = []
    for index, text in enumerate(texts):
        vector: list[float] | str = unit_vector(text, size)
        if request.encoding_format == "base64":
            vector = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    used = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": used, "total_tokens": used}
    vectors = {"object": "list", "data": data, "model": request.model, "usage": usage}
    return plain(response(number, vectors), ["vector"], knobs)


def unit_vector(text: str, size: int) -> list[float]:
    """The embedding of ``text``: the same for the same text, of length 1."""
    numbers = struct.unpack(f"<{size}i", hashlib.shake_256(text.encode()).digest(4 * size))
    norm = sum(n * n for n in numbers) ** 0.5 or 1.0
    return [n / norm for n in numbers]


def _inputs(value: str | list[Any]) -> list[str]:
    """The texts of a prompt or input, which may also be one list of token numbers or a list of such lists."""
    if isinstance(value, str):
        return [value]
    if not value or isinstance(value[0], int):
        return [" ".join(map(str, value))]
    return [item if isinstance(item, str) else str(item) for item in value]


def _tool_call(number: int, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_mock_{number}", "type": "function", "function": function}


def _chat_piece(text: str | None, finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}


def _text_piece(text: str | None, finish: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish}


Piece = Callable[[str | None, str | None], dict[str, Any]]


def _stream(
    answer: Answer, request: Generation, knobs: Knobs, number: int, head: dict[str, Any], piece: Piece
) -> Reply:
    options = request.stream_options
    with_usage = bool(options and options.include_usage)
    if with_usage:
        head["usage"] = None

    def event(*choices: dict[str, Any], **fields: Any) -> bytes:
        return _chunk(b"data: %b\n\n" % _encode({**head, "choices": choices, **fields}))

    start = _STREAM_HEAD % number
    if knobs.malformed:
        garbage = _chunk(b"data: {" + _GARBAGE)
        return Reply(iter((start, garbage)), delay=knobs.latency, gap=knobs.itl, then="close")
    tokens, then = _shortened(answer.tokens, knobs)
    if piece is _chat_piece:
        start += event({"index": 0, "delta": _opening(answer, number), "finish_reason": None})
    end = event(piece(None, answer.finish))
    if with_usage:
        end += event(usage=answer.usage)
    end += _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    @lru_cache(maxsize=16)  # long answers are counted words: each is made once
    def render(token: str) -> bytes:
        if answer.tool:
            call = {"index": 0, "function": {"arguments": token}}
            return event({"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None})
        return event(piece(token, None))

    parts = _parts(start, tokens, render, end if then == "next" else b"", knobs.stamp)
    return Reply(parts, delay=knobs.latency, gap=knobs.itl, then=then)


def _parts(start: bytes, tokens: list[str], render: Callable[[str], bytes], end: bytes, stamp: bool) -> Iterator[bytes]:
    """The stream in the pieces that time passes between: the first token comes with the head."""
    for token in tokens:
        yield start + render(f" {time.monotonic_ns()}" if stamp else token)
        start = b""
    if start or end:
        yield start + end


def _opening(answer: Answer, number: int) -> dict[str, Any]:
    if not answer.tool:
        return {"role": "assistant", "content": ""}
    call = {"index": 0, **_tool_call(number, answer.tool, "")}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _shortened(tokens: list[str], knobs: Knobs) -> tuple[list[str], Literal["next", "close", "stall"]]:
    """The tokens that are sent, and what happens after them."""
    if knobs.cut_after is not None and knobs.cut_after < len(tokens):
        return tokens[: knobs.cut_after], "close"
    if knobs.stall_after is not None and knobs.stall_after < len(tokens):
        return tokens[: knobs.stall_after], "stall"
    return tokens, "next"


def plain(data: bytes, tokens: list[str], knobs: Knobs) -> Reply:
    """An answer in one piece; where the stream would be cut or stall, so does this, before its end."""
    if knobs.malformed:
        return whole(_GARBAGE, knobs.latency, "close")
    _, then = _shortened(tokens, knobs)
    if then != "next":
        data = data[: -len(data) // 4]
    return whole(data, knobs.latency, then)


def failure(refusal: Refusal, retry_after: float = 0.0) -> bytes:
    """The refusal as an HTTP answer with OpenAI's error body."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    headers = f"Retry-After: {retry_after:g}\r\n" if retry_after else ""
    return response(0, {"error": error}, refusal.status, headers)


def response(number: int, body: dict[str, Any], status: int = 200, headers: str = "") -> bytes:
    """A JSON body as a whole HTTP answer."""
    data = _encode(body)
    if status == 200:
        return _OK_HEAD % (number, len(data)) + data
    phrase = next((s.phrase for s in HTTPStatus if s == status), "Error")
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
