"""DashScope's own API as its documents and its SDK have it: no space after a colon, the status of a frame in a
comment, cumulative usage on every frame, ``"null"`` while it goes on, and no end mark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.vendors.base import FakeVendor, Script, VendorError

from byzerllm.wire.events import Event, Finish, Reasoning, Text, Tokens, ToolCall

MODEL = "qwen-plus"
REQUEST_ID = "902fee3b-f7f0-9a8c-96a1-6b4ea25af114"


def _usage(script: Script) -> dict[str, Any]:
    tokens = next((e for e in script if isinstance(e, Tokens)), Tokens(1, 1))
    usage: dict[str, Any] = {
        "total_tokens": tokens.prompt + tokens.completion,
        "input_tokens": tokens.prompt,
        "output_tokens": tokens.completion,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }
    if tokens.reasoning:
        usage["output_tokens_details"] = {"reasoning_tokens": tokens.reasoning}
    return usage


def _content(text: str, multimodal: bool) -> str | list[dict[str, str]]:
    if not multimodal:
        return text
    return [{"text": text}] if text else []


def _body(message: dict[str, Any], finish: str, usage: dict[str, Any]) -> dict[str, Any]:
    choice = {"message": {**message, "role": "assistant"}, "finish_reason": finish}
    return {"output": {"choices": [choice]}, "usage": usage, "request_id": REQUEST_ID}


def _frame(number: int, value: dict[str, Any], event: str = "result", status: int = 200) -> bytes:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"id:{number}\nevent:{event}\n:HTTP_STATUS/{status}\ndata:{data}\n\n".encode()


def _piece(event: Event, multimodal: bool) -> dict[str, Any] | None:
    if isinstance(event, Text):
        return {"content": _content(event.text, multimodal)}
    if isinstance(event, Reasoning):
        return {"content": _content("", multimodal), "reasoning_content": event.text}
    if isinstance(event, ToolCall):
        function = {"name": event.name, "arguments": event.arguments}
        call = {"index": event.index, "id": event.id, "type": "function", "function": function}
        return {"content": _content("", multimodal), "tool_calls": [call]}
    return None


def _begun(script: Script, multimodal: bool) -> Iterator[dict[str, Any]]:
    whole = _usage(script)
    usage = {name: whole[name] for name in ("input_tokens", "prompt_tokens_details")}
    for number, event in enumerate(script, 1):
        message = _piece(event, multimodal)
        if message is not None:
            so_far = {**usage, "output_tokens": number, "total_tokens": number + usage["input_tokens"]}
            yield _body(message, "null", so_far)


def _finish(script: Script) -> str:
    return next(e.reason for e in script if isinstance(e, Finish))


def stream(script: Script, multimodal: bool = False) -> bytes:
    frames = [
        *_begun(script, multimodal),
        _body({"content": _content("", multimodal)}, _finish(script), _usage(script)),
    ]
    return b"".join(_frame(number, frame) for number, frame in enumerate(frames, 1))


def answer(script: Script, multimodal: bool = False) -> bytes:
    text = "".join(e.text for e in script if isinstance(e, Text))
    message: dict[str, Any] = {
        "content": _content(text, multimodal),
        "reasoning_content": "".join(e.text for e in script if isinstance(e, Reasoning)),
    }
    pieces = [e for e in script if isinstance(e, ToolCall)]
    calls = []
    for first in [e for e in pieces if e.name]:
        arguments = "".join(e.arguments for e in pieces if e.index == first.index)
        function = {"name": first.name, "arguments": arguments}
        calls.append({"index": first.index, "id": first.id, "type": "function", "function": function})
    if calls:
        message["tool_calls"] = calls
    body = _body(message, _finish(script), _usage(script))
    body["output"] |= {"text": None, "finish_reason": None}
    return json.dumps(body, ensure_ascii=False).encode()


def _error_body(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "request_id": REQUEST_ID}


def error(status: int, code: str, message: str) -> VendorError:
    return VendorError(status, json.dumps(_error_body(code, message)).encode(), {"content-type": "application/json"})


def error_in_answer(code: str, message: str) -> bytes:
    return json.dumps(_error_body(code, message)).encode()


def error_in_stream(script: Script, code: str, message: str, status: int = 400) -> bytes:
    frames = [_frame(number, frame) for number, frame in enumerate(_begun(script, False), 1)]
    return b"".join([*frames, _frame(len(frames) + 1, _error_body(code, message), "error", status)])


FAKE = FakeVendor(
    wire="dashscope",
    deploy=(
        "--pretrained_model_type",
        "saas/qianwen",
        "--infer_params",
        "saas.wire=dashscope",
        "saas.base_url={url}/api/v1",
        "saas.api_key=sk-test",
        f"saas.model={MODEL}",
    ),
    supports=frozenset(("reasoning", "tools", "usage", "length")),
    stream=stream,
    answer=answer,
    error=error,
    error_in_answer=error_in_answer,
    error_in_stream=error_in_stream,
    paths=("/api/v1/services/aigc/text-generation/generation",),
)
