"""Gemini's API as its documents and its SDK's types have it: whole objects as chunks, usage on each, no end mark."""

from __future__ import annotations

import json
from typing import Any

from tests.vendors.base import FakeVendor, Script, VendorError

from byzerllm.wire.events import Event, Finish, Reasoning, Text, Tokens, ToolCall

MODEL = "gemini-3-flash"
RESPONSE_ID = "pTkvaZKzDqWx"

_REASONS = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}


def _parts(script: Script) -> list[dict[str, Any]]:
    """The pieces in their order, each call whole and where its first piece is."""
    parts: list[dict[str, Any]] = []
    calls: dict[int, list[ToolCall]] = {}
    for event in script:
        if isinstance(event, ToolCall):
            if event.index not in calls:
                calls[event.index] = []
                parts.append({"call": event.index})
            calls[event.index].append(event)
        elif isinstance(event, Text | Reasoning):
            parts.append(_said(event))
    return [_call(calls[p["call"]]) if "call" in p else p for p in parts]


def _said(event: Event) -> dict[str, Any]:
    if isinstance(event, Text):
        return {"text": event.text}
    assert isinstance(event, Reasoning)
    part: dict[str, Any] = {"text": event.text, "thought": True}
    if event.signature:
        part["thoughtSignature"] = event.signature
    return part


def _call(pieces: list[ToolCall]) -> dict[str, Any]:
    first = pieces[0]
    call = {"id": first.id, "name": first.name, "args": json.loads("".join(p.arguments for p in pieces) or "{}")}
    part: dict[str, Any] = {"functionCall": {name: value for name, value in call.items() if value != ""}}
    if first.signature:
        part["thoughtSignature"] = first.signature
    return part


def _usage(script: Script) -> dict[str, Any]:
    tokens = next((e for e in script if isinstance(e, Tokens)), Tokens(1, 1))
    usage: dict[str, Any] = {
        "promptTokenCount": tokens.prompt,
        "candidatesTokenCount": tokens.completion - tokens.reasoning,
        "totalTokenCount": tokens.prompt + tokens.completion,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens.prompt}],
    }
    if tokens.reasoning:
        usage["thoughtsTokenCount"] = tokens.reasoning
    if tokens.cached:
        usage["cachedContentTokenCount"] = tokens.cached
    return usage


def _answer(parts: list[dict[str, Any]], usage: dict[str, Any], finish: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"} if parts else {"role": "model"}}
    if finish:
        candidate["finishReason"] = finish
    candidate["index"] = 0
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": MODEL,
        "responseId": RESPONSE_ID,
    }


def _finish(script: Script) -> str:
    return next(_REASONS[e.reason] for e in script if isinstance(e, Finish))


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\r\n\r\n".encode()


def _begun(script: Script) -> list[bytes]:
    usage = {name: value for name, value in _usage(script).items() if name in ("promptTokenCount", "totalTokenCount")}
    return [_event(_answer([part], usage, None)) for part in _parts(script)]


def stream(script: Script) -> bytes:
    end = _event(_answer([{"text": ""}], _usage(script), _finish(script)))
    return b"".join([*_begun(script), end])


def answer(script: Script) -> bytes:
    return json.dumps(_answer(_parts(script), _usage(script), _finish(script)), indent=2).encode()


def error_body(status: int, code: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "status": code, **({"details": details} if details else {})}}


def error(status: int, code: str, message: str) -> VendorError:
    body = json.dumps(error_body(status, code, message), indent=2).encode()
    return VendorError(status, body, {"content-type": "application/json; charset=UTF-8"})


def error_in_stream(script: Script, code: str, message: str) -> bytes:
    return b"".join([*_begun(script), _event(error_body(503, code, message))])


FAKE = FakeVendor(
    wire="gemini",
    deploy=(
        "--pretrained_model_type",
        "saas/gemini",
        "--infer_params",
        "saas.base_url={url}/v1beta",
        "saas.api_key=AIza-test",
        f"saas.model={MODEL}",
    ),
    supports=frozenset(("reasoning", "tools", "usage", "length")),
    stream=stream,
    answer=answer,
    error=error,
    error_in_stream=error_in_stream,
    paths=(
        f"/v1beta/models/{MODEL}:generateContent",
        f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse",
    ),
)
