"""Huawei's Pangu models, as an address that the owner of the instance knows, or as a deployment of the cloud service.

The first form is what private gateways take: one text with the roles in it, no stream, no key. The second
(``saas.deployment_id``) has messages and a stream, whose end nothing marks for sure. Facts: the Huawei Cloud SDK; the
shape of the stream is not documented, so what its descendants send is accepted too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.chat import ChatRequest, decode_chat
from byzerllm.wire.events import Event, Failure, Finish, FinishReason, Started, StreamDecoder, Text, Tokens
from byzerllm.wire.limits import check_fields
from byzerllm.wire.openai import parse_error
from byzerllm.wire.sse import ServerSentEvent
from byzerllm.wire.sse_json import SseJsonDecoder, malformed

_COMMON = ("max_tokens", "temperature", "top_p")
_CLOUD = (*_COMMON, "presence_penalty", "frequency_penalty")
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
_FINISH: dict[str, FinishReason] = {"length": "length", "content_filter": "content_filter"}
_STATUS = {"PANGU.0010": 400, "PANGU.0011": 401, "PANGU.0012": 401, "PANGU.3308": 400, "PANGU.3315": 400}


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Text | None = None
    delta: _Text | None = None
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        return next((t.content for t in (self.message, self.delta) if t is not None and t.content), "")


class _Answer(msgspec.Struct):
    content: str = ""
    tokens: float = 0


class _Usage(msgspec.Struct):
    prompt_tokens: float = 0
    completion_tokens: float = 0


class _Reply(msgspec.Struct):
    id: Any = None
    answers: list[_Answer] | None = None
    tokens: float | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error_code: Any = None
    error_msg: str | None = None
    suggestion: str | None = None  # of the moderation of a stream


_REPLY = msgspec.json.Decoder(_Reply)


class Pangu:
    """With ``saas.deployment_id`` the base URL is the cloud service's; without, it is the whole address of the call."""

    name = "pangu"
    tasks = frozenset((Task.CHAT,))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        chat = decode_chat(request)
        if vendor.params.get("deployment_id"):
            check_fields(chat, vendor, _CLOUD, ("user",))
            return Outgoing(_deployment_path(vendor.params), msgspec.json.encode(_cloud_body(chat)))
        check_fields(chat, vendor, _COMMON, ("lang",))
        return Outgoing("", msgspec.json.encode(_prompt_body(chat, vendor)))

    def stream(self) -> StreamDecoder:
        return _Decoder(self.events)

    def events(self, body: bytes) -> list[Event]:
        try:
            reply = _REPLY.decode(body)
        except BAD_JSON as error:
            return [malformed(error)]
        if reply.error_code:
            return [Failure(_failure(reply, body))]
        if reply.answers:
            text, usage = reply.answers[0].content, _prompt_tokens(reply, reply.answers[0])
            return [Started(), Text(text), *usage, Finish("stop")]
        if reply.choices:
            reason = _FINISH.get(reply.choices[0].finish_reason or "", "stop")
            return [Started(str(reply.id or "")), Text(reply.choices[0].text), *_tokens(reply), Finish(reason)]
        return [Failure(UpstreamBroken("Pangu's answer holds no text."))]

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        try:
            reply = _REPLY.decode(body)
        except BAD_JSON:
            reply = _Reply()
        return _failure(reply, body, status) if reply.error_code else parse_error(status, headers, body)


def _deployment_path(params: Mapping[str, str]) -> str:
    project, pool, deployment = (
        quote(params.get(name, ""), safe="") for name in ("project_id", "pool_id", "deployment_id")
    )
    base = f"/v2/{project}/pools/{pool}" if pool else f"/v1/{project}"
    return f"{base}/deployments/{deployment}/chat/completions"


def _cloud_body(chat: ChatRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [{"role": m.role, "content": m.text} for m in chat.messages],
        "stream": chat.stream or None,
        "user": chat.extra.get("user"),
    }
    body |= {name: getattr(chat, name) for name in _CLOUD}
    return {name: value for name, value in body.items() if value is not None}


def _prompt_body(chat: ChatRequest, vendor: Vendor) -> dict[str, Any]:
    lines = [f"{_NAMES[m.role]}: {m.text}" for m in chat.messages]
    strategy = {"temperature": chat.temperature, "max_output_tokens": chat.max_tokens, "top_p": chat.top_p}
    return {
        "lang": chat.extra.get("lang") or vendor.params.get("lang") or "cn",
        "data": ["\n".join([*lines, "Assistant: "])],
        "decode_strategy": {name: value for name, value in strategy.items() if value is not None},
    }


def _prompt_tokens(reply: _Reply, answer: _Answer) -> list[Event]:
    if reply.tokens is None:
        return []
    return [Tokens(max(int(reply.tokens - answer.tokens), 0), int(answer.tokens))]


def _tokens(reply: _Reply) -> list[Event]:
    usage = reply.usage
    return [Tokens(int(usage.prompt_tokens), int(usage.completion_tokens))] if usage is not None else []


def _failure(reply: _Reply, body: bytes, status: int | None = None) -> UpstreamError:
    code = str(reply.error_code)
    known = 401 if code.startswith(("APIG.", "APIGW.")) else 500  # the gateway's are about access
    return UpstreamError(
        reply.error_msg or f"Pangu reported the error {code}.",
        status=status or _STATUS.get(code, known),
        vendor_code=code,
        request_id=str(reply.id) if reply.id else None,
        body=body,
    )


class _Decoder(SseJsonDecoder):
    _started = False

    def _chunk(self, event: ServerSentEvent) -> list[Event]:
        if event.data.strip() == b"[DONE]":
            return [Finish("stop")]
        reply = _REPLY.decode(event.data)
        if reply.error_code:
            return [Failure(_failure(reply, event.data))]
        if event.name == b"moderation":
            return [Finish("content_filter")] if reply.suggestion == "block" else []
        events: list[Event] = [] if self._started else [Started(str(reply.id or ""))]
        self._started = True
        choice = reply.choices[0] if reply.choices else _Choice()
        if choice.text:
            events.append(Text(choice.text))
        events += _tokens(reply)
        if choice.finish_reason:
            events.append(Finish(_FINISH.get(choice.finish_reason, "stop")))
        return events

    def _cut_off(self) -> Event:
        return Finish("stop") if self._started else super()._cut_off()
