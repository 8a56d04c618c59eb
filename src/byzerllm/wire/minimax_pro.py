"""MiniMax's first chat format, ``/text/chatcompletion_pro``, of the abab models: bots and senders instead of roles.

Its API says what goes wrong inside a 200 answer (``base_resp``) and counts only the tokens of prompt and answer
together. Facts: the vendor's documents of 2024, checked against public code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from byzerllm.errors import UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.chat import ChatRequest, Message, decode_chat
from byzerllm.wire.events import Event, Failure, Finish, FinishReason, Started, StreamDecoder, Text, Tokens
from byzerllm.wire.in_band import status_of
from byzerllm.wire.limits import check_fields
from byzerllm.wire.openai import parse_error
from byzerllm.wire.sse import ServerSentEvent
from byzerllm.wire.sse_json import SseJsonDecoder, malformed

_BOT, _USER = "Assistant", "User"
_NO_SETTING = f"{_BOT} is a helpful assistant."  # the API demands one; this stands where no system message does
_KNOWN = ("max_tokens", "temperature", "top_p")
_OWN = ("sample_messages", "plugins")
_FINISH: dict[str, FinishReason] = {"length": "length", "max_output": "length", "content_filter": "content_filter"}


class _Message(msgspec.Struct):
    text: str = ""


class _Choice(msgspec.Struct):
    messages: list[_Message] = []
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    total_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Outcome(msgspec.Struct):
    status_code: int | str = 0
    status_msg: str = ""


class _Reply(msgspec.Struct):
    id: Any = None
    trace_id: Any = None
    model: str | None = None
    reply: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    base_resp: _Outcome | None = None


_REPLY = msgspec.json.Decoder(_Reply)


class MiniMaxPro:
    """The base URL is the whole address of the call."""

    name = "minimax_pro"
    tasks = frozenset((Task.CHAT,))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        chat = decode_chat(request)
        check_fields(chat, vendor, _KNOWN, ("glyph", *_OWN), names=True)
        return Outgoing("", msgspec.json.encode(_body(chat, vendor)))

    def stream(self) -> StreamDecoder:
        return _Decoder(self.events)

    def events(self, body: bytes) -> list[Event]:
        try:
            return _Answer().events(body)
        except BAD_JSON as error:
            return [malformed(error)]

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        try:
            reply = _REPLY.decode(body)
        except BAD_JSON:
            reply = _Reply()
        if reply.base_resp is not None and reply.base_resp.status_code:
            return _failure(reply, reply.base_resp, body, status)
        return parse_error(status, headers, body)


def _body(chat: ChatRequest, vendor: Vendor) -> dict[str, Any]:
    reply: dict[str, Any] = {"sender_type": "BOT", "sender_name": _BOT}
    if chat.extra.get("glyph") is not None:  # a template that the answer must follow
        reply["glyph"] = chat.extra["glyph"]
    body: dict[str, Any] = {
        "model": vendor.model,
        "bot_setting": [{"bot_name": _BOT, "content": chat.system() or _NO_SETTING}],
        "messages": [_message(m) for m in chat.turns()],
        "reply_constraints": reply,
    }
    if chat.stream:  # without the second one its events have no empty line between them
        body |= {"stream": True, "use_standard_sse": True}
    options = {"tokens_to_generate": chat.max_tokens, "temperature": chat.temperature, "top_p": chat.top_p}
    own = {name: chat.extra.get(name) for name in _OWN}
    return body | {name: value for name, value in (options | own).items() if value is not None}


def _message(message: Message) -> dict[str, str]:
    if message.role == "assistant":
        return {"sender_type": "BOT", "sender_name": _BOT, "text": message.text}
    return {"sender_type": "USER", "sender_name": message.name or _USER, "text": message.text}


def _failure(reply: _Reply, outcome: _Outcome, body: bytes, status: int | None = None) -> UpstreamError:
    request_id = reply.trace_id or reply.id
    return UpstreamError(
        outcome.status_msg or f"MiniMax reported the error {outcome.status_code}.",
        status=status or status_of(outcome.status_code),
        vendor_code=outcome.status_code,
        request_id=str(request_id) if request_id else None,
        body=body,
    )


class _Answer:
    """What has come of one answer. The last chunk of a stream may repeat the whole text, as ``reply`` does."""

    def __init__(self) -> None:
        self._started = False
        self._text: list[str] = []

    def events(self, data: bytes) -> list[Event]:
        reply = _REPLY.decode(data)
        if reply.base_resp is not None and reply.base_resp.status_code:
            return [Failure(_failure(reply, reply.base_resp, data))]
        events: list[Event] = []
        if not self._started:
            self._started = True
            events.append(Started(str(reply.id or ""), reply.model or ""))
        choice = reply.choices[0] if reply.choices else _Choice()
        text = "".join(m.text for m in choice.messages)
        if choice.finish_reason and text == reply.reply:
            text = text.removeprefix("".join(self._text))
        if text:
            self._text.append(text)
            events.append(Text(text))
        if reply.usage is not None:
            events.append(_tokens(reply.usage))
        if choice.finish_reason:
            events.append(Finish(_FINISH.get(choice.finish_reason, "stop")))
        return events


def _tokens(usage: _Usage) -> Tokens:
    """Where only the sum is told it counts as the prompt's, so that no speed of generation is made up from it."""
    return Tokens(usage.prompt_tokens or usage.total_tokens - usage.completion_tokens, usage.completion_tokens)


class _Decoder(SseJsonDecoder):
    _answer: _Answer | None = None

    def _chunk(self, event: ServerSentEvent) -> list[Event]:
        if event.data.strip() == b"[DONE]":
            return []
        if self._answer is None:
            self._answer = _Answer()
        return self._answer.events(event.data)
