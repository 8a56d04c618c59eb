"""Anthropic's Messages API as its documents and its SDK's types have it: named events, pings, usage in two places."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.vendors.base import FakeVendor, Script, VendorError

from byzerllm.wire.events import Finish, Reasoning, Text, Tokens, ToolCall

MODEL = "claude-haiku-4-5-20251001"
REQUEST_ID = "req_011CSHoEeqs5C35K2UUqR7Fy"

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def _blocks(script: Script) -> list[dict[str, Any]]:
    """The script's pieces as Anthropic groups them: one block after another, each tool call in one of its own."""
    blocks: list[dict[str, Any]] = []
    calls: dict[int, dict[str, Any]] = {}
    for event in script:
        last = blocks[-1] if blocks else {"kind": ""}
        if isinstance(event, ToolCall):
            if event.index not in calls:
                calls[event.index] = {"kind": "tool_use", "id": event.id, "name": event.name, "pieces": []}
                blocks.append(calls[event.index])
            calls[event.index]["pieces"].append(event.arguments)
        elif isinstance(event, Reasoning):
            if last["kind"] != "thinking" or last["signature"]:
                blocks.append({"kind": "thinking", "pieces": [], "signature": ""})
            blocks[-1]["pieces"].append(event.text)
            blocks[-1]["signature"] = event.signature
        elif isinstance(event, Text):
            if last["kind"] != "text":
                blocks.append({"kind": "text", "pieces": []})
            blocks[-1]["pieces"].append(event.text)
    return blocks


def _usage(script: Script) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the first event says of the prompt, and what the last says of the answer."""
    tokens = next((e for e in script if isinstance(e, Tokens)), None)
    if tokens is None:
        return {"input_tokens": 0, "output_tokens": 1}, {"output_tokens": 1}
    prompt = {
        "input_tokens": tokens.prompt - tokens.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 1,
        "service_tier": "standard",
    }
    answer: dict[str, Any] = {"output_tokens": tokens.completion}
    if tokens.reasoning:
        answer["output_tokens_details"] = {"thinking_tokens": tokens.reasoning}
    return prompt, answer


def _stop(script: Script) -> dict[str, Any]:
    reason = next(_STOP_REASONS[e.reason] for e in script if isinstance(e, Finish))
    stop: dict[str, Any] = {"stop_reason": reason, "stop_sequence": None}
    if reason == "refusal":
        stop["stop_details"] = {"type": "refusal", "category": None, "explanation": None}
    return stop


def _message(content: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"id": "msg_01", "type": "message", "role": "assistant", "model": MODEL, "content": content, **fields}


def _deltas(block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    kinds = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}
    kind, field = kinds.get(block["kind"], ("input_json_delta", "partial_json"))
    if block["kind"] == "tool_use":
        yield {"type": kind, field: ""}  # the real one begins every call so
    for piece in block["pieces"]:
        yield {"type": kind, field: piece}
    if block.get("signature"):
        yield {"type": "signature_delta", "signature": block["signature"]}


def _begin(block: dict[str, Any]) -> dict[str, Any]:
    if block["kind"] == "tool_use":
        return {"type": "tool_use", "id": block["id"], "name": block["name"], "input": {}}
    if block["kind"] == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _pieces(script: Script) -> list[bytes]:
    usage, _ = _usage(script)
    start = _message([], stop_reason=None, stop_sequence=None, usage=usage)
    events = [_event("message_start", message=start)]
    for index, block in enumerate(_blocks(script)):
        events.append(_event("content_block_start", index=index, content_block=_begin(block)))
        if index == 0:
            events.append(_event("ping"))
        events += [_event("content_block_delta", index=index, delta=d) for d in _deltas(block)]
        events.append(_event("content_block_stop", index=index))
    return events


def stream(script: Script) -> bytes:
    _, usage = _usage(script)
    end = [_event("message_delta", delta=_stop(script), usage=usage), _event("message_stop")]
    return b"".join(_pieces(script) + end)


def answer(script: Script) -> bytes:
    content: list[dict[str, Any]] = []
    for block in _blocks(script):
        whole = "".join(block["pieces"])
        if block["kind"] == "tool_use":
            content.append({**_begin(block), "input": json.loads(whole or "{}")})
        elif block["kind"] == "thinking":
            content.append({"type": "thinking", "thinking": whole, "signature": block["signature"]})
        else:
            content.append({"type": "text", "text": whole})
    prompt, output = _usage(script)
    return json.dumps(_message(content, **_stop(script), usage={**prompt, **output})).encode()


def _error_body(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": code, "message": message}, "request_id": REQUEST_ID}


def error(status: int, code: str, message: str) -> VendorError:
    headers = {"content-type": "application/json", "request-id": REQUEST_ID}
    return VendorError(status, json.dumps(_error_body(code, message)).encode(), headers)


def error_in_stream(script: Script, code: str, message: str) -> bytes:
    body = _error_body(code, message)
    return b"".join(_pieces(script)) + _event("error", **{k: v for k, v in body.items() if k != "type"})


FAKE = FakeVendor(
    wire="anthropic",
    deploy=(
        "--pretrained_model_type",
        "saas/claude",
        "--infer_params",
        "saas.base_url={url}",
        "saas.api_key=sk-ant-test",
        f"saas.model={MODEL}",
    ),
    supports=frozenset(("text", "reasoning", "tools", "usage", "cached", "vision", "json_schema")),
    stream=stream,
    answer=answer,
    error=error,
    error_in_stream=error_in_stream,
    paths=("/v1/messages",),
)
