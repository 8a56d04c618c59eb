"""iFlytek Spark over its websocket: one request frame, answer frames until ``status`` 2, one exchange a connection.

The decoder takes the frames' JSON texts, each ended by a line feed. Facts: iFlytek's web documents and its SDK.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.chat import ChatRequest, Message, decode_chat
from byzerllm.wire.events import (
    Event,
    Failure,
    Finish,
    Reasoning,
    Started,
    StreamDecoder,
    Text,
    Tokens,
    ToolCall,
)
from byzerllm.wire.in_band import status_of
from byzerllm.wire.limits import called_functions, check_fields
from byzerllm.wire.openai import parse_error
from byzerllm.wire.sse_json import malformed

_KNOWN = ("max_tokens", "temperature", "top_k", "tools", "parallel_tool_calls")
_PENALTIES = ("presence_penalty", "frequency_penalty")  # of the newer models: the table says which
_OWN = ("auditing", "chat_id", "random_threshold", "thinking")
_LAST = 2


class _Header(msgspec.Struct):
    code: int | str = 0
    message: str = ""
    sid: str = ""
    status: int | None = None


class _Call(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Text(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    function_call: _Call | None = None


class _Choices(msgspec.Struct):
    status: int | None = None
    text: list[_Text] = []


class _Count(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Usage(msgspec.Struct):
    text: _Count = msgspec.field(default_factory=_Count)


class _Payload(msgspec.Struct):
    choices: _Choices | None = None
    usage: _Usage | None = None


class _Frame(msgspec.Struct):
    header: _Header
    payload: _Payload | None = None

    @property
    def is_last(self) -> bool:
        choices = self.payload.choices if self.payload is not None else None
        return self.header.status == _LAST or (choices is not None and choices.status == _LAST)


_FRAME = msgspec.json.Decoder(_Frame)


def signed_query(host: str, path: str, date: str, *, api_key: str, api_secret: str, method: str = "GET") -> str:
    """The query string that authenticates one request; ``date`` is as in an HTTP header, in GMT."""
    text = f"host: {host}\ndate: {date}\n{method} {path} HTTP/1.1"
    digest = hmac.new(api_secret.encode(), text.encode(), hashlib.sha256).digest()
    fields = {
        "api_key": api_key,
        "algorithm": "hmac-sha256",
        "headers": "host date request-line",
        "signature": base64.b64encode(digest).decode(),
    }
    authorization = ", ".join(f'{name}="{value}"' for name, value in fields.items())
    return urlencode({"authorization": base64.b64encode(authorization.encode()).decode(), "date": date, "host": host})


class Spark:
    """``path`` is the one that the table has for the model, for an address that has none of its own."""

    name = "spark"
    tasks = frozenset((Task.CHAT,))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        chat = decode_chat(request)
        known = _KNOWN + (_PENALTIES if vendor.fact("penalties") else ())
        check_fields(chat, vendor, known, ("user", *_OWN))
        header = {"app_id": vendor.params["appid"]}
        if chat.extra.get("user") is not None:
            header["uid"] = chat.extra["user"]
        frame = {"header": header, "parameter": {"chat": _parameters(chat, vendor)}, "payload": _payload(chat)}
        return Outgoing(str(vendor.fact("path") or ""), msgspec.json.encode(frame))

    def stream(self) -> StreamDecoder:
        return _Decoder()

    def events(self, body: bytes) -> list[Event]:
        decoder = _Decoder()
        return [*decoder.feed(body), *decoder.close()]

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return parse_error(status, headers, body)

    def is_last(self, frame: bytes) -> bool:
        try:
            decoded = _FRAME.decode(frame)
        except BAD_JSON:
            return True
        return decoded.is_last or decoded.header.code != 0


def _parameters(chat: ChatRequest, vendor: Vendor) -> dict[str, Any]:
    wanted = {
        "domain": vendor.model,
        "temperature": chat.temperature,
        "top_k": chat.top_k,
        "max_tokens": chat.max_tokens,
    }
    wanted |= {name: getattr(chat, name) for name in _PENALTIES}
    wanted |= {name: chat.extra.get(name) for name in _OWN}
    return {name: value for name, value in wanted.items() if value is not None}


def _payload(chat: ChatRequest) -> dict[str, Any]:
    names = called_functions(chat)
    payload: dict[str, Any] = {"message": {"text": [_message(m, names) for m in chat.messages]}}
    if chat.tools and chat.tool_choice != "none":
        functions = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in chat.tools]
        payload["functions"] = {"text": functions}
    return payload


def _message(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.role == "tool":
        sent |= {"role": "function", "name": message.name or names.get(message.call_id, "")}
    if message.calls:
        sent["function_call"] = {"name": message.calls[0].name, "arguments": message.calls[0].arguments}
    return sent


class _Decoder:
    """Frames to events. An answer holds no more than one call, and no id for it."""

    def __init__(self) -> None:
        self._rest = b""
        self._started = self._called = self._over = False

    def feed(self, data: bytes) -> list[Event]:
        *frames, self._rest = (self._rest + data).split(b"\n")
        return [event for frame in frames for event in self._frame(frame)]

    def close(self) -> list[Event]:
        rest, self._rest = self._rest, b""
        events = self._frame(rest)
        if not self._over:
            events.append(Failure(UpstreamBroken("Spark closed the connection before the answer was whole.")))
        return events

    def _frame(self, data: bytes) -> list[Event]:
        if self._over or not data.strip():
            return []
        try:
            frame = _FRAME.decode(data)
        except BAD_JSON as error:
            self._over = True
            return [malformed(error)]
        self._over = frame.is_last or frame.header.code != 0
        if frame.header.code != 0:
            return [Failure(_failure(frame.header, data))]
        return self._events(frame)

    def _events(self, frame: _Frame) -> list[Event]:
        payload = frame.payload or _Payload()
        events: list[Event] = [] if self._started else [Started(frame.header.sid)]
        self._started = True
        for text in payload.choices.text if payload.choices is not None else ():
            if text.reasoning_content:
                events.append(Reasoning(text.reasoning_content))
            if text.content:
                events.append(Text(text.content))
            if text.function_call is not None:
                events.append(self._call(text.function_call, frame.header.sid))
        if payload.usage is not None:
            count = payload.usage.text
            events.append(Tokens(count.prompt_tokens, count.completion_tokens))
        if frame.is_last:
            events.append(Finish("tool_calls" if self._called else "stop"))
        return events

    def _call(self, call: _Call, sid: str) -> ToolCall:
        first, self._called = not self._called, True
        id, name = (f"call_{sid or 0}", call.name or "") if first else ("", "")
        return ToolCall(0, id, name, call.arguments or "")


def _failure(header: _Header, frame: bytes) -> UpstreamError:
    return UpstreamError(
        header.message or f"Spark reported the error {header.code}.",
        status=status_of(header.code),
        vendor_code=header.code,
        request_id=header.sid or None,
        body=frame,
    )
