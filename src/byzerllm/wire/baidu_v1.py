"""Baidu's first chat format, ``wenxinworkshop``: a path a model, errors inside a 200 answer, ``is_end`` at the end.

Facts: the qianfan SDK and Baidu's error table; function calls also public code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from byzerllm.errors import InvalidInput, UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.chat import ChatRequest, Message, decode_chat
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
from byzerllm.wire.limits import called_functions, check_fields
from byzerllm.wire.openai import parse_error
from byzerllm.wire.sse import ServerSentEvent
from byzerllm.wire.sse_json import SseJsonDecoder, malformed

_KNOWN = ("max_tokens", "temperature", "top_p", "stop", "tools", "parallel_tool_calls")
_OWN = ("penalty_score", "disable_search", "user_id")
_FINISH: dict[str, FinishReason] = {
    "length": "length",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_STATUS: dict[int | str, int] = {
    **dict.fromkeys((1, 2, 336000), 500),
    **dict.fromkeys((4, 17, 18, 19, 336501, 336502), 429),
    **dict.fromkeys((13, 14, 100, 110, 111), 401),
    **dict.fromkeys((6, 15), 403),
    **dict.fromkeys((3, *range(336001, 336008), 336101, 336102, 336103, 336104, 336105), 400),
    336100: 503,
}


class _Call(msgspec.Struct):
    name: str = ""
    arguments: str = ""
    thoughts: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Reply(msgspec.Struct):
    id: Any = None
    result: str | None = None
    is_end: bool | None = None
    is_truncated: bool | None = None
    flag: int | None = None
    finish_reason: str | None = None
    function_call: _Call | None = None
    usage: _Usage | None = None
    error_code: int | str | None = None
    error_msg: str | None = None


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage | None = None


_REPLY = msgspec.json.Decoder(_Reply)
_VECTORS = msgspec.json.Decoder(_Vectors)


class BaiduV1:
    """The path's last part is the table's ``endpoint`` for the model, or else the model's name in lower case."""

    name = "baidu_v1"
    tasks = frozenset((Task.CHAT, Task.EMBEDDING))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        known = vendor.models.get(vendor.model, {})  # by the whole name: ERNIE-4.0-8K-Preview is not ERNIE-4.0-8K
        endpoint = quote(str(known.get("endpoint") or vendor.model.lower()), safe="")
        if request.task is Task.EMBEDDING:
            return Outgoing(f"/embeddings/{endpoint}", msgspec.json.encode(_embedding_body(request, vendor)))
        chat = decode_chat(request)
        check_fields(chat, vendor, _KNOWN, ("user", *_OWN))
        return Outgoing(f"/chat/{endpoint}", msgspec.json.encode(_body(chat)))

    def stream(self) -> StreamDecoder:
        return _Decoder(self.events)

    def events(self, body: bytes) -> list[Event]:
        try:
            return _Answer().events(body, whole=True)
        except BAD_JSON as error:
            return [malformed(error)]

    def embeddings(self, body: bytes) -> tuple[list[list[float]], int]:
        try:
            answer = _VECTORS.decode(body)
        except BAD_JSON as error:
            raise _reported(body) or UpstreamBroken(f"Baidu's answer holds no embeddings: {error}.") from None
        vectors = [v.embedding for v in sorted(answer.data, key=lambda v: v.index)]
        return vectors, answer.usage.prompt_tokens if answer.usage else 0

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        error = _reported(body)
        if error is None:
            return parse_error(status, headers, body)
        error.status = status
        return error


def _embedding_body(request: Request, vendor: Vendor) -> dict[str, Any]:
    wanted = decode_embedding(request)
    if wanted.dimensions is not None:
        vendor.needs("dimensions", "dimensions")
    for field, value in wanted.extra.items():
        if value is not None and field != "user":
            raise InvalidInput(f"{vendor.title} has no {field} in this format: leave it out.", param=field)
    body: dict[str, Any] = {"input": list(wanted.texts)}
    return body if wanted.extra.get("user") is None else {**body, "user_id": wanted.extra["user"]}


def _body(chat: ChatRequest) -> dict[str, Any]:
    names = called_functions(chat)
    tools = () if chat.tool_choice == "none" else chat.tools
    body: dict[str, Any] = {
        "messages": [_message(m, names) for m in chat.turns()],
        "system": chat.system() or None,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "max_output_tokens": chat.max_tokens,
        "stop": list(chat.stop) or None,
        "stream": chat.stream or None,
        "functions": [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in tools]
        or None,
        "user_id": chat.extra.get("user"),
    }
    body |= {name: chat.extra[name] for name in _OWN if name in chat.extra}
    return {name: value for name, value in body.items() if value is not None}


def _message(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    if message.role == "tool":
        name = message.name or names.get(message.call_id)
        if not name:
            raise InvalidInput(f"No message calls {message.call_id!r}, which a tool message answers.", param="messages")
        return {"role": "function", "name": name, "content": message.text}
    if message.calls:
        call = message.calls[0]
        made = {"name": call.name, "arguments": call.arguments}
        if message.reasoning:
            made["thoughts"] = message.reasoning
        return {"role": "assistant", "content": message.text or None, "function_call": made}
    return {"role": message.role, "content": message.text}


def _reported(body: bytes) -> UpstreamError | None:
    try:
        reply = _REPLY.decode(body)
    except BAD_JSON:
        return None
    return _failure(reply, body) if reply.error_code else None


def _failure(reply: _Reply, body: bytes) -> UpstreamError:
    code = reply.error_code or 0
    return UpstreamError(
        reply.error_msg or f"Baidu reported the error {code}.",
        status=_STATUS.get(code, 500),
        vendor_code=code,
        request_id=str(reply.id) if reply.id else None,
        body=body,
    )


class _Answer:
    """What has come of one answer. It has no more than one call, and no id for it."""

    def __init__(self) -> None:
        self._started = False
        self._called = False

    def events(self, data: bytes, *, whole: bool = False) -> list[Event]:
        reply = _REPLY.decode(data)
        if reply.error_code:
            return [Failure(_failure(reply, data))]
        if whole and reply.result is None and reply.function_call is None:
            return [Failure(UpstreamBroken("Baidu's answer holds no text."))]
        events: list[Event] = []
        if not self._started:
            self._started = True
            events.append(Started(str(reply.id or "")))
        if reply.result:
            events.append(Text(reply.result))
        if reply.function_call is not None:
            events += self._call(reply, reply.function_call)
        last = whole or bool(reply.is_end)
        if last and reply.usage is not None:
            events.append(Tokens(reply.usage.prompt_tokens, reply.usage.completion_tokens))
        if last:
            events.append(Finish(self._reason(reply)))
        return events

    def _call(self, reply: _Reply, call: _Call) -> list[Event]:
        events: list[Event] = [Reasoning(call.thoughts)] if call.thoughts else []
        first, self._called = not self._called, True
        id, name = (f"call_{reply.id or 0}", call.name) if first else ("", "")
        return [*events, ToolCall(0, id, name, call.arguments)]

    def _reason(self, reply: _Reply) -> FinishReason:
        if reply.finish_reason in _FINISH:
            return _FINISH[reply.finish_reason]
        if reply.flag:
            return "content_filter"
        if self._called:
            return "tool_calls"
        return "length" if reply.is_truncated else "stop"


class _Decoder(SseJsonDecoder):
    _answer: _Answer | None = None

    def _chunk(self, event: ServerSentEvent) -> list[Event]:
        if self._answer is None:
            self._answer = _Answer()
        return self._answer.events(event.data)
