"""OpenAI's Responses API as its documents and its SDK's types have it: named, numbered events and no ``[DONE]``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.vendors.base import FakeVendor, Script, VendorError

from byzerllm.wire.events import Finish, Reasoning, Text, Tokens, ToolCall

MODEL = "gpt-5.2"
REQUEST_ID = "req_5f3c1c"

_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}


def _items(script: Script) -> list[dict[str, Any]]:
    """The script's pieces as the API groups them: items one after another, each call one of its own."""
    items: list[dict[str, Any]] = []
    calls: dict[int, dict[str, Any]] = {}
    for event in script:
        if isinstance(event, ToolCall):
            if event.index not in calls:
                calls[event.index] = {"kind": "function_call", "id": event.id, "name": event.name, "pieces": []}
                items.append(calls[event.index])
            calls[event.index]["pieces"].append(event.arguments)
        elif isinstance(event, Text | Reasoning):
            kind = "message" if isinstance(event, Text) else "reasoning"
            if not items or items[-1]["kind"] != kind:
                items.append({"kind": kind, "pieces": [], "encrypted": None})
            items[-1]["pieces"].append(event.text)
            if isinstance(event, Reasoning):
                items[-1]["encrypted"] = event.signature or items[-1]["encrypted"]
    return items


def _item(place: int, item: dict[str, Any], *, whole: bool) -> dict[str, Any]:
    """An item as it ends, or as a stream begins it."""
    said = "".join(item["pieces"]) if whole else ""
    status = "completed" if whole else "in_progress"
    if item["kind"] == "function_call":
        call = {"arguments": said, "call_id": item["id"], "name": item["name"], "status": status}
        return {"id": f"fc_{place}", "type": "function_call", **call}
    if item["kind"] == "reasoning":
        summary = [{"type": "summary_text", "text": said}] if whole else []
        encrypted = {"encrypted_content": item["encrypted"]} if item["encrypted"] and whole else {}
        return {"id": f"rs_{place}", "type": "reasoning", "summary": summary, **encrypted}
    content = [_text(said)] if whole else []
    return {"id": f"msg_{place}", "type": "message", "status": status, "content": content, "role": "assistant"}


def _text(said: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": said}


def _response(status: str, output: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {
        "id": "resp_67cb32528d6881909eb2859a55e18a85",
        "object": "response",
        "created_at": 1741369938,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": MODEL,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": {},
        **fields,
    }


def _ended(script: Script) -> dict[str, Any]:
    reason = next(_REASONS.get(e.reason) for e in script if isinstance(e, Finish))
    output = [_item(place, item, whole=True) for place, item in enumerate(_items(script))]
    details = {"reason": reason} if reason else None
    return _response("incomplete" if reason else "completed", output, incomplete_details=details, usage=_usage(script))


def _usage(script: Script) -> dict[str, Any] | None:
    tokens = next((e for e in script if isinstance(e, Tokens)), None)
    if tokens is None:
        return None
    return {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
        "output_tokens": tokens.completion,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.prompt + tokens.completion,
    }


def _filling(place: int, item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events between an item's beginning and its end."""
    at: dict[str, Any] = {"item_id": _item(place, item, whole=False)["id"], "output_index": place}
    whole = "".join(item["pieces"])
    if item["kind"] == "function_call":
        for piece in item["pieces"]:
            yield "response.function_call_arguments.delta", {**at, "delta": piece}
        yield "response.function_call_arguments.done", {**at, "arguments": whole}
    elif item["kind"] == "reasoning":
        at["summary_index"] = 0
        yield "response.reasoning_summary_part.added", {**at, "part": {"type": "summary_text", "text": ""}}
        for piece in item["pieces"]:
            yield "response.reasoning_summary_text.delta", {**at, "delta": piece, "obfuscation": "Zq1"}
        yield "response.reasoning_summary_text.done", {**at, "text": whole}
        yield "response.reasoning_summary_part.done", {**at, "part": {"type": "summary_text", "text": whole}}
    else:
        at["content_index"] = 0
        yield "response.content_part.added", {**at, "part": _text("")}
        for piece in item["pieces"]:
            yield "response.output_text.delta", {**at, "delta": piece, "logprobs": [], "obfuscation": "a8Zq1"}
        yield "response.output_text.done", {**at, "text": whole, "logprobs": []}
        yield "response.content_part.done", {**at, "part": _text(whole)}


def _begun(script: Script) -> Iterator[tuple[str, dict[str, Any]]]:
    begun = _response("in_progress", [])
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for place, item in enumerate(_items(script)):
        yield "response.output_item.added", {"output_index": place, "item": _item(place, item, whole=False)}
        yield from _filling(place, item)
        yield "response.output_item.done", {"output_index": place, "item": _item(place, item, whole=True)}


def _encoded(events: list[tuple[str, dict[str, Any]]]) -> bytes:
    return b"".join(
        f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': number, **fields})}\n\n".encode()
        for number, (kind, fields) in enumerate(events)
    )


def stream(script: Script) -> bytes:
    end = _ended(script)
    return _encoded([*_begun(script), (f"response.{end['status']}", {"response": end})])


def answer(script: Script) -> bytes:
    return json.dumps(_ended(script), indent=2, ensure_ascii=False).encode()


def error(status: int, code: str, message: str) -> VendorError:
    fields = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    headers = {"content-type": "application/json", "x-request-id": REQUEST_ID}
    return VendorError(status, json.dumps({"error": fields}, indent=2).encode(), headers)


def error_in_answer(code: str, message: str) -> bytes:
    return json.dumps(_response("failed", [], error={"code": code, "message": message})).encode()


def error_in_stream(script: Script, code: str, message: str) -> bytes:
    return _encoded([*_begun(script), ("error", {"code": code, "message": message, "param": None})])


FAKE = FakeVendor(
    wire="responses",
    deploy=(
        "--pretrained_model_type",
        "saas/openai_response",
        "--infer_params",
        "saas.base_url={url}/v1",
        "saas.api_key=sk-test",
        f"saas.model={MODEL}",
    ),
    supports=frozenset(("reasoning", "tools", "usage", "length")),
    stream=stream,
    answer=answer,
    error=error,
    error_in_answer=error_in_answer,
    error_in_stream=error_in_stream,
    paths=("/v1/responses",),
)
