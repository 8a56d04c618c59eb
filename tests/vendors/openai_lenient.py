"""iFLYTEK Spark's HTTP API: OpenAI's format without ids, models and finish reasons (providers.md, F1.4)."""

from __future__ import annotations

import json
from typing import Any

from tests.vendors.base import FakeVendor, Script, VendorError

from byzerllm.wire.events import Reasoning, Text, Tokens, ToolCall


def _message(script: Script) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(e.text for e in script if isinstance(e, Text))}
    reasoning = "".join(e.text for e in script if isinstance(e, Reasoning))
    if reasoning:
        message["reasoning_content"] = reasoning
    calls: dict[int, dict[str, Any]] = {}
    for event in script:
        if isinstance(event, ToolCall):
            call = calls.setdefault(
                event.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
            call["id"] += event.id
            call["function"]["name"] += event.name
            call["function"]["arguments"] += event.arguments
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message


def _usage(script: Script) -> dict[str, int] | None:
    counts = [e for e in script if isinstance(e, Tokens)]
    if not counts:
        return None
    last = counts[-1]
    total = last.prompt + last.completion
    return {"prompt_tokens": last.prompt, "completion_tokens": last.completion, "total_tokens": total}


def _deltas(script: Script) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = []
    for event in script:
        if isinstance(event, Text):
            deltas.append({"role": "assistant", "content": event.text})
        elif isinstance(event, Reasoning):
            deltas.append({"role": "assistant", "reasoning_content": event.text})
        elif isinstance(event, ToolCall):
            function = {"name": event.name, "arguments": event.arguments}
            call = {"index": event.index, "id": event.id, "type": "function", "function": function}
            deltas.append({"role": "assistant", "content": "", "tool_calls": [call]})
    return deltas


def _lines(script: Script, usage: dict[str, int] | None) -> bytes:
    deltas = _deltas(script) or [{"role": "assistant", "content": ""}]
    out = b""
    for number, delta in enumerate(deltas):
        chunk: dict[str, Any] = {
            "code": 0,
            "message": "Success",
            "sid": "cha0@dx",
            "id": "cha0@dx",
            "created": 1,
            "choices": [{"delta": delta, "index": 0}],
        }
        if usage and number == len(deltas) - 1:
            chunk["usage"] = usage
        out += b"data:" + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"
    return out


def stream(script: Script) -> bytes:
    return _lines(script, _usage(script)) + b"data:[DONE]\n\n"


def answer(script: Script) -> bytes:
    body: dict[str, Any] = {
        "code": 0,
        "message": "Success",
        "sid": "cha0@dx",
        "choices": [{"message": _message(script), "index": 0}],
    }
    usage = _usage(script)
    return json.dumps(body | ({"usage": usage} if usage else {}), ensure_ascii=False).encode()


def error(status: int, code: str, message: str) -> VendorError:
    body = {"error": {"message": message, "type": "api_error", "param": None, "code": code}}
    return VendorError(status, json.dumps(body).encode(), {"content-type": "application/json"})


def error_in_answer(code: str, message: str) -> bytes:
    return json.dumps({"code": int(code) if code.isdigit() else code, "message": message, "sid": "cha0@dx"}).encode()


def error_in_stream(script: Script, code: str, message: str) -> bytes:
    return _lines(script, None) + b"data:" + error_in_answer(code, message) + b"\n\n"


FAKE = FakeVendor(
    wire="openai_lenient",
    deploy=(
        "--pretrained_model_type", "saas/sparkdesk",
        "--infer_params", "saas.api_key=k", "saas.api_secret=s", "saas.base_url={url}/v1", "saas.model=generalv3",
    ),
    supports=frozenset(("reasoning", "tools", "usage")),
    stream=stream,
    answer=answer,
    error=error,
    error_in_answer=error_in_answer,
    error_in_stream=error_in_stream,
    paths=("/v1/chat/completions",),
)  # fmt: skip
